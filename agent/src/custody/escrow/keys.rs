//! Escrow keys as text: X25519 in the PEM forms of RFC 8410, as OpenSSL reads and writes them too.
//!
//! Invariants:
//! - a private key as text is wiped on drop;
//! - what is read is capped before it is parsed.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, Serializable};
use p256::pkcs8::spki::SubjectPublicKeyInfoRef;
use p256::pkcs8::{Document, LineEnding, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::{EscrowError, KeyProblem};
use crate::secrets::OsEntropy;

type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;

/// `id-X25519` (RFC 8410, 3).
const X25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.110");
const PUBLIC_LABEL: &str = "PUBLIC KEY";
const PRIVATE_LABEL: &str = "PRIVATE KEY";
/// DER before the 32 bytes of a `SubjectPublicKeyInfo` with an X25519 key.
const PUBLIC_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x03, 0x21, 0x00];
/// DER before the 32 bytes of a PKCS #8 `PrivateKeyInfo` with an X25519 key.
const PRIVATE_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x04, 0x22, 0x04, 0x20,
];
/// A PEM key of X25519 has about 120 bytes.
const MAX_KEY_LEN: u64 = 4096;

/// A pair of escrow keys, for the operator.
pub struct EscrowKeys {
    /// PKCS #8, PEM; kept offline.
    pub private_pem: Zeroizing<String>,
    /// `SubjectPublicKeyInfo`, PEM; goes to the robots.
    pub public_pem: String,
    /// Names the pair in messages.
    pub fingerprint: String,
}

/// Makes a pair of escrow keys.
///
/// # Errors
/// The operating system gives no randomness.
pub fn generate_keys() -> Result<EscrowKeys, EscrowError> {
    let seed = Zeroizing::new(OsEntropy::bytes::<32>()?);
    let (private, public) = X25519HkdfSha256::derive_keypair(seed.as_slice());
    let private_bytes = Zeroizing::new(<[u8; 32]>::from(private.to_bytes()));
    let public_bytes = public.to_bytes();
    Ok(EscrowKeys {
        private_pem: private_pem(&private_bytes),
        public_pem: public_pem(&public_bytes.into()),
        fingerprint: fingerprint(&public_bytes),
    })
}

fn private_pem(key: &[u8; 32]) -> Zeroizing<String> {
    let mut der = Zeroizing::new(Vec::with_capacity(PRIVATE_PREFIX.len() + key.len()));
    der.extend(PRIVATE_PREFIX);
    der.extend(key);
    SecretDocument::try_from(der.as_slice())
        .and_then(|der| der.to_pem(PRIVATE_LABEL, LineEnding::LF))
        .expect("prefix and key are valid DER")
}

fn public_pem(key: &[u8; 32]) -> String {
    Document::try_from([&PUBLIC_PREFIX[..], key].concat())
        .and_then(|der| der.to_pem(PUBLIC_LABEL, LineEnding::LF))
        .expect("prefix and key are valid DER")
}

/// Names a public key in messages.
pub(super) fn fingerprint(public: &[u8]) -> String {
    let digest = Sha256::digest(public);
    hex::encode(digest.get(..8).unwrap_or_default())
}

pub(super) fn read_public(path: &Path) -> Result<PublicKey, EscrowError> {
    parse_public(&read(path)?)
        .map_err(|problem| EscrowError::KeyFile { path: path.to_owned(), problem })
}

/// Reads a file with a private key, which [`super::open_with_key`] takes.
///
/// # Errors
/// It cannot be read, or is larger than any key.
pub fn read_key_file(path: &Path) -> Result<Zeroizing<String>, EscrowError> {
    read(path)
}

fn read(path: &Path) -> Result<Zeroizing<String>, EscrowError> {
    let mut text = Zeroizing::new(String::new());
    let read =
        File::open(path).and_then(|file| file.take(MAX_KEY_LEN + 1).read_to_string(&mut text));
    let checked = read.map_err(KeyProblem::Io).and_then(|_| check_length(&text));
    match checked {
        Ok(()) => Ok(text),
        Err(problem) => Err(EscrowError::KeyFile { path: path.to_owned(), problem }),
    }
}

fn parse_public(pem: &str) -> Result<PublicKey, KeyProblem> {
    check_length(pem)?;
    let Ok((PUBLIC_LABEL, document)) = Document::from_pem(pem) else {
        return Err(KeyProblem::NotPem { expected: PUBLIC_LABEL });
    };
    let info: SubjectPublicKeyInfoRef<'_> =
        document.decode_msg().map_err(|_| KeyProblem::NotX25519)?;
    let key = info.subject_public_key.as_bytes().filter(|_| info.algorithm.oid == X25519);
    PublicKey::from_bytes(key.ok_or(KeyProblem::NotX25519)?).map_err(|_| KeyProblem::NotX25519)
}

/// Reads a private key (PKCS #8, PEM).
pub(super) fn parse_private(pem: &str) -> Result<PrivateKey, KeyProblem> {
    check_length(pem)?;
    let Ok((PRIVATE_LABEL, document)) = SecretDocument::from_pem(pem) else {
        return Err(KeyProblem::NotPem { expected: PRIVATE_LABEL });
    };
    let info: PrivateKeyInfoRef<'_> = document.decode_msg().map_err(|_| KeyProblem::NotX25519)?;
    // RFC 8410, 7: an OCTET STRING in the OCTET STRING.
    let key = info.private_key.as_bytes().strip_prefix(&[0x04, 0x20]);
    let key = key.filter(|_| info.algorithm.oid == X25519).ok_or(KeyProblem::NotX25519)?;
    PrivateKey::from_bytes(key).map_err(|_| KeyProblem::NotX25519)
}

fn check_length(pem: &str) -> Result<(), KeyProblem> {
    let length = u64::try_from(pem.len()).unwrap_or(u64::MAX);
    if length > MAX_KEY_LEN { Err(KeyProblem::TooLarge) } else { Ok(()) }
}
