//! No TPM, a TPM that dies, a TPM that hangs, a TPM that others left full.

use std::time::{Duration, Instant};

use moai_tpm::{Absence, Advice, Epoch, Loaded, Options, Tcti, Tpm, TpmError};
use rustix::process::{Signal, kill_process};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::{SessionType, Tss2ResponseCodeKind};
use tss_esapi::handles::PersistentTpmHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::structures::{
    Auth, Digest, KeyedHashScheme, Public, PublicKeyedHashParameters, SensitiveData,
    SymmetricDefinition,
};
use tss_esapi::{Context, Error};

use crate::proxy::Proxy;
use crate::software_tpm::{SoftwareTpm, free_ports, tcti};
use crate::{opens, plain, refusal, seal, secret, start};

const COMMAND_CODE_UNSEAL: u32 = 0x15e;

fn absence(tcti: Tcti) -> Absence {
    match Tpm::start(tcti, Options::default()) {
        Err(TpmError::Absent { absence, .. }) => absence,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_tpm_is_absent_and_the_reason_is_told() {
    assert_eq!(absence(tcti(free_ports())), Absence::Unreachable);
    let device = "device:/dev/no-such-tpm".parse().unwrap();
    assert_eq!(absence(device), Absence::NoDevice);
    let no_tpm = "device:/dev/null".parse().unwrap();
    assert_eq!(absence(no_tpm), Absence::Library);
}

#[test]
fn a_tpm_that_dies_in_mid_call_is_found_again_when_it_is_back() {
    let mut swtpm = SoftwareTpm::start();
    let pid = swtpm.pid();
    let proxy = Proxy::start(&swtpm, move |code, _| {
        if code == COMMAND_CODE_UNSEAL {
            // Only the first such process is there to be killed.
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let tpm = start(proxy.tcti());
    let sealed = seal(&tpm);

    let error = refusal(&tpm, &sealed);
    assert!(matches!(error, TpmError::ConnectionLost { .. }), "{error}");
    assert_eq!(error.advice(), Advice::Retry);
    let error = refusal(&tpm, &sealed);
    assert!(matches!(error, TpmError::Absent { .. } | TpmError::ConnectionLost { .. }), "{error}");

    swtpm.restart();
    assert!(opens(&tpm, &sealed));
}

#[test]
fn a_hanging_tpm_frees_the_caller_at_the_deadline_and_works_on_afterwards() {
    let swtpm = SoftwareTpm::start();
    let deadline = Duration::from_secs(3);
    let tpm = Tpm::start(swtpm.tcti(), Options { deadline }).unwrap();
    let sealed = seal(&tpm);

    swtpm.signal(Signal::STOP);
    let called = Instant::now();
    let error = refusal(&tpm, &sealed);
    let waited = called.elapsed();
    swtpm.signal(Signal::CONT);
    assert_eq!(error, TpmError::Deadline { after: deadline });
    assert_eq!(error.advice(), Advice::Retry);
    assert!(waited >= deadline && waited < 2 * deadline, "{waited:?}");

    assert!(opens(&tpm, &sealed));
    let nothing = Loaded { objects: 0, sessions: 0 };
    assert_eq!(tpm.loaded().unwrap(), nothing);
}

/// Data under a password that the TPM protects against guessing.
fn protected_object() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(true)
        .build()?;
    Public::builder()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

/// Guesses a password until the TPM refuses all such guesses.
fn lock_out(context: &mut Context) -> tss_esapi::Result<()> {
    let password = Auth::try_from(b"right".to_vec())?;
    let data = SensitiveData::try_from(b"data".to_vec())?;
    let public = protected_object()?;
    let object = context
        .create_primary(Hierarchy::Owner, public, Some(password), Some(data), None, None)?
        .key_handle
        .into();
    context.tr_set_auth(object, Auth::try_from(b"wrong".to_vec())?)?;
    for _ in 0..100 {
        match context.unseal(object) {
            Err(Error::Tss2Error(code)) if code.kind() == Some(Tss2ResponseCodeKind::Lockout) => {
                return context.flush_context(object);
            }
            _ => {}
        }
    }
    panic!("the TPM does not lock out");
}

#[test]
fn a_tpm_in_lockout_still_seals_and_unseals() {
    let swtpm = SoftwareTpm::start();
    swtpm.other_program(lock_out).unwrap();
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm);
    assert!(opens(&tpm, &sealed));
}

fn occupy_sessions(context: &mut Context) -> tss_esapi::Result<()> {
    let (cipher, hash) = (SymmetricDefinition::AES_128_CFB, HashingAlgorithm::Sha256);
    for kind in [SessionType::Hmac, SessionType::Policy, SessionType::Policy] {
        context.execute_without_session(|context| {
            context.start_auth_session(None, None, None, kind, cipher, hash)
        })?;
    }
    Ok(())
}

fn occupy_objects(context: &mut Context) -> tss_esapi::Result<()> {
    for _ in 0..3 {
        let data = SensitiveData::try_from(b"data".to_vec())?;
        let public = protected_object()?;
        context.create_primary(Hierarchy::Owner, public, None, Some(data), None, None)?;
    }
    Ok(())
}

/// Occupies every session slot and every object slot.
fn fill_slots(context: &mut Context) -> tss_esapi::Result<()> {
    occupy_sessions(context)?;
    occupy_objects(context)
}

#[test]
fn exhausted_slots_are_told_apart_and_pass() {
    let swtpm = SoftwareTpm::start();
    let sealed = seal(&start(swtpm.tcti()));
    for (occupy, expected) in [
        (occupy_objects as fn(&mut Context) -> tss_esapi::Result<()>, TpmError::ObjectSlots),
        (occupy_sessions, TpmError::SessionSlots),
    ] {
        // Started before the slots are taken, since starting frees them.
        let tpm = start(swtpm.tcti());
        swtpm.killed_program(occupy).unwrap();
        let error = refusal(&tpm, &sealed);
        assert_eq!(error, expected);
        assert_eq!(error.advice(), Advice::Retry);
        assert!(opens(&start(swtpm.tcti()), &sealed));
        assert!(opens(&tpm, &sealed), "the same connection, once there is room");
    }
}

#[test]
fn slots_that_a_killed_program_left_occupied_are_freed_at_start() {
    let swtpm = SoftwareTpm::start();
    swtpm.killed_program(fill_slots).unwrap();
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm);
    assert!(opens(&tpm, &sealed));
}

/// Fills the memory for persistent objects.
fn fill_persistent(context: &mut Context) -> tss_esapi::Result<()> {
    let data = SensitiveData::try_from(b"data".to_vec())?;
    let public = protected_object()?;
    let object =
        context.create_primary(Hierarchy::Owner, public, None, Some(data), None, None)?.key_handle;
    for handle in 0x8100_0100..0x8100_1000 {
        let handle = PersistentTpmHandle::new(handle)?;
        if context.evict_control(Provision::Owner, object.into(), handle.into()).is_err() {
            return context.flush_context(object.into());
        }
    }
    panic!("the TPM keeps any number of persistent objects");
}

#[test]
fn a_tpm_without_room_for_another_persistent_object_says_so() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm);
    drop(tpm);
    swtpm.other_program(fill_persistent).unwrap();
    let tpm = start(swtpm.tcti());
    let error = tpm.seal(Epoch(2), &secret(), None, &plain()).err().unwrap();
    assert_eq!(error, TpmError::PersistentSlots);
    assert_eq!(error.advice(), Advice::Fix);
    assert!(opens(&tpm, &sealed), "what is there still works");
    let nothing = Loaded { objects: 0, sessions: 0 };
    assert_eq!(tpm.loaded().unwrap(), nothing);
}
