//! SEAL's header of 16 bytes, and what it says about the payload.

use std::borrow::Cow;

use super::reader::Reader;
use super::{zlib, zstd};
use crate::error::FormatError;

pub(crate) const HEADER_LEN: usize = 16;
const MAGIC: u16 = 0xa15e;
/// The dialect that SEAL 3.6 to 4.x all read.
const WRITTEN_VERSION: [u8; 2] = [3, 7];

/// How a payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Plain = 0,
    Zlib = 1,
    Zstd = 2,
}

/// A header that was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) major: u8,
    mode: Mode,
    payload_len: usize,
}

impl Header {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        if reader.u16()? != MAGIC || usize::from(reader.u8()?) != HEADER_LEN {
            return Err(FormatError::Header);
        }
        let (major, minor) = (reader.u8()?, reader.u8()?);
        // Before 3.6 seeds were expanded in another way.
        if major != 4 && (major != 3 || minor < 6) {
            return Err(FormatError::Version { major, minor });
        }
        let mode = match reader.u8()? {
            0 => Mode::Plain,
            1 => Mode::Zlib,
            2 => Mode::Zstd,
            _ => return Err(FormatError::Compression),
        };
        if reader.u16()? != 0 {
            return Err(FormatError::Header);
        }
        let payload_len = reader.count()?.checked_sub(HEADER_LEN).ok_or(FormatError::Header)?;
        Ok(Self { major, mode, payload_len })
    }

    /// Reads the header of an object inside a payload, which is never compressed itself.
    pub(crate) fn read_nested(reader: &mut Reader<'_>) -> Result<Self, FormatError> {
        let header = Self::read(reader)?;
        if header.mode == Mode::Plain { Ok(header) } else { Err(FormatError::Compression) }
    }

    /// The payload of a nested object.
    pub(crate) fn nested<'a>(&self, reader: &mut Reader<'a>) -> Result<Reader<'a>, FormatError> {
        reader.bytes(self.payload_len).map(Reader::new)
    }
}

/// Header and payload of an object that is all of `bytes`; the payload may have `cap` bytes.
pub(crate) fn open(bytes: &[u8], cap: usize) -> Result<(Header, Cow<'_, [u8]>), FormatError> {
    let mut reader = Reader::new(bytes);
    let header = Header::read(&mut reader)?;
    let payload = reader.bytes(header.payload_len)?;
    reader.finish()?;
    let payload = match header.mode {
        Mode::Plain if payload.len() > cap => return Err(FormatError::TooLarge),
        Mode::Plain => Cow::Borrowed(payload),
        Mode::Zlib => Cow::Owned(zlib::decompress(payload, cap)?),
        Mode::Zstd => Cow::Owned(zstd::decompress(payload, cap)?),
    };
    Ok((header, payload))
}

/// The header of an object of `total_len` bytes, itself included.
pub(crate) fn encode(mode: Mode, total_len: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&MAGIC.to_le_bytes());
    header[2] = 16;
    header[3..5].copy_from_slice(&WRITTEN_VERSION);
    header[5] = mode as u8;
    header[8..].copy_from_slice(&total_len.to_le_bytes());
    header
}
