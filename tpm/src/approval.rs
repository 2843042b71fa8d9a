//! Signed policies in the TPM: which one is chosen, and how it satisfies a session.
//!
//! Invariant: the TPM verifies the signature itself. What is compared here only picks the policy
//! and words the refusal.

use sha2::{Digest as _, Sha256};
use tss_esapi::Context;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::PolicySession;
use tss_esapi::structures::{
    Digest, EccParameter, EccSignature, Name, Nonce, Signature, VerifiedTicket,
};

use crate::code;
use crate::command::Command;
use crate::device::Device;
use crate::error::TpmError;
use crate::measurements::Measurements;
use crate::pcr::PcrSelection;
use crate::policy::{PolicyDigest, policy_ref};
use crate::policy_key::PolicyKey;
use crate::signed_policy::SignedPolicy;
use crate::unseal::unless;

impl Device {
    /// Picks the signed policy that is for the present state of the platform, or says what is
    /// wrong with all of them.
    pub(crate) fn choose<'p>(
        &mut self,
        key: &PolicyKey,
        sealed: &Measurements,
        policies: &'p [SignedPolicy],
    ) -> Result<&'p SignedPolicy, TpmError> {
        let selection = sealed.pcrs();
        let now = self.read_pcrs(selection)?;
        let signed = |policy: &&SignedPolicy| policy.signed_by(key).is_ok();
        let good = policies.iter().find(|policy| *policy.measurements() == now && signed(policy));
        if let Some(policy) = good {
            return Ok(policy);
        }
        if policies.is_empty() {
            let changed = sealed.differing(&now);
            return Err(TpmError::NoPolicy { key: key.fingerprint(), selection, changed });
        }
        let ours: Vec<&SignedPolicy> = policies.iter().filter(signed).collect();
        let Some(any) = ours.first() else {
            return Err(signer(key));
        };
        let changed = ours
            .iter()
            .filter(|policy| policy.pcrs() == selection)
            .map(|policy| policy.measurements().differing(&now))
            .min_by_key(Vec::len);
        Err(match changed {
            Some(changed) => TpmError::PolicyStale { selection, changed },
            None => TpmError::PolicySelection { sealed: selection, signed: any.pcrs() },
        })
    }

    /// Replaces the session's digest over the PCRs by the policy key's, if its signature is on
    /// that digest; answers whether it is.
    pub(crate) fn approve(
        &mut self,
        session: PolicySession,
        key: &PolicyKey,
        approval: &SignedPolicy,
    ) -> Result<bool, TpmError> {
        let ticket = self.with_policy_key(key, |device, handle| {
            let verified = device.attempt(|context| {
                let signed = Sha256::digest(approval.signed_bytes());
                context.verify_signature(handle, Digest::try_from(signed.to_vec())?, {
                    let (r, s) = approval.signature();
                    let (r, s) = (EccParameter::try_from(r)?, EccParameter::try_from(s)?);
                    Signature::EcDsa(EccSignature::create(HashingAlgorithm::Sha256, r, s)?)
                })
            });
            unless(code::is_wrong_signature, Command::VerifySignature, verified)?
                .ok_or_else(|| signer(key))
        })?;
        let authorized = self.attempt(|context| {
            authorize(context, session, key, approval.pcrs(), &approval.approved(), ticket)
        });
        // Refused where the signature is on another digest than the session's.
        Ok(unless(code::is_wrong_value, Command::PolicyAuthorize, authorized)?.is_some())
    }

    /// Loads the public key for one purpose.
    fn with_policy_key<T>(
        &mut self,
        key: &PolicyKey,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let command = Command::LoadExternal;
        // Tickets are made with a secret of the hierarchy; that of the null hierarchy is none.
        let handle = self.execute(command, |context| {
            context.execute_without_session(|context| {
                context.load_external_public(key.public()?, Hierarchy::Owner)
            })
        })?;
        self.with_flushed(handle.into(), |device| {
            if device.name_of(handle.into())? == Some(key.name()) {
                f(device, handle)
            } else {
                Err(TpmError::Malformed { command })
            }
        })
    }
}

/// `TPM2_PolicyAuthorize` with the name and reference that our policies have.
fn authorize(
    context: &mut Context,
    session: PolicySession,
    key: &PolicyKey,
    pcrs: PcrSelection,
    approved: &PolicyDigest,
    ticket: VerifiedTicket,
) -> tss_esapi::Result<()> {
    let approved = Digest::try_from(approved.to_vec())?;
    let reference = Nonce::try_from(policy_ref(pcrs).to_vec())?;
    let name = Name::try_from(key.name().to_vec())?;
    context.policy_authorize(session, approved, reference, &name, ticket)
}

fn signer(key: &PolicyKey) -> TpmError {
    TpmError::PolicySigner { key: key.fingerprint() }
}
