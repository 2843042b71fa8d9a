//! TCTI, PCR selection and PCR values as text.

use moai_tpm::{Measurements, MeasurementsError, PcrSelection, Tcti};
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

fn measurements(text: &str) -> Result<Measurements, MeasurementsError> {
    text.parse()
}

#[test]
fn pcr_values_are_written_in_order() {
    let (a, b) = ("ab".repeat(32), "CD".repeat(32));
    let read = measurements(&format!("sha256:7={a},4={b}")).unwrap();
    assert_eq!(read.to_string(), format!("sha256:4={},7={a}", b.to_lowercase()));
    assert_eq!(read.pcrs().to_string(), "sha256:4,7");
    assert_eq!(read.concatenated(), [[0xcd; 32], [0xab; 32]].as_flattened());
}

#[test]
fn doubtful_pcr_values_are_refused() {
    let value = "00".repeat(32);
    for text in [
        String::new(),
        "sha256".to_owned(),
        "sha256:7".to_owned(),
        format!("sha256:7={value},"),
        format!("sha256:7={value},7={value}"),
        format!("sha256:24={value}"),
        format!("sha1:7={value}"),
        format!("sha384:7={value}"),
        format!("sha256:7={value}00"),
        format!("sha256:7={}", "0".repeat(63)),
        format!("sha256:7={}", "zz".repeat(32)),
        format!("sha256:7={}", " ".repeat(10_000)),
    ] {
        assert!(measurements(&text).is_err(), "{text:?}");
    }
}

#[test]
fn what_differs_is_listed_once_and_in_order() {
    let (a, b) = ("aa".repeat(32), "bb".repeat(32));
    let of = |text: String| measurements(&text).unwrap();
    let one = of(format!("sha256:0={a},4={a},7={a}"));
    assert!(one.differing(&one).is_empty());
    assert_eq!(one.differing(&of(format!("sha256:0={b},4={a},7={b}"))), [0, 7]);
    assert_eq!(one.differing(&of(format!("sha256:0={a},7={a},9={a}"))), [4, 9]);
    let wider = of(format!("sha384:0={}", "aa".repeat(48)));
    assert_eq!(one.differing(&wider), [0, 4, 7]);
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
    #[test]
    fn pcr_values_come_back(mask in 1_u32..1 << 24, bank in 0..3_usize, fill in any::<u8>()) {
        let (bank, len) = [("sha256", 32), ("sha384", 48), ("sha512", 64)][bank];
        let value = format!("{fill:02x}").repeat(len);
        let list: Vec<String> = (0..24)
            .filter(|index| mask & (1 << index) != 0)
            .map(|index| format!("{index}={value}"))
            .collect();
        let text = format!("{bank}:{}", list.join(","));
        prop_assert_eq!(measurements(&text).map(|read| read.to_string()), Ok(text));
    }

    #[test]
    fn reading_pcr_values_never_panics(text in "(sha256:)?([0-9]{1,2}=[0-9a-f]{60,66},?){0,3}.{0,9}") {
        if let Ok(read) = measurements(&text) {
            prop_assert_eq!(measurements(&read.to_string()), Ok(read));
        }
    }
}
