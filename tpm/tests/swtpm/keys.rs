//! The identity key and the attestation key, in the TPM and as files.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use moai_tpm::{
    Advice, KeyBlob, KeyBlobError, KeyKind, KeyTrouble, Loaded, MAX_KEY_BLOB_LEN, PcrSelection,
    SRK_HANDLE, Tpm, TpmError,
};
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tss_esapi::constants::Tss2ResponseCodeKind;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::structures::{Digest, HashcheckTicket, Private, Public, SignatureScheme};
use tss_esapi::traits::UnMarshall as _;
use tss_esapi::tss2_esys::{TPM2B_DIGEST, TPMT_TK_HASHCHECK};
use tss_esapi::{Context, Error};

use crate::proxy::Proxy;
use crate::software_tpm::SoftwareTpm;
use crate::start;

const NOTHING: Loaded = Loaded { objects: 0, sessions: 0 };
const DIGEST: [u8; 32] = [0x5a; 32];
const COMMAND_CODE_START_AUTH_SESSION: u32 = 0x176;
const NO_COMMAND: u32 = 0;

/// Offsets of the format.
const X: usize = 80;
const PRIVATE_LEN: usize = X + 64;
const PRIVATE: usize = PRIVATE_LEN + 2;
const TRAILER_LEN: usize = 32;

fn identity(tpm: &Tpm) -> KeyBlob {
    tpm.create_key(KeyKind::Identity).expect("identity key")
}

fn attestation(tpm: &Tpm) -> KeyBlob {
    tpm.create_key(KeyKind::Attestation).expect("attestation key")
}

fn verifies(key: &KeyBlob, sha256: &[u8; 32], signature: &[u8; 64]) -> bool {
    let key = VerifyingKey::from_sec1_bytes(&key.public_key()).expect("a point");
    let signature = Signature::from_slice(signature).expect("in range");
    key.verify_prehash(sha256, &signature).is_ok()
}

fn trouble(error: &TpmError) -> Option<KeyTrouble> {
    match error {
        TpmError::Key { kind: KeyKind::Identity, trouble } => Some(*trouble),
        _ => None,
    }
}

/// Makes the trailer fit again.
fn resign(bytes: &mut [u8]) {
    let end = bytes.len() - TRAILER_LEN;
    let trailer = Sha256::digest(&bytes[..end]);
    bytes[end..].copy_from_slice(&trailer);
}

#[test]
fn what_an_identity_key_signed_verifies_under_its_public_key() {
    let mut swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let (key, other) = (identity(&tpm), identity(&tpm));
    assert_ne!(key.public_key(), other.public_key());
    drop(tpm);
    swtpm.restart();

    let read = KeyBlob::from_bytes(&key.to_bytes()).unwrap();
    assert_eq!(read, key);
    let tpm = start(swtpm.tcti());
    let signature = tpm.sign(&read, DIGEST).unwrap();
    assert!(verifies(&key, &DIGEST, &signature));
    assert!(!verifies(&key, &[0; 32], &signature));
    assert!(!verifies(&other, &DIGEST, &signature));
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn what_the_tpm_states_is_signed_by_the_attestation_key() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let (identity, attestation) = (identity(&tpm), attestation(&tpm));
    for attested in [
        tpm.certify(&identity, &attestation, [1; 32]).unwrap(),
        tpm.quote(&attestation, PcrSelection::default(), [1; 32]).unwrap(),
    ] {
        let digest = Sha256::digest(&attested.statement).into();
        assert!(verifies(&attestation, &digest, &attested.signature));
        assert!(attested.statement.windows(32).any(|part| part == [1; 32]));
    }
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn the_kinds_do_not_stand_in_for_each_other() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let (identity, attestation) = (identity(&tpm), attestation(&tpm));
    for error in [
        tpm.sign(&attestation, DIGEST).unwrap_err(),
        tpm.certify(&attestation, &attestation, DIGEST).unwrap_err(),
        tpm.certify(&identity, &identity, DIGEST).unwrap_err(),
        tpm.quote(&identity, PcrSelection::default(), DIGEST).unwrap_err(),
    ] {
        let wrong_kind = matches!(error, TpmError::Key { trouble: KeyTrouble::WrongKind, .. });
        assert!(wrong_kind, "{error}");
    }
}

fn load(context: &mut Context, key: &KeyBlob) -> KeyHandle {
    let bytes = key.to_bytes();
    let private = Private::try_from(&bytes[PRIVATE..bytes.len() - TRAILER_LEN]).expect("loads");
    let public = Public::unmarshall(&key.public_area()).expect("loads");
    let handle = PersistentTpmHandle::new(SRK_HANDLE).expect("loads");
    let srk = context.execute_without_session(|context| {
        context.tr_from_tpm_public(TpmHandle::Persistent(handle))
    });
    context.load(srk.expect("loads").into(), private, public).expect("loads")
}

/// Could it sign anything else, whoever has the blob could make up quotes.
#[test]
fn the_tpm_itself_keeps_the_attestation_key_from_signing_what_comes_from_outside() {
    let swtpm = SoftwareTpm::start();
    let key = attestation(&start(swtpm.tcti()));
    swtpm.other_program(|context| {
        let loaded = load(context, &key);
        let no_ticket = TPMT_TK_HASHCHECK {
            tag: TPM2_ST_HASHCHECK,
            hierarchy: TPM2_RH_NULL,
            digest: TPM2B_DIGEST::default(),
        };
        let ticket = HashcheckTicket::try_from(no_ticket).unwrap();
        let digest = Digest::try_from(DIGEST.to_vec()).unwrap();
        let refusal = context.sign(loaded, digest, SignatureScheme::Null, ticket).unwrap_err();
        let Error::Tss2Error(code) = refusal else {
            panic!("{refusal}");
        };
        assert_eq!(code.kind(), Some(Tss2ResponseCodeKind::Ticket));
    });
}

#[test]
fn another_tpm_and_a_cleared_one_are_told_apart() {
    let (ours, theirs) = (SoftwareTpm::start(), SoftwareTpm::start());
    let key = identity(&start(ours.tcti()));

    let error = start(theirs.tcti()).sign(&key, DIGEST).unwrap_err();
    assert_eq!(trouble(&error), Some(KeyTrouble::OtherTpm), "{error}");
    assert_eq!(error.advice(), Advice::Fix);

    ours.clear_owner();
    let error = start(ours.tcti()).sign(&key, DIGEST).unwrap_err();
    assert_eq!(trouble(&error), Some(KeyTrouble::OwnerCleared), "{error}");
    assert_eq!(error.advice(), Advice::Stop);
    assert!(error.to_string().contains("identity key"), "{error}");
}

#[test]
fn a_forged_file_with_a_fitting_digest_is_refused_by_the_tpm() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let original = identity(&tpm).to_bytes();
    let wrapped_part = (X..PRIVATE_LEN).chain(PRIVATE..original.len() - TRAILER_LEN);
    for offset in wrapped_part {
        let mut bytes = original.clone();
        bytes[offset] ^= 0x81;
        resign(&mut bytes);
        let forged = KeyBlob::from_bytes(&bytes).unwrap();
        let error = tpm.sign(&forged, DIGEST).unwrap_err();
        assert_eq!(trouble(&error), Some(KeyTrouble::Tampered), "offset {offset}: {error}");
    }
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn an_attestation_key_cannot_be_passed_off_as_an_identity_key() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let mut bytes = attestation(&tpm).to_bytes();
    bytes[10] = 1;
    resign(&mut bytes);
    let forged = KeyBlob::from_bytes(&bytes).unwrap();
    assert_eq!(forged.kind(), KeyKind::Identity);
    let error = tpm.sign(&forged, DIGEST).unwrap_err();
    assert_eq!(trouble(&error), Some(KeyTrouble::Tampered), "{error}");
}

#[test]
fn every_session_is_salted_to_the_storage_root_key() {
    let swtpm = SoftwareTpm::start();
    let salted_to = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&salted_to);
    let proxy = Proxy::start(&swtpm, move |code, command| {
        if code == COMMAND_CODE_START_AUTH_SESSION {
            // tpmKey follows the header (TPM 2.0 Part 3, 11.1).
            seen.lock().unwrap().push(command[10..14].to_vec());
        }
    });
    let tpm = start(proxy.tcti());
    let (identity, attestation) = (identity(&tpm), attestation(&tpm));
    tpm.sign(&identity, DIGEST).unwrap();
    tpm.certify(&identity, &attestation, DIGEST).unwrap();
    tpm.quote(&attestation, PcrSelection::default(), DIGEST).unwrap();
    let salted_to = salted_to.lock().unwrap();
    // One for each Create, Sign, Certify and Quote.
    assert_eq!(salted_to.len(), 2 + 1 + 1 + 1);
    assert!(salted_to.iter().all(|key| key == &SRK_HANDLE.to_be_bytes()));
}

/// An interposer that changes what the TPM answers is found out, whatever it changes.
#[test]
fn a_forged_answer_is_not_taken_for_the_tpms() {
    let swtpm = SoftwareTpm::start();
    let forged = Arc::new(AtomicU32::new(NO_COMMAND));
    let code = Arc::clone(&forged);
    let proxy = Proxy::forging(&swtpm, move |command, answer| {
        let wanted = code.load(Ordering::SeqCst);
        if wanted != NO_COMMAND && command == wanted {
            // In the middle of the first parameter.
            answer[40] ^= 1;
        }
    });
    let tpm = start(proxy.tcti());
    let (identity, attestation) = (identity(&tpm), attestation(&tpm));
    // TPM2_Sign, TPM2_Certify, TPM2_Quote, TPM2_Create.
    for command in [0x15d, 0x148, 0x158, 0x153] {
        forged.store(command, Ordering::SeqCst);
        let error = match command {
            0x15d => tpm.sign(&identity, DIGEST).err(),
            0x148 => tpm.certify(&identity, &attestation, DIGEST).err(),
            0x158 => tpm.quote(&attestation, PcrSelection::default(), DIGEST).err(),
            _ => tpm.create_key(KeyKind::Identity).err(),
        };
        let error = error.expect("refused");
        assert!(matches!(error, TpmError::Forged { .. }), "{command:#x}: {error}");
        assert_eq!(error.advice(), Advice::Stop);
    }
    forged.store(NO_COMMAND, Ordering::SeqCst);
    tpm.sign(&identity, DIGEST).unwrap();
}

#[test]
fn every_damaged_file_is_refused() {
    let original = identity(&start(SoftwareTpm::start().tcti())).to_bytes();
    for bit in 0..original.len() * 8 {
        let mut bytes = original.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = KeyBlob::from_bytes(&bytes).unwrap_err();
        match bit / 8 {
            0..8 => assert_eq!(error, KeyBlobError::NotKeyBlob),
            8..10 => assert!(matches!(error, KeyBlobError::Version { .. }), "{error}"),
            _ => assert_eq!(error, KeyBlobError::Damaged),
        }
    }
    for len in 0..original.len() {
        assert!(KeyBlob::from_bytes(&original[..len]).is_err(), "{len} bytes");
    }
    let too_long = vec![0; MAX_KEY_BLOB_LEN + 1];
    assert_eq!(KeyBlob::from_bytes(&too_long), Err(KeyBlobError::TooLarge));
}

proptest! {
    #[test]
    fn anything_else_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..2500)) {
        prop_assert!(KeyBlob::from_bytes(&bytes).is_err());
    }

    /// Contents under a digest that fits: read and written the same, or refused.
    #[test]
    fn fields_are_parsed_without_panic(
        kind in 0_u8..4,
        flag in 0_u8..3,
        fields in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut bytes = [b"MOAIKEY\0\0\x01".as_slice(), &[kind], &fields, &[0; 32]].concat();
        if let Some(byte) = bytes.get_mut(45) {
            *byte = flag;
        }
        if let Some(len) = bytes.len().checked_sub(PRIVATE + TRAILER_LEN) {
            let len = u16::try_from(len).expect("below 400");
            bytes[PRIVATE_LEN..PRIVATE].copy_from_slice(&len.to_be_bytes());
        }
        resign(&mut bytes);
        if let Ok(key) = KeyBlob::from_bytes(&bytes) {
            prop_assert_eq!(key.to_bytes(), bytes);
        }
    }
}
