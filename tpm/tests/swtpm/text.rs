//! TCTI and PCR selection as text.

use moai_tpm::{PcrSelection, Tcti};
use proptest::prelude::*;

#[test]
fn addresses_are_taken_as_they_stand() {
    for text in [
        "device:/dev/tpmrm0",
        "swtpm:host=127.0.0.1,port=2321",
        "swtpm:host=::1,port=2321",
        "swtpm:host=tpm-1.example,port=65535",
    ] {
        let tcti: Tcti = text.parse().unwrap();
        assert_eq!(tcti.to_string(), text);
    }
    let reordered: Tcti = "swtpm:port=2321,host=localhost".parse().unwrap();
    assert_eq!(reordered.to_string(), "swtpm:host=localhost,port=2321");
}

#[test]
fn what_the_library_would_read_as_something_else_is_refused() {
    for text in [
        "",
        "device",
        "device:",
        "device:tpmrm0",
        "device:/dev/",
        "device:/dev/tpm\n0",
        "swtpm",
        "swtpm:",
        "swtpm:path=/run/swtpm.sock",
        "swtpm:host=127.0.0.1",
        "swtpm:port=2321",
        "swtpm:host=127.0.0.1,port=0",
        "swtpm:host=127.0.0.1,port=65536",
        "swtpm:host=127.0.0.1,port=2321,port=2322",
        "swtpm:host=127.0.0.1,port=2321,path=/run/swtpm.sock",
        "swtpm:host=-x,port=2321",
        "swtpm:host=a b,port=2321",
        "mssim:host=127.0.0.1,port=2321",
        "tabrmd",
    ] {
        let error = text.parse::<Tcti>().err();
        assert!(error.is_some(), "{text:?} was accepted");
    }
}

#[test]
fn pcr_selections_are_written_in_order() {
    assert_eq!(PcrSelection::default().to_string(), "sha256:7");
    let selection: PcrSelection = "sha384:23,0,7".parse().unwrap();
    assert_eq!(selection.to_string(), "sha384:0,7,23");
}

#[test]
fn doubtful_pcr_selections_are_refused() {
    for text in [
        "",
        "sha256",
        "sha256:",
        "sha256:24",
        "sha256:-1",
        "sha256:+7",
        "sha256:7,7",
        "sha256:7,",
        "sha256: 7",
        "sha1:7",
        "SHA256:7",
        "sha256:007",
    ] {
        assert!(text.parse::<PcrSelection>().is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "(device|swtpm|sha256)?:?[ -~]{0,40}") {
        if let Ok(tcti) = text.parse::<Tcti>() {
            prop_assert_eq!(tcti.to_string().parse::<Tcti>(), Ok(tcti));
        }
        if let Ok(selection) = text.parse::<PcrSelection>() {
            prop_assert_eq!(selection.to_string().parse::<PcrSelection>(), Ok(selection));
        }
    }
}
