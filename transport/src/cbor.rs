//! CBOR (RFC 8949) as this protocol uses it.
//!
//! Invariants:
//! - input was capped by the caller, nests no deeper than [`MAX_DEPTH`], and is one item with
//!   nothing behind it;
//! - output is one definite-length item with the shortest lengths.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Deepest nesting of what is taken from outside.
const MAX_DEPTH: usize = 8;

/// Why bytes are not the CBOR that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CborError(String);

/// Reads one item and refuses anything behind it.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CborError> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
        .map_err(|error| CborError(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(CborError("bytes after its end".to_owned())) }
}

/// Writes one item.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CborError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| CborError(error.to_string()))?;
    Ok(bytes)
}

/// Serde of a byte vector as a byte string, for `#[serde(with = "…")]`.
pub(crate) mod bytes {
    use std::fmt;

    use serde::de::{Deserializer, Error, Visitor};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }

        deserializer.deserialize_byte_buf(Bytes)
    }
}
