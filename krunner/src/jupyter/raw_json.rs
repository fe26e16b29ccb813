//! JSON of a kernel, of which only a part is used.
//!
//! A tree of values takes up to fifty times the memory of its text, so the rest is skipped and nothing is made of it. Pure.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A string; `None` for another value.
pub(super) fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// A string, or a list of strings as one text with this separator; `None` for another value.
pub(super) fn text(value: &RawValue, separator: &str) -> Option<String> {
    if let Some(text) = string(value) {
        return Some(text);
    }
    let mut joined: Option<String> = None;
    for_each(value, |line| {
        let line = string(line).ok_or_else(|| serde_json::Error::custom("not a string"))?;
        match &mut joined {
            Some(joined) => {
                joined.push_str(separator);
                joined.push_str(&line);
            }
            None => joined = Some(line),
        }
        Ok(())
    })
    .ok()?;
    Some(joined.unwrap_or_default())
}

/// Calls a function for each item of a list, until it fails.
pub(super) fn for_each(
    list: &RawValue,
    act: impl FnMut(&RawValue) -> Result<(), serde_json::Error>,
) -> Result<(), serde_json::Error> {
    struct Items<F>(F);

    impl<'de, F: FnMut(&RawValue) -> Result<(), serde_json::Error>> Visitor<'de> for Items<F> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
            while let Some(item) = items.next_element::<&RawValue>()? {
                (self.0)(item).map_err(A::Error::custom)?;
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_str(list.get()).deserialize_seq(Items(act))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn text_is_a_string_or_a_list_of_them() {
        let text = |json| text(&raw(json), "-");
        assert_eq!(text(r#""a\n""#).as_deref(), Some("a\n"));
        assert_eq!(text(r#"["a", "", "b"]"#).as_deref(), Some("a--b"));
        assert_eq!(text("[]").as_deref(), Some(""));
        for other in ["1", "null", "{}", "[1]", r#"["a", ["b"]]"#] {
            assert_eq!(text(other), None, "{other}");
        }
    }

    #[test]
    fn items_come_in_order_until_the_function_fails() {
        let mut items = Vec::new();
        let result = for_each(&raw(r#"[1, {"a": [2]}, 3]"#), |item| {
            items.push(item.get().to_owned());
            if items.len() == 2 { Err(serde_json::Error::custom("enough")) } else { Ok(()) }
        });
        assert_eq!((items.join(" "), result.is_err()), (r#"1 {"a": [2]}"#.to_owned(), true));
        assert!(for_each(&raw("{}"), |_| Ok(())).is_err());
    }
}
