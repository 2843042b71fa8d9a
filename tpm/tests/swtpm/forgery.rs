//! A sealed root in the hands of someone who knows the format.

use moai_tpm::{Advice, BlobError, Epoch, Loaded, SealedRoot, TpmError};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tss_esapi::Error;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::Tss2ResponseCodeKind;
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::structures::{Digest, KeyedHashScheme, Private, Public, PublicKeyedHashParameters};

use crate::software_tpm::SoftwareTpm;
use crate::{refusal, seal, start};

/// Offsets of the format for a selection of one SHA-256 PCR.
const EPOCH: usize = 10;
const EPOCH_KEY: usize = EPOCH + 4;
const SELECTION: usize = EPOCH_KEY + 34 + 34 + 35;
const VALUES: usize = SELECTION + 6;
const POLICY_KEY: usize = VALUES + 32;
const RECOVERY: usize = POLICY_KEY + 66;
const UNIQUE: usize = RECOVERY + 1;
const PRIVATE_LEN: usize = UNIQUE + 32;
const PRIVATE: usize = PRIVATE_LEN + 2;
const TRAILER_LEN: usize = 32;

fn sealed(swtpm: &SoftwareTpm) -> Vec<u8> {
    seal(&start(swtpm.tcti())).to_bytes()
}

/// Makes the trailer fit again.
fn resign(bytes: &mut [u8]) {
    let end = bytes.len() - TRAILER_LEN;
    let trailer = Sha256::digest(&bytes[..end]);
    bytes[end..].copy_from_slice(&trailer);
}

#[test]
fn every_flipped_bit_is_refused() {
    let original = sealed(&SoftwareTpm::start());
    for bit in 0..original.len() * 8 {
        let mut bytes = original.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = SealedRoot::from_bytes(&bytes).err().unwrap();
        match bit / 8 {
            0..8 => assert!(matches!(error, BlobError::NotSealedRoot), "{error}"),
            8..10 => assert!(matches!(error, BlobError::Version { .. }), "{error}"),
            _ => assert!(matches!(error, BlobError::Damaged), "{error}"),
        }
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let original = sealed(&SoftwareTpm::start());
    for len in 0..original.len() {
        assert!(SealedRoot::from_bytes(&original[..len]).is_err());
    }
    let longer = [original.as_slice(), &[0]].concat();
    assert!(SealedRoot::from_bytes(&longer).is_err());
    let too_long = vec![0; moai_tpm::MAX_SEALED_LEN + 1];
    let error = SealedRoot::from_bytes(&too_long).err().unwrap();
    assert!(matches!(error, BlobError::TooLarge), "{error}");
}

#[test]
fn nothing_may_follow_the_private_part() {
    let mut bytes = sealed(&SoftwareTpm::start());
    bytes.push(0);
    resign(&mut bytes);
    let error = SealedRoot::from_bytes(&bytes).err().unwrap();
    assert!(matches!(error, BlobError::Malformed("length")), "{error}");
}

#[test]
fn every_forged_byte_with_a_fitting_digest_is_refused_by_the_tpm() {
    let swtpm = SoftwareTpm::start();
    let original = sealed(&swtpm);
    let tpm = start(swtpm.tcti());
    let sealed_part = (VALUES..POLICY_KEY)
        .chain(UNIQUE..PRIVATE_LEN)
        .chain(PRIVATE..original.len() - TRAILER_LEN);
    for offset in sealed_part {
        let mut bytes = original.clone();
        bytes[offset] ^= 0x81;
        resign(&mut bytes);
        let forged = SealedRoot::from_bytes(&bytes).unwrap();
        let error = refusal(&tpm, &forged);
        assert_eq!(error, TpmError::Tampered, "offset {offset}");
        assert_eq!(error.advice(), Advice::Stop);
    }
    let nothing = Loaded { objects: 0, sessions: 0 };
    assert_eq!(tpm.loaded().unwrap(), nothing);
}

/// What the TPM says to a sealed root that was altered and signed anew.
fn refusal_of(edit: impl FnOnce(&mut [u8])) -> TpmError {
    let swtpm = SoftwareTpm::start();
    let mut bytes = sealed(&swtpm);
    edit(&mut bytes);
    resign(&mut bytes);
    let forged = SealedRoot::from_bytes(&bytes).expect("succeeds");
    refusal(&start(swtpm.tcti()), &forged)
}

#[test]
fn another_pcr_cannot_be_put_in_place_of_the_sealed_one() {
    // PCR 8 holds the same value as PCR 7 at this time.
    let error = refusal_of(|bytes| {
        bytes[SELECTION + 2..VALUES].copy_from_slice(&(1_u32 << 8).to_be_bytes());
    });
    assert_eq!(error, TpmError::Tampered);
}

#[test]
fn the_policy_cannot_be_widened() {
    let error = refusal_of(|bytes| bytes[RECOVERY] = 1);
    assert_eq!(error, TpmError::Tampered, "a recovery code that was not there");
    let key = p256::SecretKey::from_slice(&[1; 32]).unwrap().public_key().to_sec1_bytes();
    let error = refusal_of(|bytes| {
        bytes[POLICY_KEY] = 1;
        bytes[POLICY_KEY + 1..RECOVERY].copy_from_slice(&key);
    });
    assert_eq!(error, TpmError::Tampered, "a policy key of the forger");
}

#[test]
fn another_epoch_cannot_be_claimed() {
    let error = refusal_of(|bytes| bytes[EPOCH_KEY + 5] ^= 1);
    assert_eq!(error, TpmError::EpochGone { epoch: Epoch::FIRST, superseded: true });
    let error = refusal_of(|bytes| bytes[EPOCH + 3] = 2);
    assert_eq!(error, TpmError::EpochGone { epoch: Epoch(2), superseded: true });
}

/// Were userWithAuth set, the TPM would give the secret to anyone with the empty password.
#[test]
fn the_empty_password_does_not_replace_the_policy() {
    let swtpm = SoftwareTpm::start();
    let bytes = sealed(&swtpm);
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .build()
        .unwrap();
    let policy = Sha256::new()
        .chain_update([0; 32])
        .chain_update([0, 0, 0x01, 0x7f, 0, 0, 0, 1, 0, 0x0b, 3, 0x80, 0, 0])
        .chain_update(Sha256::digest(&bytes[VALUES..POLICY_KEY]))
        .finalize();
    let public = Public::builder()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(Digest::try_from(policy.to_vec()).unwrap())
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::try_from(&bytes[UNIQUE..PRIVATE_LEN]).unwrap())
        .build()
        .unwrap();
    let private = Private::try_from(&bytes[PRIVATE..bytes.len() - TRAILER_LEN]).unwrap();
    swtpm.other_program(|context| {
        let handle = PersistentTpmHandle::new(Epoch::FIRST.handle()).unwrap();
        let parent = context.execute_without_session(|context| {
            context.tr_from_tpm_public(TpmHandle::Persistent(handle))
        });
        let parent: KeyHandle = parent.unwrap().into();
        let object = context.load(parent, private, public).unwrap();
        let refusal = context.unseal(object.into()).unwrap_err();
        let Error::Tss2Error(code) = refusal else {
            panic!("{refusal}");
        };
        assert_eq!(code.kind(), Some(Tss2ResponseCodeKind::AuthUnavailable));
    });
}

fn bytes_of<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    prop::collection::vec(any::<u8>(), N).prop_map(|v| v.try_into().expect("N bytes"))
}

/// A point of the curve P-256.
fn point() -> impl Strategy<Value = [u8; 65]> {
    (1..=u8::MAX).prop_map(|seed| {
        let key = p256::SecretKey::from_slice(&[seed; 32])
            .unwrap_or_else(|_| p256::SecretKey::from_slice(&[1; 32]).expect("in range"));
        key.public_key().to_sec1_bytes().as_ref().try_into().expect("65 bytes")
    })
}

/// A well-formed sealed root that no TPM made.
fn well_formed() -> impl Strategy<Value = Vec<u8>> {
    let fields = (
        any::<u32>(),
        (bytes_of::<34>(), bytes_of::<34>(), prop::option::of(bytes_of::<34>())),
        prop::sample::select(vec![(0x000b_u16, 32), (0x000c, 48), (0x000d, 64)]),
        1_u32..1 << 24,
        any::<u8>(),
        (prop::option::of(point()), any::<bool>()),
        bytes_of::<32>(),
        prop::collection::vec(any::<u8>(), 1..=1024),
    );
    fields.prop_map(|(epoch, names, bank, mask, fill, (key, recovery), unique, private)| {
        let (epoch_key, srk, endorsement) = names;
        let values = vec![fill; mask.count_ones() as usize * bank.1];
        let private_len = u16::try_from(private.len()).expect("at most 1024");
        let mut bytes = [
            b"MOAISEAL\0\x02".as_slice(),
            &epoch.to_be_bytes(),
            &epoch_key,
            &srk,
            &[endorsement.is_some().into()],
            &endorsement.unwrap_or([0; 34]),
            &bank.0.to_be_bytes(),
            &mask.to_be_bytes(),
            &values,
            &[key.is_some().into()],
            &key.unwrap_or([0; 65]),
            &[recovery.into()],
            &unique,
            &private_len.to_be_bytes(),
            &private,
            &[0; TRAILER_LEN],
        ]
        .concat();
        resign(&mut bytes);
        bytes
    })
}

proptest! {
    #[test]
    fn anything_else_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(SealedRoot::from_bytes(&bytes).is_err());
    }

    #[test]
    fn what_is_well_formed_is_read_and_written_the_same(bytes in well_formed()) {
        let sealed = SealedRoot::from_bytes(&bytes);
        prop_assert_eq!(sealed.map(|sealed| sealed.to_bytes()).ok(), Some(bytes));
    }

    /// Lengths and lists that contradict each other, under a digest that fits.
    #[test]
    fn what_is_malformed_is_refused_without_panic(
        mut bytes in well_formed(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        // Past magic and version, where flags and lengths are.
        for (index, value) in edits {
            let editable = &mut bytes[10..];
            editable[index.index(editable.len())] = value;
        }
        if let Some(cut) = cut {
            let len = TRAILER_LEN + cut.index(bytes.len() - TRAILER_LEN);
            bytes.truncate(len);
        }
        resign(&mut bytes);
        if let Ok(sealed) = SealedRoot::from_bytes(&bytes) {
            prop_assert_eq!(sealed.to_bytes(), bytes);
        }
    }
}
