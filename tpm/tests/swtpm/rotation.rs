//! Epochs: what a rotation leaves, what it destroys, what a crash in it leaves behind.

use moai_tpm::{Advice, Epoch, Loaded, SealedRoot, TpmError};
use sha2::{Digest as _, Sha256};
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::handles::{ObjectHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::structures::{
    EccPoint, Public, PublicEccParametersBuilder, SymmetricDefinitionObject,
};

use crate::software_tpm::SoftwareTpm;
use crate::{opens, plain, refusal, seal, secret, start};

const SECOND: Epoch = Epoch(2);

fn find(context: &mut Context, handle: u32) -> Option<ObjectHandle> {
    let handle = PersistentTpmHandle::new(handle).expect("persistent handle");
    context
        .execute_without_session(|context| {
            context.tr_from_tpm_public(TpmHandle::Persistent(handle))
        })
        .ok()
}

/// The name of what lies at a persistent handle.
fn name_at(swtpm: &SoftwareTpm, handle: u32) -> Option<Vec<u8>> {
    swtpm.other_program(|context| {
        let object = find(context, handle)?;
        Some(context.tr_get_name(object).expect("succeeds").value().to_vec())
    })
}

fn evict(swtpm: &SoftwareTpm, handle: u32) {
    swtpm.other_program(|context| {
        let object = find(context, handle).expect("succeeds");
        let handle = PersistentTpmHandle::new(handle).expect("succeeds");
        context.evict_control(Provision::Owner, object, handle.into()).expect("succeeds");
    });
}

/// A storage key of somebody else, alike but for our mark.
fn foreign_key(context: &mut Context, handle: u32) -> tss_esapi::Result<()> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true);
    let cipher = SymmetricDefinitionObject::AES_128_CFB;
    let parameters =
        PublicEccParametersBuilder::new_restricted_decryption_key(cipher, EccCurve::NistP256);
    let public = Public::builder()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes.build()?)
        .with_ecc_parameters(parameters.build()?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()?;
    let key = context.create_primary(Hierarchy::Owner, public, None, None, None, None)?.key_handle;
    let handle = PersistentTpmHandle::new(handle)?;
    context.evict_control(Provision::Owner, key.into(), handle.into())?;
    Ok(())
}

#[test]
fn epochs_take_turns_at_two_handles() {
    assert_ne!(Epoch::FIRST.handle(), Epoch::FIRST.next().handle());
    for epoch in [Epoch::FIRST, SECOND, Epoch(u32::MAX)] {
        assert_eq!(epoch.next().next().handle(), epoch.handle());
        assert!([0x8101_0010, 0x8101_0011].contains(&epoch.handle()));
    }
}

/// A thief with the board and an image of the whole disk from before the rotation.
#[test]
fn a_retired_epoch_is_dead_in_the_same_tpm_with_everything_that_was_on_disk() {
    let mut swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let old = seal(&tpm);
    let disk_image = old.to_bytes();
    let new = tpm.seal(SECOND, &secret(), None, &plain()).unwrap();
    assert!(opens(&tpm, &old) && opens(&tpm, &new), "both are good until one is retired");
    tpm.retire(&new).unwrap();
    assert!(opens(&tpm, &new));
    assert_eq!(tpm.loaded().unwrap(), Loaded { objects: 0, sessions: 0 });
    drop(tpm);
    assert_eq!(name_at(&swtpm, Epoch::FIRST.handle()), None);
    swtpm.restart();

    let tpm = start(swtpm.tcti());
    let put_back = SealedRoot::from_bytes(&disk_image).unwrap();
    let error = refusal(&tpm, &put_back);
    assert_eq!(error, TpmError::EpochGone { epoch: Epoch::FIRST, superseded: true });
    assert_eq!(error.advice(), Advice::Fix);
    assert!(error.to_string().contains("old copy"), "{error}");

    // Not even one that claims to be of the present epoch.
    let mut forged = disk_image;
    forged[10..48].copy_from_slice(&new.to_bytes()[10..48]);
    let end = forged.len() - 32;
    let trailer = Sha256::digest(&forged[..end]);
    forged[end..].copy_from_slice(&trailer);
    let forged = SealedRoot::from_bytes(&forged).unwrap();
    assert_eq!(forged.epoch(), SECOND);
    assert_eq!(refusal(&tpm, &forged), TpmError::Tampered);
}

#[test]
fn rotation_goes_on_for_ever() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let mut sealed = seal(&tpm);
    for _ in 0..5 {
        let old = sealed;
        sealed = tpm.seal(old.epoch().next(), &secret(), None, &plain()).unwrap();
        tpm.retire(&sealed).unwrap();
        tpm.retire(&sealed).unwrap();
        assert!(opens(&tpm, &sealed));
        assert!(matches!(refusal(&tpm, &old), TpmError::EpochGone { superseded: true, .. }));
    }
}

#[test]
fn the_key_that_an_abandoned_rotation_left_is_replaced() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let current = seal(&tpm);
    let abandoned = tpm.seal(SECOND, &secret(), None, &plain()).unwrap();
    drop(tpm);
    let leftover = name_at(&swtpm, SECOND.handle()).unwrap();

    let tpm = start(swtpm.tcti());
    let again = tpm.seal(SECOND, &secret(), None, &plain()).unwrap();
    assert!(opens(&tpm, &current) && opens(&tpm, &again));
    assert!(matches!(refusal(&tpm, &abandoned), TpmError::EpochGone { .. }));
    drop(tpm);
    assert_ne!(name_at(&swtpm, SECOND.handle()).unwrap(), leftover);

    // Retiring instead of rotating again clears it away too.
    let tpm = start(swtpm.tcti());
    tpm.retire(&current).unwrap();
    assert!(opens(&tpm, &current));
    drop(tpm);
    assert_eq!(name_at(&swtpm, SECOND.handle()), None);
}

#[test]
fn somebody_elses_object_is_neither_replaced_nor_evicted() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let current = seal(&tpm);
    drop(tpm);
    let handle = SECOND.handle();
    swtpm.other_program(|context| foreign_key(context, handle)).unwrap();
    let theirs = name_at(&swtpm, handle).unwrap();

    let tpm = start(swtpm.tcti());
    let error = tpm.seal(SECOND, &secret(), None, &plain()).err().unwrap();
    assert_eq!(error, TpmError::HandleTaken { handle });
    assert_eq!(error.advice(), Advice::Fix);
    assert!(error.to_string().contains("0x81010010"), "{error}");
    tpm.retire(&current).unwrap();
    assert!(opens(&tpm, &current));
    drop(tpm);
    assert_eq!(name_at(&swtpm, handle).unwrap(), theirs);
}

#[test]
fn an_old_copy_cannot_retire_the_key_in_use() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let old = seal(&tpm);
    let new = tpm.seal(SECOND, &secret(), None, &plain()).unwrap();
    tpm.retire(&new).unwrap();
    let error = tpm.retire(&old).unwrap_err();
    assert_eq!(error, TpmError::EpochGone { epoch: Epoch::FIRST, superseded: true });
    let error = tpm.reseal(&old, &secret(), None, &plain()).err().unwrap();
    assert_eq!(error, TpmError::EpochGone { epoch: Epoch::FIRST, superseded: true });
    assert!(opens(&tpm, &new));
}

#[test]
fn a_key_evicted_by_hand_is_told_from_a_rotation() {
    let swtpm = SoftwareTpm::start();
    let sealed = seal(&start(swtpm.tcti()));
    evict(&swtpm, Epoch::FIRST.handle());
    let error = refusal(&start(swtpm.tcti()), &sealed);
    assert_eq!(error, TpmError::EpochGone { epoch: Epoch::FIRST, superseded: false });
    assert_eq!(error.advice(), Advice::Stop);
    assert!(error.to_string().contains("0x81010011"), "{error}");
}

#[test]
fn a_sealing_that_fails_leaves_no_key_and_spares_the_leftover() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let current = seal(&tpm);
    drop(tpm);
    swtpm.other_program(|context| {
        let password = tss_esapi::structures::Auth::try_from(b"password".to_vec()).unwrap();
        context.hierarchy_change_auth(tss_esapi::handles::AuthHandle::Owner, password).unwrap();
    });
    let tpm = start(swtpm.tcti());
    let error = tpm.seal(SECOND, &secret(), None, &plain()).err().unwrap();
    assert!(matches!(error, TpmError::Password { .. }), "{error}");
    assert!(opens(&tpm, &current), "unsealing needs no owner");
    assert_eq!(tpm.loaded().unwrap(), Loaded { objects: 0, sessions: 0 });
    drop(tpm);
    assert_eq!(name_at(&swtpm, SECOND.handle()), None);
}
