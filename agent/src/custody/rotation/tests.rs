use std::cell::RefCell;
use std::path::Path;

use super::*;
use crate::custody::VAULT_FILE;
use crate::custody::env::{EnvCustodian, EnvError};
use crate::vault::LockedVault;
use crate::vault::tests::{record, seeds};

const STEPS: [RotationStep; 4] =
    [RotationStep::Sealed, RotationStep::Vault, RotationStep::Renamed, RotationStep::Retired];

fn custodian() -> EnvCustodian {
    EnvCustodian::from_hex(&"a".repeat(64)).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "it stands for an escrow, which can fail")]
fn no_escrow(_: Epoch, _: &RootSecret) -> Result<Option<Vec<u8>>, CustodyError> {
    Ok(None)
}

/// A robot with two live sessions in epoch 1.
fn provisioned(directory: &Path) -> (StateDirectory, Vault) {
    let state = StateDirectory::lock(directory).unwrap();
    let root = fresh_root(&custodian()).unwrap();
    let body = custodian().seal(Epoch(1), &root, None).unwrap();
    let file = SealedFile { custodian: custodian().kind(), epoch: Epoch(1), body };
    state.write_sealed(ROOT_FILE, &file).unwrap();
    let vault = LockedVault::open(&state.file(VAULT_FILE)).unwrap();
    let vault = vault.unlock(&VaultKey::derive(&root), Epoch(1)).unwrap();
    vault.write(&record(1)).unwrap();
    vault.write(&record(2)).unwrap();
    (state, vault)
}

/// Starts from what is on disk; returns the epoch and the vault.
fn start(directory: &Path) -> Result<(Epoch, Vault), CustodyError> {
    let state = StateDirectory::lock(directory)?;
    let vault = LockedVault::open(&state.file(VAULT_FILE))?;
    settle(&state, vault.epoch()?)?;
    let sealed = root_of(&state, &custodian())?;
    let root = custodian().unseal(sealed.epoch, &sealed.body)?;
    assert!(!state.file("root.next").exists() && !state.file("escrow.next").exists());
    Ok((sealed.epoch, vault.unlock(&VaultKey::derive(&root), sealed.epoch)?))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_rotation_cut_off_after_any_step_leaves_one_epoch_with_every_session() {
    let scratch = tempfile::tempdir().unwrap();
    let (state, vault) = provisioned(&scratch.path().join("live"));
    state.write(ESCROW_FILE, b"of epoch 1").unwrap();
    let escrow = |epoch: Epoch, _: &RootSecret| Ok(Some(format!("of epoch {epoch}").into()));
    let seen = RefCell::new(Vec::new());
    let rotated = rotate(&state, &custodian(), &escrow, &vault, &mut |step| {
        copy(&scratch.path().join("live"), &scratch.path().join(step.to_string()));
        seen.borrow_mut().push(step);
    })
    .unwrap();
    assert_eq!(rotated, Rotated { epoch: 2, sessions: 2, shredded: false });
    assert_eq!(seen.into_inner(), STEPS);
    for (step, expected) in STEPS.into_iter().zip([1, 2, 2, 2]) {
        let directory = scratch.path().join(step.to_string());
        let (epoch, vault) = start(&directory).unwrap();
        assert_eq!(epoch, Epoch(expected), "cut off after {step}");
        assert_eq!(seeds(&vault), [1, 2], "cut off after {step}");
        let escrow = std::fs::read_to_string(directory.join(ESCROW_FILE)).unwrap();
        assert_eq!(escrow, format!("of epoch {expected}"), "cut off after {step}");
    }
}

#[test]
fn an_old_root_secret_beside_a_newer_vault_is_refused_and_nothing_is_erased() {
    let scratch = tempfile::tempdir().unwrap();
    let (state, vault) = provisioned(scratch.path());
    let old = std::fs::read(state.file(ROOT_FILE)).unwrap();
    rotate(&state, &custodian(), &no_escrow, &vault, &mut |_| {}).unwrap();
    let new = std::fs::read(state.file(ROOT_FILE)).unwrap();
    drop((state, vault));
    std::fs::write(scratch.path().join(ROOT_FILE), old).unwrap();
    let refused = start(scratch.path()).err().unwrap().to_string();
    assert!(refused.contains("vault is of epoch 2, the root secret of epoch 1"), "{refused}");
    std::fs::write(scratch.path().join(ROOT_FILE), new).unwrap();
    assert_eq!(seeds(&start(scratch.path()).unwrap().1), [1, 2]);
}

#[test]
fn a_rotation_that_fails_changes_nothing_and_the_next_one_succeeds() {
    let scratch = tempfile::tempdir().unwrap();
    let (state, vault) = provisioned(scratch.path());
    state.write(ESCROW_FILE, b"present").unwrap();
    let refuse = |_: Epoch, _: &RootSecret| Err(EnvError::NoKey.into());
    rotate(&state, &custodian(), &refuse, &vault, &mut |step| panic!("{step}")).unwrap_err();
    assert_eq!(state.root().unwrap().epoch, Epoch(1));
    assert!(!state.file("root.next").exists());
    vault.write(&record(3)).unwrap();
    let rotated = rotate(&state, &custodian(), &no_escrow, &vault, &mut |_| {}).unwrap();
    assert_eq!(rotated.sessions, 3);
    drop((state, vault));
    assert_eq!(seeds(&start(scratch.path()).unwrap().1), [1, 2, 3]);
}

#[test]
fn a_damaged_next_root_is_dropped_unless_the_vault_needs_it() {
    let scratch = tempfile::tempdir().unwrap();
    let (state, vault) = provisioned(&scratch.path().join("live"));
    rotate(&state, &custodian(), &no_escrow, &vault, &mut |step| {
        copy(&scratch.path().join("live"), &scratch.path().join(step.to_string()));
    })
    .unwrap();
    for step in ["sealed", "vault"] {
        std::fs::write(scratch.path().join(step).join("root.next"), b"MOAIROOT").unwrap();
    }
    assert_eq!(start(&scratch.path().join("sealed")).unwrap().0, Epoch(1));
    let refused = start(&scratch.path().join("vault")).err().unwrap().to_string();
    assert!(refused.contains("root.next: the sealed root secret is damaged"), "{refused}");
    assert!(scratch.path().join("vault/root.next").exists(), "it was thrown away");
}

#[test]
fn another_custodians_root_secret_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let (state, vault) = provisioned(scratch.path());
    drop(vault);
    let kind = crate::custody::CustodianKind::Kms;
    let file = SealedFile { custodian: kind, ..state.root().unwrap() };
    state.write_sealed(ROOT_FILE, &file).unwrap();
    drop(state);
    let refused = start(scratch.path()).err().unwrap().to_string();
    assert!(refused.contains("sealed by custodian \"kms\""), "{refused}");
}
