//! What a probe between processor and TPM sees.

use std::sync::{Arc, Mutex};

use moai_tpm::{Epoch, RecoveryCode, SRK_HANDLE};

use crate::proxy::Proxy;
use crate::software_tpm::SoftwareTpm;
use crate::{SECRET, opens, plain, seal, secret, start};

const COMMAND_CODE_CREATE: u32 = 0x153;
const COMMAND_CODE_LOAD: u32 = 0x157;
const COMMAND_CODE_START_AUTH_SESSION: u32 = 0x176;

#[test]
fn neither_the_secret_nor_random_numbers_cross_the_bus_in_clear() {
    let swtpm = SoftwareTpm::start();
    let proxy = Proxy::start(&swtpm, |_, _| {});
    let tpm = start(proxy.tcti());
    let code = *b"recovery code 16";
    let recovery = RecoveryCode::from_bytes(code);
    let sealed = tpm.seal(Epoch::FIRST, &secret(), Some(&recovery), &plain()).unwrap();
    assert!(opens(&tpm, &sealed));
    tpm.recover(&sealed, &recovery).unwrap();
    let random = tpm.random().unwrap();

    // The probe works: it sees what is not encrypted.
    assert!(proxy.saw(sealed.srk_name()));
    // Any eight bytes in a row would be a leak.
    for part in SECRET.windows(8).chain(code.windows(8)).chain(random.windows(8)) {
        assert!(!proxy.saw(part));
    }
}

/// A probe can compute the keys of an unsalted session.
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
    let sealed = seal(&tpm);
    assert!(opens(&tpm, &sealed));
    tpm.random().unwrap();

    let salted_to = salted_to.lock().unwrap();
    assert!(!salted_to.is_empty());
    for key in salted_to.iter() {
        assert_eq!(key, &SRK_HANDLE.to_be_bytes());
    }
}

/// Who has an epoch key's private part can open everything that was ever sealed below it.
#[test]
fn the_private_part_of_an_epoch_key_is_encrypted_when_made_and_when_loaded() {
    const DECRYPT: u8 = 0x20;
    const ENCRYPT: u8 = 0x40;
    let swtpm = SoftwareTpm::start();
    let commands = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&commands);
    let proxy = Proxy::start(&swtpm, move |code, command| {
        let below_srk = command.get(10..14) == Some(&SRK_HANDLE.to_be_bytes());
        if below_srk && matches!(code, COMMAND_CODE_CREATE | COMMAND_CODE_LOAD) {
            // Handle, size of the authorisation area, session handle, nonce, attributes
            // (TPM 2.0 Part 1, 18.6).
            let nonce_len = usize::from(u16::from_be_bytes([command[22], command[23]]));
            seen.lock().unwrap().push((code, command[24 + nonce_len]));
        }
    });
    seal(&start(proxy.tcti()));

    let commands = commands.lock().unwrap();
    let codes: Vec<u32> = commands.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [COMMAND_CODE_CREATE, COMMAND_CODE_LOAD]);
    for (code, attributes) in commands.iter() {
        assert_eq!(attributes & (DECRYPT | ENCRYPT), DECRYPT | ENCRYPT, "{code:#x}");
    }
}
