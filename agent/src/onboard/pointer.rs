//! JSON pointers (RFC 6901) that pick channels out of messages of existing topics.
//!
//! Invariants:
//! - only a number is picked, and only a finite one;
//! - the same pointer works on JSON and on CBOR.

use std::str::FromStr;

use ciborium::Value;

/// Longest pointer, in bytes.
const MAX_LEN: usize = 256;

/// Where a number is in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl FromStr for Pointer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err("a JSON pointer has up to 256 bytes");
        }
        if text.is_empty() {
            return Ok(Self { text: String::new(), tokens: Vec::new() });
        }
        let path = text.strip_prefix('/').ok_or("a JSON pointer (RFC 6901) begins with /")?;
        let tokens = path.split('/').map(unescape).collect::<Option<_>>();
        let tokens = tokens.ok_or("in a JSON pointer (RFC 6901), ~ is written ~0 and / is ~1")?;
        Ok(Self { text: text.to_owned(), tokens })
    }
}

fn unescape(token: &str) -> Option<String> {
    let mut parts = token.split('~');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escaped, rest) = part
            .strip_prefix('0')
            .map(|rest| ('~', rest))
            .or_else(|| part.strip_prefix('1').map(|rest| ('/', rest)))?;
        text.push(escaped);
        text.push_str(rest);
    }
    Some(text)
}

impl Pointer {
    /// The finite number it points to.
    #[must_use]
    pub fn number(&self, document: &Value) -> Option<f64> {
        let target = self.tokens.iter().try_fold(document, |value, token| child(value, token))?;
        let number = match target {
            Value::Float(number) => *number,
            Value::Integer(number) => integer(i128::from(*number)),
            _ => return None,
        };
        number.is_finite().then_some(number)
    }
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[expect(clippy::cast_precision_loss, reason = "readings beyond 2⁵³ are rounded")]
fn integer(number: i128) -> f64 {
    number as f64
}

fn child<'v>(value: &'v Value, token: &str) -> Option<&'v Value> {
    match value {
        // The last of several equal keys counts, as most JSON parsers have it.
        Value::Map(entries) => {
            entries.iter().rfind(|(key, _)| key.as_text() == Some(token)).map(|(_, value)| value)
        }
        Value::Array(items) => {
            let is_index = token == "0" || !token.starts_with(['0', '+']);
            let index = token.parse::<usize>().ok().filter(|_| is_index)?;
            items.get(index)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pick(document: &str, pointer: &str) -> Option<f64> {
        let document: Value = serde_json::from_str(document).unwrap();
        pointer.parse::<Pointer>().unwrap().number(&document)
    }

    /// The examples of RFC 6901, section 5, as far as they point to numbers.
    const RFC: &str = r#"{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4,
        "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}"#;

    #[test]
    fn the_examples_of_the_rfc() {
        for (pointer, number) in [
            ("/", 0.0),
            ("/a~1b", 1.0),
            ("/c%d", 2.0),
            ("/e^f", 3.0),
            ("/g|h", 4.0),
            ("/i\\j", 5.0),
            ("/k\"l", 6.0),
            ("/ ", 7.0),
            ("/m~0n", 8.0),
        ] {
            assert_eq!(pick(RFC, pointer), Some(number), "{pointer}");
        }
        for pointer in ["", "/foo", "/foo/0", "/nothing"] {
            assert_eq!(pick(RFC, pointer), None, "{pointer}");
        }
    }

    #[test]
    fn numbers_are_found_in_arrays_and_at_the_root() {
        assert_eq!(pick("69", ""), Some(69.0));
        assert_eq!(pick("[[1, 2.5], {\"x\": -3}]", "/0/1"), Some(2.5));
        assert_eq!(pick("[[1, 2.5], {\"x\": -3}]", "/1/x"), Some(-3.0));
        assert_eq!(pick("[1]", "/-"), None);
        assert_eq!(pick("[1, 2]", "/01"), None);
        assert_eq!(pick("[1, 2]", "/+1"), None);
        assert_eq!(pick("{\"x\": \"1\"}", "/x"), None);
        let nan = Value::Map(vec![(Value::Text("x".into()), Value::Float(f64::NAN))]);
        assert_eq!("/x".parse::<Pointer>().unwrap().number(&nan), None);
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for text in ["x", "x/y", "/~", "/~2", "/a~"] {
            assert!(text.parse::<Pointer>().is_err(), "{text}");
        }
        assert!("/a".repeat(200).parse::<Pointer>().is_err());
    }

    proptest! {
        #[test]
        fn a_key_is_found_whatever_it_is(key: String, number: i32) {
            let escaped = key.replace('~', "~0").replace('/', "~1");
            prop_assume!(escaped.len() < MAX_LEN);
            let document = Value::Map(vec![(Value::Text(key), Value::Integer(number.into()))]);
            let pointer: Pointer = format!("/{escaped}").parse().unwrap();
            prop_assert_eq!(pointer.number(&document), Some(f64::from(number)));
        }

        #[test]
        fn no_text_panics(text: String) {
            if let Ok(pointer) = text.parse::<Pointer>() {
                let _ = pointer.number(&Value::Array(vec![Value::Null]));
                prop_assert_eq!(pointer.to_string(), text);
            }
        }
    }
}
