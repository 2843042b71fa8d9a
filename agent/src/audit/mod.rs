//! The audit log: what happened to root secret, sessions and uplink, in a form that tells when
//! somebody has changed it.
//!
//! Each entry is a line of JSON that names the hash of the line before and bears a MAC. The key is
//! random, one for each epoch, and is kept in the vault beside the newest entry's number and hash;
//! a rotation of the root secret re-wraps it with everything else. So removing, changing, swapping
//! or adding a line is found by [`Audit::verify`], and cutting off the end too.
//!
//! Invariants:
//! - one thread owns the files; recording never waits and never fails: what the disk does not take
//!   is kept for later, and what does not fit there is counted, and the count gets an entry;
//! - a log that cannot be written degrades the agent's health and stops nothing;
//! - nothing secret is in it, see [`event`].

pub mod event;
mod line;
mod log;
pub mod refusals;
mod seal;
mod verify;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use moai_tpm::Epoch;
use tokio::sync::{oneshot, watch};

pub use self::event::AuditEvent;
pub use self::log::{AUDIT_FILE, AuditError, AuditLimits, read_lines};
use self::log::{AuditLog, Pending, Place};
pub use self::verify::{AuditReport, Finding};
use self::writer::{Request, Writer};
use crate::clock::{BootId, Clock};
use crate::disk::SystemDisk;
use crate::vault::Vault;

const QUEUE_LEN: usize = 256;

/// A handle to the log's owner thread.
#[derive(Clone)]
pub struct Audit {
    requests: SyncSender<Request>,
    lost: Arc<AtomicU64>,
    trouble: watch::Receiver<Option<String>>,
}

impl Audit {
    /// Starts the owner thread, which opens the log in `directory`, and tries again while it can't.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        directory: &Path,
        vault: Arc<Vault>,
        epoch: Epoch,
        limits: AuditLimits,
        clock: Arc<dyn Clock>,
        boot: &BootId,
    ) -> std::io::Result<Self> {
        let place = place(directory, vault, limits, &boot.to_string());
        let (requests, receiver) = sync_channel(QUEUE_LEN);
        let lost = Arc::new(AtomicU64::new(0));
        let (sender, trouble) = watch::channel(None);
        let writer = Writer::new(place, epoch, clock, Arc::clone(&lost), sender);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&receiver))?;
        Ok(Self { requests, lost, trouble })
    }

    /// A log that nobody reads but the test that asked for it.
    #[cfg(test)]
    pub(crate) fn double() -> (Self, std::sync::mpsc::Receiver<AuditEvent>) {
        let (requests, receiver) = sync_channel(QUEUE_LEN);
        let (sender, events) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            while let Ok(request) = receiver.recv() {
                if let Request::Record(event, done) = request {
                    let _ = sender.send(event);
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                }
            }
        });
        let lost = Arc::new(AtomicU64::new(0));
        (Self { requests, lost, trouble: watch::channel(None).1 }, events)
    }

    /// Takes an event down; never waits.
    pub fn record(&self, event: AuditEvent) {
        if self.requests.try_send(Request::Record(event, None)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes an event down and waits until it is durable, or the disk has refused it once.
    pub async fn record_durably(&self, event: AuditEvent) {
        let (done, durable) = oneshot::channel();
        if self.requests.try_send(Request::Record(event, Some(done))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // A thread that has ended was told to; there is nothing to wait for then.
        let _ = durable.await;
    }

    /// Checks every entry that is kept.
    ///
    /// # Errors
    /// The log cannot be read just now.
    pub async fn verify(&self) -> Result<AuditReport, String> {
        let busy = || "the audit log's owner is busy; ask again".to_owned();
        let (reply, report) = oneshot::channel();
        self.requests.try_send(Request::Verify(reply)).map_err(|_| busy())?;
        report.await.map_err(|_| busy())?
    }

    /// Why the log cannot be written, as long as it cannot.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }
}

/// Where no agent runs: makes one entry. Blocks.
///
/// # Errors
/// The log cannot be written.
pub fn record_offline(
    directory: &Path,
    vault: Arc<Vault>,
    epoch: Epoch,
    limits: AuditLimits,
    clock: &dyn Clock,
    event: AuditEvent,
) -> Result<(), AuditError> {
    let boot = BootId::current().map_or_else(|_| String::new(), |boot| boot.to_string());
    let unix_seconds = clock.unix().as_secs();
    let place = place(directory, vault, limits, &boot);
    let (mut log, events) = AuditLog::open(place, epoch, unix_seconds)?;
    let events = events.into_iter().chain([event]);
    log.append(&mut events.map(|event| Pending { unix_seconds, event }).collect())
}

/// Where no agent runs: checks every entry that is kept, and changes nothing. Blocks.
///
/// # Errors
/// The log cannot be read, or nobody has its key.
pub fn verify_offline(
    directory: &Path,
    vault: Arc<Vault>,
    limits: AuditLimits,
) -> Result<AuditReport, AuditError> {
    place(directory, vault, limits, "").verify()
}

fn place(directory: &Path, vault: Arc<Vault>, limits: AuditLimits, boot: &str) -> Place {
    let (disk, directory) = (Arc::new(SystemDisk), directory.to_owned());
    Place { disk, directory, vault, limits, boot: boot.to_owned() }
}
