use std::path::PathBuf;

use moai_tpm::RootSecret;

use super::super::log::AuditLimits;
use super::*;
use crate::clock::BootInstant;
use crate::disk::memory::MemoryDisk;
use crate::secrets::VaultKey;
use crate::vault::LockedVault;

struct Still;

impl Clock for Still {
    fn is_trusted(&self) -> bool {
        true
    }

    fn boot(&self) -> BootInstant {
        BootInstant(0)
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(7)
    }
}

struct Bench {
    writer: Writer,
    disk: MemoryDisk,
    trouble: watch::Receiver<Option<String>>,
    _scratch: tempfile::TempDir,
}

fn bench() -> Bench {
    let scratch = tempfile::tempdir().unwrap();
    let vault = LockedVault::open(&scratch.path().join("vault.redb")).unwrap();
    let key = VaultKey::derive(&RootSecret::from_bytes([1; 32]));
    let vault = Arc::new(vault.unlock(&key, Epoch(1)).unwrap());
    let disk = MemoryDisk::default();
    let place = Place {
        disk: Arc::new(disk.clone()),
        directory: PathBuf::from("/state"),
        vault,
        limits: AuditLimits::default(),
        boot: "boot".to_owned(),
    };
    let (sender, trouble) = watch::channel(None);
    let writer = Writer::new(place, Epoch(1), Arc::new(Still), Arc::default(), sender);
    Bench { writer, disk, trouble, _scratch: scratch }
}

fn record(event: AuditEvent) -> Vec<Request> {
    vec![Request::Record(event, None)]
}

impl Bench {
    fn events(&self) -> Vec<String> {
        let bytes = self.disk.read(&PathBuf::from("/state/audit.log"));
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .map(|line| {
                let entry: serde_json::Value = serde_json::from_str(line).unwrap();
                let count = entry.get("count").map_or(String::new(), |count| format!(" {count}"));
                format!("{}{count}", entry["event"].as_str().unwrap())
            })
            .collect()
    }
}

#[tokio::test]
async fn a_full_disk_is_told_once_and_what_waited_is_written_when_there_is_room() {
    let mut bench = bench();
    bench.disk.limit(Some(100));
    let (done, waited) = oneshot::channel();
    bench.writer.turn(vec![Request::Record(AuditEvent::AgentStopped, Some(done))]);
    waited.await.expect("whoever waits is not kept waiting by a full disk");
    let trouble = bench.trouble.borrow_and_update().clone().unwrap();
    assert!(trouble.contains("audit log cannot be written"), "{trouble}");
    bench.writer.turn(record(AuditEvent::AgentStopped));
    assert!(!bench.trouble.has_changed().unwrap());
    bench.disk.limit(None);
    bench.writer.turn(Vec::new());
    assert_eq!(*bench.trouble.borrow(), None);
    assert_eq!(bench.events(), ["log_begun", "agent_stopped", "agent_stopped"]);
}

#[test]
fn events_that_find_no_room_are_counted() {
    let mut bench = bench();
    bench.disk.limit(Some(0));
    for _ in 0..MAX_PENDING + 10 {
        bench.writer.turn(record(AuditEvent::AgentStopped));
    }
    bench.disk.limit(None);
    bench.writer.turn(Vec::new());
    let events = bench.events();
    let lost = events.iter().find(|event| event.starts_with("events_lost")).unwrap();
    // One place is taken by the entry that the log begins.
    assert_eq!(lost, "events_lost 11");
}

#[test]
fn refused_frames_are_put_together() {
    let mut bench = bench();
    for _ in 0..1000 {
        bench.writer.turn(record(AuditEvent::frame_refused("result", "signature")));
    }
    assert_eq!(bench.events(), ["log_begun", "frame_refused 1"]);
}

#[tokio::test]
async fn the_owner_checks_the_log_and_a_stop_writes_what_was_held() {
    let bench = bench();
    let (requests, receiver) = std::sync::mpsc::sync_channel(16);
    let Bench { writer, disk, trouble, _scratch } = bench;
    let thread = std::thread::spawn(move || writer.run(&receiver));
    for _ in 0..5 {
        let event = AuditEvent::frame_refused("have", "signature");
        requests.send(Request::Record(event, None)).unwrap();
    }
    let (reply, report) = oneshot::channel();
    requests.send(Request::Verify(reply)).unwrap();
    assert!(report.await.unwrap().unwrap().is_clean());
    drop(requests);
    thread.join().unwrap();
    assert_eq!(*trouble.borrow(), None);
    let text = disk.read(&PathBuf::from("/state/audit.log"));
    let last = String::from_utf8(text).unwrap().lines().last().unwrap().to_owned();
    assert!(last.contains("\"count\":4"), "{last}");
}
