//! The Ed25519 keys (RFC 8032) that sign frames beside the robots' identity keys.
//!
//! Invariants:
//! - a private half has no `Debug`, `Clone` or `Serialize`, lives in one heap allocation and is
//!   wiped on drop; only [`FileSigningKey::to_pem`] gives one out, for its file;
//! - keys of sessions, servers and operators are different types: none signs or verifies another's
//!   frames;
//! - a public key is a point of large order, so that no signature is good for many messages.

use std::fmt;
use std::marker::PhantomData;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{
    DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes,
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Length of a signature in bytes.
pub(crate) const SIGNATURE_LEN: usize = 64;
/// Most keys of a role that are trusted at a time: the one in use, the next, and some to spare.
pub const MAX_TRUSTED_KEYS: usize = 4;
/// Longest file of a key, in bytes.
pub const MAX_KEY_FILE_LEN: usize = 16 * 1024;

/// Why bytes are no key. Make another, or take the file that was meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no point of the curve, or one of small order.
    #[error("not an Ed25519 public key")]
    NotAPublicKey,
    /// No PKCS #8 document with an Ed25519 key.
    #[error(
        "not an Ed25519 private key in PEM (PKCS #8, \"BEGIN PRIVATE KEY\"); `moai-server key \
         generate` and `openssl genpkey -algorithm ed25519` make one"
    )]
    NotAPrivateKey,
    /// No block, or too many.
    #[error(
        "1 to {MAX_TRUSTED_KEYS} Ed25519 public keys in PEM (\"BEGIN PUBLIC KEY\") are expected, not \
         {0}; `moai-server key public` and `openssl pkey -pubout` print one"
    )]
    Count(usize),
    /// A block that is no key.
    #[error("public key {0} of the file is not Ed25519 in PEM")]
    Block(usize),
}

/// A public key; two keys are the same if their 32 bytes are.
fn public_key(bytes: &[u8; 32]) -> Result<VerifyingKey, KeyError> {
    VerifyingKey::from_bytes(bytes)
        .ok()
        .filter(|key| is_reduced(bytes) && !key.is_weak())
        .ok_or(KeyError::NotAPublicKey)
}

/// Whether the point's y is below the field's prime 2²⁵⁵ − 19, as RFC 8032 section 5.1.3 demands and
/// the library does not.
fn is_reduced(bytes: &[u8; 32]) -> bool {
    let [first, middle @ .., last] = bytes;
    last & 0x7f != 0x7f || middle.iter().any(|byte| *byte != 0xff) || *first < 0xed
}

fn verifies(key: &VerifyingKey, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
    key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
}

/// The public half of a session's signing key, as its manifest names it. Text is lower-case
/// hexadecimal; binary formats take the 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionPublicKey([u8; 32]);

impl SessionPublicKey {
    /// The key of these bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        public_key(bytes).map(|key| Self(key.to_bytes()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        public_key(&self.0).is_ok_and(|key| verifies(&key, message, signature))
    }
}

impl fmt::Debug for SessionPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionPublicKey({})", hex::encode(self.as_bytes()))
    }
}

impl Serialize for SessionPublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.as_bytes())
    }
}

impl<'de> Deserialize<'de> for SessionPublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = crate::cbor::bytes::deserialize(deserializer)?;
        let bytes = bytes.try_into().map_err(|_| KeyError::NotAPublicKey);
        bytes.and_then(|bytes| Self::from_bytes(&bytes)).map_err(serde::de::Error::custom)
    }
}

/// What signs the frames of one session.
pub struct SessionSigningKey(Box<SigningKey>);

impl SessionSigningKey {
    /// The key of this seed (RFC 8032 section 5.1.5). The caller wipes the seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Box::new(SigningKey::from_bytes(seed)))
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> SessionPublicKey {
        SessionPublicKey(self.0.verifying_key().to_bytes())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(message).to_bytes()
    }
}

/// The servers of one group: all its workers have the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {}

/// Who runs a fleet and gives its robots commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {}

/// What signs the frames of a server.
pub type ServerSigningKey = FileSigningKey<Server>;
/// The public half of a server's signing key.
pub type ServerPublicKey = FilePublicKey<Server>;
/// The servers a robot believes.
pub type ServerKeys = TrustedKeys<Server>;
/// What signs the commands of a fleet's operator.
pub type OperatorSigningKey = FileSigningKey<Operator>;
/// The public half of an operator's signing key.
pub type OperatorPublicKey = FilePublicKey<Operator>;
/// The operators a robot obeys.
pub type OperatorKeys = TrustedKeys<Operator>;

/// A signing key that lives in a file, for one role.
pub struct FileSigningKey<R>(Box<SigningKey>, PhantomData<R>);

impl<R> FileSigningKey<R> {
    /// The key of this seed (RFC 8032 section 5.1.5). The caller wipes the seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Box::new(SigningKey::from_bytes(seed)), PhantomData)
    }

    /// The key in a PEM file (PKCS #8, RFC 8410).
    ///
    /// # Errors
    /// The file holds none.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = SigningKey::from_pkcs8_pem(pem).map_err(|_| KeyError::NotAPrivateKey)?;
        Ok(Self(Box::new(key), PhantomData))
    }

    /// The file's text. It is secret.
    ///
    /// # Panics
    /// Never: a key always has this form.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        // Without the public half, which is version 1 of PKCS #8: what OpenSSL reads.
        let secret_key = Zeroizing::new(self.0.to_bytes());
        KeypairBytes { secret_key: *secret_key, public_key: None }
            .to_pkcs8_pem(LineEnding::LF)
            .expect("an Ed25519 key has a PKCS #8 form")
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> FilePublicKey<R> {
        FilePublicKey(self.0.verifying_key(), PhantomData)
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(message).to_bytes()
    }
}

/// The public half of a [`FileSigningKey`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FilePublicKey<R>(VerifyingKey, PhantomData<R>);

impl<R> FilePublicKey<R> {
    /// The text of a PEM file (`SubjectPublicKeyInfo`, RFC 8410).
    ///
    /// # Panics
    /// Never: a key always has this form.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.to_public_key_pem(LineEnding::LF).expect("an Ed25519 key has a public form")
    }
}

impl<R> fmt::Debug for FilePublicKey<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilePublicKey({})", hex::encode(self.0.as_bytes()))
    }
}

/// Who is trusted in a role: 1 to [`MAX_TRUSTED_KEYS`] keys, so that one can follow another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeys<R>(Vec<FilePublicKey<R>>);

impl<R> TrustedKeys<R> {
    /// The keys in a PEM file. Blocks of other kinds are passed over.
    ///
    /// # Errors
    /// There are none or too many, or one is no Ed25519 key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for (index, block) in SubjectPublicKeyInfoDer::pem_slice_iter(pem).enumerate() {
            let wrong = KeyError::Block(index + 1);
            let block = block.map_err(|_| wrong.clone())?;
            let key = VerifyingKey::from_public_key_der(&block).map_err(|_| wrong.clone())?;
            let key = public_key(key.as_bytes()).map_err(|_| wrong)?;
            keys.push(FilePublicKey(key, PhantomData));
        }
        if (1..=MAX_TRUSTED_KEYS).contains(&keys.len()) {
            Ok(Self(keys))
        } else {
            Err(KeyError::Count(keys.len()))
        }
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        self.0.iter().any(|FilePublicKey(key, _)| verifies(key, message, signature))
    }
}

impl<R> From<FilePublicKey<R>> for TrustedKeys<R> {
    fn from(key: FilePublicKey<R>) -> Self {
        Self(vec![key])
    }
}
