//! Parses enough of a Java source to name its file and the class to start.
//!
//! Knows comments, strings and braces only; errors in the code are left to the compiler.

/// The types that a source declares at its top.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outline {
    /// The stem of the file, which has to be that of the public type, if there is one.
    pub(super) file: String,
    /// The class to start, with its package.
    pub(super) main_class: String,
}

/// What a file is called that declares nothing public.
const NO_PUBLIC_TYPE: &str = "main";

impl Outline {
    /// The first public class is started, else the first type with a `main`.
    pub(super) fn of(code: &str) -> Self {
        let (mut package, mut public, mut with_main) = (String::new(), None, None);
        let (mut current, mut is_public, mut depth) = (None, false, 0_u32);
        let mut tokens = JavaTokens(code).peekable();
        while let Some(token) = tokens.next() {
            match token {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                "package" if depth == 0 && current.is_none() => {
                    package = tokens.by_ref().take_while(|token| *token != ";").collect::<String>() + ".";
                }
                ";" if depth == 0 => is_public = false,
                "public" if depth == 0 => is_public = true,
                "class" | "interface" | "enum" | "record" if depth == 0 => {
                    current = tokens.next();
                    if is_public {
                        public = public.or(current);
                    }
                    is_public = false;
                }
                "main" if depth == 1 && tokens.peek() == Some(&"(") => with_main = with_main.or(current),
                _ => {}
            }
        }
        let main_class = public.or(with_main).unwrap_or(NO_PUBLIC_TYPE);
        Self { file: public.unwrap_or(NO_PUBLIC_TYPE).to_owned(), main_class: format!("{package}{main_class}") }
    }
}

/// Iterates over words and single characters, without comments, literals and white space.
struct JavaTokens<'a>(&'a str);

impl<'a> Iterator for JavaTokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = self.0.trim_start();
            let rest = self.0;
            let length = if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                rest.get(2..)?.find("*/").map_or(rest.len(), |end| end + 4)
            } else if let Some(quote) = ["\"\"\"", "\"", "'"].into_iter().find(|quote| rest.starts_with(quote)) {
                literal(rest, quote)
            } else {
                let first = rest.chars().next()?;
                let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
                let (token, after) = rest.split_at(if is_word(first) { length } else { first.len_utf8() });
                self.0 = after;
                return Some(token);
            };
            self.0 = &rest[length..];
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// The length of the literal at the start, quotes included. One that is not closed ends with the text.
fn literal(text: &str, quote: &str) -> usize {
    let mut at = quote.len();
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(quote) {
            return at + quote.len();
        }
        let skipped = if rest.starts_with('\\') { 2 } else { 1 };
        at += rest.chars().take(skipped).map(char::len_utf8).sum::<usize>();
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn assert_outline(code: &str, file: &str, main_class: &str) {
        assert_eq!(Outline::of(code), Outline { file: file.into(), main_class: main_class.into() }, "{code}");
    }

    #[test]
    fn the_first_public_class_counts() {
        assert_outline("public class Hello {}", "Hello", "Hello");
        assert_outline("class A { }\npublic   final\nclass B<T> extends A { class C {} }", "B", "B");
        assert_outline(
            "import java.util.*; public record P(int x) { public static void main(String[] a) {} }",
            "P",
            "P",
        );
        assert_outline("class Outer { public class Inner {} }", "main", "main");
        assert_outline("public class Größe$1 {}", "Größe$1", "Größe$1");
    }

    #[test]
    fn without_one_the_class_with_the_main_method_is_started() {
        let code = "class A { int main; }\nclass B { public static void main(String[] a) {} }";
        assert_outline(code, "main", "B");
        assert_outline("void main() {}", "main", "main");
        assert_outline("", "main", "main");
    }

    #[test]
    fn packages_comments_and_literals_are_told_apart() {
        assert_outline("package a . b;\npublic class C {}", "C", "a.b.C");
        let code = "// public class No {\n/* public class No { */ class A { String s = \"} public class No {\"; char c = \
                    '\"', d = '\\''; String t = \"\"\"\n } \" public class No {\"\"\"; }\npublic class Yes {}";
        assert_outline(code, "Yes", "Yes");
    }

    proptest! {
        #[test]
        fn any_text_has_an_outline(code in "[a-z{}\"'/*\\\\ ;é\n]{0,60}") {
            let outline = Outline::of(&code);
            prop_assert!(!outline.file.is_empty() && !outline.file.contains('/'));
        }
    }
}
