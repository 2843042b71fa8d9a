//! The sealed root as a file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use moai_tpm::{Advice, BlobError, MAX_SEALED_LEN, PcrSelection, SealedRoot};
use tempfile::TempDir;

use crate::software_tpm::SoftwareTpm;
use crate::{secret, start};

fn two_sealed() -> (SealedRoot, SealedRoot) {
    let swtpm = SoftwareTpm::start();
    let tpm = start(swtpm.tcti());
    let seal = || tpm.seal(&secret(), &PcrSelection::default()).expect("sealed");
    (seal(), seal())
}

#[test]
fn a_file_is_private_and_never_overwritten_unasked() {
    let (first, second) = two_sealed();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("root.sealed");

    first.save(&path).unwrap();
    assert_eq!(SealedRoot::load(&path).unwrap(), first);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let error = second.save(&path).unwrap_err();
    assert!(matches!(error, BlobError::Exists(_)), "{error}");
    assert_eq!(error.advice(), Advice::Fix);
    assert_eq!(SealedRoot::load(&path).unwrap(), first);

    second.replace(&path).unwrap();
    assert_eq!(SealedRoot::load(&path).unwrap(), second);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_read_is_told_apart() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("root.sealed");
    let error = SealedRoot::load(&path).unwrap_err();
    assert!(matches!(error, BlobError::Missing(_)), "{error}");

    fs::write(&path, vec![0; MAX_SEALED_LEN + 1]).unwrap();
    let error = SealedRoot::load(&path).unwrap_err();
    assert!(matches!(error, BlobError::TooLarge), "{error}");

    fs::write(&path, "something else").unwrap();
    let error = SealedRoot::load(&path).unwrap_err();
    assert!(matches!(error, BlobError::NotSealedRoot), "{error}");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let (sealed, _) = two_sealed();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("missing").join("root.sealed");
    let error = sealed.save(&path).unwrap_err();
    assert!(matches!(error, BlobError::Io { .. }), "{error}");
    assert!(error.to_string().contains("missing/root.sealed"), "{error}");
}
