//! The enrolment file and the hash that both ends compute.

use moai_attestation::{
    Enrolment, EnrolmentError, MAX_ENROLMENT_LEN, PcrValues, PcrValuesError, qualifying,
};

use crate::robot::{ATTESTATION_ATTRIBUTES, IDENTITY_ATTRIBUTES, Robot, hex_of, pcr7, public_area};

fn json() -> String {
    Robot::new().enrolment().to_json().expect("JSON")
}

#[test]
fn an_enrolment_is_read_as_it_was_written() {
    let enrolment = Robot::new().enrolment();
    let read = Enrolment::from_json(&json()).unwrap();
    assert_eq!(read, enrolment);
    assert_eq!(read.identity(), "acme.robot-1");
    assert_eq!(read.pcrs(), "sha256:7");
    assert_eq!(read.accepted(), [pcr7(0x77)]);
}

#[test]
fn a_key_that_could_sign_made_up_statements_is_not_enrolled() {
    let robot = Robot::new();
    for attributes in [IDENTITY_ATTRIBUTES, ATTESTATION_ATTRIBUTES & !2] {
        let key = public_area(&robot.attestation_key, attributes);
        let refused = Enrolment::new("acme.robot-1", key, pcr7(0x77));
        assert_eq!(refused, Err(EnrolmentError::NotAnAttestationKey));
    }
}

#[test]
fn every_mistake_in_an_enrolment_is_named() {
    let refusal = |from: &str, to: &str| {
        let text = json();
        assert!(text.contains(from), "{from} is not in {text}");
        Enrolment::from_json(&text.replace(from, to)).unwrap_err()
    };
    assert_eq!(refusal("\"format\": 1", "\"format\": 2"), EnrolmentError::Format(2));
    assert!(matches!(refusal("\"format\"", "\"fromat\""), EnrolmentError::Json(_)));
    assert!(matches!(refusal("\"format\": 1", "\"format\": 1, \"x\": 1"), EnrolmentError::Json(_)));
    assert!(matches!(refusal("acme.robot-1", "Acme"), EnrolmentError::Identity(_)));
    assert!(matches!(refusal("acme.robot-1", "../etc"), EnrolmentError::Identity(_)));
    assert_eq!(refusal("0023000b", "xx23000b"), EnrolmentError::Hexadecimal);
    assert!(matches!(refusal("0023000b", "0001000b"), EnrolmentError::Key(_)));
    assert!(matches!(refusal("\"sha256:7\"", "\"sha256:24\""), EnrolmentError::Pcrs(_)));
    assert!(matches!(refusal("\"sha256:7\"", "\"sha256:8\""), EnrolmentError::OtherPcrs { .. }));
    let accepted = format!("\"{}\"", pcr7(0x77));
    assert_eq!(refusal(&accepted, ""), EnrolmentError::Accepted(0));
    let many = vec![accepted.as_str(); 65].join(",");
    assert_eq!(refusal(&accepted, &many), EnrolmentError::Accepted(65));
    let long = " ".repeat(MAX_ENROLMENT_LEN + 1);
    assert_eq!(Enrolment::from_json(&long), Err(EnrolmentError::TooLarge));
}

#[test]
fn pcr_values_have_one_text() {
    let digest = hex_of(0x0a);
    let values: PcrValues = format!("sha256:4={digest},14={digest}").parse().unwrap();
    assert_eq!(values.pcrs(), "sha256:4,14");
    for (text, error) in [
        (format!("sha256:14={digest},4={digest}"), PcrValuesError::Order(4)),
        (format!("sha256:4={digest},4={digest}"), PcrValuesError::Order(4)),
        (format!("sha1:4={digest}"), PcrValuesError::Bank),
        (format!("sha256:24={digest}"), PcrValuesError::Index("24".to_owned())),
        (format!("sha256:04={digest}"), PcrValuesError::Index("04".to_owned())),
        (format!("sha256:+4={digest}"), PcrValuesError::Index("+4".to_owned())),
        (format!("sha256:4={}", digest.to_uppercase()), PcrValuesError::Value(4)),
        (format!("sha384:4={digest}"), PcrValuesError::Value(4)),
        ("sha256:4".to_owned(), PcrValuesError::Form),
        ("sha256".to_owned(), PcrValuesError::Form),
    ] {
        assert_eq!(text.parse::<PcrValues>(), Err(error), "{text}");
    }
}

/// The document's figure was computed with another implementation of SHA-256.
#[test]
fn the_qualifying_data_is_what_the_protocol_says() {
    const DOCUMENT: &str = include_str!("../../../docs/protocol.md");
    let computed = hex::encode(qualifying(&[0x11; 32], "acme.robot-1", &[0x22; 16]));
    assert!(DOCUMENT.contains(&computed), "{computed}");
    assert!(DOCUMENT.contains("`extraData` the SHA-256 of"));
}
