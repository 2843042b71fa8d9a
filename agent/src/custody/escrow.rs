//! Escrow: a copy of the root secret for the day the robot's custodian is lost.
//!
//! Invariants:
//! - the copy is sealed for an X25519 public key whose private half is kept offline (HPKE, RFC
//!   9180: base mode, `DHKEM(X25519, HKDF-SHA256)`, HKDF-SHA256, ChaCha20-Poly1305), or under a
//!   data key of a cloud's key management service. A copy for a public key opens nowhere but at
//!   the holder of the private half; one for the service opens for whoever may use its key;
//! - robot and epoch are authenticated with it, so no copy can pose as another robot's or as a
//!   newer one;
//! - parsing cannot panic, and takes no more than [`MAX_ESCROW_LEN`] bytes.
//!
//! A file is `"MOAIESCR" ‖ version u8 = 1 ‖ kind u8 ‖ epoch u32 ‖ length u16 ‖ body ‖ SHA-256 of all
//! before`, integers big-endian. Kind 1 has the body `recipient's public key 32 ‖ encapsulated key
//! 32 ‖ ciphertext 32 ‖ tag 16`, kind 2 that of custodian `kms`.
//!
//! Anybody can seal for a public key, as base mode does not authenticate the sealer: whoever can
//! write the robot's disk can exchange the copy for one of another secret. That secret opens no
//! vault; it is noticed when the escrow is tried, not before.

mod error;
mod keys;
mod service;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, HpkeError, Kem, OpModeR, OpModeS, Serializable};
use moai_tpm::{Epoch, RootSecret};
use moai_transport::ids::Identity;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use self::error::{EscrowError, FileProblem, KeyProblem};
pub use self::keys::{EscrowKeys, generate_keys, read_key_file};
use crate::config::{EscrowConfig, KmsConfig};

/// Name of the escrow in the state directory.
pub const ESCROW_FILE: &str = "escrow.sealed";
/// The longest escrow file that is read, in bytes.
pub const MAX_ESCROW_LEN: usize = 4096;

const MAGIC: &[u8; 8] = b"MOAIESCR";
const VERSION: u8 = 1;
/// Magic, version, kind, epoch, length of the body.
const HEADER_LEN: usize = 8 + 1 + 1 + 4 + 2;
const DIGEST_LEN: usize = 32;
const KEY_LEN: usize = 32;
const CIPHERTEXT_LEN: usize = 32 + 16;
const HPKE_BODY_LEN: usize = 2 * KEY_LEN + CIPHERTEXT_LEN;
const INFO: &[u8] = b"moai/v1/escrow";

/// Who can open an escrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscrowKind {
    /// The holder of an X25519 private key.
    PublicKey,
    /// Whoever may use a key of a key management service.
    Kms,
}

/// What can be read off an escrow without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EscrowFacts {
    /// Who can open it.
    pub kind: EscrowKind,
    /// The epoch of the root secret in it.
    pub epoch: Epoch,
}

/// Seals a copy of the root secret for whoever the configuration names; returns the file. Blocks.
///
/// # Errors
/// The public key cannot be read or is none, or the key management service refuses.
pub fn seal(
    config: &EscrowConfig,
    identity: &Identity,
    epoch: Epoch,
    root: &RootSecret,
) -> Result<Vec<u8>, EscrowError> {
    match config {
        EscrowConfig::PublicKey(path) => {
            let recipient = keys::read_public(path)?;
            let body = hpke_seal(&recipient, &associated_data(identity, epoch), root)?;
            Ok(encode(EscrowKind::PublicKey, epoch, &body))
        }
        EscrowConfig::Kms(config) => {
            let body = service::seal(config, identity, epoch, root)?;
            Ok(encode(EscrowKind::Kms, epoch, &body))
        }
    }
}

/// Tells who can open an escrow file, and the epoch of what is in it.
///
/// # Errors
/// It is no intact escrow file.
pub fn facts(file: &[u8]) -> Result<EscrowFacts, EscrowError> {
    Ok(Parts::parse(file)?.facts)
}

/// Opens an escrow with the private key (PEM) it was sealed for.
///
/// # Errors
/// It is damaged, sealed for another key or robot, or the text is no X25519 private key.
pub fn open_with_key(
    file: &[u8],
    identity: &Identity,
    private_key: &str,
) -> Result<(Epoch, RootSecret), EscrowError> {
    let Parts { facts, body } = Parts::parse(file)?;
    if facts.kind != EscrowKind::PublicKey {
        return Err(EscrowError::OtherKind(facts.kind));
    }
    let private = keys::parse_private(private_key)?;
    let root = hpke_open(&private, &associated_data(identity, facts.epoch), body)?;
    Ok((facts.epoch, root))
}

/// Opens an escrow with the key management service. Blocks.
///
/// # Errors
/// It is damaged, of another robot or not sealed by this service, or the service refuses.
pub fn open_with_kms(
    file: &[u8],
    identity: &Identity,
    config: &KmsConfig,
) -> Result<(Epoch, RootSecret), EscrowError> {
    let Parts { facts, body } = Parts::parse(file)?;
    if facts.kind != EscrowKind::Kms {
        return Err(EscrowError::OtherKind(facts.kind));
    }
    let root = service::open(config, identity, facts.epoch, body)?;
    Ok((facts.epoch, root))
}

fn associated_data(identity: &Identity, epoch: Epoch) -> Vec<u8> {
    format!("{VERSION}\n{identity}\n{epoch}").into_bytes()
}

fn hpke_seal(
    recipient: &<X25519HkdfSha256 as Kem>::PublicKey,
    associated_data: &[u8],
    root: &RootSecret,
) -> Result<Vec<u8>, EscrowError> {
    let sealed = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        recipient,
        INFO,
        root.expose(),
        associated_data,
    );
    // The only way to fail is a public key on which every private key agrees on zero.
    let (encapsulated, ciphertext) = sealed.map_err(|_| KeyProblem::Weak)?;
    let mut body = recipient.to_bytes().to_vec();
    body.extend(encapsulated.to_bytes());
    body.extend(ciphertext);
    Ok(body)
}

fn hpke_open(
    private: &<X25519HkdfSha256 as Kem>::PrivateKey,
    associated_data: &[u8],
    body: &[u8],
) -> Result<RootSecret, EscrowError> {
    let body: &[u8; HPKE_BODY_LEN] = body.try_into().map_err(|_| FileProblem::Malformed)?;
    let (recipient, body) = body.split_at(KEY_LEN);
    let (encapsulated, ciphertext) = body.split_at(KEY_LEN);
    let own = X25519HkdfSha256::sk_to_pk(private).to_bytes();
    if own.as_slice() != recipient {
        return Err(EscrowError::OtherKey {
            sealed: keys::fingerprint(recipient),
            given: keys::fingerprint(&own),
        });
    }
    let open = || -> Result<Vec<u8>, HpkeError> {
        let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapsulated)?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            private,
            &encapsulated,
            INFO,
            ciphertext,
            associated_data,
        )
    };
    let root = Zeroizing::new(open().map_err(|_| EscrowError::Tampered)?);
    let root = root.as_slice().try_into().map_err(|_| FileProblem::Malformed)?;
    Ok(RootSecret::copy_of(root))
}

fn encode(kind: EscrowKind, epoch: Epoch, body: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    file.push(VERSION);
    file.push(match kind {
        EscrowKind::PublicKey => 1,
        EscrowKind::Kms => 2,
    });
    file.extend(epoch.0.to_be_bytes());
    let length = u16::try_from(body.len()).expect("no body comes near 64 KiB");
    file.extend(length.to_be_bytes());
    file.extend(body);
    let digest = Sha256::digest(&file);
    file.extend(digest);
    file
}

/// A file taken apart.
struct Parts<'a> {
    facts: EscrowFacts,
    body: &'a [u8],
}

impl<'a> Parts<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, EscrowError> {
        if file.len() > MAX_ESCROW_LEN {
            return Err(FileProblem::TooLarge.into());
        }
        let (magic, rest) = file.split_first_chunk::<8>().ok_or(FileProblem::NotEscrow)?;
        if magic != MAGIC {
            return Err(FileProblem::NotEscrow.into());
        }
        match rest.first() {
            Some(&VERSION) => {}
            Some(&found) => return Err(FileProblem::Version { found }.into()),
            None => return Err(FileProblem::Damaged.into()),
        }
        let (content, digest) =
            file.split_last_chunk::<DIGEST_LEN>().ok_or(FileProblem::Damaged)?;
        if Sha256::digest(content).as_slice() != digest {
            return Err(FileProblem::Damaged.into());
        }
        let (header, body) =
            content.split_first_chunk::<HEADER_LEN>().ok_or(FileProblem::Malformed)?;
        let [.., kind, e0, e1, e2, e3, l0, l1] = *header;
        let kind = match kind {
            1 => EscrowKind::PublicKey,
            2 => EscrowKind::Kms,
            _ => return Err(FileProblem::Malformed.into()),
        };
        if body.len() != usize::from(u16::from_be_bytes([l0, l1])) {
            return Err(FileProblem::Malformed.into());
        }
        let epoch = Epoch(u32::from_be_bytes([e0, e1, e2, e3]));
        Ok(Self { facts: EscrowFacts { kind, epoch }, body })
    }
}

#[cfg(test)]
mod tests;
