//! Adds keys to `authorized_keys`.
//!
//! Pure. A key is recognized by its bytes, so it is added once however often the session starts. The user's own lines stay.

/// The file with these public keys, each once; `None` if nothing changes.
pub(super) fn with_keys(authorized: &[u8], keys: &[u8]) -> Option<Vec<u8>> {
    let mut text = authorized.to_vec();
    for key in keys.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|key| is_key(key)) {
        text = with_key(&text, key);
    }
    (text != authorized).then_some(text)
}

fn with_key(authorized: &[u8], key: &[u8]) -> Vec<u8> {
    let mut seen = false;
    let mut text: Vec<u8> = authorized
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| {
            let again = seen && line.trim_ascii() == key;
            seen |= line.trim_ascii() == key;
            !again
        })
        .collect::<Vec<_>>()
        .concat();
    if !seen && !names(&text, key) {
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(key);
        text.push(b'\n');
    }
    text
}

/// Whether a line authorizes the key with options in front or another comment.
fn names(authorized: &[u8], key: &[u8]) -> bool {
    let Some(body) = words(key).nth(1) else { return false };
    authorized
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii_start().starts_with(b"#"))
        .any(|line| words(line).any(|word| word == body))
}

/// Whether the line is a key type and base64, without control characters.
fn is_key(line: &[u8]) -> bool {
    let mut words = words(line);
    let (kind, body) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let known = [&b"ssh-"[..], b"ecdsa-", b"sk-"].iter().any(|prefix| kind.starts_with(prefix));
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    known && !body.is_empty() && body.iter().all(is_base64) && !line.iter().any(u8::is_ascii_control)
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-rsa AAAAB3Nza/C+1yc2E= cluster";

    fn with(authorized: &str, keys: &str) -> Option<String> {
        with_keys(authorized.as_bytes(), keys.as_bytes()).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_key_is_added_on_a_line_of_its_own() {
        assert_eq!(with("", KEY).unwrap(), format!("{KEY}\n"));
        assert_eq!(with("# mine\nssh-ed25519 BBBB me", KEY).unwrap(), format!("# mine\nssh-ed25519 BBBB me\n{KEY}\n"));
        assert_eq!(with("x\r\n", &format!("\r\n{KEY}\r\n\n")).unwrap(), format!("x\r\n{KEY}\n"));
    }

    #[test]
    fn a_key_that_is_there_in_whatever_words_is_not_added() {
        for there in [format!("{KEY}\n"), format!("from=\"10.*\" {KEY}"), KEY.replace("cluster", "other words")] {
            assert_eq!(with(&there, KEY), None, "{there}");
        }
        assert!(with(&format!("# {KEY}\n"), KEY).is_some(), "a comment opens nothing");
    }

    #[test]
    fn what_starts_of_the_python_runner_have_piled_up_becomes_one() {
        let piled = format!("ssh-ed25519 BBBB me\n\n{KEY}\n\n\n{KEY}\n\n");
        assert_eq!(with(&piled, KEY).unwrap(), format!("ssh-ed25519 BBBB me\n\n{KEY}\n\n\n\n"));
    }

    #[test]
    fn what_is_no_key_is_not_added() {
        for text in ["", "# comment", "ssh-rsa", "command=\"x\" ssh-rsa AAAA", "ssh-rsa AA\0AA", "-----BEGIN"] {
            assert_eq!(with("mine\n", text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn adding_twice_is_adding_once_and_nothing_of_the_users_goes(
            lines in prop::collection::vec("[ -~]{0,30}", 0..8).prop_map(|lines| lines.join("\n")),
        ) {
            let once = with(&lines, KEY).unwrap_or_else(|| lines.clone());
            prop_assert_eq!(with(&once, KEY), None);
            prop_assert!(once.starts_with(&lines));
            prop_assert_eq!(once.matches(KEY).count(), 1);
        }
    }
}
