//! The storage root key (SRK): parent of everything sealed and salt of every session.
//!
//! Invariants:
//! 1. A key is used only if it is a storage key that never leaves the TPM and is exempt from
//!    dictionary-attack protection.
//! 2. For a sealed root it is used only if its name is the recorded one. The TSS library derives
//!    the name from the very public area it salts sessions with, so no other key can stand in.
//! 3. A key is made persistent only if there is none, and, for a sealed root, only if it is the
//!    recorded one (an evicted SRK is the same again until the owner hierarchy is cleared).

use tracing::info;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    EccParameter, EccPoint, Public, PublicEccParametersBuilder, SymmetricDefinitionObject,
};

use crate::blob::NAME_LEN;
use crate::command::Command;
use crate::device::Device;
use crate::error::TpmError;

/// Persistent handle of the storage root key (TCG TPM v2.0 Provisioning Guidance).
pub const SRK_HANDLE: u32 = 0x8100_0001;

/// TPM name of a key with SHA-256 as name algorithm.
pub(crate) type Name = [u8; NAME_LEN];

/// Which key sealed something, and in which TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SrkIdentity {
    pub(crate) name: Name,
    /// Name of a primary key of the endorsement hierarchy. Clearing the owner hierarchy changes
    /// the SRK but not this, which tells a cleared TPM from another one. `None` if that
    /// hierarchy is closed to us.
    pub(crate) endorsement: Option<Name>,
}

impl Device {
    /// Runs `f` with the persistent SRK and its name. There must be one.
    pub(crate) fn with_srk<T>(
        &mut self,
        f: impl FnOnce(&mut Self, KeyHandle, Name) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let object = self.find(SRK_HANDLE)?.ok_or(TpmError::SrkChanged)?;
        self.with_closed(object, |device, object| {
            let name = device.suitable_name(object.into())?;
            f(device, object.into(), name)
        })
    }

    /// Runs `f` with the persistent SRK if it is the recorded one, which was suitable then and
    /// is the same key now, since the name covers its attributes.
    pub(crate) fn with_recorded_srk<T>(
        &mut self,
        recorded: &SrkIdentity,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let found = match self.find(SRK_HANDLE)? {
            None if self.create_srk(Some(&recorded.name))? => self.find(SRK_HANDLE)?,
            found => found,
        };
        let Some(object) = found else {
            return Err(self.tell_apart(recorded));
        };
        self.with_closed(object, |device, object| {
            if device.name_of(object)?.as_ref() == Some(&recorded.name) {
                f(device, object.into())
            } else {
                Err(device.tell_apart(recorded))
            }
        })
    }

    /// Creates the SRK if there is none.
    pub(crate) fn ensure_srk(&mut self) -> Result<(), TpmError> {
        if !self.has_srk()? {
            self.create_srk(None)?;
        }
        Ok(())
    }

    /// Name of a primary key of the endorsement hierarchy, if that hierarchy is open.
    pub(crate) fn endorsement_name(&mut self) -> Result<Option<Name>, TpmError> {
        match self.with_primary(Hierarchy::Endorsement, Self::suitable_name) {
            Ok(name) => Ok(Some(name)),
            Err(TpmError::Password { .. } | TpmError::HierarchyDisabled { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Why another SRK than the recorded one is there.
    fn tell_apart(&mut self, recorded: &SrkIdentity) -> TpmError {
        match (self.endorsement_name(), recorded.endorsement) {
            (Ok(Some(now)), Some(then)) if now == then => TpmError::OwnerCleared,
            (Ok(Some(_)), Some(_)) => TpmError::OtherTpm,
            (Ok(None), _) | (_, None) => TpmError::SrkChanged,
            (Err(error), _) => error,
        }
    }

    fn has_srk(&mut self) -> Result<bool, TpmError> {
        let Some(object) = self.find(SRK_HANDLE)? else {
            return Ok(false);
        };
        self.with_closed(object, |_, _| Ok(true))
    }

    /// Creates the SRK and makes it persistent, unless it is another one than `wanted`. Answers
    /// whether it did.
    fn create_srk(&mut self, wanted: Option<&Name>) -> Result<bool, TpmError> {
        self.with_primary(Hierarchy::Owner, |device, key| {
            let name = device.suitable_name(key)?;
            if wanted.is_some_and(|wanted| *wanted != name) {
                return Ok(false);
            }
            device.persist(key, SRK_HANDLE)?;
            info!("storage root key created at {SRK_HANDLE:#x}");
            Ok(true)
        })
    }

    /// Runs `f` with a primary key of the SRK template.
    fn with_primary<T>(
        &mut self,
        hierarchy: Hierarchy,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let created = self.execute(Command::CreatePrimary, |context| {
            let template = srk_template()?;
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.create_primary(hierarchy, template, None, None, None, None)
            })
        })?;
        let key = created.key_handle;
        self.with_flushed(key.into(), |device| f(device, key))
    }

    /// Name of a key that can serve as SRK.
    fn suitable_name(&mut self, key: KeyHandle) -> Result<Name, TpmError> {
        let command = Command::ReadPublic;
        let (public, _, _) = self.execute(command, |context| context.read_public(key))?;
        let attributes = public.object_attributes();
        let suitable = attributes.fixed_tpm()
            && attributes.fixed_parent()
            && attributes.restricted()
            && attributes.decrypt()
            && attributes.no_da();
        let name = self.name_of(key.into())?;
        name.filter(|_| suitable).ok_or(TpmError::SrkUnsuitable)
    }
}

/// ECC P-256 storage root key as TCG TPM v2.0 Provisioning Guidance has it, exempt from
/// dictionary-attack protection.
fn srk_template() -> tss_esapi::Result<Public> {
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
    let zero = || EccParameter::try_from(vec![0; 32]);
    Public::builder()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::new(zero()?, zero()?))
        .build()
}
