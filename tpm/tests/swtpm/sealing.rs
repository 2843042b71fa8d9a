//! What is sealed is unsealed in the same platform state, and nothing is left behind.

use moai_tpm::{Advice, Epoch, Loaded, PcrSelection, Protection, SealedRoot, Tpm, TpmError};
use tss_esapi::handles::PcrHandle;

use crate::software_tpm::SoftwareTpm;
use crate::{opens, refusal, seal, secret, start};

const NOTHING: Loaded = Loaded { objects: 0, sessions: 0 };

fn seal_to(tpm: &Tpm, pcrs: PcrSelection) -> SealedRoot {
    let protection = Protection { pcrs, policy_key: None };
    tpm.seal(Epoch::FIRST, &secret(), None, &protection).expect("succeeds")
}

#[test]
fn what_was_sealed_is_unsealed_by_a_later_process() {
    let mut swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let sealed = seal(&tpm);
    drop(tpm);
    swtpm.restart();

    let read = SealedRoot::from_bytes(&sealed.to_bytes()).unwrap();
    assert_eq!(read, sealed);
    assert_eq!(read.epoch(), Epoch::FIRST);
    assert!(opens(&start(swtpm.tcti()), &read));
}

#[test]
fn more_pcrs_than_one_command_reads_can_be_selected() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    for pcrs in ["sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,14,17,23", "sha384:7"] {
        let sealed = seal_to(&tpm, pcrs.parse().unwrap());
        assert_eq!(sealed.pcrs().to_string(), pcrs);
        assert!(opens(&tpm, &sealed));
    }
}

#[test]
fn a_changed_pcr_is_refused_by_name() {
    let swtpm = SoftwareTpm::start();
    let pcrs: PcrSelection = "sha256:4,7,9".parse().unwrap();
    let tpm = start(swtpm.tcti());
    let sealed = seal_to(&tpm, pcrs);
    drop(tpm);

    swtpm.extend(PcrHandle::Pcr8);
    let tpm = start(swtpm.tcti());
    assert!(opens(&tpm, &sealed));
    drop(tpm);

    swtpm.extend(PcrHandle::Pcr4);
    swtpm.extend(PcrHandle::Pcr7);
    let tpm = start(swtpm.tcti());
    let error = refusal(&tpm, &sealed);
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
    let sealed = seal(&tpm);
    for _ in 0..500 {
        assert!(opens(&tpm, &sealed));
    }
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn measurements_are_those_that_sealing_records() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let pcrs: PcrSelection = "sha256:0,7,8".parse().unwrap();
    let before = tpm.measurements(pcrs).unwrap();
    assert_eq!(before.pcrs(), pcrs);
    assert_eq!(seal_to(&tpm, pcrs).measurements(), &before);
    drop(tpm);
    swtpm.extend(PcrHandle::Pcr8);
    let tpm = start(swtpm.tcti());
    assert_eq!(before.differing(&tpm.measurements(pcrs).unwrap()), [8]);
    assert_eq!(tpm.loaded().unwrap(), NOTHING);
}

#[test]
fn random_numbers_differ() {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let (first, second) = (tpm.random().unwrap(), tpm.random().unwrap());
    assert_ne!(**first, **second);
    assert_ne!(**first, [0; 32]);
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
