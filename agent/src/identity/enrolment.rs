//! The record by which a server that requires attestation knows this robot.

use moai_attestation::{Enrolment, PublicArea};
use moai_tpm::KeyKind;

use super::attestation::{ATTESTATION_KEY_FILE, AttestError, load};
use super::file;
use super::key::KEY_FILE;
use crate::config::{Config, IdentityKeySource};
use crate::custody;

/// The enrolment of this robot in the state it is in, as JSON. Makes the attestation key if there
/// is none; one that exists stays, since servers know it. Blocks.
///
/// # Errors
/// The identity key is not in the TPM, or disk or TPM refuse.
pub fn enrolment(config: &Config) -> Result<String, AttestError> {
    if !matches!(config.uplink.key, IdentityKeySource::Tpm) {
        return Err(AttestError::NotInTpm);
    }
    let state_directory = &config.state_directory;
    // A server believes no robot without one.
    load(state_directory, KEY_FILE, KeyKind::Identity)?;
    let tpm = custody::connect(&config.tpm)?;
    let path = state_directory.join(ATTESTATION_KEY_FILE);
    if !path.exists() {
        file::replace(&path, &tpm.create_key(KeyKind::Attestation)?.to_bytes(), 0o600)?;
    }
    let key = load(state_directory, ATTESTATION_KEY_FILE, KeyKind::Attestation)?;
    let present = tpm.measurements(config.tpm.pcrs)?.to_string().parse()?;
    let key = PublicArea::from_bytes(&key.public_area())?;
    Enrolment::new(&config.identity.to_string(), key, present)
        .and_then(|enrolment| enrolment.to_json())
        .map_err(|error| AttestError::Unusable(error.to_string()))
}
