//! Moving a key of many megabytes in pieces that survive a cut.
//!
//! Two state machines without I/O or clock. The sender opens with a manifest; the receiver answers
//! with a bitmap of what it holds; the sender sends what is missing. Loss that nobody reports, and
//! MQTT's acknowledgement reports none beyond the broker, is healed by opening again with a fresh
//! nonce: the answer with that nonce tells what arrived of all that was sent before.
//!
//! Invariants:
//! - a chunk is sent only in answer to a have, and again only if its publication failed or a have
//!   that was asked for later shows that it did not arrive;
//! - at most [`MAX_WINDOW`] bytes are with the link or on their way to the broker; the link sees to
//!   it that they leave at its pace;
//! - the receiver stores a chunk once, after its digest was checked, and gives out the key only
//!   after the digest of the whole was checked.

mod receiver;
mod sender;

use std::time::Duration;

pub use receiver::{Accepted, ChunkReceiver};
pub use sender::{ChunkRef, ChunkSender, Progress};

use crate::ids::{ContextId, Digest};
use crate::keys::SessionPublicKey;
pub use crate::link::MAX_WINDOW;
use crate::message::{MAX_CHUNK_LEN, Manifest, MessageError};

/// Length of all chunks but the last, in bytes.
pub const CHUNK_LEN: usize = MAX_CHUNK_LEN as usize;

/// Why a transfer cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The manifest is impossible or asks for too much.
    #[error(transparent)]
    Manifest(#[from] MessageError),
    /// The key is not the one of the manifest.
    #[error("the key does not have the length its manifest says")]
    OtherKey,
    /// There is no such chunk. Drop the frame.
    #[error("chunk {index} does not exist, the key has {count}")]
    Index {
        /// The number in the frame.
        index: u64,
        /// How many there are.
        count: usize,
    },
    /// The chunk's bytes are not those the manifest announced. Drop the frame.
    #[error("chunk {index} is not the one its manifest announced")]
    ChunkDigest {
        /// The number in the frame.
        index: u64,
    },
    /// Chunks are missing: wait for them.
    #[error("{missing} chunks are still missing")]
    Incomplete {
        /// How many.
        missing: usize,
    },
    /// All chunks are right and the whole is not: the manifest lies. Refuse the session.
    #[error("the keys are not those the manifest announced")]
    KeyDigest,
}

/// The manifest of `key`, to live for `ttl` (in whole seconds, at least one), in a session whose
/// frames `session_key` signs.
///
/// Hashes the key twice: about 1 ms per megabyte with SHA instructions, ten without. Call it off
/// the async threads.
///
/// # Errors
/// The key is empty or longer than a manifest can describe.
pub fn manifest(
    context: ContextId,
    ttl: Duration,
    session_key: SessionPublicKey,
    key: &[u8],
    nonce: u64,
) -> Result<Manifest, MessageError> {
    let manifest = Manifest {
        nonce,
        context,
        ttl_seconds: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1),
        session_key,
        key_len: key.len() as u64,
        key_digest: Digest::of(key),
        chunk_len: MAX_CHUNK_LEN,
        chunk_digests: key.chunks(CHUNK_LEN).map(Digest::of).collect(),
    };
    manifest.check(u64::MAX)?;
    Ok(manifest)
}

/// Whether bit `index` is set; `None` if the bitmap is too short.
fn bit(bitmap: &[u8], index: usize) -> Option<bool> {
    Some(bitmap.get(index / 8)? & (1 << (index % 8)) != 0)
}

/// Whether a bitmap has exactly the bytes for `count` bits and no bit beyond.
fn fits(bitmap: &[u8], count: usize) -> bool {
    bitmap.len() == count.div_ceil(8)
        && (count..bitmap.len() * 8).all(|index| bit(bitmap, index) == Some(false))
}
