//! Sealing a root secret.
//!
//! Invariants:
//! 1. The secret crosses the bus as an encrypted parameter only.
//! 2. The policy of a sealed object is one that the TPM itself computed, in an authenticated
//!    answer: without a policy key from its PCRs, so that false PCR values on the bus cannot
//!    widen it; with one, from the key, which alone decides then.
//! 3. A sealed object always has the attributes fixed here.

use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, DigestList, KeyedHashScheme, Public, PublicKeyedHashParameters, SensitiveData,
};

use crate::blob::{SealedObject, SealedRoot};
use crate::code;
use crate::command::Command;
use crate::device::Device;
use crate::epoch::Epoch;
use crate::error::TpmError;
use crate::measurements::Measurements;
use crate::pcr::PcrSelection;
use crate::policy::{PolicyDigest, Protection, RootPolicy, pcr_digest};
use crate::recovery::RecoveryCode;
use crate::secret::RootSecret;
use crate::srk::SrkIdentity;

/// What is sealed.
pub(crate) struct Payload {
    pub(crate) root: RootSecret,
    pub(crate) recovery: Option<RecoveryCode>,
}

impl Payload {
    /// The root secret, then the recovery code if there is one.
    fn to_data(&self) -> tss_esapi::Result<SensitiveData> {
        let mut data = Vec::with_capacity(RootSecret::LEN + RecoveryCode::LEN);
        data.extend_from_slice(self.root.expose());
        if let Some(code) = &self.recovery {
            data.extend_from_slice(code.expose());
        }
        SensitiveData::try_from(data)
    }
}

impl Device {
    pub(crate) fn seal(
        &mut self,
        epoch: Epoch,
        payload: &Payload,
        protection: Protection,
    ) -> Result<SealedRoot, TpmError> {
        let policy = self.present_policy(payload, protection)?;
        let endorsement = self.endorsement_name()?;
        self.ensure_srk()?;
        self.with_srk(|device, srk, name| {
            device.with_session(SessionType::Hmac, srk, |device, session| {
                device.confirm(srk, session, &policy)?;
                device.with_new_epoch_key(srk, session, epoch, |device, key, epoch_key| {
                    let object = device.create_sealed(key, session, payload, &policy)?;
                    let srk = SrkIdentity { name, endorsement };
                    Ok(SealedRoot { epoch, epoch_key, srk, policy, object })
                })
            })
        })
    }

    /// Seals below the key of an epoch that exists.
    pub(crate) fn reseal(
        &mut self,
        sealed: &SealedRoot,
        payload: &Payload,
        protection: Protection,
    ) -> Result<SealedRoot, TpmError> {
        let policy = self.present_policy(payload, protection)?;
        self.with_recorded_srk(&sealed.srk, |device, srk| {
            device.with_epoch_key(sealed.epoch, &sealed.epoch_key, |device, key| {
                device.with_session(SessionType::Hmac, srk, |device, session| {
                    device.confirm(srk, session, &policy)?;
                    let object = device.create_sealed(key, session, payload, &policy)?;
                    Ok(SealedRoot { policy, object, ..sealed.clone() })
                })
            })
        })
    }

    /// PCR values in an authenticated answer.
    pub(crate) fn measurements(
        &mut self,
        selection: PcrSelection,
    ) -> Result<Measurements, TpmError> {
        let measurements = self.read_pcrs(selection)?;
        let policy = RootPolicy { measurements, key: None, recovery: false };
        self.ensure_srk()?;
        self.with_srk(|device, srk, _| {
            device.with_session(SessionType::Hmac, srk, |device, session| {
                device.confirm(srk, session, &policy)
            })
        })?;
        Ok(policy.measurements)
    }

    fn present_policy(
        &mut self,
        payload: &Payload,
        protection: Protection,
    ) -> Result<RootPolicy, TpmError> {
        Ok(RootPolicy {
            measurements: self.read_pcrs(protection.pcrs)?,
            key: protection.policy_key,
            recovery: payload.recovery.is_some(),
        })
    }

    /// Has the TPM compute the policy's digest and compares it with ours.
    fn confirm(
        &mut self,
        srk: KeyHandle,
        session: AuthSession,
        policy: &RootPolicy,
    ) -> Result<(), TpmError> {
        let computed = self.with_session(SessionType::Policy, srk, |device, computing| {
            let computing = policy_session(computing)?;
            device.pin_state(computing, policy)?;
            if let Some(branches) = policy.branches() {
                device.execute(Command::PolicyOr, |context| {
                    context.policy_or(computing, digest_list(&branches)?)
                })?;
            }
            device.execute(Command::PolicyGetDigest, |context| {
                context.execute_with_session(Some(session), |context| {
                    context.policy_get_digest(computing)
                })
            })
        })?;
        if computed.value() == policy.digest() {
            Ok(())
        } else {
            Err(TpmError::Forged { command: Command::PcrRead })
        }
    }

    /// Satisfies the session by the state that is to be sealed to.
    fn pin_state(&mut self, session: PolicySession, policy: &RootPolicy) -> Result<(), TpmError> {
        let pinned = self.attempt(|context| {
            let digest = Digest::try_from(pcr_digest(&policy.measurements).to_vec())?;
            context.policy_pcr(session, digest, policy.pcrs().to_list()?)
        });
        match pinned {
            Err(error) if code::is_wrong_value(error) => Err(TpmError::PcrChanged),
            other => other.map_err(|error| code::translate(Command::PolicyPcr, error)),
        }
    }

    fn create_sealed(
        &mut self,
        parent: KeyHandle,
        session: AuthSession,
        payload: &Payload,
        policy: &RootPolicy,
    ) -> Result<SealedObject, TpmError> {
        let command = Command::Create;
        let created = self.execute(command, |context| {
            let template = sealed_public(policy, &[])?;
            let password = payload.recovery.as_ref().map(RecoveryCode::to_auth).transpose()?;
            let data = payload.to_data()?;
            context.execute_with_session(Some(session), |context| {
                context.create(parent, template, password, Some(data), None, None)
            })
        });
        let template = self.execute(command, |_| sealed_public(policy, &[]))?;
        self.forget_input(parent, template);
        let created = created?;
        let malformed = TpmError::Malformed { command };
        let Public::KeyedHash { unique, .. } = &created.out_public else {
            return Err(malformed);
        };
        let expected = self.execute(command, |_| sealed_public(policy, unique.value()))?;
        match unique.value().try_into() {
            Ok(unique) if created.out_public == expected => {
                SealedObject::new(unique, created.out_private.value().to_vec()).ok_or(malformed)
            }
            _ => Err(malformed),
        }
    }
}

pub(crate) fn policy_session(session: AuthSession) -> Result<PolicySession, TpmError> {
    PolicySession::try_from(session)
        .map_err(|error| code::translate(Command::StartAuthSession, error))
}

/// Public area of a sealed root. `userWithAuth` stays clear, otherwise the TPM would accept the
/// password (empty without a recovery code) in place of the policy.
pub(crate) fn sealed_public(policy: &RootPolicy, unique: &[u8]) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .build()?;
    Public::builder()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(Digest::try_from(policy.digest().to_vec())?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::try_from(unique)?)
        .build()
}

/// Digests as `TPM2_PolicyOR` wants them.
pub(crate) fn digest_list(digests: &[PolicyDigest]) -> tss_esapi::Result<DigestList> {
    let mut list = DigestList::new();
    for digest in digests {
        list.add(Digest::try_from(digest.to_vec())?)?;
    }
    Ok(list)
}
