//! What a web terminal sends beside the bytes: `%ping`, `%resize ROWS COLS`, `%show graph PATH`.

use super::shell::Size;

/// An order, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Are you there?
    Ping,
    /// The window has another size.
    Resize(Size),
    /// The history of the repository at this path; of the one where the shell is if that is `.`.
    ShowGraph(String),
}

const UNKNOWN: &str = "Invalid command.";

/// Understands an order.
///
/// # Errors
/// A sentence for whoever gave it.
pub fn parse(code: &str) -> Result<Order, String> {
    let words = code.trim().strip_prefix('%').and_then(shlex::split).ok_or(UNKNOWN)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["ping"] => Ok(Order::Ping),
        ["resize", rows, columns] => match (size(rows), size(columns)) {
            (Some(rows), Some(columns)) => Ok(Order::Resize(Size { rows, columns })),
            _ => Err(format!("{UNKNOWN} ROWS and COLS of `%resize ROWS COLS` are numbers from 1 to {}", u16::MAX)),
        },
        ["resize", ..] => Err(format!("{UNKNOWN} It is `%resize ROWS COLS`")),
        ["show", "graph"] => Ok(Order::ShowGraph(".".to_owned())),
        ["show", "graph", path] => Ok(Order::ShowGraph(path.to_owned())),
        ["show", ..] => Err(format!("{UNKNOWN} It is `%show graph PATH`; a PATH with spaces needs quotes")),
        _ => Err(UNKNOWN.to_owned()),
    }
}

fn size(word: &str) -> Option<u16> {
    word.parse().ok().filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn orders_are_understood() {
        assert_eq!(parse("%ping"), Ok(Order::Ping));
        assert_eq!(parse(" %ping\n"), Ok(Order::Ping));
        assert_eq!(parse("%resize 40 132"), Ok(Order::Resize(Size { rows: 40, columns: 132 })));
        assert_eq!(parse("%show graph ."), Ok(Order::ShowGraph(".".into())));
        assert_eq!(parse("%show graph"), Ok(Order::ShowGraph(".".into())));
        assert_eq!(parse("%show graph 'my repo'"), Ok(Order::ShowGraph("my repo".into())));
    }

    #[test]
    fn all_else_is_invalid_and_near_misses_are_explained() {
        for code in ["", "ls", "%", "%%ping", "%ping x", "%show graph 'open", "%reboot"] {
            assert_eq!(parse(code), Err("Invalid command.".into()), "{code:?}");
        }
        for code in
            ["%resize", "%resize 1", "%resize 0 80", "%resize -1 80", "%resize 70000 1", "%show", "%show graph a b"]
        {
            let problem = parse(code).unwrap_err();
            assert!(problem.starts_with("Invalid command. ") && problem.len() > 30, "{code:?}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(code in "\\PC*") {
            let _ = parse(&format!("%{code}"));
            let _ = parse(&code);
        }
    }
}
