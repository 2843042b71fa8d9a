//! The recovery code: opens whatever state the platform is in, and only itself.

use moai_tpm::{Advice, Epoch, Loaded, RecoveryCode, RecoveryCodeError, SealedRoot, Tpm, TpmError};
use proptest::prelude::*;
use tss_esapi::handles::PcrHandle;

use crate::software_tpm::SoftwareTpm;
use crate::{SECRET, opens, plain, refusal, seal, secret, start};

/// Ends in zeros, which TPMs drop from passwords.
const CODE: [u8; 16] = [7, 200, 3, 0, 255, 16, 9, 0, 1, 2, 3, 4, 5, 6, 0, 0];

fn code() -> RecoveryCode {
    RecoveryCode::from_bytes(CODE)
}

fn seal_with_code(tpm: &Tpm) -> SealedRoot {
    tpm.seal(Epoch::FIRST, &secret(), Some(&code()), &plain()).expect("succeeds")
}

#[test]
fn it_opens_a_changed_platform_and_resealing_ends_the_need_for_it() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = seal_with_code(&tpm);
    assert!(sealed.has_recovery());
    let unsealed = tpm.unseal(&sealed, &[]).unwrap();
    assert_eq!(unsealed.root.expose(), &SECRET);
    assert_eq!(unsealed.recovery.unwrap().expose(), &CODE);
    drop(tpm);

    swtpm.extend(PcrHandle::Pcr7);
    let tpm = start(swtpm.tcti());
    let error = refusal(&tpm, &sealed);
    assert!(matches!(&error, TpmError::PcrMismatch { changed, .. } if *changed == [7]), "{error}");

    let typed: RecoveryCode = code().to_text().to_lowercase().parse().unwrap();
    let recovered = tpm.recover(&sealed, &typed).unwrap();
    assert_eq!(recovered.root.expose(), &SECRET);
    let recovery = recovered.recovery.unwrap();
    assert_eq!(recovery.expose(), &CODE);

    let resealed = tpm.reseal(&sealed, &recovered.root, Some(&recovery), &plain()).unwrap();
    assert_eq!(resealed.epoch(), sealed.epoch());
    assert!(opens(&tpm, &resealed));
    assert_eq!(tpm.recover(&resealed, &code()).unwrap().root.expose(), &SECRET);
    assert_eq!(tpm.loaded().unwrap(), Loaded { objects: 0, sessions: 0 });
}

#[test]
fn another_code_is_refused_however_often_and_nobody_is_locked_out() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = seal_with_code(&tpm);
    let mut shorter = CODE;
    shorter[14] = 1;
    for wrong in [[0; 16], [255; 16], shorter].into_iter().cycle().take(40) {
        let error = tpm.recover(&sealed, &RecoveryCode::from_bytes(wrong)).err().unwrap();
        assert_eq!(error, TpmError::RecoveryRefused);
        assert_eq!(error.advice(), Advice::Fix);
    }
    assert_eq!(tpm.loaded().unwrap(), Loaded { objects: 0, sessions: 0 });
    assert_eq!(tpm.recover(&sealed, &code()).unwrap().root.expose(), &SECRET);
    assert!(opens(&tpm, &sealed));
}

#[test]
fn without_one_there_is_no_recovery() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm);
    assert!(tpm.unseal(&sealed, &[]).unwrap().recovery.is_none());
    let error = tpm.recover(&sealed, &code()).err().unwrap();
    assert_eq!(error, TpmError::NoRecovery);
}

#[test]
fn a_retired_epoch_is_not_recovered() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let old = seal_with_code(&tpm);
    let new = tpm.seal(old.epoch().next(), &secret(), Some(&code()), &plain()).unwrap();
    tpm.retire(&new).unwrap();
    let error = tpm.recover(&old, &code()).err().unwrap();
    assert!(matches!(error, TpmError::EpochGone { superseded: true, .. }), "{error}");
    assert!(tpm.recover(&new, &code()).is_ok());
}

#[test]
fn the_text_is_seven_groups_of_five_without_doubtful_letters() {
    let text = code().to_text();
    let groups: Vec<&str> = text.split('-').collect();
    assert_eq!(groups.len(), 7);
    assert!(groups.iter().all(|group| group.len() == 5));
    assert!(text.chars().all(|c| c == '-' || c.is_ascii_digit() || c.is_ascii_uppercase()));
    assert!(!text.contains(['I', 'L', 'O', 'U']));
}

fn typed(text: &str) -> Result<[u8; 16], RecoveryCodeError> {
    text.parse().map(|code: RecoveryCode| *code.expose())
}

#[test]
fn what_a_person_makes_of_it_is_understood() {
    // All symbols occur in it.
    let text = code().to_text().to_string();
    for variant in [
        text.to_lowercase(),
        text.replace('-', " "),
        text.replace('-', ""),
        format!("  {}\n", text.replace('-', " - ")),
        text.replace('-', "–"),
        text.replace('0', "O"),
        text.replace('0', "o").replace('1', "l"),
        text.replace('1', "I"),
    ] {
        assert_eq!(typed(&variant), Ok(CODE), "{variant}");
    }
}

#[test]
fn too_little_and_too_much_is_told() {
    let text = code().to_text();
    assert_eq!(typed(""), Err(RecoveryCodeError::Length { found: 0 }));
    assert_eq!(typed(&text[..35]), Err(RecoveryCodeError::Length { found: 30 }));
    let twice = format!("{}-{}", *text, *text);
    assert_eq!(typed(&twice), Err(RecoveryCodeError::Length { found: 70 }));
    // A character too few in the third of seven groups.
    let short = [&text[..12], &text[13..]].concat();
    assert_eq!(typed(&short), Err(RecoveryCodeError::Group { number: 3 }));
    let long = " ".repeat(1000);
    assert!(typed(&format!("{long}{}", *text)).is_err());
}

/// The error names the group, so that a person looks at five characters and not at 35.
#[test]
fn every_mistyped_character_and_every_swap_is_found_in_its_group() {
    const ALPHABET: &[u8] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let text = code().to_text();
    for (position, original) in text.bytes().enumerate().filter(|(_, byte)| *byte != b'-') {
        let number = position / 6 + 1;
        let mistyped = Err(RecoveryCodeError::Group { number });
        for &other in ALPHABET.iter().chain(b"U*") {
            let mut bytes = text.as_bytes().to_vec();
            bytes[position] = other;
            let result = typed(std::str::from_utf8(&bytes).unwrap());
            let expected = if other == original { &Ok(CODE) } else { &mistyped };
            assert_eq!(&result, expected, "{position}");
        }
        // Swapped with any later character of the group.
        for later in position + 1..number * 6 - 1 {
            let mut bytes = text.as_bytes().to_vec();
            bytes.swap(position, later);
            let result = typed(std::str::from_utf8(&bytes).unwrap());
            let expected = if bytes == text.as_bytes() { &Ok(CODE) } else { &mistyped };
            assert_eq!(&result, expected, "{position} {later}");
        }
    }
}

#[test]
fn swapped_groups_are_found() {
    let text = code().to_text();
    let mut groups: Vec<&str> = text.split('-').collect();
    groups.swap(2, 5);
    assert_eq!(typed(&groups.join("-")), Err(RecoveryCodeError::Group { number: 3 }));
}

#[test]
fn groups_of_two_codes_do_not_make_a_third() {
    let (one, other) = (code().to_text(), RecoveryCode::from_bytes([1; 16]).to_text());
    let mixed = [&one[..18], &other[18..]].concat();
    assert_eq!(typed(&mixed), Err(RecoveryCodeError::Mixed));
}

proptest! {
    #[test]
    fn every_code_comes_back(bytes in any::<[u8; 16]>()) {
        let text = RecoveryCode::from_bytes(bytes).to_text();
        prop_assert_eq!(typed(&text), Ok(bytes));
    }

    #[test]
    fn reading_never_panics(text in "\\PC{0,60}", symbols in "[0-9A-Za-z -]{30,50}") {
        for text in [text, symbols] {
            if let Ok(code) = text.parse::<RecoveryCode>() {
                prop_assert_eq!(typed(&code.to_text()), Ok(*code.expose()));
            }
        }
    }
}
