//! Records over restarts, epochs and damage.

use std::path::Path;

use moai_fhe::{Model, ModelCard};
use moai_tpm::RootSecret;
use moai_transport::ids::{ContextId, Digest};

use super::*;
use crate::clock::{BootId, BootInstant};
use crate::secrets::VaultKey;
use crate::session::lifecycle::{EndReason, Lifecycle};
use crate::spool::Era;
use crate::ttl::TtlClass;

fn card() -> ModelCard {
    let json = r#"{"format":1,"id":"m","kind":"lookup","levels":2,
        "window":{"samples":1,"channels":["x"]},"labels":["a","b"],
        "features":[{"channel":0,"statistic":"mean","transform":"none","edges":[0.5]}],
        "tables":[[[0,1]]],"bias":[0],"provenance":{}}"#;
    Model::from_json(json.as_bytes()).unwrap().card().clone()
}

pub(crate) fn record(n: u8) -> SessionRecord {
    let facts = SessionFacts {
        task: "arm".parse().unwrap(),
        card: card(),
        ttl: TtlClass::Sensitive,
        state: Lifecycle::begin(),
        release: Release::Label,
        warm: false,
        expires: BootInstant(5000),
        expires_unix: None,
        boot: BootId::of("boot"),
        manifest: None,
        run: 1,
        era: Era::of(1),
    };
    let seed = Arc::new(SessionSeed::from_bytes([n; 32]));
    SessionRecord { id: SessionId::new(1_700_000_000_000, [n; 10]), seed, facts }
}

fn key(root: u8) -> VaultKey {
    VaultKey::derive(&RootSecret::from_bytes([root; 32]))
}

fn open(path: &Path, root: u8, epoch: u32) -> Result<Vault, VaultError> {
    LockedVault::open(path).unwrap().unlock(&key(root), Epoch(epoch))
}

pub(crate) fn seeds(vault: &Vault) -> Vec<u8> {
    vault.load().unwrap().into_iter().map(|record| record.unwrap().seed.expose()[0]).collect()
}

fn file() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vault.redb");
    (directory, path)
}

#[test]
fn a_record_survives_a_restart_and_goes_when_it_is_erased() {
    let (_directory, path) = file();
    open(&path, 1, 1).unwrap().write(&record(7)).unwrap();
    let vault = open(&path, 1, 1).unwrap();
    let kept = vault.load().unwrap().remove(0).unwrap();
    assert_eq!(kept.id, record(7).id);
    assert_eq!(kept.seed.expose(), &[7; 32]);
    assert_eq!(kept.facts.expires, BootInstant(5000));
    let facts = EndedFacts { task: "arm".parse().unwrap(), reason: EndReason::Revoked };
    vault.end(&kept.id, &facts).unwrap();
    assert!(vault.load().unwrap().is_empty());
    assert_eq!(vault.load_ended().unwrap(), [(kept.id.clone(), facts)]);
    vault.forget(&kept.id).unwrap();
    assert!(vault.load_ended().unwrap().is_empty());
}

fn warm(n: u8) -> WarmRecord {
    let id = SessionId::new(1_700_000_000_000, [n; 10]);
    let facts = WarmFacts {
        context: ContextId(Digest([1; 32])),
        key_len: 4,
        key_digest: Digest::of(b"keys"),
    };
    WarmRecord { id, seed: Arc::new(SessionSeed::from_bytes([n; 32])), facts }
}

#[test]
fn a_seed_made_ahead_becomes_one_sessions_and_ceases_to_be_ahead() {
    let (_directory, path) = file();
    let vault = open(&path, 1, 1).unwrap();
    vault.write_warm(&warm(7)).unwrap();
    let kept = vault.load_warm().unwrap().remove(0);
    assert_eq!(kept.seed.expose(), &[7; 32]);
    assert_eq!(kept.facts, warm(7).facts);
    vault.adopt(&kept.id, &record(7)).unwrap();
    assert!(vault.load_warm().unwrap().is_empty());
    assert_eq!(seeds(&vault), [7]);
    vault.write_warm(&warm(8)).unwrap();
    vault.erase_warm(&warm(8).id).unwrap();
    assert!(vault.load_warm().unwrap().is_empty());
}

#[test]
fn a_warm_record_that_was_moved_opens_nowhere() {
    let (_directory, path) = file();
    let vault = open(&path, 1, 1).unwrap();
    vault.write_warm(&warm(7)).unwrap();
    store::write(&vault.database, WARM, |table| {
        let (from, to) = (warm(7).id, warm(8).id);
        let sealed = table.remove(from.as_bytes().as_slice())?.map(|it| it.value().to_vec());
        table.insert(to.as_bytes().as_slice(), sealed.unwrap_or_default().as_slice())?;
        Ok(())
    })
    .unwrap();
    assert!(vault.load_warm().unwrap().is_empty());
}

#[test]
fn under_another_root_secret_no_record_opens_and_all_are_erased() {
    let (_directory, path) = file();
    open(&path, 1, 1).unwrap().write(&record(7)).unwrap();
    let vault = open(&path, 2, 1).unwrap();
    assert!(matches!(vault.load().unwrap()[..], [Err(VaultError::Unreadable { .. })]));
    assert!(vault.load().unwrap().is_empty());
}

#[test]
fn a_root_secret_of_another_epoch_opens_nothing_and_erases_nothing() {
    let (_directory, path) = file();
    open(&path, 1, 2).unwrap().write(&record(7)).unwrap();
    for other in [1, 3] {
        let fits = LockedVault::open(&path).unwrap().fits(&key(1), Epoch(other));
        assert!(matches!(fits, Err(VaultError::OtherEpoch { .. })));
        let refused = open(&path, 1, other).err();
        assert!(matches!(refused, Some(VaultError::OtherEpoch { vault: Epoch(2), .. })));
    }
    assert!(LockedVault::open(&path).unwrap().fits(&key(1), Epoch(2)).unwrap());
    assert!(!LockedVault::open(&path).unwrap().fits(&key(2), Epoch(2)).unwrap());
    assert_eq!(seeds(&open(&path, 1, 2).unwrap()), [7]);
}

#[test]
fn the_next_epoch_has_every_record_and_the_one_before_none() {
    let (_directory, path) = file();
    let vault = open(&path, 1, 1).unwrap();
    vault.write(&record(1)).unwrap();
    vault.write(&record(2)).unwrap();
    vault.write_audit(b"seal").unwrap();
    vault.write_warm(&warm(9)).unwrap();
    let facts = EndedFacts { task: "arm".parse().unwrap(), reason: EndReason::Expired };
    vault.end(&record(4).id, &facts).unwrap();
    assert_eq!(vault.rewrap(&key(2), Epoch(2)).unwrap(), 2);
    assert_eq!(vault.read_audit().unwrap().unwrap().as_slice(), b"seal");
    assert_eq!(vault.load_warm().unwrap().len(), 1);
    assert_eq!(vault.load_ended().unwrap().len(), 1);
    vault.expect(Epoch(2)).unwrap();
    vault.write(&record(3)).unwrap();
    assert_eq!(seeds(&vault), [1, 2, 3]);
    drop(vault);
    assert_eq!(LockedVault::open(&path).unwrap().epoch().unwrap(), Some(Epoch(2)));
    assert!(open(&path, 1, 1).is_err());
    assert_eq!(seeds(&open(&path, 2, 2).unwrap()), [1, 2, 3]);
}

#[test]
fn the_seed_is_not_on_disk() {
    let (_directory, path) = file();
    let vault = open(&path, 1, 1).unwrap();
    let mut secret = record(3);
    secret.seed = Arc::new(SessionSeed::from_bytes(
        *b"a seed that must never be on disk".first_chunk().unwrap(),
    ));
    vault.write(&secret).unwrap();
    drop(vault);
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(16).any(|window| window == &secret.seed.expose()[..16]));
}

#[test]
fn a_damaged_vault_is_moved_aside_and_nothing_wrong_is_read_from_any() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vault.redb");
    let vault = open(&path, 1, 1).unwrap();
    for n in 1..=20 {
        vault.write(&record(n)).unwrap();
    }
    drop(vault);
    let whole = std::fs::read(&path).unwrap();
    let blocks = whole.len() / 512;
    let truncations = (0..blocks).step_by(40).map(|block| whole[..block * 512].to_vec());
    let garbage = (0..blocks).map(|block| {
        let mut bytes = whole.clone();
        bytes[block * 512..][..512].fill(0xa5);
        bytes
    });
    let (mut moved, mut kept) = (0, 0);
    for bytes in garbage.chain(truncations) {
        std::fs::write(&path, &bytes).unwrap();
        let (vault, aside) = LockedVault::open_or_begin(&path, 7).unwrap();
        let vault = vault.unlock(&key(1), Epoch(1)).unwrap();
        let mut seeds = seeds(&vault);
        seeds.sort_unstable();
        if let Some(aside) = aside {
            assert_eq!(aside, "vault.redb.damaged-7");
            // All but a flag of the store's that the file was opened.
            let kept = std::fs::read(path.with_file_name(aside)).unwrap();
            assert_eq!(kept.len(), bytes.len());
            let differing = kept.iter().zip(&bytes).filter(|(a, b)| a != b).count();
            assert!(differing <= 1, "{differing} bytes of the damaged file have changed");
            assert_eq!(seeds, [0; 0]);
            moved += 1;
        } else {
            // The damage was where nothing is, or the file began as a new one.
            assert!(seeds == (1..=20).collect::<Vec<u8>>() || bytes.is_empty());
            kept += 1;
        }
    }
    assert!(moved > 3 && kept > 3, "{moved} moved, {kept} kept");
}
