//! What binds evidence to one challenge of one robot in one session.

use sha2::{Digest as _, Sha256};

/// Separates this hash from every other use of SHA-256 in the protocol.
const DOMAIN: &[u8] = b"moai/v1/attest";

/// What the TPM signs along: SHA-256 of `"moai/v1/attest" ‖ challenge ‖ len(identity) as u8 ‖
/// identity ‖ session`. The identity is `tenant.robot`, of at most 255 bytes.
#[must_use]
pub fn qualifying(challenge: &[u8; 32], identity: &str, session: &[u8; 16]) -> [u8; 32] {
    Sha256::new()
        .chain_update(DOMAIN)
        .chain_update(challenge)
        .chain_update([u8::try_from(identity.len()).unwrap_or(u8::MAX)])
        .chain_update(identity)
        .chain_update(session)
        .finalize()
        .into()
}
