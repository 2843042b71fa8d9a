//! Epochs and their storage keys.
//!
//! Invariants:
//! 1. An epoch's key is a storage key under the storage root key. Its private part exists outside
//!    the TPM only in one call of the owner thread, and on the bus only encrypted, so evicting the
//!    key destroys everything sealed below it: crypto-shredding.
//! 2. It is persistent at [`Epoch::handle`]. Two handles take turns, so that the next epoch's key
//!    is there before the present one's is evicted.
//! 3. Only keys that carry this crate's mark are evicted; what else lies at these handles is
//!    somebody else's and is not touched.
//! 4. A sealed root is opened only below the key whose name it records.

use std::fmt;

use sha2::{Digest as _, Sha256};
use tracing::{info, warn};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Digest, EccPoint, Public, PublicEccParametersBuilder, SymmetricDefinitionObject,
};

use crate::blob::SealedRoot;
use crate::command::Command;
use crate::device::Device;
use crate::error::TpmError;
use crate::srk::Name;

/// First of two persistent handles in the owner's range (TPM 2.0 Part 2, 7.5).
const FIRST_HANDLE: u32 = 0x8101_0010;

/// Its digest is the mark of our keys: an authorisation policy that nothing satisfies. The key is
/// used with its empty password.
const MARK: &[u8; 17] = b"moai/v1/epoch-key";

/// The life of one root secret, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch that provisioning begins.
    pub const FIRST: Self = Self(1);

    /// The epoch after this one; its key has the other handle. 136 years of one epoch a second
    /// lead back to the first.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Persistent handle of the epoch's storage key.
    #[must_use]
    pub const fn handle(self) -> u32 {
        FIRST_HANDLE + self.0 % 2
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What lies at an epoch's handle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Nothing,
    EpochKey,
    Foreign,
}

impl Device {
    /// Runs `f` with the epoch's key if it is the recorded one.
    pub(crate) fn with_epoch_key<T>(
        &mut self,
        epoch: Epoch,
        recorded: &Name,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let Some(object) = self.find(epoch.handle())? else {
            return Err(self.gone(epoch));
        };
        self.with_closed(object, |device, object| {
            if device.name_of(object)?.as_ref() == Some(recorded) {
                f(device, object.into())
            } else {
                Err(device.gone(epoch))
            }
        })
    }

    /// Makes a storage key under `srk` and runs `f` with it and its name. If `f` succeeds, the
    /// key is made persistent in place of a leftover of ours.
    pub(crate) fn with_new_epoch_key<T>(
        &mut self,
        srk: KeyHandle,
        session: AuthSession,
        epoch: Epoch,
        f: impl FnOnce(&mut Self, KeyHandle, Name) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let handle = epoch.handle();
        let leftover = self.occupant(handle)?;
        if leftover == Occupant::Foreign {
            return Err(TpmError::HandleTaken { handle });
        }
        let key = self.create_epoch_key(srk, session)?;
        self.with_flushed(key.into(), |device| {
            let command = Command::Load;
            let name = device.name_of(key.into())?.ok_or(TpmError::Malformed { command })?;
            let made = f(device, key, name)?;
            if leftover == Occupant::EpochKey {
                warn!("evicting the storage key that an abandoned epoch left at {handle:#x}");
                device.evict(handle)?;
            }
            device.persist(key, handle)?;
            info!("storage key of epoch {epoch} created at {handle:#x}");
            Ok(made)
        })
    }

    /// Destroys the storage key of the epoch before or after that of `keep`, if there is one.
    pub(crate) fn retire(&mut self, keep: &SealedRoot) -> Result<(), TpmError> {
        // Whoever gives an old copy here must not destroy the key that is in use.
        self.with_recorded_srk(&keep.srk, |device, _| {
            device.with_epoch_key(keep.epoch, &keep.epoch_key, |_, _| Ok(()))
        })?;
        let handle = keep.epoch.next().handle();
        if self.occupant(handle)? == Occupant::EpochKey {
            self.evict(handle)?;
            info!("storage key at {handle:#x} evicted, only epoch {} is left", keep.epoch);
        }
        Ok(())
    }

    /// The key is made and loaded inside `session`, where its private part is encrypted.
    fn create_epoch_key(
        &mut self,
        srk: KeyHandle,
        session: AuthSession,
    ) -> Result<KeyHandle, TpmError> {
        let command = Command::Create;
        let created = self.execute(command, |context| {
            let template = epoch_public(EccPoint::default())?;
            context.execute_with_session(Some(session), |context| {
                context.create(srk, template, None, None, None, None)
            })
        })?;
        let Public::Ecc { unique, .. } = &created.out_public else {
            return Err(TpmError::Malformed { command });
        };
        let expected = self.execute(command, |_| epoch_public(unique.clone()))?;
        if created.out_public != expected {
            return Err(TpmError::Malformed { command });
        }
        self.execute(Command::Load, |context| {
            context.execute_with_session(Some(session), |context| {
                context.load(srk, created.out_private, created.out_public)
            })
        })
    }

    fn occupant(&mut self, handle: u32) -> Result<Occupant, TpmError> {
        let Some(object) = self.find(handle)? else {
            return Ok(Occupant::Nothing);
        };
        self.with_closed(object, |device, object| {
            device.execute(Command::ReadPublic, |context| {
                let (public, _, _) = context.read_public(object.into())?;
                let Public::Ecc { unique, .. } = &public else {
                    return Ok(Occupant::Foreign);
                };
                let ours = public == epoch_public(unique.clone())?;
                Ok(if ours { Occupant::EpochKey } else { Occupant::Foreign })
            })
        })
    }

    /// Why the key of `epoch` is not where it should be.
    fn gone(&mut self, epoch: Epoch) -> TpmError {
        let mut superseded = false;
        for handle in [epoch.handle(), epoch.next().handle()] {
            match self.occupant(handle) {
                Ok(occupant) => superseded |= occupant == Occupant::EpochKey,
                Err(error) => return error,
            }
        }
        TpmError::EpochGone { epoch, superseded }
    }
}

/// Public area of an epoch's key: the same as the storage root key's but for the mark.
fn epoch_public(point: EccPoint) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    )
    .build()?;
    Public::builder()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(Digest::try_from(Sha256::digest(MARK).to_vec())?)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(point)
        .build()
}
