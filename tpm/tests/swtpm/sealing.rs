//! What is sealed is unsealed in the same platform state, and nothing is left behind.

use moai_tpm::{Advice, Loaded, PcrSelection, SealedRoot, TpmError};
use tss_esapi::handles::PcrHandle;

use crate::software_tpm::SoftwareTpm;
use crate::{SECRET, secret, start};

const NOTHING: Loaded = Loaded { objects: 0, sessions: 0 };

#[test]
fn what_was_sealed_is_unsealed_by_a_later_process() {
    let mut swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = tpm.seal(&secret(), &PcrSelection::default()).unwrap();
    drop(tpm);
    swtpm.restart();

    let read = SealedRoot::from_bytes(&sealed.to_bytes()).unwrap();
    assert_eq!(read, sealed);
    let unsealed = start(swtpm.tcti()).unseal(&read).unwrap();
    assert_eq!(unsealed.expose(), &SECRET);
}

#[test]
fn more_pcrs_than_one_command_reads_can_be_selected() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    for pcrs in ["sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,14,17,23", "sha384:7"] {
        let sealed = tpm.seal(&secret(), &pcrs.parse().unwrap()).unwrap();
        assert_eq!(sealed.pcrs().to_string(), pcrs);
        assert_eq!(tpm.unseal(&sealed).unwrap().expose(), &SECRET);
    }
}

#[test]
fn a_changed_pcr_is_refused_by_name() {
    let swtpm = SoftwareTpm::start();
    let pcrs: PcrSelection = "sha256:4,7,9".parse().unwrap();
    let tpm = start(swtpm.tcti());
    let sealed = tpm.seal(&secret(), &pcrs).unwrap();
    drop(tpm);

    swtpm.extend(PcrHandle::Pcr8);
    let tpm = start(swtpm.tcti());
    assert_eq!(tpm.unseal(&sealed).unwrap().expose(), &SECRET);
    drop(tpm);

    swtpm.extend(PcrHandle::Pcr4);
    swtpm.extend(PcrHandle::Pcr7);
    let tpm = start(swtpm.tcti());
    let error = tpm.unseal(&sealed).err().unwrap();
    let changed = vec![4, 7];
    let selection = pcrs;
    assert_eq!(error, TpmError::PcrMismatch { selection, changed });
    assert_eq!(error.advice(), Advice::Fix);
    let message = error.to_string();
    assert!(
        message.contains("PCR 4 (boot loader) and PCR 7 (Secure Boot state) changed"),
        "{message}"
    );
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn five_hundred_unseals_leave_nothing_in_the_tpm() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = tpm.seal(&secret(), &PcrSelection::default()).unwrap();
    for _ in 0..500 {
        tpm.unseal(&sealed).unwrap();
    }
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn random_numbers_differ() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let (first, second) = (tpm.random().unwrap(), tpm.random().unwrap());
    assert_ne!(*first, *second);
    assert_ne!(*first, [0; 32]);
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn a_software_tpm_is_recognised() {
    let swtpm = SoftwareTpm::start();
    let properties = start(swtpm.tcti()).properties().unwrap();
    assert!(properties.is_swtpm, "{properties}");
    assert_eq!(properties.manufacturer, "IBM");
    assert_eq!(properties.firmware.split('.').count(), 4);
}
