//! Each lie has its own answer.

use moai_attestation::{
    AttestationError, Enrolment, Evidence, Part, StatementError, qualifying, verify,
};
use p256::ecdsa::SigningKey;
use proptest::prelude::*;

use crate::robot::{
    ATTESTATION_ATTRIBUTES, CERTIFY, IDENTITY, IDENTITY_ATTRIBUTES, NONCE, QUOTE, Robot, SESSION,
    Statement, expected, hex_of, pcr7, public_area, signing_key,
};

fn verdict(robot: &Robot, evidence: &Evidence) -> Result<(), AttestationError> {
    verify(&robot.enrolment(), evidence, &expected(), &robot.identity_key())
}

#[test]
fn an_honest_robot_is_believed() {
    let robot = Robot::new();
    assert_eq!(verdict(&robot, &robot.evidence(expected())), Ok(()));
}

#[test]
fn evidence_answers_one_challenge_of_one_robot_in_one_session() {
    let robot = Robot::new();
    for other in [
        qualifying(&[0x18; 32], IDENTITY, &SESSION),
        qualifying(&NONCE, "acme.robot-2", &SESSION),
        qualifying(&NONCE, IDENTITY, &[0x43; 16]),
    ] {
        let stale = AttestationError::Stale(Part::Certification);
        assert_eq!(verdict(&robot, &robot.evidence(other)), Err(stale));
        // One fresh half does not carry the other.
        let (fresh, old) = (robot.evidence(expected()), robot.evidence(other));
        let mixed = Evidence { quote: old.quote, ..fresh };
        assert_eq!(verdict(&robot, &mixed), Err(AttestationError::Stale(Part::Quote)));
    }
}

#[test]
fn another_tpms_evidence_is_refused() {
    let robot = Robot::new();
    let stranger = Robot { attestation_key: signing_key(3), ..Robot::new() };
    let evidence = stranger.evidence(expected());
    assert_eq!(verdict(&robot, &evidence), Err(AttestationError::OtherAttestationKey));
    // Naming the enrolled key does not make it sign.
    let own = robot.evidence(expected());
    let claimed = Evidence { attestation_key: own.attestation_key.clone(), ..evidence };
    assert_eq!(verdict(&robot, &claimed), Err(AttestationError::BadSignature(Part::Certification)));
    // The same key in a public area that would let it sign anything.
    let unrestricted = public_area(&robot.attestation_key, IDENTITY_ATTRIBUTES);
    let weaker = Evidence { attestation_key: unrestricted, ..own };
    assert_eq!(verdict(&robot, &weaker), Err(AttestationError::OtherAttestationKey));
}

#[test]
fn the_certificates_key_must_be_the_certified_one() {
    let robot = Robot::new();
    let other = Robot { identity_key: signing_key(4), ..Robot::new() };
    assert_eq!(
        verdict(&robot, &other.evidence(expected())),
        Err(AttestationError::OtherIdentityKey)
    );
    // A software key in the certificate, while the TPM certifies its own.
    let evidence = Evidence {
        identity_key: public_area(&robot.identity_key, IDENTITY_ATTRIBUTES),
        ..other.evidence(expected())
    };
    assert_eq!(verdict(&robot, &evidence), Err(AttestationError::NotCertified));
}

#[test]
fn a_key_that_may_leave_its_tpm_is_refused() {
    for missing in [1 << 1, 1 << 4, 1 << 5] {
        let identity_attributes = IDENTITY_ATTRIBUTES & !missing;
        let robot = Robot { identity_attributes, ..Robot::new() };
        let exportable = Err(AttestationError::ExportableIdentityKey);
        assert_eq!(verdict(&robot, &robot.evidence(expected())), exportable, "{missing:#x}");
        // To claim other attributes than the TPM certified does not help.
        let embellished = Evidence {
            identity_key: public_area(&robot.identity_key, IDENTITY_ATTRIBUTES),
            ..robot.evidence(expected())
        };
        assert_eq!(verdict(&robot, &embellished), Err(AttestationError::NotCertified));
    }
    let decrypts = Robot { identity_attributes: IDENTITY_ATTRIBUTES | 1 << 17, ..Robot::new() };
    let evidence = decrypts.evidence(expected());
    assert_eq!(verdict(&decrypts, &evidence), Err(AttestationError::NotASigningKey));
}

fn with_quote(robot: &Robot, change: impl FnOnce(&mut Statement)) -> Evidence {
    let mut quote = robot.quote(expected());
    change(&mut quote);
    Evidence { quote: robot.sign(&quote), ..robot.evidence(expected()) }
}

fn with_certification(robot: &Robot, change: impl FnOnce(&mut Statement)) -> Evidence {
    let mut certification = robot.certification(expected());
    change(&mut certification);
    Evidence { certification: robot.sign(&certification), ..robot.evidence(expected()) }
}

#[test]
fn what_no_tpm_made_is_refused_even_if_signed() {
    let robot = Robot::new();
    let refused = |part, source| Err(AttestationError::Statement { part, source });
    let evidence = with_quote(&robot, |quote| quote.magic = 0xff54_4346);
    assert_eq!(verdict(&robot, &evidence), refused(Part::Quote, StatementError::Magic));
    let evidence = with_certification(&robot, |certification| certification.magic = 0);
    assert_eq!(verdict(&robot, &evidence), refused(Part::Certification, StatementError::Magic));
    // TPM_ST_ATTEST_TIME.
    let evidence = with_quote(&robot, |quote| quote.kind = 0x8019);
    assert_eq!(verdict(&robot, &evidence), refused(Part::Quote, StatementError::Type(0x8019)));
    let evidence = with_quote(&robot, |quote| quote.attested.push(0));
    assert_eq!(verdict(&robot, &evidence), refused(Part::Quote, StatementError::Length));
}

#[test]
fn kinds_are_not_taken_for_each_other() {
    let robot = Robot::new();
    let honest = robot.evidence(expected());
    let swapped = Evidence {
        certification: honest.quote.clone(),
        quote: honest.certification.clone(),
        ..honest.clone()
    };
    let wrong = |part| Err(AttestationError::WrongKind(part));
    assert_eq!(verdict(&robot, &swapped), wrong(Part::Certification));
    let twice = Evidence { quote: honest.certification.clone(), ..honest };
    assert_eq!(verdict(&robot, &twice), wrong(Part::Quote));
    // The content of the one under the label of the other.
    let mislabelled = with_quote(&robot, |quote| quote.kind = CERTIFY);
    assert!(verdict(&robot, &mislabelled).is_err());
    let mislabelled = with_certification(&robot, |certification| certification.kind = QUOTE);
    assert!(verdict(&robot, &mislabelled).is_err());
}

#[test]
fn other_pcrs_than_the_enrolled_are_refused() {
    let robot = Robot::new();
    let mut other = Robot::new();
    other.pcr_values = format!("sha256:8={}", hex_of(0x77)).parse().unwrap();
    let mut quote = other.quote(expected());
    // PCR 8 is the first bit of the second byte.
    quote.attested[7..9].copy_from_slice(&[0, 1]);
    let evidence = Evidence {
        quote: robot.sign(&quote),
        pcr_values: other.pcr_values.clone(),
        ..robot.evidence(expected())
    };
    let (expected_pcrs, found) = ("sha256:7".to_owned(), "sha256:8".to_owned());
    let refused = AttestationError::OtherPcrs { expected: expected_pcrs, found };
    assert_eq!(verdict(&robot, &evidence), Err(refused));
    // The right values beside a quote of others.
    let named = Evidence { pcr_values: robot.pcr_values.clone(), ..evidence };
    assert!(matches!(verdict(&robot, &named), Err(AttestationError::OtherPcrs { .. })));
    // No bank, two banks, an unknown bank.
    for count in [0, 2] {
        let evidence = with_quote(&robot, |quote| quote.attested[3] = count);
        let source = StatementError::Selection;
        let refused = AttestationError::Statement { part: Part::Quote, source };
        assert_eq!(verdict(&robot, &evidence), Err(refused));
    }
    let sha1 = with_quote(&robot, |quote| quote.attested[5] = 0x04);
    assert!(matches!(verdict(&robot, &sha1), Err(AttestationError::Statement { .. })));
}

#[test]
fn the_values_are_those_quoted_and_those_accepted() {
    let robot = Robot::new();
    let changed = Robot { pcr_values: pcr7(0x78), ..Robot::new() };
    let evidence = changed.evidence(expected());
    let refused = AttestationError::NotAccepted { differing: vec![7] };
    assert_eq!(verdict(&robot, &evidence), Err(refused.clone()));
    assert!(refused.to_string().contains("PCR 7 differ"), "{refused}");
    // To claim the accepted values does not change what was quoted.
    let embellished = Evidence { pcr_values: pcr7(0x77), ..evidence.clone() };
    assert_eq!(verdict(&robot, &embellished), Err(AttestationError::PcrValues));
    // An enrolment that accepts both.
    let json = robot.enrolment().to_json().unwrap();
    let [old, new] = [0x77, 0x78].map(|fill| format!("\"{}\"", pcr7(fill)));
    let both = Enrolment::from_json(&json.replace(&old, &format!("{old}, {new}"))).unwrap();
    assert_eq!(both.accepted().len(), 2);
    for robot in [&robot, &changed] {
        let evidence = robot.evidence(expected());
        assert_eq!(verify(&both, &evidence, &expected(), &robot.identity_key()), Ok(()));
    }
}

#[test]
fn a_signature_of_zeros_is_none() {
    let robot = Robot::new();
    let mut evidence = robot.evidence(expected());
    evidence.quote.signature = [0; 64];
    assert_eq!(verdict(&robot, &evidence), Err(AttestationError::BadSignature(Part::Quote)));
}

proptest! {
    /// Whatever is changed on the way, the robot is not believed.
    #[test]
    fn nothing_signed_can_be_changed(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let robot = Robot::new();
        let mut evidence = robot.evidence(expected());
        let Evidence { certification, quote, .. } = &mut evidence;
        let mut bytes: Vec<&mut u8> = [certification, quote]
            .into_iter()
            .flat_map(|attested| attested.statement.iter_mut().chain(&mut attested.signature))
            .collect();
        let index = at.index(bytes.len());
        *bytes[index] ^= 1 << bit;
        prop_assert!(verdict(&robot, &evidence).is_err());
    }

    #[test]
    fn every_other_key_is_another(seed in 3_u8..=250) {
        let robot = Robot::new();
        let key: SigningKey = signing_key(seed);
        let area = public_area(&key, ATTESTATION_ATTRIBUTES);
        let evidence = Evidence { attestation_key: area, ..robot.evidence(expected()) };
        prop_assert_eq!(verdict(&robot, &evidence), Err(AttestationError::OtherAttestationKey));
    }
}
