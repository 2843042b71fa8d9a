//! `TenSEAL`'s protocol buffers: context and CKKS vector.

use super::ciphertext::MAX_SIZE;
use super::protobuf::{Fields, put_bytes, put_double, put_length, put_number, put_varint, varint};
use super::reader::Reader;
use crate::ciphertext::Ciphertext;
use crate::error::FormatError;
use crate::parameters::{Parameters, Policy};
use crate::wire::ciphertext::{decode_ciphertext, max_payload_len};
use crate::wire::keys::{KeySwitchKeys, decode_public_key};
use crate::wire::parameters;
use crate::wire::writer::Compression;

/// Most ciphertexts of a vector.
pub const MAX_CHUNKS: usize = 64;

/// `TenSEAL`'s `CKKSVector`: numbers in ciphertexts of N/2 each.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    len: usize,
    ciphertexts: Vec<Ciphertext>,
    scale: f64,
}

impl Vector {
    pub(crate) fn new(len: usize, ciphertexts: Vec<Ciphertext>, scale: f64) -> Self {
        Self { len, ciphertexts, scale }
    }

    /// Reads a vector of at most `max_len` numbers.
    ///
    /// # Errors
    /// [`FormatError`] when it is damaged, longer, or of other parameters.
    pub fn decode(
        parameters: &Parameters,
        bytes: &[u8],
        max_len: usize,
    ) -> Result<Self, FormatError> {
        let most = max_len.div_ceil(parameters.slots());
        let vector = Self::parse(parameters, bytes, most)?;
        let ciphertexts = vector.len.div_ceil(parameters.slots());
        if vector.len > max_len || vector.ciphertexts.len() != ciphertexts {
            return Err(FormatError::Shape);
        }
        Ok(vector)
    }

    /// Reads a result of exactly so many ciphertexts, of `len` numbers each.
    ///
    /// # Errors
    /// [`FormatError`] when it is damaged, of another shape, or of other parameters.
    pub fn decode_result(
        parameters: &Parameters,
        bytes: &[u8],
        len: usize,
        ciphertexts: usize,
    ) -> Result<Self, FormatError> {
        let vector = Self::parse(parameters, bytes, ciphertexts)?;
        if vector.len != len || vector.ciphertexts.len() != ciphertexts {
            return Err(FormatError::Shape);
        }
        Ok(vector)
    }

    /// Reads a vector of any length in at most so many ciphertexts.
    fn parse(parameters: &Parameters, bytes: &[u8], most: usize) -> Result<Self, FormatError> {
        let most = most.min(MAX_CHUNKS);
        let (degree, level) = (parameters.degree(), parameters.data_level());
        if bytes.len() > (most + 1) * 2 * max_payload_len(degree, level, MAX_SIZE) {
            return Err(FormatError::TooLarge);
        }
        let (mut len, mut ciphertexts, mut scale) = (None, Vec::new(), None);
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => {
                    let mut reader = Reader::new(value.bytes()?);
                    while reader.len() > 0 {
                        let length = usize::try_from(varint(&mut reader)?);
                        let length = length.map_err(|_| FormatError::TooLarge)?;
                        // Another dimension, or a second list.
                        if length == 0 || len.replace(length).is_some() {
                            return Err(FormatError::Shape);
                        }
                    }
                }
                (2, value) if ciphertexts.len() < most => {
                    ciphertexts.push(decode_ciphertext(
                        parameters,
                        value.bytes()?,
                        level,
                        MAX_SIZE,
                    )?);
                }
                (2, _) => return Err(FormatError::TooLarge),
                (3, value) => scale = Some(value.double()?),
                _ => return Err(FormatError::ProtocolBuffer),
            }
        }
        let scale = scale.filter(|scale| scale.is_normal() && *scale > 0.0);
        Ok(Self {
            len: len.ok_or(FormatError::Shape)?,
            ciphertexts,
            scale: scale.ok_or(FormatError::Scale)?,
        })
    }

    /// The message as `TenSEAL` reads it.
    #[must_use]
    pub fn encode(&self, parameters: &Parameters, compression: Compression) -> Vec<u8> {
        let mut length = Vec::new();
        put_varint(&mut length, self.len as u64);
        let words: usize = self.ciphertexts.iter().map(|c| c.words().len() * 8 + 400).sum();
        let mut out = Vec::with_capacity(words);
        put_bytes(&mut out, 1, &length);
        for ciphertext in &self.ciphertexts {
            put_bytes(&mut out, 2, &ciphertext.encode(parameters, compression));
        }
        put_double(&mut out, 3, self.scale);
        out
    }

    /// How many numbers it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a vector holds at least one number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the numbers were multiplied by, as the vector says; its ciphertexts say it too.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Its ciphertexts, each of N/2 numbers but the last.
    #[must_use]
    pub fn ciphertexts(&self) -> &[Ciphertext] {
        &self.ciphertexts
    }
}

/// `TenSEAL`'s context as a server holds it: no secret key.
#[derive(Clone, Debug, PartialEq)]
pub struct PublicContext {
    /// The parameters, with the context's global scale (1 if it has none).
    pub parameters: Parameters,
    /// The public key, which also says whether vectors are encrypted with it.
    pub public_key: Option<Ciphertext>,
    /// The relinearisation key.
    pub relinearization: Option<KeySwitchKeys>,
    /// The Galois keys.
    pub galois: Option<KeySwitchKeys>,
}

impl PublicContext {
    /// Reads a context. One that holds a secret key is refused.
    ///
    /// # Errors
    /// [`FormatError`] when it is damaged, holds a secret, or its parameters are not valid or too
    /// weak for the policy.
    pub fn decode(bytes: &[u8], policy: Policy) -> Result<Self, FormatError> {
        let parts = ContextParts::decode(bytes)?;
        if parts.secret_key.is_some() {
            return Err(FormatError::Kind);
        }
        let parameters = parts.parameters(policy)?;
        Ok(Self {
            public_key: parts
                .public_key
                .map(|bytes| decode_public_key(&parameters, bytes))
                .transpose()?,
            relinearization: parts
                .relinearization
                .map(|bytes| KeySwitchKeys::decode_relinearization(&parameters, bytes))
                .transpose()?,
            galois: parts
                .galois
                .map(|bytes| KeySwitchKeys::decode_galois(&parameters, bytes))
                .transpose()?,
            parameters,
        })
    }
}

/// The parts of a context message.
#[derive(Default)]
pub(crate) struct ContextParts<'a> {
    parameters: &'a [u8],
    scale: Option<f64>,
    public_key: Option<&'a [u8]>,
    relinearization: Option<&'a [u8]>,
    galois: Option<&'a [u8]>,
    pub(crate) secret_key: Option<&'a [u8]>,
}

impl<'a> ContextParts<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut parts = Self::default();
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => parts.parameters = value.bytes()?,
                (2, value) => parts.read_public(value.bytes()?)?,
                (3, value) => parts.read_private(value.bytes()?)?,
                (4, value) if value.varint()? <= 1 => {}
                _ => return Err(FormatError::ProtocolBuffer),
            }
        }
        Ok(parts)
    }

    fn read_public(&mut self, message: &'a [u8]) -> Result<(), FormatError> {
        for field in Fields::new(message) {
            match field? {
                (1, value) => self.public_key = Some(value.bytes()?),
                (2, value) => drop(value.varint()?),
                (3, value) => self.scale = Some(value.double()?),
                (4, value) => self.relinearization = Some(value.bytes()?),
                (5, value) => self.galois = Some(value.bytes()?),
                _ => return Err(FormatError::ProtocolBuffer),
            }
        }
        Ok(())
    }

    fn read_private(&mut self, message: &'a [u8]) -> Result<(), FormatError> {
        for field in Fields::new(message) {
            match field? {
                (1, value) => self.secret_key = Some(value.bytes()?),
                (2 | 3, value) => drop(value.varint()?),
                _ => return Err(FormatError::ProtocolBuffer),
            }
        }
        Ok(())
    }

    pub(crate) fn parameters(&self, policy: Policy) -> Result<Parameters, FormatError> {
        let declared = parameters::decode(self.parameters)?;
        // TenSEAL writes -1 for a scale that was never set.
        let scale = self.scale.filter(|scale| *scale >= 1.0).unwrap_or(1.0);
        Parameters::from_primes(declared.degree, &declared.primes, scale, policy)
            .map_err(|_| FormatError::Parameters)
    }
}

/// What stands before, between and after the keys of a public context. Lengths are those of the
/// keys' objects; a key that is not there has none.
pub(crate) struct ContextFrame {
    pub(crate) before_public_key: Vec<u8>,
    pub(crate) before_relinearization: Vec<u8>,
    pub(crate) before_galois: Vec<u8>,
    pub(crate) end: Vec<u8>,
    pub(crate) len: u64,
}

/// Relinearise, rescale and switch moduli by itself: `TenSEAL`'s default.
const AUTOMATIC: u64 = 7;
const SYMMETRIC: u64 = 1;

impl ContextFrame {
    pub(crate) fn new(
        parameters: &Parameters,
        public_key: Option<u64>,
        relinearization: Option<u64>,
        galois: Option<u64>,
    ) -> Self {
        let field = |field, length: Option<u64>| {
            let mut out = Vec::new();
            if let Some(length) = length {
                put_length(&mut out, field, length);
            }
            out
        };
        let public_key_field = field(1, public_key);
        let mut settings = Vec::new();
        put_number(&mut settings, 2, AUTOMATIC);
        put_double(&mut settings, 3, parameters.global_scale());
        settings.extend(field(4, relinearization));
        let galois_field = field(5, galois);
        let heads = [&public_key_field, &settings, &galois_field];
        let message_len = heads.iter().map(|head| head.len() as u64).sum::<u64>()
            + [public_key, relinearization, galois].iter().flatten().sum::<u64>();

        let mut before_public_key = Vec::new();
        put_bytes(&mut before_public_key, 1, &parameters::encode(parameters));
        put_length(&mut before_public_key, 2, message_len);
        let mut end = Vec::new();
        if public_key.is_none() {
            put_number(&mut end, 4, SYMMETRIC);
        }
        let outer_len = (before_public_key.len() + end.len()) as u64;
        before_public_key.extend(public_key_field);
        Self {
            before_public_key,
            before_relinearization: settings,
            before_galois: galois_field,
            end,
            len: outer_len + message_len,
        }
    }
}
