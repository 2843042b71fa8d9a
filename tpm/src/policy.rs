//! The policy a root secret is sealed under, and its digest (TPM 2.0 Part 1, 19.7; Part 3, 23).
//!
//! Invariants:
//! 1. The policy is `PolicyPCR` over the state at sealing; or a `PolicyOR` of that with what else
//!    there is: `PolicyAuthorize` by the fleet's policy key over `PolicyPCR`, and `PolicyAuthValue`
//!    with the recovery code. So a robot that has not met a signed policy yet opens all the same,
//!    and one that meets the first needs no resealing.
//! 2. What the policy key signs names the PCR selection ([`policy_ref`]): a signature made for
//!    one set of PCRs is no use to a root sealed for another, even to who bypasses this crate.
//! 3. Digests are computed here without a TPM; sealing has the TPM confirm them.

use sha2::{Digest as _, Sha256};

use crate::measurements::Measurements;
use crate::pcr::PcrSelection;
use crate::policy_key::PolicyKey;

// Command codes (TPM 2.0 Part 2, 6.5.2).
const POLICY_AUTHORIZE: u32 = 0x0000_016a;
const POLICY_AUTH_VALUE: u32 = 0x0000_016b;
const POLICY_OR: u32 = 0x0000_0171;
const POLICY_PCR: u32 = 0x0000_017f;

const POLICY_REF: &[u8; 12] = b"moai/v1/boot";

/// SHA-256 policy digest.
pub(crate) type PolicyDigest = [u8; 32];

/// What lets a root secret out of the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// The PCRs that describe the platform's state.
    pub pcrs: PcrSelection,
    /// Whose signature makes a platform state acceptable beside the state at sealing.
    pub policy_key: Option<PolicyKey>,
}

/// The policy of one sealed root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootPolicy {
    /// The PCR values at sealing.
    pub(crate) measurements: Measurements,
    pub(crate) key: Option<PolicyKey>,
    /// Whether a recovery code opens it too.
    pub(crate) recovery: bool,
}

impl RootPolicy {
    pub(crate) fn pcrs(&self) -> PcrSelection {
        self.measurements.pcrs()
    }

    /// The digests to choose from, if there is a choice; the state at sealing comes first.
    pub(crate) fn branches(&self) -> Option<Vec<PolicyDigest>> {
        let signed = self.key.as_ref().map(|key| authorize(key, self.pcrs()));
        let others: Vec<_> = signed.into_iter().chain(self.recovery.then(auth_value)).collect();
        let sealed = pcr(&self.measurements);
        (!others.is_empty()).then(|| [&[sealed][..], &others].concat())
    }

    /// The digest in the sealed object's public area.
    pub(crate) fn digest(&self) -> PolicyDigest {
        self.branches().map_or_else(|| pcr(&self.measurements), |branches| either(&branches))
    }
}

/// `pcrDigest` of `TPM2_PolicyPCR`: hash of the concatenated values.
pub(crate) fn pcr_digest(measurements: &Measurements) -> PolicyDigest {
    Sha256::digest(measurements.concatenated()).into()
}

/// `TPM2_PolicyPCR` in a fresh session (Part 3, 23.7):
/// `H(0^32 || TPM_CC_PolicyPCR || TPML_PCR_SELECTION || pcrDigest)`.
pub(crate) fn pcr(measurements: &Measurements) -> PolicyDigest {
    let list = [&1_u32.to_be_bytes()[..], &measurements.pcrs().marshalled()].concat();
    extended(POLICY_PCR, &[&list, &pcr_digest(measurements)])
}

/// What the policy key signs along with the approved policy: the purpose and the PCR selection.
pub(crate) fn policy_ref(pcrs: PcrSelection) -> [u8; 18] {
    let mut reference = [0; 18];
    for (to, from) in reference.iter_mut().zip(POLICY_REF.iter().chain(&pcrs.marshalled())) {
        *to = *from;
    }
    reference
}

/// `TPM2_PolicyAuthorize` (Part 3, 23.16): `H(H(0^32 || TPM_CC_PolicyAuthorize || keySign) ||
/// policyRef)`. The session's digest until then does not enter: it was compared with the
/// approved one.
fn authorize(key: &PolicyKey, pcrs: PcrSelection) -> PolicyDigest {
    let named = extended(POLICY_AUTHORIZE, &[&key.name()]);
    Sha256::new().chain_update(named).chain_update(policy_ref(pcrs)).finalize().into()
}

/// `TPM2_PolicyAuthValue` in a fresh session (Part 3, 23.17).
fn auth_value() -> PolicyDigest {
    extended(POLICY_AUTH_VALUE, &[])
}

/// `TPM2_PolicyOR` (Part 3, 23.6): `H(0^32 || TPM_CC_PolicyOR || digests)`.
fn either(branches: &[PolicyDigest]) -> PolicyDigest {
    extended(POLICY_OR, &[branches.as_flattened()])
}

/// The digest of a fresh session after one command.
fn extended(command_code: u32, arguments: &[&[u8]]) -> PolicyDigest {
    let mut hash = Sha256::new_with_prefix([0; 32]);
    hash.update(command_code.to_be_bytes());
    for argument in arguments {
        hash.update(argument);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_policy_key_signs_names_purpose_and_pcrs() {
        let reference = policy_ref("sha256:0,7,9".parse().unwrap());
        // Purpose, then TPMS_PCR_SELECTION: algorithm, size of the mask, mask.
        assert_eq!(&reference, b"moai/v1/boot\x00\x0b\x03\x81\x02\x00");
    }
}
