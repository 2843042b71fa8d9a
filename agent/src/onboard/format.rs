//! The formats of onboard messages, told by the MQTT 5 content type.
//!
//! Invariants:
//! - no payload panics, nests deeper than [`MAX_DEPTH`] or makes more than a few times its length;
//! - what is wrong is told by its place, never by its value: payloads are sensor samples.

use ciborium::de::Error as CborError;
use serde::de::DeserializeOwned;

use super::refusal::{Code, Refusal};

/// How deep a CBOR message may nest; JSON stops at 128 by itself.
const MAX_DEPTH: usize = 32;

/// How a payload is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 8259.
    Json,
    /// RFC 8949.
    Cbor,
    /// Little-endian IEEE 754 single precision, sample after sample.
    F32,
    /// Little-endian two's complement 16-bit integers, sample after sample; the plain numbers.
    I16,
}

impl Format {
    const ALL: [Self; 4] = [Self::Json, Self::Cbor, Self::F32, Self::I16];

    /// Its MIME type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Cbor => "application/cbor",
            Self::F32 => "application/vnd.moai.f32",
            Self::I16 => "application/vnd.moai.i16",
        }
    }

    /// The format of a message with this content type; JSON without one.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn of(content_type: Option<&str>) -> Result<Self, Refusal> {
        let name = content_type.unwrap_or_default();
        let name = name.split(';').next().unwrap_or_default().trim();
        if name.is_empty() {
            return Ok(Self::Json);
        }
        let known = Self::ALL.into_iter();
        known.clone().find(|known| known.content_type().eq_ignore_ascii_case(name)).ok_or_else(
            || {
                let names: Vec<&str> = known.map(Self::content_type).collect();
                let message = format!("the content type must be one of {}", names.join(", "));
                Refusal::new(Code::UnknownFormat, message)
            },
        )
    }
}

impl std::str::FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "cbor" => Ok(Self::Cbor),
            "f32" => Ok(Self::F32),
            "i16" => Ok(Self::I16),
            _ => Err("a format is \"json\", \"cbor\", \"f32\" or \"i16\""),
        }
    }
}

/// Why a payload is not what was expected: where. The parsers' own words could quote it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotUnderstood(pub(super) String);

/// Reads a document; `None` if the format has none.
pub(super) fn read<T: DeserializeOwned>(
    format: Format,
    payload: &[u8],
) -> Option<Result<T, NotUnderstood>> {
    match format {
        Format::Json => Some(serde_json::from_slice(payload).map_err(|error| {
            NotUnderstood(format!("line {}, column {}", error.line(), error.column()))
        })),
        Format::Cbor => Some(read_cbor(payload)),
        Format::F32 | Format::I16 => None,
    }
}

fn read_cbor<T: DeserializeOwned>(payload: &[u8]) -> Result<T, NotUnderstood> {
    let mut rest = payload;
    let document = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH);
    let document = document.map_err(|error| {
        NotUnderstood(match error {
            CborError::Syntax(offset) | CborError::Semantic(Some(offset), _) => {
                format!("byte {offset}")
            }
            CborError::Io(_) => "it ends too early".to_owned(),
            CborError::RecursionLimitExceeded => "it nests too deep".to_owned(),
            CborError::Semantic(None, _) => "its items are not those expected".to_owned(),
        })
    })?;
    if !rest.is_empty() {
        let offset = payload.len() - rest.len();
        return Err(NotUnderstood(format!("something follows it at byte {offset}")));
    }
    Ok(document)
}

/// The numbers of a packed payload; `None` if its length fits none.
pub(super) fn unpack(format: Format, payload: &[u8]) -> Option<Vec<f64>> {
    match format {
        Format::F32 => numbers::<4>(payload, |bytes| f32::from_le_bytes(bytes).into()),
        Format::I16 => numbers::<2>(payload, |bytes| i16::from_le_bytes(bytes).into()),
        Format::Json | Format::Cbor => None,
    }
}

fn numbers<const N: usize>(payload: &[u8], number: impl Fn([u8; N]) -> f64) -> Option<Vec<f64>> {
    let (numbers, rest) = payload.as_chunks::<N>();
    rest.is_empty().then(|| numbers.iter().map(|bytes| number(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_decides_and_json_is_what_has_none() {
        assert_eq!(Format::of(None), Ok(Format::Json));
        assert_eq!(Format::of(Some("")), Ok(Format::Json));
        assert_eq!(Format::of(Some("Application/CBOR")), Ok(Format::Cbor));
        assert_eq!(Format::of(Some("application/json; charset=utf-8")), Ok(Format::Json));
        for format in Format::ALL {
            assert_eq!(Format::of(Some(format.content_type())), Ok(format));
        }
        let refusal = Format::of(Some("text/plain")).unwrap_err();
        assert_eq!(refusal.code, Code::UnknownFormat);
        assert!(refusal.message.contains("application/vnd.moai.i16"), "{}", refusal.message);
    }

    #[test]
    fn a_document_ends_with_its_message_and_does_not_nest_for_ever() {
        let read = |bytes: &[u8]| read::<ciborium::Value>(Format::Cbor, bytes).unwrap();
        assert!(read(&[0x01]).is_ok());
        assert_eq!(
            read(&[0x01, 0x02]),
            Err(NotUnderstood("something follows it at byte 1".to_owned()))
        );
        assert_eq!(read(&[0x82, 0x01]), Err(NotUnderstood("it ends too early".to_owned())));
        let deep = vec![0x81; MAX_DEPTH + 1];
        assert_eq!(read(&deep), Err(NotUnderstood("it nests too deep".to_owned())));
        // An array that claims to have 2⁶⁴ − 1 items.
        assert!(read(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
