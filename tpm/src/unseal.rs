//! Opening a sealed root secret.
//!
//! Invariants:
//! 1. The secret crosses the bus as an encrypted parameter only, in a session salted to the
//!    storage root key whose name was recorded.
//! 2. What the sealed root says of itself (another TPM, a retired epoch, tampering) is found
//!    before its policy is looked at.
//! 3. The TPM decides; what is compared here only picks a signed policy and words the refusal.

use tss_esapi::Error;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, Private, SensitiveData};

use crate::blob::SealedRoot;
use crate::code;
use crate::command::Command;
use crate::device::Device;
use crate::error::TpmError;
use crate::measurements::Measurements;
use crate::policy::{PolicyDigest, RootPolicy};
use crate::recovery::RecoveryCode;
use crate::seal::{digest_list, policy_session, sealed_public};
use crate::secret::Unsealed;
use crate::signed_policy::SignedPolicy;

impl Device {
    pub(crate) fn unseal(
        &mut self,
        sealed: &SealedRoot,
        policies: &[SignedPolicy],
    ) -> Result<Unsealed, TpmError> {
        self.with_sealed(sealed, |device, srk, object| {
            let policy = &sealed.policy;
            let opened = device.with_session(SessionType::Policy, srk, |device, session| {
                if !device.satisfy(session, policy, policies)? {
                    return Ok(None);
                }
                if !policy.recovery {
                    return device.unseal_loaded(session, None, object);
                }
                // The keys of a session that authorises include the object's password, even if
                // its policy does not ask for it (TPM 2.0 Part 1, 21.2). Without the password
                // only another session can encrypt.
                device.encrypt_parameters(session, false)?;
                device.with_session(SessionType::Hmac, srk, |device, encrypting| {
                    device.unseal_loaded(session, Some(encrypting), object)
                })
            })?;
            match opened {
                Some(data) => unsealed(sealed, &data),
                None => Err(device.mismatch(&policy.measurements)),
            }
        })
    }

    /// Opens with the recovery code, whatever the PCRs hold.
    pub(crate) fn recover(
        &mut self,
        sealed: &SealedRoot,
        code: &RecoveryCode,
    ) -> Result<Unsealed, TpmError> {
        let branches = sealed.policy.branches().filter(|_| sealed.has_recovery());
        let branches = branches.ok_or(TpmError::NoRecovery)?;
        self.with_sealed(sealed, |device, srk, object| {
            device.with_session(SessionType::Policy, srk, |device, session| {
                let computing = policy_session(session)?;
                device.execute(Command::PolicyAuthValue, |context| {
                    context.policy_auth_value(computing)
                })?;
                device.execute(Command::PolicyOr, |context| {
                    context.policy_or(computing, digest_list(&branches)?)
                })?;
                device.execute(Command::Unseal, |context| {
                    context.tr_set_auth(object.into(), code.to_auth()?)
                })?;
                let data = device.unseal_once(session, None, object.into());
                device.forget_password(object.into());
                match data {
                    Ok(data) => unsealed(sealed, &data),
                    Err(error) if code::is_wrong_password(error) => Err(TpmError::RecoveryRefused),
                    Err(error) => Err(code::translate(Command::Unseal, error)),
                }
            })
        })
    }

    /// Runs `f` with the storage root key and the loaded sealed object.
    fn with_sealed<T>(
        &mut self,
        sealed: &SealedRoot,
        f: impl FnOnce(&mut Self, KeyHandle, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.with_recorded_srk(&sealed.srk, |device, srk| {
            let object =
                device.with_epoch_key(sealed.epoch, &sealed.epoch_key, |device, parent| {
                    device.execute(Command::Load, |context| {
                        let public = sealed_public(&sealed.policy, &sealed.object.unique)?;
                        let private = Private::try_from(sealed.object.private())?;
                        // Nothing here is secret, and the TSS library takes the object's name
                        // from our public area: an object put in its place fails at unsealing.
                        context.execute_with_session(Some(AuthSession::Password), |context| {
                            context.load(parent, private, public)
                        })
                    })
                })?;
            device.with_flushed(object.into(), |device| f(device, srk, object))
        })
    }

    /// Satisfies the policy by the platform's state: that of sealing, or one that the policy key
    /// signed. Answers whether it could.
    fn satisfy(
        &mut self,
        session: AuthSession,
        policy: &RootPolicy,
        policies: &[SignedPolicy],
    ) -> Result<bool, TpmError> {
        let session = policy_session(session)?;
        self.execute(Command::PolicyPcr, |context| {
            context.policy_pcr(session, Digest::default(), policy.pcrs().to_list()?)
        })?;
        let Some(branches) = policy.branches() else {
            return Ok(true);
        };
        if self.take_branch(session, &branches)? {
            return Ok(true);
        }
        let Some(key) = &policy.key else {
            return Ok(false);
        };
        let approval = self.choose(key, &policy.measurements, policies)?;
        // It was picked because it fits: if not any more, a PCR has changed meanwhile.
        if !self.approve(session, key, approval)? {
            return Err(TpmError::PcrChanged);
        }
        self.take_branch(session, &branches)
    }

    /// Answers whether the session satisfies one of the branches.
    fn take_branch(
        &mut self,
        session: PolicySession,
        branches: &[PolicyDigest],
    ) -> Result<bool, TpmError> {
        let taken = self.attempt(|context| context.policy_or(session, digest_list(branches)?));
        Ok(unless(code::is_wrong_value, Command::PolicyOr, taken)?.is_some())
    }

    /// `None` if the session did not satisfy the policy.
    fn unseal_loaded(
        &mut self,
        authorizing: AuthSession,
        encrypting: Option<AuthSession>,
        object: KeyHandle,
    ) -> Result<Option<SensitiveData>, TpmError> {
        let data = self.unseal_once(authorizing, encrypting, object.into());
        unless(code::is_policy_failure, Command::Unseal, data)
    }

    /// The TPM says that the platform is in another state: which PCRs are it?
    fn mismatch(&mut self, sealed: &Measurements) -> TpmError {
        let selection = sealed.pcrs();
        // The refusal stands even if the PCRs cannot be read now.
        let now = self.read_pcrs(selection).ok();
        let changed = now.map(|now| sealed.differing(&now)).unwrap_or_default();
        TpmError::PcrMismatch { selection, changed }
    }
}

/// `None` for the one refusal that is looked for.
pub(crate) fn unless<T>(
    is_refusal: fn(Error) -> bool,
    command: Command,
    outcome: tss_esapi::Result<T>,
) -> Result<Option<T>, TpmError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_refusal(error) => Ok(None),
        Err(error) => Err(code::translate(command, error)),
    }
}

fn unsealed(sealed: &SealedRoot, data: &SensitiveData) -> Result<Unsealed, TpmError> {
    Unsealed::from_sealed_data(data.value())
        .filter(|unsealed| unsealed.recovery.is_some() == sealed.has_recovery())
        .ok_or(TpmError::Malformed { command: Command::Unseal })
}
