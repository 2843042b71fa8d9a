//! Writing objects, compressed or not.
//!
//! Invariant: the length of an object follows from its shape, so that it can be written as a stream
//! although its header begins with the length.

use std::io::{self, Write};

use super::header::{HEADER_LEN, Mode, encode};
use super::pack::Packer;
use crate::ntt::Ntt;

/// How objects are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// As they are: 8 bytes a number.
    None,
    /// Without the zero bytes of numbers of 40 bits or fewer, in Zstandard frames that take no time
    /// to write or read. SEAL must have been built with Zstandard, as `TenSEAL`'s is.
    #[default]
    Packed,
}

/// Where a payload goes.
pub(crate) enum Payload<W> {
    Plain(W),
    Packed(Packer<W>),
}

impl<W: Write> Payload<W> {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Packed(packer) => packer.bytes(bytes),
        }
    }

    pub(crate) fn u64(&mut self, value: u64) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn zeros(&mut self, count: usize) -> io::Result<()> {
        match self {
            Self::Plain(out) => {
                io::copy(&mut io::Read::take(io::repeat(0), count as u64), out).map(|_| ())
            }
            Self::Packed(packer) => packer.zeros(count),
        }
    }

    /// The residues of a polynomial modulo these primes, one prime's after another.
    pub(crate) fn residues(&mut self, primes: &[Ntt], words: &[u64]) -> io::Result<()> {
        let degree = words.len() / primes.len().max(1);
        for (values, prime) in words.chunks_exact(degree).zip(primes) {
            match self {
                Self::Plain(out) => {
                    let mut bytes = [0; 4096];
                    for values in values.chunks(512) {
                        let places = bytes.as_chunks_mut::<8>().0;
                        for (place, value) in places.iter_mut().zip(values) {
                            *place = value.to_le_bytes();
                        }
                        out.write_all(&bytes[..values.len() * 8])?;
                    }
                }
                Self::Packed(packer) => {
                    let width = prime.modulus().bits().div_ceil(8);
                    packer.words(values, width as usize)?;
                }
            }
        }
        Ok(())
    }

    /// As many bytes as for the residues of any polynomial.
    pub(crate) fn blank_residues(&mut self, primes: &[Ntt], degree: usize) -> io::Result<()> {
        for prime in primes {
            match self {
                Self::Plain(_) => self.zeros(8 * degree)?,
                Self::Packed(packer) => {
                    let width = prime.modulus().bits().div_ceil(8);
                    packer.blank_words(degree, width as usize)?;
                }
            }
        }
        Ok(())
    }
}

/// Length of an array of words with its header.
pub(crate) fn array_len(words: usize) -> u64 {
    HEADER_LEN as u64 + 8 + 8 * words as u64
}

/// Writes an object of known length: header, then what `write` makes.
pub(crate) fn object<W: Write>(
    out: &mut W,
    compression: Compression,
    total_len: u64,
    write: impl FnOnce(&mut Payload<&mut W>) -> io::Result<()>,
) -> io::Result<()> {
    out.write_all(&encode(mode(compression), total_len))?;
    payload(out, compression, write)
}

/// The length of an object, header included.
pub(crate) fn object_len(
    compression: Compression,
    write: impl FnOnce(&mut Payload<&mut Counter>) -> io::Result<()>,
) -> u64 {
    let mut counter = Counter(HEADER_LEN as u64);
    // Counting does not fail.
    let _ = payload(&mut counter, compression, write);
    counter.0
}

/// An object in memory.
pub(crate) fn object_bytes(
    compression: Compression,
    capacity: usize,
    write: impl FnOnce(&mut Payload<&mut Vec<u8>>) -> io::Result<()>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + capacity);
    bytes.resize(HEADER_LEN, 0);
    // Writing to memory does not fail.
    let _ = payload(&mut bytes, compression, write);
    let header = encode(mode(compression), bytes.len() as u64);
    bytes[..HEADER_LEN].copy_from_slice(&header);
    bytes
}

fn mode(compression: Compression) -> Mode {
    match compression {
        Compression::None => Mode::Plain,
        Compression::Packed => Mode::Zstd,
    }
}

fn payload<W: Write>(
    out: &mut W,
    compression: Compression,
    write: impl FnOnce(&mut Payload<&mut W>) -> io::Result<()>,
) -> io::Result<()> {
    match compression {
        Compression::None => write(&mut Payload::Plain(out)),
        Compression::Packed => {
            let mut payload = Payload::Packed(Packer::new(out)?);
            write(&mut payload)?;
            match payload {
                Payload::Packed(packer) => packer.finish().map(|_| ()),
                Payload::Plain(_) => Ok(()),
            }
        }
    }
}

/// Counts what is written.
pub(crate) struct Counter(pub(crate) u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
