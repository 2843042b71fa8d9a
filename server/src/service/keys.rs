//! Evaluation keys: chunk by chunk into the store, and from there into memory, checked.
//!
//! Invariants:
//! - a chunk is stored only if it is the one its manifest announced;
//! - keys that come from the store are used only after the digests of all chunks and of the whole
//!   were checked again: the store is not trusted;
//! - a session is registered in the store only after an engine has prepared its keys.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use moai_transport::frame::ChunkFrame;
use moai_transport::ids::{Digest, JobNumber};
use moai_transport::message::{ErrorCode, Manifest};
use tokio::time::Instant;

use super::Service;
use crate::audit::Event;
use crate::engine::{Engine, EngineError, PreparedKeys};
use crate::refusal::Refused;
use crate::sessions::Keys;
use crate::store::{Held, SessionKey, StoreError};

/// Keys that were loaded and prepared, or not.
pub(super) struct Loaded {
    session: SessionKey,
    key_digest: Digest,
    keys: Result<Arc<dyn PreparedKeys>, Failure>,
    took: Duration,
}

/// Why keys were not loaded.
enum Failure {
    /// The store did not give them out.
    Store(StoreError),
    /// The store has no such session any more.
    Gone,
    /// Chunks are missing or have changed in the store.
    Torn,
    /// The manifest says one thing of the chunks and another of the whole.
    OtherWhole,
    /// The engine does not take them.
    Engine(EngineError),
    /// Preparing them failed in itself.
    Panic,
}

impl Service {
    pub(super) async fn chunk(
        &mut self,
        key: &SessionKey,
        chunk: &ChunkFrame,
    ) -> Result<(), Refused> {
        let store = Arc::clone(&self.store);
        let session = self.session(key).await?;
        let Keys::Arriving(held) = &mut session.keys else { return Ok(()) };
        let index = announced(&session.manifest, chunk)?;
        if held.contains(index) {
            return Ok(());
        }
        if !store.put_chunk(key, index, chunk.body()).await? {
            self.drop_session(key);
            return Err(Refused::unknown());
        }
        held.insert(index);
        if held.is_complete() {
            session.keys = Keys::Preparing;
            self.load(key);
        }
        Ok(())
    }

    /// Begins to load a session's keys, unless that is under way.
    pub(super) fn load(&mut self, key: &SessionKey) {
        let Some(session) = self.sessions.get(key, Instant::now()) else { return };
        if !self.under_load.insert(key.clone()) {
            return;
        }
        if session.keys != Keys::Ready {
            session.keys = Keys::Preparing;
        }
        let (key, manifest) = (key.clone(), session.manifest.clone());
        let (store, engine) = (Arc::clone(&self.store), Arc::clone(&self.engine));
        let slots = Arc::clone(&self.load_slots);
        self.loading.spawn(async move {
            // The semaphore is never closed.
            let _slot = slots.acquire_owned().await.ok();
            let start = Instant::now();
            let key_digest = manifest.key_digest;
            let keys = match store.load(&key, &manifest).await {
                Ok(Some(bytes)) => {
                    let work = move || checked(&manifest, &bytes, engine.as_ref());
                    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Failure::Panic))
                }
                Ok(None) => Err(Failure::Gone),
                Err(error) => Err(Failure::Store(error)),
            };
            Loaded { session: key, key_digest, keys, took: start.elapsed() }
        });
    }

    pub(super) async fn loaded(&mut self, loaded: Loaded) {
        let Loaded { session: key, key_digest, keys, took } = loaded;
        self.under_load.remove(&key);
        let Some(session) = self.sessions.get(&key, Instant::now()) else { return };
        if session.manifest.key_digest != key_digest {
            // It began anew under other keys meanwhile; its new keys may wait already.
            if session.keys == Keys::Preparing {
                self.load(&key);
            }
            return;
        }
        let was_ready = session.keys == Keys::Ready;
        let keys = match keys {
            Ok(keys) => keys,
            Err(failure) => return self.not_loaded(&key, failure).await,
        };
        session.keys = Keys::Ready;
        self.prepared.insert(key.clone(), key_digest, keys);
        if !was_ready {
            // If this does not reach the store, the next worker checks the keys once more.
            if let Err(error) = self.store.register(&key).await {
                tracing::warn!(%error, session = %key.session, "not noted as registered");
            }
            let prepare_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(identity = %key.identity, session = %key.session, prepare_ms, "keys registered");
            self.audit.record(&key, (self.clock)(), &Event::Registered { prepare_ms });
            self.say_have(&key);
        }
        self.submit_waiting(&key);
    }

    async fn not_loaded(&mut self, key: &SessionKey, failure: Failure) {
        let again = "its keys are not here any more; open it again";
        let (code, message) = match failure {
            Failure::Store(error) => {
                let Refused(code, message) = error.into();
                (code, message)
            }
            Failure::Gone => (ErrorCode::UnknownSession, again.to_owned()),
            Failure::Torn => {
                tracing::warn!(session = %key, "keys in the store are not what they were; removed");
                if let Err(error) = self.store.discard_chunks(key).await {
                    tracing::warn!(%error, session = %key, "they could not be removed");
                }
                (ErrorCode::UnknownSession, again.to_owned())
            }
            Failure::OtherWhole => {
                let message = "the keys are not those the manifest announced".to_owned();
                (ErrorCode::MalformedCiphertext, message)
            }
            Failure::Engine(error) => (ErrorCode::MalformedCiphertext, error.to_string()),
            Failure::Panic => (ErrorCode::Internal, "the keys could not be prepared".to_owned()),
        };
        self.refuse_waiting(key, code, &message);
        if matches!(code, ErrorCode::MalformedCiphertext | ErrorCode::Internal) {
            self.end(key).await;
        }
        // What the store has of it is looked at again with the next open.
        self.drop_session(key);
        self.refuse(key, JobNumber(0), Refused(code, message));
    }

    /// Forgets all that this worker has of a session.
    pub(super) fn drop_session(&mut self, key: &SessionKey) {
        self.sessions.remove(key);
        self.prepared.remove(key);
    }
}

/// The index of a chunk that its manifest announced.
fn announced(manifest: &Manifest, chunk: &ChunkFrame) -> Result<usize, Refused> {
    let number = chunk.index();
    let count = manifest.chunk_digests.len();
    let index = usize::try_from(number).unwrap_or(usize::MAX);
    let Some(digest) = manifest.chunk_digests.get(index) else {
        let message = format!("chunk {number} does not exist, the key has {count}");
        return Err(Refused(ErrorCode::MalformedFrame, message));
    };
    if chunk.digest() != *digest {
        let message = format!("chunk {number} is not the one its manifest announced");
        return Err(Refused(ErrorCode::MalformedFrame, message));
    }
    Ok(index)
}

/// The keys in these bytes, if they are those of the manifest. Blocks for most of a second.
fn checked(
    manifest: &Manifest,
    bytes: &[u8],
    engine: &dyn Engine,
) -> Result<Arc<dyn PreparedKeys>, Failure> {
    let count = manifest.chunk_digests.len();
    let chunk_len = usize::try_from(manifest.chunk_len).unwrap_or(usize::MAX).max(1);
    let chunks = bytes.chunks(chunk_len).zip(&manifest.chunk_digests).enumerate();
    let right = chunks.filter(|(_, (chunk, digest))| Digest::of(chunk) == **digest);
    if !Held::these(count, right.map(|(index, _)| index)).is_complete() {
        return Err(Failure::Torn);
    }
    if bytes.len() as u64 != manifest.key_len || Digest::of(bytes) != manifest.key_digest {
        return Err(Failure::OtherWhole);
    }
    match std::panic::catch_unwind(AssertUnwindSafe(|| engine.prepare(bytes))) {
        Ok(prepared) => prepared.map_err(Failure::Engine),
        Err(_) => Err(Failure::Panic),
    }
}
