//! The identity key and the attestation key: made in the TPM, used in the TPM, never outside it.
//!
//! Invariants:
//! 1. Both are P-256 keys for ECDSA with SHA-256 under the storage root key, with the public area
//!    that `key_blob` fixes.
//! 2. Every answer comes in a session salted to the recorded storage root key, so what stands
//!    between processor and TPM can neither choose the key nor alter the signature.
//! 3. A refusal tells another TPM and a cleared owner hierarchy from an altered file.

use std::array::TryFromSliceError;

use tss_esapi::constants::SessionType;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Attest, CreateKeyResult, Data, Digest, EccParameter, HashcheckTicket, Private, Public,
    Signature, SignatureScheme,
};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};

use crate::command::Command;
use crate::device::Device;
use crate::error::{Advice, TpmError};
use crate::key_blob::{COORDINATE_LEN, KeyBlob, KeyKind, public_area};
use crate::pcr::PcrSelection;
use crate::srk::SrkIdentity;
use crate::tpm::Tpm;

/// How many keys are made until one has no coordinate that starts with a zero byte, in case the
/// TPM drops such bytes. One is enough in 127 of 128 cases.
const CREATE_ATTEMPTS: usize = 8;

/// Why a key blob is of no use with this TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyTrouble {
    /// The TPM refused it: not what it once wrapped.
    #[error(
        "was altered, the TPM refuses it: restore its file from a copy or make a new key and \
         enrol it"
    )]
    Tampered,
    /// The storage root key belongs to another TPM.
    #[error(
        "belongs to another TPM: put the storage back into the robot it came from, or provision \
         this robot's identity anew"
    )]
    OtherTpm,
    /// The same TPM, but the storage root key that wrapped the key is gone.
    #[error(
        "was wrapped by a storage root key that is gone from this TPM, its owner hierarchy was \
         cleared (TPM2_Clear): make a new key and enrol it"
    )]
    OwnerCleared,
    /// Another storage root key, and the TPM does not tell whether it is the same TPM.
    #[error(
        "was wrapped by another storage root key: this is another TPM, or its owner hierarchy was \
         cleared. Put the storage back into the robot it came from, or make a new key and enrol it"
    )]
    SrkChanged,
    /// A key of the other kind.
    #[error("is needed here and a key of the other kind was given: look at the two files' names")]
    WrongKind,
}

impl KeyTrouble {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(self) -> Advice {
        match self {
            Self::Tampered | Self::OwnerCleared => Advice::Stop,
            Self::OtherTpm | Self::SrkChanged | Self::WrongKind => Advice::Fix,
        }
    }
}

/// A statement of the TPM about itself, signed by the attestation key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// `TPMS_ATTEST` (TPM 2.0 Part 2, 10.12.12).
    pub statement: Vec<u8>,
    /// ECDSA with SHA-256 over the statement: `r ‖ s`.
    pub signature: [u8; 64],
}

impl Tpm {
    /// Makes a key. Creates the storage root key if there is none.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn create_key(&self, kind: KeyKind) -> Result<KeyBlob, TpmError> {
        self.owner.call(move |device| device.create_key(kind))
    }

    /// Signs a SHA-256 digest with the identity key; answers `r ‖ s`.
    ///
    /// # Errors
    /// [`TpmError::Key`] when this TPM cannot use the key, [`KeyTrouble::WrongKind`] for the
    /// attestation key, which signs nothing from outside; see [`TpmError`] for the rest.
    pub fn sign(&self, key: &KeyBlob, sha256: [u8; 32]) -> Result<[u8; 64], TpmError> {
        let key = key.clone();
        self.owner.call(move |device| device.sign(&key, sha256))
    }

    /// Has the attestation key certify that the identity key is in this TPM, with the attributes
    /// it has (`TPM2_Certify`).
    ///
    /// # Errors
    /// [`TpmError::Key`] when this TPM cannot use one of the keys; see [`TpmError`] for the rest.
    pub fn certify(
        &self,
        identity: &KeyBlob,
        attestation: &KeyBlob,
        qualifying: [u8; 32],
    ) -> Result<Attested, TpmError> {
        let (identity, attestation) = (identity.clone(), attestation.clone());
        self.owner.call(move |device| device.certify(&identity, &attestation, qualifying))
    }

    /// Has the attestation key sign what the selected PCRs hold now (`TPM2_Quote`).
    ///
    /// # Errors
    /// [`TpmError::Key`] when this TPM cannot use the key; see [`TpmError`] for the rest.
    pub fn quote(
        &self,
        attestation: &KeyBlob,
        pcrs: PcrSelection,
        qualifying: [u8; 32],
    ) -> Result<Attested, TpmError> {
        let attestation = attestation.clone();
        self.owner.call(move |device| device.quote(&attestation, pcrs, qualifying))
    }
}

impl Device {
    fn create_key(&mut self, kind: KeyKind) -> Result<KeyBlob, TpmError> {
        let command = Command::Create;
        let endorsement = self.endorsement_name()?;
        self.ensure_srk()?;
        self.with_srk(|device, srk, name| {
            for _ in 0..CREATE_ATTEMPTS {
                let created = device.create_under(srk, kind)?;
                let Public::Ecc { unique, .. } = &created.out_public else {
                    return Err(TpmError::Malformed { command });
                };
                let (Ok(&x), Ok(&y)) = (coordinate(unique.x()), coordinate(unique.y())) else {
                    continue;
                };
                let area = device.execute(command, |_| created.out_public.marshall())?;
                if area != public_area(kind, &x, &y) {
                    return Err(TpmError::Malformed { command });
                }
                let srk = SrkIdentity { name, endorsement };
                let private = created.out_private.value().to_vec();
                return KeyBlob::new(kind, srk, x, y, private)
                    .ok_or(TpmError::Malformed { command });
            }
            Err(TpmError::Malformed { command })
        })
    }

    fn create_under(&mut self, srk: KeyHandle, kind: KeyKind) -> Result<CreateKeyResult, TpmError> {
        self.with_session(SessionType::Hmac, srk, |device, session| {
            device.execute(Command::Create, |context| {
                let template = Public::unmarshall(&public_area(kind, &[], &[]))?;
                context.execute_with_session(Some(session), |context| {
                    context.create(srk, template, None, None, None, None)
                })
            })
        })
    }

    fn sign(&mut self, key: &KeyBlob, sha256: [u8; 32]) -> Result<[u8; 64], TpmError> {
        let command = Command::Sign;
        let signature = self.with_key(key, KeyKind::Identity, |device, srk, handle| {
            device.with_session(SessionType::Hmac, srk, |device, session| {
                device.execute(command, |context| {
                    let digest = Digest::try_from(sha256.to_vec())?;
                    let no_ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
                        tag: TPM2_ST_HASHCHECK,
                        hierarchy: TPM2_RH_NULL,
                        digest: TPM2B_DIGEST::default(),
                    })?;
                    context.execute_with_session(Some(session), |context| {
                        context.sign(handle, digest, SignatureScheme::Null, no_ticket)
                    })
                })
            })
        })?;
        fixed_width(&signature).ok_or(TpmError::Malformed { command })
    }

    fn certify(
        &mut self,
        identity: &KeyBlob,
        attestation: &KeyBlob,
        qualifying: [u8; 32],
    ) -> Result<Attested, TpmError> {
        let command = Command::Certify;
        let certified = self.with_key(identity, KeyKind::Identity, |device, _, subject| {
            device.with_key(attestation, KeyKind::Attestation, |device, srk, signer| {
                device.with_session(SessionType::Hmac, srk, |device, session| {
                    device.execute(command, |context| {
                        let qualifying = Data::try_from(qualifying.to_vec())?;
                        // The subject's empty password needs no secrecy; the session
                        // authenticates the whole answer.
                        let sessions = (Some(AuthSession::Password), Some(session), None);
                        context.execute_with_sessions(sessions, |context| {
                            context.certify(
                                subject.into(),
                                signer,
                                qualifying,
                                SignatureScheme::Null,
                            )
                        })
                    })
                })
            })
        })?;
        self.attested(command, &certified)
    }

    fn quote(
        &mut self,
        attestation: &KeyBlob,
        pcrs: PcrSelection,
        qualifying: [u8; 32],
    ) -> Result<Attested, TpmError> {
        let command = Command::Quote;
        let quoted = self.with_key(attestation, KeyKind::Attestation, |device, srk, signer| {
            device.with_session(SessionType::Hmac, srk, |device, session| {
                device.execute(command, |context| {
                    let qualifying = Data::try_from(qualifying.to_vec())?;
                    let selection = pcrs.to_list()?;
                    context.execute_with_session(Some(session), |context| {
                        context.quote(signer, qualifying, SignatureScheme::Null, selection)
                    })
                })
            })
        })?;
        self.attested(command, &quoted)
    }

    fn attested(
        &mut self,
        command: Command,
        (attest, signature): &(Attest, Signature),
    ) -> Result<Attested, TpmError> {
        let statement = self.execute(command, |_| attest.marshall())?;
        let signature = fixed_width(signature).ok_or(TpmError::Malformed { command })?;
        Ok(Attested { statement, signature })
    }

    /// Runs `f` with the storage root key and the loaded key.
    fn with_key<T>(
        &mut self,
        key: &KeyBlob,
        wanted: KeyKind,
        f: impl FnOnce(&mut Self, KeyHandle, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let key_error = |trouble| TpmError::Key { kind: wanted, trouble };
        if key.kind() != wanted {
            return Err(key_error(KeyTrouble::WrongKind));
        }
        let outcome = self.with_recorded_srk(&key.srk, |device, srk| {
            let loaded = device.execute(Command::Load, |context| {
                let public = Public::unmarshall(&key.public_area())?;
                let private = Private::try_from(key.private())?;
                // Nothing here is secret, and the TSS library takes the key's name from our public
                // area: a key put in its place fails when it is used.
                context.execute_with_session(Some(AuthSession::Password), |context| {
                    context.load(srk, private, public)
                })
            })?;
            device.with_flushed(loaded.into(), |device| f(device, srk, loaded))
        });
        // What `f` says about another key is already about that key.
        outcome.map_err(|error| match error {
            TpmError::Tampered => key_error(KeyTrouble::Tampered),
            TpmError::OtherTpm => key_error(KeyTrouble::OtherTpm),
            TpmError::OwnerCleared => key_error(KeyTrouble::OwnerCleared),
            TpmError::SrkChanged => key_error(KeyTrouble::SrkChanged),
            other => other,
        })
    }
}

fn coordinate(parameter: &EccParameter) -> Result<&[u8; COORDINATE_LEN], TryFromSliceError> {
    parameter.value().try_into()
}

/// `r ‖ s`, each of 32 bytes: a TPM may leave out leading zeros.
fn fixed_width(signature: &Signature) -> Option<[u8; 64]> {
    let Signature::EcDsa(signature) = signature else {
        return None;
    };
    let mut fixed = [0; 2 * COORDINATE_LEN];
    let (r, s) = fixed.split_at_mut(COORDINATE_LEN);
    for (half, number) in [(r, signature.signature_r()), (s, signature.signature_s())] {
        let padding = half.len().checked_sub(number.value().len())?;
        half.get_mut(padding..)?.copy_from_slice(number.value());
    }
    Some(fixed)
}
