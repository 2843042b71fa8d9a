//! SEAL's `EncryptionParameters`.

use super::header::{self, Header};
use super::reader::Reader;
use super::writer::{Compression, object_bytes};
use crate::error::FormatError;
use crate::parameters::{MAX_PRIMES, Parameters};
use crate::wire::header::{Mode, encode as encode_header};

/// SEAL's number of the scheme.
const CKKS: u8 = 2;
const MODULUS_LEN: usize = 24;
const MAX_PAYLOAD_LEN: usize = 17 + (MAX_PRIMES + 1) * MODULUS_LEN;

/// What the object says; whether it is valid, [`Parameters::from_primes`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) degree: usize,
    pub(crate) primes: Vec<u64>,
}

pub(crate) fn encode(parameters: &Parameters) -> Vec<u8> {
    object_bytes(Compression::None, MAX_PAYLOAD_LEN, |payload| {
        payload.bytes(&[CKKS])?;
        payload.u64(parameters.degree() as u64)?;
        payload.u64(parameters.key_level() as u64)?;
        // CKKS has no plain modulus, which is written as zero.
        for modulus in parameters.primes().chain([0]) {
            payload.bytes(&encode_header(Mode::Plain, MODULUS_LEN as u64))?;
            payload.u64(modulus)?;
        }
        Ok(())
    })
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Declared, FormatError> {
    let (_, payload) = header::open(bytes, MAX_PAYLOAD_LEN)?;
    let mut reader = Reader::new(&payload);
    if reader.u8()? != CKKS {
        return Err(FormatError::Kind);
    }
    let degree = reader.count()?;
    let count = reader.count()?;
    if count > MAX_PRIMES {
        return Err(FormatError::TooLarge);
    }
    let mut primes = Vec::with_capacity(count);
    for _ in 0..count {
        primes.push(modulus(&mut reader)?);
    }
    if modulus(&mut reader)? != 0 {
        return Err(FormatError::Range);
    }
    reader.finish()?;
    Ok(Declared { degree, primes })
}

fn modulus(reader: &mut Reader<'_>) -> Result<u64, FormatError> {
    let header = Header::read_nested(reader)?;
    let mut payload = header.nested(reader)?;
    let value = payload.u64()?;
    payload.finish()?;
    Ok(value)
}
