//! The receiving half.

use super::{ChunkError, bit};
use crate::frame::ChunkFrame;
use crate::ids::Digest;
use crate::message::{Manifest, MessageError};

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It was missing and is stored now.
    New,
    /// It was here already.
    Duplicate,
}

/// Collects the chunks of one key.
pub struct ChunkReceiver {
    manifest: Manifest,
    chunk_len: usize,
    /// The key's full length from the start; the operating system gives its zero pages when they
    /// are first written to, so an open that is never followed by chunks costs nothing.
    key: Vec<u8>,
    bitmap: Vec<u8>,
    missing: usize,
}

impl ChunkReceiver {
    /// Begins to receive a key of at most `max_key_len` bytes.
    ///
    /// # Errors
    /// The manifest is impossible or the key too large.
    pub fn new(manifest: Manifest, max_key_len: u64) -> Result<Self, ChunkError> {
        manifest.check(max_key_len)?;
        let too_large = MessageError::KeyTooLarge { len: manifest.key_len, max: max_key_len };
        let Ok(key_len) = usize::try_from(manifest.key_len) else { return Err(too_large.into()) };
        let Ok(chunk_len) = usize::try_from(manifest.chunk_len) else {
            return Err(too_large.into());
        };
        let missing = manifest.chunk_digests.len();
        let bitmap = vec![0; missing.div_ceil(8)];
        Ok(Self { manifest, chunk_len, key: vec![0; key_len], bitmap, missing })
    }

    /// What is being received.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Takes notice of another open of the same key; its nonce and lifetime replace the earlier
    /// ones. False, and nothing changes, if it is of another key.
    pub fn reopen(&mut self, manifest: &Manifest) -> bool {
        let same = Manifest {
            nonce: manifest.nonce,
            ttl_seconds: manifest.ttl_seconds,
            ..self.manifest.clone()
        } == *manifest;
        if same {
            self.manifest.nonce = manifest.nonce;
            self.manifest.ttl_seconds = manifest.ttl_seconds;
        }
        same
    }

    /// Stores a chunk. Its frame was hashed when it arrived, and is not hashed again.
    ///
    /// # Errors
    /// There is no such chunk, or these are not its bytes; nothing was stored.
    pub fn accept_frame(&mut self, chunk: &ChunkFrame) -> Result<Accepted, ChunkError> {
        self.accept_hashed(chunk.index(), chunk.body(), || chunk.digest())
    }

    /// Stores a chunk. Hashes it: a fraction of a millisecond.
    ///
    /// # Errors
    /// There is no such chunk, or these are not its bytes; nothing was stored.
    pub fn accept(&mut self, index: u64, bytes: &[u8]) -> Result<Accepted, ChunkError> {
        self.accept_hashed(index, bytes, || Digest::of(bytes))
    }

    fn accept_hashed(
        &mut self,
        index: u64,
        bytes: &[u8],
        hash: impl FnOnce() -> Digest,
    ) -> Result<Accepted, ChunkError> {
        let no_such = ChunkError::Index { index, count: self.manifest.chunk_digests.len() };
        let Ok(position) = usize::try_from(index) else { return Err(no_such) };
        let Some(digest) = self.manifest.chunk_digests.get(position) else { return Err(no_such) };
        if bit(&self.bitmap, position) == Some(true) {
            return Ok(Accepted::Duplicate);
        }
        let place = self.key.chunks_mut(self.chunk_len).nth(position);
        let Some(place) = place.filter(|place| place.len() == bytes.len()) else {
            return Err(ChunkError::ChunkDigest { index });
        };
        if hash() != *digest {
            return Err(ChunkError::ChunkDigest { index });
        }
        place.copy_from_slice(bytes);
        if let Some(byte) = self.bitmap.get_mut(position / 8) {
            *byte |= 1 << (position % 8);
        }
        self.missing = self.missing.saturating_sub(1);
        Ok(Accepted::New)
    }

    /// The chunks that are here, as [`crate::message::Have`] tells them.
    #[must_use]
    pub fn bitmap(&self) -> Vec<u8> {
        self.bitmap.clone()
    }

    /// How many chunks are here, of how many.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        let total = self.manifest.chunk_digests.len();
        (total.saturating_sub(self.missing), total)
    }

    /// Whether all chunks are here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// The key, checked as a whole. Hashes all of it: call it off the async threads.
    ///
    /// # Errors
    /// Chunks are missing, or the manifest's digest is not that of its chunks.
    pub fn into_key(self) -> Result<Vec<u8>, ChunkError> {
        if !self.is_complete() {
            return Err(ChunkError::Incomplete { missing: self.missing });
        }
        if Digest::of(&self.key) != self.manifest.key_digest {
            return Err(ChunkError::KeyDigest);
        }
        Ok(self.key)
    }
}
