//! JSON of others, judged before it is parsed: a parsed value takes a hundred bytes where its text takes two.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::memory;

/// Values and keys of one text at most. A store of a thousand arrays has a hundred thousand.
const MOST: usize = 1 << 24;
/// Bytes that one of them takes at most when it is parsed, lists and tables that grow included.
const BYTES: usize = 256;

/// Parses a text.
pub fn parse(text: &[u8]) -> Result<Value> {
    let marks = count(text);
    if marks > MOST {
        return Err(Error::metadata(format!("JSON of {marks} values: more than {MOST} are not read")));
    }
    reserve(marks)?;
    serde_json::from_slice(text).map_err(|error| Error::metadata(format!("does not parse: {error}")))
}

/// An error unless there is memory to parse a text; the parser asks for it without expecting to be refused.
pub fn check_memory(text: &[u8]) -> Result<()> {
    reserve(count(text))
}

fn reserve(marks: usize) -> Result<()> {
    memory::reserve(&mut Vec::<u8>::new(), marks.saturating_mul(BYTES), format_args!("JSON of {marks} values"))
}

/// At least as many as there are values and keys: each but the first follows one of these.
fn count(text: &[u8]) -> usize {
    1 + text.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn too_many_values_are_refused_before_they_are_parsed() {
        assert_eq!(parse(b"[1,{\"a\":2}]").unwrap(), serde_json::json!([1, {"a": 2}]));
        assert_eq!(parse(b"[1,").unwrap_err().kind, Kind::Metadata);
        let mut text = vec![b'['];
        text.extend(std::iter::repeat_n(*b"0,", MOST).flatten());
        text.extend_from_slice(b"0]");
        let error = parse(&text).unwrap_err();
        assert!(error.message.contains("values"), "{error}");
    }
}
