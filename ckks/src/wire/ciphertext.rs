//! SEAL's `Ciphertext`, full or with its uniform half as a seed; also what keys are made of.

use std::io::{self, Write};

use super::header::{self, HEADER_LEN, Header, Mode, encode};
use super::reader::Reader;
use super::writer::{Compression, Payload, array_len, object_bytes};
use crate::ciphertext::{Body, Ciphertext};
use crate::error::FormatError;
use crate::ntt::Ntt;
use crate::parameters::{Parameters, ParmsId};
use crate::stream::SEED_LEN;

/// Most polynomials: two, and one more of a product that was not relinearised.
pub(crate) const MAX_SIZE: usize = 3;
/// Everything of a payload but its polynomials, in the longer dialect.
const OVERHEAD: usize = 200;
/// Bytes before the array in the dialect that is written.
const PREFIX_LEN: u64 = 65;
const SEED_INFO_LEN: u64 = HEADER_LEN as u64 + 1 + SEED_LEN as u64;
const BLAKE2XB: u8 = 1;

/// Most bytes of a payload of this many polynomials and primes.
pub(crate) fn max_payload_len(degree: usize, level: usize, size: usize) -> usize {
    size * level * degree * 8 + OVERHEAD
}

/// Length of a seeded ciphertext inside of a key, its header included.
pub(crate) fn nested_len(degree: usize, level: usize) -> u64 {
    HEADER_LEN as u64 + PREFIX_LEN + array_len(degree * level) + SEED_INFO_LEN
}

pub(crate) fn encode_ciphertext(
    parameters: &Parameters,
    ciphertext: &Ciphertext,
    compression: Compression,
) -> Vec<u8> {
    let words = ciphertext.words().len();
    object_bytes(compression, words * 8 + OVERHEAD, |payload| {
        let primes = parameters.ntts(ciphertext.level());
        match &ciphertext.body {
            Body::Seeded { c0, seed } => {
                let (level, scale) = (ciphertext.level(), ciphertext.scale());
                write_seeded(payload, parameters, level, scale, Some(c0), seed)
            }
            Body::Full { size, words } => {
                let degree = parameters.degree();
                prefix(payload, ciphertext.id, *size, degree, primes.len(), ciphertext.scale())?;
                payload.bytes(&encode(Mode::Plain, array_len(words.len())))?;
                payload.u64(words.len() as u64)?;
                for polynomial in words.chunks(degree * primes.len()) {
                    payload.residues(primes, polynomial)?;
                }
                Ok(())
            }
        }
    })
}

fn prefix<W: Write>(
    payload: &mut Payload<W>,
    id: ParmsId,
    size: usize,
    degree: usize,
    level: usize,
    scale: f64,
) -> io::Result<()> {
    payload.bytes(&id.0)?;
    payload.bytes(&[1])?;
    for dimension in [size, degree, level] {
        payload.u64(dimension as u64)?;
    }
    payload.bytes(&scale.to_le_bytes())
}

/// Writes a payload whose second half is a seed; without numbers, bytes of the same length.
pub(crate) fn write_seeded<W: Write>(
    payload: &mut Payload<W>,
    parameters: &Parameters,
    level: usize,
    scale: f64,
    c0: Option<&[u64]>,
    seed: &[u8; SEED_LEN],
) -> io::Result<()> {
    let (degree, primes) = (parameters.degree(), parameters.ntts(level));
    prefix(payload, parameters.id(level), 2, degree, level, scale)?;
    payload.bytes(&encode(Mode::Plain, array_len(degree * level)))?;
    payload.u64((degree * level) as u64)?;
    match c0 {
        Some(c0) => payload.residues(primes, c0)?,
        None => payload.blank_residues(primes, degree)?,
    }
    payload.bytes(&encode(Mode::Plain, SEED_INFO_LEN))?;
    payload.bytes(&[BLAKE2XB])?;
    payload.bytes(seed)
}

/// Reads an object of at most `max_level` primes and `max_size` polynomials.
pub(crate) fn decode_ciphertext(
    parameters: &Parameters,
    bytes: &[u8],
    max_level: usize,
    max_size: usize,
) -> Result<Ciphertext, FormatError> {
    let cap = max_payload_len(parameters.degree(), max_level, max_size);
    let (header, payload) = header::open(bytes, cap)?;
    let mut reader = Reader::new(&payload);
    let ciphertext = read(&mut reader, header.major, parameters, max_level, max_size)?;
    reader.finish()?;
    Ok(ciphertext)
}

/// Reads a payload.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    major: u8,
    parameters: &Parameters,
    max_level: usize,
    max_size: usize,
) -> Result<Ciphertext, FormatError> {
    let id = ParmsId(reader.array()?);
    let level = parameters.level_of(id).ok_or(FormatError::Parameters)?;
    if reader.u8()? != 1 {
        return Err(FormatError::Form);
    }
    let (size, degree, primes) = (reader.count()?, reader.count()?, reader.count()?);
    if degree != parameters.degree()
        || primes != level
        || level > max_level
        || !(2..=max_size).contains(&size)
    {
        return Err(FormatError::Shape);
    }
    let scale = reader.f64()?;
    if !scale.is_normal() || scale <= 0.0 {
        return Err(FormatError::Scale);
    }
    if major >= 4 && reader.u64()? != 1 {
        return Err(FormatError::Shape);
    }
    let polynomial_len = degree * level;
    let array = Header::read_nested(reader)?;
    let mut array = array.nested(reader)?;
    let count = array.count()?;
    let primes = parameters.ntts(level);
    let body = if count == polynomial_len {
        let c0 = residues(&mut array, primes, 1, degree)?;
        let seed = seed(reader)?;
        if size != 2 {
            return Err(FormatError::Shape);
        }
        Body::Seeded { c0, seed }
    } else if count == polynomial_len * size {
        Body::Full { size, words: residues(&mut array, primes, size, degree)? }
    } else {
        return Err(FormatError::Shape);
    };
    array.finish()?;
    Ok(Ciphertext { id, level, scale, body })
}

/// `size` polynomials whose residues are below their primes.
fn residues(
    reader: &mut Reader<'_>,
    primes: &[Ntt],
    size: usize,
    degree: usize,
) -> Result<Vec<u64>, FormatError> {
    let stored = reader.words(size * primes.len() * degree)?;
    let mut words = Vec::with_capacity(stored.len());
    words.extend(stored.iter().map(|bytes| u64::from_le_bytes(*bytes)));
    // Its top bit is set if a word is above its prime's largest residue.
    let mut above = 0;
    for (words, prime) in words.chunks_exact(degree).zip(primes.iter().cycle()) {
        let most = prime.modulus().value() - 1;
        above = words.iter().fold(above, |above, word| above | word | most.wrapping_sub(*word));
    }
    if above >> 63 == 0 { Ok(words) } else { Err(FormatError::Range) }
}

fn seed(reader: &mut Reader<'_>) -> Result<Box<[u8; SEED_LEN]>, FormatError> {
    let header = Header::read_nested(reader)?;
    let mut info = header.nested(reader)?;
    if info.u8()? != BLAKE2XB {
        return Err(FormatError::Generator);
    }
    let seed = Box::new(info.array()?);
    info.finish()?;
    Ok(seed)
}
