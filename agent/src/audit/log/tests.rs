use moai_tpm::RootSecret;
use proptest::prelude::*;

use super::super::verify::Finding;
use super::*;
use crate::disk::memory::{Failing, MemoryDisk};
use crate::secrets::VaultKey;
use crate::vault::LockedVault;

const FIRST: Epoch = Epoch(1);

/// A log on a disk in memory, beside a real vault.
struct Bench {
    disk: MemoryDisk,
    place: Place,
    _scratch: tempfile::TempDir,
}

fn vault_key(root: u8) -> VaultKey {
    VaultKey::derive(&RootSecret::from_bytes([root; 32]))
}

fn bench(limits: AuditLimits) -> Bench {
    let scratch = tempfile::tempdir().unwrap();
    let vault = LockedVault::open(&scratch.path().join("vault.redb")).unwrap();
    let vault = Arc::new(vault.unlock(&vault_key(1), FIRST).unwrap());
    let disk = MemoryDisk::default();
    let place = Place {
        disk: Arc::new(disk.clone()),
        directory: "/state".into(),
        vault,
        limits,
        boot: "boot".to_owned(),
    };
    Bench { disk, place, _scratch: scratch }
}

impl Bench {
    /// Opens the log and writes what it has to say.
    fn open(&self, epoch: Epoch) -> (AuditLog, Vec<AuditEvent>) {
        let (mut log, events) = AuditLog::open(self.place.clone(), epoch, 7).unwrap();
        record(&mut log, &events).unwrap();
        (log, events)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.directory.join(name)
    }

    fn text(&self) -> Vec<u8> {
        self.disk.read(&self.path(AUDIT_FILE))
    }

    fn put(&self, lines: &[Vec<u8>]) {
        self.disk.write(&self.path(AUDIT_FILE), &lines.concat());
    }

    /// The lines of the newest file, with their line feeds.
    fn lines(&self) -> Vec<Vec<u8>> {
        self.text().split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }
}

fn record(log: &mut AuditLog, events: &[AuditEvent]) -> Result<(), AuditError> {
    let pending = events.iter().map(|event| Pending { unix_seconds: 7, event: event.clone() });
    log.append(&mut pending.collect())
}

fn event(n: u64) -> AuditEvent {
    AuditEvent::EventsLost { count: n }
}

/// A log with entries 1 to 10, of which the first says that it begins.
fn ten() -> (Bench, AuditLog) {
    let bench = bench(AuditLimits::default());
    let (mut log, _) = bench.open(FIRST);
    for n in 2..=10 {
        record(&mut log, &[event(n)]).unwrap();
    }
    (bench, log)
}

fn verdict(bench: &Bench) -> AuditReport {
    bench.place.verify().unwrap()
}

#[test]
fn a_log_that_nobody_touched_is_clean() {
    let (bench, log) = ten();
    let report = log.verify().unwrap();
    assert!(report.is_clean() && !report.is_torn, "{report:?}");
    assert_eq!((report.entries, report.span), (10, Some((1, 10))));
    assert_eq!(verdict(&bench), report);
    let (_, said) = bench.open(FIRST);
    assert_eq!(said, []);
}

#[test]
fn a_removed_line_is_named_wherever_it_was() {
    for index in 0..10 {
        let (bench, _log) = ten();
        let mut lines = bench.lines();
        lines.remove(index);
        bench.put(&lines);
        let missing = index as u64 + 1;
        assert_eq!(verdict(&bench).findings, [Finding::Missing { from: missing, to: missing }]);
    }
}

#[test]
fn a_truncated_log_and_a_removed_one_are_noticed_and_go_on() {
    for kept in 0..10 {
        let (bench, log) = ten();
        drop(log);
        let lines = bench.lines();
        bench.put(&lines[..kept]);
        let from = kept as u64 + 1;
        assert_eq!(verdict(&bench).findings, [Finding::Missing { from, to: 10 }]);
        let found = (kept > 0).then_some(kept as u64);
        let (mut log, said) = bench.open(FIRST);
        assert_eq!(said, [AuditEvent::LogDamaged { newest: 10, found }]);
        record(&mut log, &[event(0)]).unwrap();
        assert_eq!(verdict(&bench).findings, [Finding::Missing { from, to: 10 }]);
    }
}

#[test]
fn the_last_line_removed_and_a_copy_of_another_put_in_are_noticed() {
    let (bench, _log) = ten();
    let mut lines = bench.lines();
    lines[9] = lines[8].clone();
    bench.put(&lines);
    let out = Finding::OutOfPlace { file: AUDIT_FILE.to_owned(), line: 10, sequence: 9 };
    assert_eq!(verdict(&bench).findings, [out, Finding::Missing { from: 10, to: 10 }]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_change_of_a_byte_is_found(index in 0_usize..10, place: prop::sample::Index, bit in 0..8_u8) {
        let (bench, _log) = ten();
        let mut lines = bench.lines();
        let length = lines[index].len();
        lines[index][place.index(length)] ^= 1_u8 << bit;
        bench.put(&lines);
        prop_assert!(!verdict(&bench).is_clean());
    }

    #[test]
    fn any_two_lines_swapped_are_found(one in 0_usize..10, other in 0_usize..10) {
        let (bench, _log) = ten();
        let mut lines = bench.lines();
        lines.swap(one, other);
        bench.put(&lines);
        prop_assert_eq!(verdict(&bench).is_clean(), one == other);
    }

    #[test]
    fn any_inserted_line_is_found(at in 0_usize..=10, copy: Option<prop::sample::Index>, text: Vec<u8>) {
        let (bench, _log) = ten();
        let mut lines = bench.lines();
        let mut line = copy.map_or(text, |copy| copy.get(&lines).clone());
        line.retain(|byte| *byte != b'\n');
        line.push(b'\n');
        lines.insert(at, line);
        bench.put(&lines);
        prop_assert!(!verdict(&bench).is_clean());
    }
}

#[test]
fn a_line_that_was_cut_off_by_a_power_cut_is_no_tampering() {
    let (bench, mut log) = ten();
    let seal = bench.place.vault.read_audit().unwrap().unwrap();
    let whole = bench.text().len();
    record(&mut log, &[event(11)]).unwrap();
    drop(log);
    let after = bench.text();
    for cut in whole..after.len() {
        bench.disk.write(&bench.path(AUDIT_FILE), &after[..cut]);
        bench.place.vault.write_audit(&seal).unwrap();
        assert_eq!(verdict(&bench).is_torn, cut > whole);
        let (mut log, said) = bench.open(FIRST);
        assert_eq!(said, [], "cut at {cut}");
        record(&mut log, &[event(11)]).unwrap();
        let report = verdict(&bench);
        assert!(report.is_clean() && report.span == Some((1, 11)), "{report:?} after {cut}");
    }
}

#[test]
fn a_power_cut_loses_no_entry_that_was_taken() {
    for kept in [0, 1, 100] {
        let (bench, log) = ten();
        drop(log);
        let disk = bench.disk.cut_power(kept);
        let place = Place { disk: Arc::new(disk.clone()), ..bench.place.clone() };
        let bench = Bench { disk, place, ..bench };
        let (_, said) = bench.open(FIRST);
        assert_eq!(said, []);
        assert_eq!(verdict(&bench).span, Some((1, 10)));
    }
}

#[test]
fn entries_that_the_seal_did_not_hear_of_are_taken_in() {
    let (bench, mut log) = ten();
    let seal = bench.place.vault.read_audit().unwrap().unwrap();
    record(&mut log, &[event(11), event(12)]).unwrap();
    drop(log);
    bench.place.vault.write_audit(&seal).unwrap();
    assert!(verdict(&bench).is_clean());
    let (mut log, said) = bench.open(FIRST);
    assert_eq!(said, []);
    record(&mut log, &[event(13)]).unwrap();
    assert_eq!(verdict(&bench).span, Some((1, 13)));
    // From here on they must be there.
    bench.put(&bench.lines()[..11]);
    assert_eq!(verdict(&bench).findings, [Finding::Missing { from: 12, to: 13 }]);
}

#[test]
fn a_new_epoch_has_a_new_key_and_the_chain_goes_on() {
    let (bench, mut log) = ten();
    bench.place.vault.rewrap(&vault_key(2), Epoch(2)).unwrap();
    record(&mut log, &[AuditEvent::EpochBegun { epoch: 2 }, event(12)]).unwrap();
    drop(log);
    assert!(verdict(&bench).is_clean());
    // A rotation that no agent saw is taken down at the next start.
    bench.place.vault.rewrap(&vault_key(3), Epoch(3)).unwrap();
    let (mut log, said) = bench.open(Epoch(3));
    assert_eq!(said, [AuditEvent::EpochBegun { epoch: 3 }]);
    record(&mut log, &[event(14)]).unwrap();
    let report = log.verify().unwrap();
    assert!(report.is_clean() && report.span == Some((1, 14)), "{report:?}");
}

#[test]
fn whoever_has_the_key_of_an_ended_epoch_can_forge_nothing_of_the_next() {
    let (bench, mut log) = ten();
    let first = AuditSeal::from_bytes(&bench.place.vault.read_audit().unwrap().unwrap()).unwrap();
    record(&mut log, &[AuditEvent::EpochBegun { epoch: 2 }, event(12)]).unwrap();
    let mut lines = bench.lines();
    let previous = LineHash::of(lines[10].strip_suffix(b"\n").unwrap());
    let stamp = Stamp { unix_seconds: 7, boot: "boot" };
    let forged = line::write(&first.present().key, 12, stamp, &event(1), previous).unwrap();
    lines[11] = [&forged[..], b"\n"].concat();
    bench.put(&lines);
    let changed = Finding::NotAuthentic { file: AUDIT_FILE.to_owned(), line: 12 };
    assert_eq!(verdict(&bench).findings, [changed, Finding::Missing { from: 12, to: 12 }]);
}

#[test]
fn entries_of_another_life_of_the_same_log_are_noticed() {
    let (bench, log) = ten();
    drop(log);
    let (seal, text) = (bench.place.vault.read_audit().unwrap().unwrap(), bench.text());
    let live = |n: u64| {
        bench.place.vault.write_audit(&seal).unwrap();
        bench.disk.write(&bench.path(AUDIT_FILE), &text);
        let (mut log, _) = bench.open(FIRST);
        record(&mut log, &[event(n), event(n + 1), event(n + 2)]).unwrap();
        bench.lines()
    };
    let (other, own) = (live(1000), live(2000));
    for index in 10..13 {
        let mut mixed = own.clone();
        mixed[index].clone_from(&other[index]);
        bench.put(&mixed);
        let sequence = index as u64 + 1;
        let file = AUDIT_FILE.to_owned();
        let out = Finding::OutOfPlace { file, line: sequence, sequence };
        // What comes after an entry of the other life does not follow from it.
        let found = verdict(&bench).findings;
        assert!(found.iter().any(|finding| *finding == out || sequence == 11), "{found:?}");
        assert!(!found.is_empty());
    }
    bench.put(&own);
    assert!(verdict(&bench).is_clean());
    // The whole end of the other life: each follows from the one before, but the vault knows better.
    bench.put(&other);
    assert!(!verdict(&bench).is_clean());
}

#[test]
fn full_files_make_room_and_what_is_left_still_verifies() {
    let limits = AuditLimits { file_bytes: 2000, files: 3 };
    let bench = bench(limits);
    let (mut log, _) = bench.open(FIRST);
    for n in 2..=100 {
        if n % 10 == 0 {
            let epoch = u32::try_from(n).unwrap();
            record(&mut log, &[AuditEvent::EpochBegun { epoch }]).unwrap();
        } else {
            record(&mut log, &[event(n)]).unwrap();
        }
        let report = log.verify().unwrap();
        assert!(report.is_clean(), "{report:?} after {n}");
    }
    let names = bench.disk.names(&bench.place.directory).unwrap();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(bench.disk.used() <= 3 * 2000);
    let (oldest, newest) = verdict(&bench).span.unwrap();
    assert!(oldest > 50 && newest == 100, "{oldest} to {newest}");
    assert!(log.seal.keys().len() < 5, "{} keys are kept", log.seal.keys().len());
    // A whole file that is gone is noticed.
    let (first, name) = files(&bench.disk, &bench.place.directory).unwrap().remove(0);
    let next = files(&bench.disk, &bench.place.directory).unwrap()[1].0.unwrap();
    bench.disk.remove(&bench.path(&name)).unwrap();
    let missing = Finding::Missing { from: first.unwrap(), to: next - 1 };
    assert_eq!(verdict(&bench).findings, [missing]);
}

#[test]
fn a_start_right_after_a_file_got_full_goes_on_in_the_next() {
    let (bench, mut log) = ten();
    log.begin_file();
    drop(log);
    assert!(bench.text().is_empty());
    let (mut log, said) = bench.open(FIRST);
    assert_eq!(said, []);
    record(&mut log, &[event(11)]).unwrap();
    assert_eq!(verdict(&bench).span, Some((1, 11)));
    assert_eq!(files(&bench.disk, &bench.place.directory).unwrap().len(), 2);
}

#[test]
fn a_full_disk_and_a_failed_flush_keep_what_was_there_and_lose_nothing() {
    for trouble in [None, Some(Failing::Sync), Some(Failing::Writes)] {
        let (bench, mut log) = ten();
        let mut pending: VecDeque<Pending> =
            (11..=13).map(|n| Pending { unix_seconds: 7, event: event(n) }).collect();
        match trouble {
            None => bench.disk.limit(Some(bench.disk.used() + 500)),
            failing => bench.disk.fail(failing),
        }
        for _ in 0..2 {
            assert!(log.append(&mut pending).is_err());
            assert_eq!(pending.len(), 3);
        }
        bench.disk.limit(None);
        bench.disk.fail(None);
        log.append(&mut pending).unwrap();
        let report = verdict(&bench);
        assert!(report.is_clean() && report.span == Some((1, 13)), "{report:?}");
    }
}

#[test]
fn a_log_whose_key_is_lost_is_moved_aside() {
    let (first, log) = ten();
    drop(log);
    let second = bench(AuditLimits::default());
    second.disk.write(&second.path(AUDIT_FILE), &first.text());
    assert!(matches!(second.place.verify(), Err(AuditError::Unknown)));
    let (_, said) = second.open(FIRST);
    let aside = "audit.log.unknown-7".to_owned();
    assert_eq!(second.disk.read(&second.path(&aside)), first.text());
    assert_eq!(said, [AuditEvent::LogBegun { earlier: Some(aside) }]);
    assert!(verdict(&second).is_clean());
}

#[test]
fn what_a_thief_reads_in_the_state_directory_forges_nothing() {
    let (bench, log) = ten();
    let disk = bench.text();
    let key = log.seal.present().key.expose();
    assert!(!disk.windows(16).any(|window| window == &key[..16]));
}
