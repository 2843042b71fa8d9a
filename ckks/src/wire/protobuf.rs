//! As much of protocol buffers (proto3) as `TenSEAL`'s messages need.
//!
//! Invariant: fields that are not known are refused: these messages come from one program, and
//! what it did not write is not read.

use super::reader::Reader;
use crate::error::FormatError;

/// A field's content.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub(crate) fn varint(self) -> Result<u64, FormatError> {
        if let Self::Varint(value) = self { Ok(value) } else { Err(FormatError::ProtocolBuffer) }
    }

    pub(crate) fn double(self) -> Result<f64, FormatError> {
        if let Self::Double(value) = self { Ok(value) } else { Err(FormatError::ProtocolBuffer) }
    }

    pub(crate) fn bytes(self) -> Result<&'a [u8], FormatError> {
        if let Self::Bytes(value) = self { Ok(value) } else { Err(FormatError::ProtocolBuffer) }
    }
}

/// The fields of a message, in order.
pub(crate) struct Fields<'a>(Reader<'a>);

impl<'a> Fields<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self(Reader::new(message))
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), FormatError> {
        let reader = &mut self.0;
        let tag = varint(reader)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(reader)?),
            1 => Value::Double(reader.f64()?),
            2 => {
                let length = usize::try_from(varint(reader)?);
                Value::Bytes(reader.bytes(length.map_err(|_| FormatError::Truncated)?)?)
            }
            _ => return Err(FormatError::ProtocolBuffer),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.0.len() > 0).then(|| self.field())
    }
}

/// Reads a number of up to ten groups of seven bits.
pub(crate) fn varint(reader: &mut Reader<'_>) -> Result<u64, FormatError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = reader.u8()?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(FormatError::ProtocolBuffer);
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(FormatError::ProtocolBuffer)
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// A field of a number; zero is left out, as proto3 has it.
pub(crate) fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        put_varint(out, field << 3);
        put_varint(out, value);
    }
}

pub(crate) fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_varint(out, field << 3 | 1);
    out.extend(value.to_le_bytes());
}

/// The beginning of a field of this many bytes.
pub(crate) fn put_length(out: &mut Vec<u8>, field: u64, length: u64) {
    put_varint(out, field << 3 | 2);
    put_varint(out, length);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_length(out, field, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(varint(&mut reader), Ok(value));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Fields::new(&bytes).take_while(Result::is_ok).count() <= 200);
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let mut long = [0xff; 11];
        long[10] = 0;
        assert_eq!(varint(&mut Reader::new(&long)), Err(FormatError::ProtocolBuffer));
        let eleventh_bit = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(varint(&mut Reader::new(&eleventh_bit)), Err(FormatError::ProtocolBuffer));
        assert_eq!(varint(&mut Reader::new(&[0x80])), Err(FormatError::Truncated));
    }
}
