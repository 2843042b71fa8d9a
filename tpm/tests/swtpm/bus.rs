//! What a probe between processor and TPM sees.

use std::sync::{Arc, Mutex};

use moai_tpm::{PcrSelection, SRK_HANDLE};

use crate::proxy::Proxy;
use crate::software_tpm::SoftwareTpm;
use crate::{SECRET, secret, start};

const COMMAND_CODE_START_AUTH_SESSION: u32 = 0x176;

#[test]
fn neither_the_secret_nor_random_numbers_cross_the_bus_in_clear() {
    let swtpm = SoftwareTpm::start();
    let proxy = Proxy::start(&swtpm, |_, _| {});
    let tpm = start(proxy.tcti());
    let sealed = tpm.seal(&secret(), &PcrSelection::default()).unwrap();
    assert_eq!(tpm.unseal(&sealed).unwrap().expose(), &SECRET);
    let random = tpm.random().unwrap();

    // The probe works: it sees what is not encrypted.
    assert!(proxy.saw(sealed.srk_name()));
    // Any eight bytes in a row would be a leak.
    for part in SECRET.windows(8).chain(random.windows(8)) {
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
    let sealed = tpm.seal(&secret(), &PcrSelection::default()).unwrap();
    tpm.unseal(&sealed).unwrap();
    tpm.random().unwrap();

    let salted_to = salted_to.lock().unwrap();
    assert!(!salted_to.is_empty());
    for key in salted_to.iter() {
        assert_eq!(key, &SRK_HANDLE.to_be_bytes());
    }
}
