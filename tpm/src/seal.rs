//! Sealing and unsealing under a PCR policy.
//!
//! Invariants:
//! 1. The secret crosses the bus as an encrypted parameter only.
//! 2. The policy of a sealed object is the one the TPM itself computed, in an authenticated
//!    answer, from its PCRs: false PCR values on the bus cannot widen it.
//! 3. A sealed object is always loaded with the attributes fixed here.

use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, KeyedHashScheme, Private, Public, PublicKeyedHashParameters, SensitiveData,
};

use crate::blob::SealedRoot;
use crate::code;
use crate::device::Device;
use crate::error::{Command, TpmError};
use crate::pcr::{PcrSelection, PcrValues};
use crate::secret::RootSecret;
use crate::srk::SrkIdentity;

impl Device {
    pub(crate) fn seal(
        &mut self,
        secret: &RootSecret,
        selection: PcrSelection,
    ) -> Result<SealedRoot, TpmError> {
        let pcrs = self.read_pcrs(selection)?;
        let endorsement = self.endorsement_name()?;
        self.ensure_srk()?;
        self.with_srk(|device, srk, name| {
            device.confirm_policy(srk, &pcrs)?;
            let (unique, private) = device.create_sealed(srk, secret, &pcrs)?;
            let srk = SrkIdentity { name, endorsement };
            SealedRoot::new(srk, pcrs, unique, private)
                .ok_or(TpmError::Malformed { command: Command::Create })
        })
    }

    /// Has the TPM compute the policy from its PCRs and compares it with ours.
    fn confirm_policy(&mut self, srk: KeyHandle, pcrs: &PcrValues) -> Result<(), TpmError> {
        let computed = self.with_session(SessionType::Policy, srk, |device, session| {
            let policy = policy_session(session)?;
            let pinned = device.attempt(|context| {
                let digest = Digest::try_from(pcrs.digest().to_vec())?;
                context.policy_pcr(policy, digest, pcrs.selection().to_list()?)
            });
            match pinned {
                Ok(()) => {}
                Err(error) if code::is_wrong_value(error) => return Err(TpmError::PcrChanged),
                Err(error) => return Err(code::translate(Command::PolicyPcr, error)),
            }
            device.with_session(SessionType::Hmac, srk, |device, session| {
                device.execute(Command::PolicyGetDigest, |context| {
                    context.execute_with_session(Some(session), |context| {
                        context.policy_get_digest(policy)
                    })
                })
            })
        })?;
        if computed.value() == pcrs.policy() {
            Ok(())
        } else {
            Err(TpmError::Forged { command: Command::PcrRead })
        }
    }

    /// Creates the sealed object; answers `unique` of its public and its private part.
    fn create_sealed(
        &mut self,
        srk: KeyHandle,
        secret: &RootSecret,
        pcrs: &PcrValues,
    ) -> Result<([u8; 32], Vec<u8>), TpmError> {
        let command = Command::Create;
        let created = self.with_session(SessionType::Hmac, srk, |device, session| {
            device.execute(command, |context| {
                let template = sealed_public(pcrs, &[])?;
                let data = SensitiveData::try_from(secret.expose().to_vec())?;
                context.execute_with_session(Some(session), |context| {
                    context.create(srk, template, None, Some(data), None, None)
                })
            })
        })?;
        let malformed = TpmError::Malformed { command };
        let Public::KeyedHash { unique, .. } = &created.out_public else {
            return Err(malformed);
        };
        let expected = self.execute(command, |_| sealed_public(pcrs, unique.value()))?;
        match unique.value().try_into() {
            Ok(unique) if created.out_public == expected => {
                Ok((unique, created.out_private.value().to_vec()))
            }
            _ => Err(malformed),
        }
    }

    pub(crate) fn unseal(&mut self, sealed: &SealedRoot) -> Result<RootSecret, TpmError> {
        let opened = self.with_recorded_srk(&sealed.srk, |device, srk| {
            let object = device.with_session(SessionType::Hmac, srk, |device, session| {
                device.execute(Command::Load, |context| {
                    let public = sealed_public(&sealed.pcrs, &sealed.unique)?;
                    let private = Private::try_from(sealed.private())?;
                    context.execute_with_session(Some(session), |context| {
                        context.load(srk, private, public)
                    })
                })
            })?;
            device.with_flushed(object.into(), |device| {
                device.unseal_loaded(srk, object, sealed.pcrs())
            })
        })?;
        match opened {
            Some(data) => data
                .value()
                .try_into()
                .map(RootSecret::copy_of)
                .map_err(|_| TpmError::Malformed { command: Command::Unseal }),
            None => Err(self.mismatch(&sealed.pcrs)),
        }
    }

    /// `None` when the policy is not met.
    fn unseal_loaded(
        &mut self,
        srk: KeyHandle,
        object: KeyHandle,
        selection: PcrSelection,
    ) -> Result<Option<SensitiveData>, TpmError> {
        self.with_session(SessionType::Policy, srk, |device, session| {
            let policy = policy_session(session)?;
            device.execute(Command::PolicyPcr, |context| {
                context.policy_pcr(policy, Digest::default(), selection.to_list()?)
            })?;
            let unsealed = device.attempt(|context| {
                context.execute_with_session(Some(session), |context| context.unseal(object.into()))
            });
            match unsealed {
                Ok(data) => Ok(Some(data)),
                Err(error) if code::is_policy_failure(error) => Ok(None),
                Err(error) => Err(code::translate(Command::Unseal, error)),
            }
        })
    }

    fn mismatch(&mut self, sealed: &PcrValues) -> TpmError {
        let selection = sealed.selection();
        // The refusal stands even if the PCRs cannot be read now.
        let changed =
            self.read_pcrs(selection).map(|now| sealed.differing(&now)).unwrap_or_default();
        TpmError::PcrMismatch { selection, changed }
    }
}

fn policy_session(session: AuthSession) -> Result<PolicySession, TpmError> {
    PolicySession::try_from(session)
        .map_err(|error| code::translate(Command::StartAuthSession, error))
}

/// Public area of a sealed root. `userWithAuth` stays clear, otherwise the TPM would accept the
/// empty password in place of the policy.
fn sealed_public(pcrs: &PcrValues, unique: &[u8]) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .build()?;
    Public::builder()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(Digest::try_from(pcrs.policy().to_vec())?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::try_from(unique)?)
        .build()
}
