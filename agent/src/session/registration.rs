//! How far a session's evaluation keys are with the server.
//!
//! Invariants:
//! - a `have` counts only if it answers our newest `open` (same nonce);
//! - the keys' bytes are in memory only between their generation and their registration;
//! - while a session is not registered, `open` is repeated: nothing that gets lost stays lost.

use std::time::Duration;

use moai_transport::chunk::{ChunkError, ChunkSender};
use moai_transport::ids::WorkerId;
use moai_transport::message::{Have, Manifest};
use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

enum Stage {
    Generating,
    Offering { upload: Option<Box<ChunkSender>>, worker: Option<WorkerId> },
    Registered { worker: WorkerId },
}

/// The open, have, chunk part of a session's cycle.
pub(super) struct Registration {
    stage: Stage,
    nonce: u64,
    asked: Option<Instant>,
    pause: Duration,
}

/// What a `have` calls for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: it answered an older question.
    Ignore,
    /// Send the chunks that are missing.
    SendChunks,
    /// The server needs the keys and we no longer have their bytes.
    GenerateKeys,
    /// The server is ready.
    Registered,
}

impl Registration {
    /// Keys are being generated.
    pub(super) fn generating() -> Self {
        Self { stage: Stage::Generating, nonce: 0, asked: None, pause: FIRST_PAUSE }
    }

    /// Ask the server whether it has the keys of an earlier run.
    pub(super) fn resumed() -> Self {
        let stage = Stage::Offering { upload: None, worker: None };
        Self { stage, ..Self::generating() }
    }

    /// Keys were generated: offer them.
    ///
    /// # Errors
    /// Keys and manifest do not belong together.
    pub(super) fn offer(&mut self, keys: Vec<u8>, manifest: &Manifest) -> Result<(), ChunkError> {
        let upload = Some(Box::new(ChunkSender::new(keys.into(), manifest.clone())?));
        self.stage = Stage::Offering { upload, worker: None };
        self.ask_at_once();
        Ok(())
    }

    /// The server, or the link to it, may be another one: ask again.
    pub(super) fn renew(&mut self) {
        match &mut self.stage {
            Stage::Generating => {}
            Stage::Offering { worker, .. } => *worker = None,
            Stage::Registered { .. } => {
                self.stage = Stage::Offering { upload: None, worker: None };
            }
        }
        self.ask_at_once();
    }

    fn ask_at_once(&mut self) {
        self.asked = None;
        self.pause = FIRST_PAUSE;
    }

    /// Whether keys are being generated.
    pub(super) fn is_generating(&self) -> bool {
        matches!(self.stage, Stage::Generating)
    }

    /// The worker that is ready to compute.
    pub(super) fn registered_worker(&self) -> Option<&WorkerId> {
        match &self.stage {
            Stage::Registered { worker } => Some(worker),
            _ => None,
        }
    }

    /// The worker that holds the session or part of its keys.
    pub(super) fn worker(&self) -> Option<&WorkerId> {
        match &self.stage {
            Stage::Registered { worker } => Some(worker),
            Stage::Offering { worker, .. } => worker.as_ref(),
            Stage::Generating => None,
        }
    }

    /// Whether `open` is due now. It is asked with `nonce` then.
    pub(super) fn ask(&mut self, now: Instant, nonce: u64) -> bool {
        let Stage::Offering { upload, .. } = &mut self.stage else { return false };
        if self.asked.is_some_and(|asked| now < asked + self.pause) {
            return false;
        }
        if self.asked.is_some() {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        self.asked = Some(now);
        self.nonce = nonce;
        if let Some(upload) = upload {
            upload.reopen(nonce);
        }
        true
    }

    /// A chunk left us, or did not. While chunks move, the question need not be repeated.
    pub(super) fn chunk_done(&mut self, index: u64, taken: bool, now: Instant) {
        self.asked = self.asked.map(|_| now);
        let Stage::Offering { upload: Some(upload), .. } = &mut self.stage else { return };
        if taken {
            upload.on_acked(index, now.into_std());
        } else {
            upload.on_failed(index);
        }
    }

    /// Whether we have asked at least twice without an answer.
    pub(super) fn is_unanswered(&self) -> bool {
        self.pause > FIRST_PAUSE && self.worker().is_none()
    }

    /// Takes what a worker says it holds.
    pub(super) fn have(&mut self, have: &Have) -> Next {
        let Stage::Offering { upload, worker } = &mut self.stage else { return Next::Ignore };
        if have.nonce != self.nonce {
            return Next::Ignore;
        }
        self.pause = FIRST_PAUSE;
        if have.registered {
            self.stage = Stage::Registered { worker: have.worker.clone() };
            return Next::Registered;
        }
        let Some(sender) = upload else {
            self.stage = Stage::Generating;
            return Next::GenerateKeys;
        };
        if !sender.on_have(have) {
            return Next::Ignore;
        }
        *worker = Some(have.worker.clone());
        Next::SendChunks
    }

    /// The chunks that still have to be sent, while a worker waits for them.
    pub(super) fn upload(&mut self) -> Option<(&mut ChunkSender, &WorkerId)> {
        match &mut self.stage {
            Stage::Offering { upload: Some(upload), worker: Some(worker) } => {
                Some((upload, worker))
            }
            _ => None,
        }
    }

    /// Chunks the server holds, of how many.
    pub(super) fn progress(&self) -> Option<(usize, usize)> {
        match &self.stage {
            Stage::Offering { upload: Some(upload), .. } => Some(upload.progress()),
            _ => None,
        }
    }
}
