//! Whether evidence is to be believed.
//!
//! Invariant: everything the verdict rests on is either enrolled, computed here, or covered by
//! the attestation key's signature over a statement with the expected qualifying data.

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use subtle::ConstantTimeEq as _;

use crate::enrolment::Enrolment;
use crate::error::{AttestationError, Part};
use crate::evidence::{Attested, Evidence};
use crate::statement::{Statement, StatementKind};

/// Checks that a robot's identity key lives in the enrolled TPM, and that the robot booted what
/// is enrolled.
///
/// `expected_qualifying` is [`crate::qualifying`] of the challenge; `identity_key` the public key
/// in the robot's certificate, SEC1 uncompressed (`04 ‖ x ‖ y`).
///
/// # Errors
/// See [`AttestationError`].
pub fn verify(
    enrolment: &Enrolment,
    evidence: &Evidence,
    expected_qualifying: &[u8; 32],
    identity_key: &[u8],
) -> Result<(), AttestationError> {
    // The whole public area: its attributes are what was enrolled, too.
    if evidence.attestation_key != *enrolment.attestation_key() {
        return Err(AttestationError::OtherAttestationKey);
    }
    if evidence.identity_key.public_key().as_slice() != identity_key {
        return Err(AttestationError::OtherIdentityKey);
    }
    let attributes = evidence.identity_key.attributes();
    if !attributes.never_leaves_its_tpm() {
        return Err(AttestationError::ExportableIdentityKey);
    }
    if !attributes.is_signing_key() {
        return Err(AttestationError::NotASigningKey);
    }
    let signer = VerifyingKey::from_sec1_bytes(enrolment.attestation_key().public_key())
        .map_err(|_| AttestationError::OtherAttestationKey)?;

    let part = Part::Certification;
    let StatementKind::Certify { name } =
        statement(part, &evidence.certification, &signer, expected_qualifying)?
    else {
        return Err(AttestationError::WrongKind(part));
    };
    if name != evidence.identity_key.name() {
        return Err(AttestationError::NotCertified);
    }

    let part = Part::Quote;
    let StatementKind::Quote { pcrs, digest } =
        statement(part, &evidence.quote, &signer, expected_qualifying)?
    else {
        return Err(AttestationError::WrongKind(part));
    };
    if pcrs != enrolment.pcrs() {
        return Err(AttestationError::OtherPcrs { expected: enrolment.pcrs(), found: pcrs });
    }
    let values = &evidence.pcr_values;
    if values.pcrs() != pcrs || values.digest() != digest {
        return Err(AttestationError::PcrValues);
    }
    let nearest = enrolment
        .accepted()
        .iter()
        .map(|accepted| accepted.differing(values))
        .min_by_key(Vec::len)
        .unwrap_or_default();
    if enrolment.accepted().contains(values) {
        Ok(())
    } else {
        Err(AttestationError::NotAccepted { differing: nearest })
    }
}

/// The statement, if the attestation key made it in answer to this challenge.
fn statement<'a>(
    part: Part,
    attested: &'a Attested,
    signer: &VerifyingKey,
    expected_qualifying: &[u8; 32],
) -> Result<StatementKind<'a>, AttestationError> {
    let signature = Signature::from_slice(&attested.signature)
        .map_err(|_| AttestationError::BadSignature(part))?;
    signer
        .verify(&attested.statement, &signature)
        .map_err(|_| AttestationError::BadSignature(part))?;
    let statement = Statement::from_bytes(&attested.statement)
        .map_err(|source| AttestationError::Statement { part, source })?;
    if !bool::from(statement.qualifying.ct_eq(expected_qualifying.as_slice())) {
        return Err(AttestationError::Stale(part));
    }
    Ok(statement.kind)
}
