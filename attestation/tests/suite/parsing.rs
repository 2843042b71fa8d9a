//! Parsers: truncated, extended, altered and made-up bytes.

use moai_attestation::{
    Enrolment, Evidence, EvidenceError, MAX_EVIDENCE_LEN, PcrValues, PublicArea, PublicAreaError,
    Statement, StatementError,
};
use proptest::prelude::*;

use crate::robot::{IDENTITY_ATTRIBUTES, Robot, expected, public_area_bytes, signing_key};

#[test]
fn a_statement_truncated_anywhere_is_none() {
    let robot = Robot::new();
    for whole in [robot.quote(expected()).to_bytes(), robot.certification(expected()).to_bytes()] {
        assert!(Statement::from_bytes(&whole).is_ok());
        for len in 0..whole.len() {
            let error = Statement::from_bytes(&whole[..len]).unwrap_err();
            assert_eq!(error, StatementError::Length, "{len} of {} bytes", whole.len());
        }
        let longer = [&whole[..], &[0]].concat();
        assert_eq!(Statement::from_bytes(&longer), Err(StatementError::Length));
    }
    assert_eq!(Statement::from_bytes(&[0; 513]), Err(StatementError::TooLarge));
}

#[test]
fn a_public_area_truncated_anywhere_is_none() {
    let whole = public_area_bytes(&signing_key(9), IDENTITY_ATTRIBUTES);
    assert!(PublicArea::from_bytes(&whole).is_ok());
    for len in 0..whole.len() {
        let error = PublicArea::from_bytes(&whole[..len]).unwrap_err();
        assert_eq!(error, PublicAreaError::Length, "{len} of {} bytes", whole.len());
    }
    let longer = [&whole[..], &[0]].concat();
    assert_eq!(PublicArea::from_bytes(&longer), Err(PublicAreaError::Length));
}

#[test]
fn other_algorithms_and_points_off_the_curve_are_refused() {
    let whole = public_area_bytes(&signing_key(9), IDENTITY_ATTRIBUTES);
    for (offset, what) in [
        (1, "type"),
        (3, "name algorithm"),
        (11, "symmetric algorithm"),
        (13, "signing scheme"),
        (15, "hash"),
        (17, "curve"),
        (19, "key derivation scheme"),
    ] {
        let mut other = whole.clone();
        other[offset] ^= 0x04;
        assert_eq!(PublicArea::from_bytes(&other), Err(PublicAreaError::Algorithm(what)));
    }
    let mut off_curve = whole;
    off_curve[30] ^= 1;
    assert_eq!(PublicArea::from_bytes(&off_curve), Err(PublicAreaError::Point));
}

#[test]
fn evidence_has_one_encoding() {
    let evidence = Robot::new().evidence(expected());
    let bytes = evidence.to_bytes().unwrap();
    assert!(bytes.len() < 1024, "{} bytes", bytes.len());
    assert_eq!(Evidence::from_bytes(&bytes), Ok(evidence));
    for len in 0..bytes.len() {
        assert!(Evidence::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    let longer = [&bytes[..], &[0xf6]].concat();
    assert!(Evidence::from_bytes(&longer).is_err());
    // The same array with a longer length.
    let wasteful = [&[0x98, 0x08], &bytes[1..]].concat();
    assert!(Evidence::from_bytes(&wasteful).is_err());
    let mut later = bytes;
    later[1] = 2;
    assert_eq!(Evidence::from_bytes(&later), Err(EvidenceError::Format(2)));
    let too_long = vec![0; MAX_EVIDENCE_LEN + 1];
    assert_eq!(Evidence::from_bytes(&too_long), Err(EvidenceError::TooLarge));
}

proptest! {
    #[test]
    fn no_parser_panics(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        prop_assert!(Statement::from_bytes(&bytes).is_err());
        prop_assert!(PublicArea::from_bytes(&bytes).is_err());
        prop_assert!(Evidence::from_bytes(&bytes).is_err());
    }

    /// Past the fields that random bytes never get right.
    #[test]
    fn lengths_that_lie_are_refused_without_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        which in 0..4_usize,
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let robot = Robot::new();
        let mut bytes = match which {
            0 => robot.quote(expected()).to_bytes(),
            1 => robot.certification(expected()).to_bytes(),
            2 => public_area_bytes(&signing_key(9), IDENTITY_ATTRIBUTES),
            _ => robot.evidence(expected()).to_bytes().expect("encodes"),
        };
        for (index, value) in edits {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = Statement::from_bytes(&bytes);
        if let Ok(area) = PublicArea::from_bytes(&bytes) {
            prop_assert_eq!(area.as_bytes(), &bytes);
        }
        if let Ok(evidence) = Evidence::from_bytes(&bytes) {
            prop_assert_eq!(evidence.to_bytes(), Ok(bytes));
        }
    }

    #[test]
    fn pcr_values_are_written_as_they_are_read(text in "sha(256|384):(1?[0-9]=[0-9a-fA-F]{64},?){0,3}") {
        if let Ok(values) = text.parse::<PcrValues>() {
            prop_assert_eq!(values.to_string(), text);
        }
    }

    #[test]
    fn enrolments_are_parsed_without_panic(text in r#"[\[\]{}",:a-z0-9]{0,200}"#) {
        prop_assert!(Enrolment::from_json(&text).is_err());
    }
}
