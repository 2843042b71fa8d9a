//! Which TPM and which storage root key: told apart, and never taken one for the other.

use moai_tpm::{Advice, Epoch, SRK_HANDLE, TpmError};
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::handles::{AuthHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::structures::{
    Auth, EccPoint, EccScheme, HashScheme, Public, PublicEccParametersBuilder,
    SymmetricDefinitionObject,
};

use crate::software_tpm::SoftwareTpm;
use crate::{opens, plain, refusal, seal, secret, start};

fn srk_handle() -> tss_esapi::Result<PersistentTpmHandle> {
    PersistentTpmHandle::new(SRK_HANDLE)
}

fn has_srk(context: &mut Context) -> bool {
    let handle = srk_handle().expect("persistent handle");
    context
        .execute_without_session(|context| {
            context.tr_from_tpm_public(TpmHandle::Persistent(handle))
        })
        .is_ok()
}

fn evict_srk(context: &mut Context) -> tss_esapi::Result<()> {
    let handle = srk_handle()?;
    let srk = context.execute_without_session(|context| {
        context.tr_from_tpm_public(TpmHandle::Persistent(handle))
    })?;
    context.evict_control(Provision::Owner, srk, handle.into())?;
    Ok(())
}

fn attributes() -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
}

fn signing_key() -> tss_esapi::Result<Public> {
    let scheme = EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256));
    let parameters =
        PublicEccParametersBuilder::new_unrestricted_signing_key(scheme, EccCurve::NistP256);
    ecc_key(attributes().with_no_da(true).with_sign_encrypt(true), parameters)
}

/// A storage key that a TPM in lockout does not let anyone use.
fn lockable_storage_key() -> tss_esapi::Result<Public> {
    let cipher = SymmetricDefinitionObject::AES_128_CFB;
    let parameters =
        PublicEccParametersBuilder::new_restricted_decryption_key(cipher, EccCurve::NistP256);
    ecc_key(attributes().with_restricted(true).with_decrypt(true), parameters)
}

fn ecc_key(
    attributes: ObjectAttributesBuilder,
    parameters: PublicEccParametersBuilder,
) -> tss_esapi::Result<Public> {
    Public::builder()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes.build()?)
        .with_ecc_parameters(parameters.build()?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Puts a key where the storage root key belongs.
fn occupy_srk_handle(context: &mut Context, public: Public) -> tss_esapi::Result<()> {
    let key = context.create_primary(Hierarchy::Owner, public, None, None, None, None)?.key_handle;
    context.evict_control(Provision::Owner, key.into(), srk_handle()?.into())?;
    Ok(())
}

fn set_password(swtpm: &SoftwareTpm, hierarchy: AuthHandle) {
    let password = Auth::try_from(b"password".to_vec()).expect("short enough");
    swtpm
        .other_program(|context| context.hierarchy_change_auth(hierarchy, password))
        .expect("password set");
}

#[test]
fn another_tpm_is_told_by_its_storage_root_key() {
    let ours = SoftwareTpm::start();
    let theirs = SoftwareTpm::start();
    let sealed = seal(&start(ours.tcti()));

    let stranger = start(theirs.tcti());
    let error = refusal(&stranger, &sealed);
    assert_eq!(error, TpmError::OtherTpm, "without a storage root key");
    assert_eq!(error.advice(), Advice::Fix);
    drop(stranger);
    assert!(!theirs.other_program(has_srk), "a refusal created a key");

    let stranger = start(theirs.tcti());
    let own = seal(&stranger);
    let error = refusal(&stranger, &sealed);
    assert_eq!(error, TpmError::OtherTpm, "with one of its own");
    assert_ne!(own.srk_name(), sealed.srk_name());
}

#[test]
fn a_cleared_owner_hierarchy_is_told_from_another_tpm() {
    let swtpm = SoftwareTpm::start();
    let sealed = seal(&start(swtpm.tcti()));
    swtpm.clear_owner();

    let tpm = start(swtpm.tcti());
    let error = refusal(&tpm, &sealed);
    assert_eq!(error, TpmError::OwnerCleared);
    assert_eq!(error.advice(), Advice::Stop);
    assert!(error.to_string().contains("TPM2_Clear"), "{error}");

    let anew = seal(&tpm);
    assert!(opens(&tpm, &anew));
    let error = refusal(&tpm, &sealed);
    assert_eq!(error, TpmError::OwnerCleared, "provisioned anew");
}

#[test]
fn an_evicted_storage_root_key_is_made_again() {
    let swtpm = SoftwareTpm::start();
    let sealed = seal(&start(swtpm.tcti()));
    swtpm.other_program(evict_srk).unwrap();
    assert!(opens(&start(swtpm.tcti()), &sealed));
}

#[test]
fn a_key_that_cannot_be_the_storage_root_key_is_not_used() {
    for public in [signing_key(), lockable_storage_key()] {
        let swtpm = SoftwareTpm::start();
        let public = public.unwrap();
        swtpm.other_program(|context| occupy_srk_handle(context, public)).unwrap();
        let tpm = start(swtpm.tcti());
        let error = tpm.seal(Epoch::FIRST, &secret(), None, &plain()).err().unwrap();
        assert_eq!(error, TpmError::SrkUnsuitable);
        assert!(error.to_string().contains("0x81000001"), "{error}");
    }
}

#[test]
fn an_owner_password_is_named() {
    let swtpm = SoftwareTpm::start();
    set_password(&swtpm, AuthHandle::Owner);
    let tpm = start(swtpm.tcti());
    let error = tpm.seal(Epoch::FIRST, &secret(), None, &plain()).err().unwrap();
    assert!(matches!(error, TpmError::Password { .. }), "{error}");
}

#[test]
fn without_a_readable_endorsement_hierarchy_the_cause_is_left_open() {
    let swtpm = SoftwareTpm::start();
    set_password(&swtpm, AuthHandle::Endorsement);
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm);
    assert!(opens(&tpm, &sealed));
    drop(tpm);
    swtpm.clear_owner();
    let error = refusal(&start(swtpm.tcti()), &sealed);
    assert_eq!(error, TpmError::SrkChanged);
}
