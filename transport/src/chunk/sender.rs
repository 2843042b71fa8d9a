//! The sending half.

use bytes::Bytes;

use super::{ChunkError, MAX_WINDOW, bit, fits};
use crate::ids::{Digest, WorkerId};
use crate::message::{Have, Manifest};

/// A chunk to send, to the worker that answered last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its index, the number of its frame.
    pub index: u64,
    /// Its bytes, shared with the key.
    pub bytes: Bytes,
    /// Their digest, from the manifest.
    pub digest: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    /// To be sent.
    Missing,
    /// Between sender and broker.
    InFlight { round: u64 },
    /// The broker took it; whether the receiver has it, only a have of a later round can tell.
    Taken { round: u64 },
    /// The receiver has it, by a have of this round.
    Held { round: u64 },
}

/// How far the newest open is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asked,
    Answered,
    /// A publication failed since.
    Failed,
}

/// Sends the chunks of one key.
pub struct ChunkSender {
    key: Bytes,
    manifest: Manifest,
    chunk_len: usize,
    chunks: Vec<Chunk>,
    /// Who answered last. It outlives the round, to see whether another one answers the next.
    worker: Option<WorkerId>,
    /// Counts opens: a have of this round knows what earlier rounds sent.
    round: u64,
    phase: Phase,
    is_registered: bool,
    in_flight: usize,
}

/// How much of a key has arrived, or at least reached the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have.
    pub bytes: u64,
    /// Length of the key in bytes.
    pub of: u64,
}

impl ChunkSender {
    /// Begins to send `key`, of which `manifest` is the manifest to open with.
    ///
    /// # Errors
    /// The manifest is impossible or of a key of another length.
    pub fn new(key: Bytes, manifest: Manifest) -> Result<Self, ChunkError> {
        manifest.check(u64::MAX)?;
        let chunk_len = usize::try_from(manifest.chunk_len).map_err(|_| ChunkError::OtherKey)?;
        if manifest.key_len != key.len() as u64 {
            return Err(ChunkError::OtherKey);
        }
        let chunks = vec![Chunk::Missing; manifest.chunk_digests.len()];
        Ok(Self {
            key,
            manifest,
            chunk_len,
            chunks,
            worker: None,
            round: 0,
            phase: Phase::Asked,
            is_registered: false,
            in_flight: 0,
        })
    }

    /// The manifest to publish.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Opens again with a fresh nonce and returns the manifest to publish. No chunk leaves until
    /// the have with this nonce is here.
    pub fn reopen(&mut self, nonce: u64) -> &Manifest {
        self.manifest.nonce = nonce;
        self.round += 1;
        self.phase = Phase::Asked;
        self.is_registered = false;
        &self.manifest
    }

    /// Takes notice of a have. False if it says nothing about this round: it answers an earlier
    /// open, comes from a second worker or after a failure, or has a bitmap of another key.
    pub fn on_have(&mut self, have: &Have) -> bool {
        let other_worker = self.worker.as_ref() != Some(&have.worker);
        if have.nonce != self.manifest.nonce
            || !fits(&have.bitmap, self.chunks.len())
            || self.phase == Phase::Failed
            || (self.phase == Phase::Answered && other_worker)
        {
            return false;
        }
        for (index, chunk) in self.chunks.iter_mut().enumerate() {
            let is_held = bit(&have.bitmap, index) == Some(true);
            let next = match *chunk {
                _ if is_held => Chunk::Held { round: self.round },
                // What went to another worker will not reach this one.
                Chunk::InFlight { .. } if other_worker => Chunk::Missing,
                Chunk::InFlight { .. } => Chunk::InFlight { round: self.round },
                Chunk::Taken { round } | Chunk::Held { round } if round < self.round => {
                    Chunk::Missing
                }
                unchanged => unchanged,
            };
            if matches!(*chunk, Chunk::InFlight { .. }) && !matches!(next, Chunk::InFlight { .. }) {
                self.in_flight = self.in_flight.saturating_sub(chunk_len(&self.manifest, index));
            }
            *chunk = next;
        }
        self.worker = Some(have.worker.clone());
        self.phase = Phase::Answered;
        self.is_registered |= have.registered;
        true
    }

    /// Who gets the chunks: the worker that answered this round's open.
    #[must_use]
    pub fn worker(&self) -> Option<&WorkerId> {
        self.worker.as_ref().filter(|_| self.phase == Phase::Answered)
    }

    /// Whether the worker has said that it has and takes the whole key.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.is_registered
    }

    /// The next chunk to publish; none if [`MAX_WINDOW`] is reached, nothing is missing, the open is
    /// not answered, or a chunk has failed since. Whoever takes one owes [`Self::on_acked`] or [`Self::on_failed`].
    pub fn next_chunk(&mut self) -> Option<ChunkRef> {
        if self.phase != Phase::Answered {
            return None;
        }
        let position = self.chunks.iter().position(|chunk| *chunk == Chunk::Missing)?;
        let digest = *self.manifest.chunk_digests.get(position)?;
        let bytes = self.bytes(position);
        if self.in_flight + bytes.len() > MAX_WINDOW {
            return None;
        }
        self.in_flight += bytes.len();
        if let Some(chunk) = self.chunks.get_mut(position) {
            *chunk = Chunk::InFlight { round: self.round };
        }
        Some(ChunkRef { index: position as u64, bytes, digest })
    }

    /// The broker took a chunk.
    pub fn on_acked(&mut self, index: u64) {
        let Some((position, round)) = self.in_flight_chunk(index) else { return };
        self.set(position, Chunk::Taken { round });
    }

    /// A chunk did not reach the broker. The link is down or about to be, and broker or worker may
    /// be another one when it is back: nothing leaves until the next open is answered.
    pub fn on_failed(&mut self, index: u64) {
        let Some((position, _)) = self.in_flight_chunk(index) else { return };
        self.set(position, Chunk::Missing);
        self.phase = Phase::Failed;
    }

    /// Whether there is nothing left to send and nothing under way to the broker. If no have with
    /// `registered` follows, open again.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.chunks.iter().all(|chunk| matches!(chunk, Chunk::Taken { .. } | Chunk::Held { .. }))
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let is_done = |chunk: &Chunk| matches!(chunk, Chunk::Taken { .. } | Chunk::Held { .. });
        let done = self.chunks.iter().enumerate().filter(|(_, chunk)| is_done(chunk));
        let bytes = done.map(|(position, _)| chunk_len(&self.manifest, position) as u64).sum();
        Progress { bytes, of: self.manifest.key_len }
    }

    fn bytes(&self, position: usize) -> Bytes {
        let start = position.saturating_mul(self.chunk_len).min(self.key.len());
        let end = start.saturating_add(self.chunk_len).min(self.key.len());
        self.key.slice(start..end)
    }

    fn in_flight_chunk(&self, index: u64) -> Option<(usize, u64)> {
        let position = usize::try_from(index).ok()?;
        match *self.chunks.get(position)? {
            Chunk::InFlight { round } => Some((position, round)),
            _ => None,
        }
    }

    fn set(&mut self, position: usize, next: Chunk) {
        self.in_flight = self.in_flight.saturating_sub(chunk_len(&self.manifest, position));
        if let Some(chunk) = self.chunks.get_mut(position) {
            *chunk = next;
        }
    }
}

/// Length of chunk `position`, which exists.
fn chunk_len(manifest: &Manifest, position: usize) -> usize {
    let before = (position as u64).saturating_mul(manifest.chunk_len.into());
    let len = manifest.key_len.saturating_sub(before).min(manifest.chunk_len.into());
    usize::try_from(len).unwrap_or(usize::MAX)
}
