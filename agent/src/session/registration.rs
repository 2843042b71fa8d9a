//! How far a session's evaluation keys are with the server.
//!
//! Invariants:
//! - a `have` counts only if it answers our newest `open` (same nonce), or an earlier one after which
//!   nothing has changed: a server with more to do than it can answers late, and would for ever be
//!   asked anew if late answers counted for nothing;
//! - the keys' bytes are in memory only between their generation and their registration;
//! - while a session is not registered, `open` is repeated: nothing that gets lost stays lost.

use std::time::Duration;

use moai_transport::chunk::{ChunkError, ChunkSender};
use moai_transport::ids::WorkerId;
use moai_transport::message::{Have, Manifest};
use tokio::time::Instant;

use super::meter::Meter;
use crate::status::UploadStatus;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Earlier questions whose answers still count.
const MAX_EARLIER: usize = 16;

enum Stage {
    Generating,
    Offering { upload: Option<Box<ChunkSender>>, worker: Option<WorkerId> },
    Registered { worker: WorkerId },
}

/// The open, have, chunk part of a session's cycle.
pub(super) struct Registration {
    stage: Stage,
    nonce: u64,
    /// Earlier questions since link, worker and keys are what they are.
    earlier: Vec<u64>,
    asked: Option<Instant>,
    pause: Duration,
    meter: Meter,
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
        Self {
            stage: Stage::Generating,
            nonce: 0,
            earlier: Vec::new(),
            asked: None,
            pause: FIRST_PAUSE,
            meter: Meter::default(),
        }
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
        self.earlier.clear();
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
        let Stage::Offering { upload, worker } = &mut self.stage else { return false };
        // Every chunk under way ends in an acknowledgement or a failure, so on a slow link too
        // there is nothing to ask before they are through.
        let is_moving = worker.is_some() && upload.as_ref().is_some_and(|it| !it.is_drained());
        if self.asked.is_some_and(|asked| is_moving || now < asked + self.pause) {
            return false;
        }
        if self.asked.is_some() {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            if self.earlier.len() == MAX_EARLIER {
                self.earlier.remove(0);
            }
            self.earlier.push(self.nonce);
        }
        self.asked = Some(now);
        self.nonce = nonce;
        if let Some(upload) = upload {
            upload.reopen(nonce);
        }
        true
    }

    /// A chunk left us, or did not.
    pub(super) fn chunk_done(&mut self, index: u64, taken: bool, now: Instant) {
        self.asked = self.asked.map(|_| now);
        let Stage::Offering { upload: Some(upload), .. } = &mut self.stage else { return };
        if taken {
            upload.on_acked(index);
        } else {
            upload.on_failed(index);
        }
    }

    /// Whether we have asked at least twice without an answer.
    pub(super) fn is_unanswered(&self) -> bool {
        self.pause > FIRST_PAUSE && self.worker().is_none()
    }

    /// Whether a challenge with this nonce is about our newest open.
    pub(super) fn is_challenged(&self, nonce: u64) -> bool {
        matches!(self.stage, Stage::Offering { .. }) && self.asked.is_some() && nonce == self.nonce
    }

    /// Takes what a worker says it holds.
    pub(super) fn have(&mut self, have: &Have) -> Next {
        let Stage::Offering { upload, worker } = &mut self.stage else { return Next::Ignore };
        if have.nonce == self.nonce {
            self.pause = FIRST_PAUSE;
        } else if !self.earlier.contains(&have.nonce) || (worker.is_some() && !have.registered) {
            // Chunks that were sent since are not in it.
            return Next::Ignore;
        }
        if have.registered {
            self.stage = Stage::Registered { worker: have.worker.clone() };
            return Next::Registered;
        }
        let Some(sender) = upload else {
            self.stage = Stage::Generating;
            return Next::GenerateKeys;
        };
        // Nothing was sent since an earlier question, so it is as good as the newest.
        if !sender.on_have(&Have { nonce: self.nonce, ..have.clone() }) {
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

    /// How far the upload is, and how fast; none while nothing is uploaded.
    pub(super) fn progress(&mut self, now: Instant) -> Option<UploadStatus> {
        let Stage::Offering { upload: Some(upload), .. } = &self.stage else {
            self.meter = Meter::default();
            return None;
        };
        Some(self.meter.measure(upload.progress(), now))
    }
}

#[cfg(test)]
mod tests {
    use moai_transport::chunk;
    use moai_transport::ids::{ContextId, Digest};
    use moai_transport::keys::SessionSigningKey;

    use super::*;

    const CHUNKS: usize = 3;

    fn offered() -> (Registration, Manifest) {
        let keys = vec![7; CHUNKS * chunk::CHUNK_LEN];
        let ttl = Duration::from_hours(1);
        let session_key = SessionSigningKey::from_seed(&[1; 32]).public();
        let context = ContextId(Digest([0; 32]));
        let manifest = chunk::manifest(context, ttl, session_key, &keys, 0).unwrap();
        let mut registration = Registration::generating();
        registration.offer(keys, &manifest).unwrap();
        (registration, manifest)
    }

    fn have(worker: &str, nonce: u64, bitmap: u8, registered: bool) -> Have {
        Have { worker: worker.parse().unwrap(), nonce, bitmap: vec![bitmap], registered }
    }

    fn send_all(registration: &mut Registration) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some((upload, _)) = registration.upload() {
            let Some(part) = upload.next_chunk() else { break };
            sent.push(part.index);
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_offered_sent_and_registered() {
        let now = Instant::now();
        let (mut registration, _) = offered();
        assert!(registration.ask(now, 11));
        assert_eq!(registration.have(&have("w", 11, 0b001, false)), Next::SendChunks);
        assert_eq!(send_all(&mut registration), [1, 2]);
        registration.chunk_done(1, true, now);
        registration.chunk_done(2, true, now);
        assert_eq!(registration.have(&have("w", 11, 0b111, true)), Next::Registered);
        assert_eq!(registration.registered_worker().unwrap().as_str(), "w");
        assert!(!registration.ask(now + LONGEST_PAUSE, 12));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_counts_as_long_as_nothing_has_changed_since_its_question() {
        let now = Instant::now();
        let (mut registration, _) = offered();
        assert!(registration.ask(now, 11));
        assert!(!registration.ask(now, 12));
        assert!(registration.ask(now + FIRST_PAUSE, 13));
        assert_eq!(registration.have(&have("w", 12, 0b111, true)), Next::Ignore, "never asked");
        assert!(registration.is_unanswered());
        assert_eq!(registration.have(&have("w", 11, 0b001, false)), Next::SendChunks);
        assert_eq!(send_all(&mut registration), [1, 2]);
        // What it says of chunks was true before these were sent.
        assert_eq!(registration.have(&have("w", 11, 0b001, false)), Next::Ignore);
        assert_eq!(registration.have(&have("w", 11, 0b111, true)), Next::Registered);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_from_before_a_change_counts_for_nothing() {
        let now = Instant::now();
        let (mut registration, _) = offered();
        assert!(registration.ask(now, 11));
        assert!(registration.ask(now + FIRST_PAUSE, 12));
        registration.renew();
        assert!(registration.ask(now + FIRST_PAUSE, 13));
        for nonce in [11, 12] {
            assert_eq!(registration.have(&have("w", nonce, 0b111, true)), Next::Ignore);
        }
        assert!(registration.registered_worker().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_counts_while_its_open_is_the_newest() {
        let now = Instant::now();
        let (mut registration, _) = offered();
        assert!(!registration.is_challenged(0), "nothing was asked");
        registration.ask(now, 11);
        assert!(registration.is_challenged(11));
        registration.ask(now + FIRST_PAUSE, 12);
        assert!(!registration.is_challenged(11) && registration.is_challenged(12));
        registration.have(&have("w", 12, 0b111, true));
        assert!(!registration.is_challenged(12), "it is served already");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_upload_is_not_interrupted_by_questions() {
        let now = Instant::now();
        let (mut registration, _) = offered();
        registration.ask(now, 11);
        registration.have(&have("w", 11, 0, false));
        assert_eq!(send_all(&mut registration).len(), CHUNKS);
        assert!(!registration.ask(now + LONGEST_PAUSE * 10, 12));
    }

    #[tokio::test(start_paused = true)]
    async fn chunks_acknowledged_while_the_worker_changes_leave_room_for_others() {
        let now = Instant::now();
        let (mut registration, _) = offered();
        registration.ask(now, 11);
        registration.have(&have("w", 11, 0, false));
        let under_way = send_all(&mut registration);
        registration.renew();
        for index in under_way {
            registration.chunk_done(index, true, now);
        }
        assert!(registration.ask(now, 12));
        assert_eq!(registration.have(&have("other", 12, 0, false)), Next::SendChunks);
        assert!(!send_all(&mut registration).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_the_server_lost_are_made_again() {
        let now = Instant::now();
        let mut registration = Registration::resumed();
        assert!(registration.ask(now, 11));
        assert_eq!(registration.have(&have("w", 11, 0, false)), Next::GenerateKeys);
        assert!(registration.is_generating());
        assert!(!registration.ask(now + LONGEST_PAUSE, 12));
    }
}
