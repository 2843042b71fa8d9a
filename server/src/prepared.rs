//! Keys that are ready for use, in memory: the newest used of them.
//!
//! Invariants:
//! - never more than the limit; beyond it the set goes that was used longest ago;
//! - a set is found under its session's name and its keys' digest only.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use moai_transport::ids::Digest;

use crate::engine::PreparedKeys;
use crate::store::SessionKey;

struct Set {
    key_digest: Digest,
    keys: Arc<dyn PreparedKeys>,
    used: u64,
}

/// The prepared keys of the sessions that were served last.
pub(crate) struct PreparedSets {
    sets: HashMap<SessionKey, Set>,
    limit: NonZeroUsize,
    uses: u64,
}

impl PreparedSets {
    /// At most `limit` sets.
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        Self { sets: HashMap::new(), limit, uses: 0 }
    }

    /// The keys of a session, which were used now.
    pub(crate) fn get(
        &mut self,
        key: &SessionKey,
        key_digest: Digest,
    ) -> Option<Arc<dyn PreparedKeys>> {
        self.uses += 1;
        let set = self.sets.get_mut(key).filter(|set| set.key_digest == key_digest)?;
        set.used = self.uses;
        Some(Arc::clone(&set.keys))
    }

    /// Keeps the keys of a session, which were used now.
    pub(crate) fn insert(
        &mut self,
        key: SessionKey,
        key_digest: Digest,
        keys: Arc<dyn PreparedKeys>,
    ) {
        self.uses += 1;
        self.sets.insert(key, Set { key_digest, keys, used: self.uses });
        while self.sets.len() > self.limit.get() {
            let oldest = self.sets.iter().min_by_key(|(_, set)| set.used);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            self.sets.remove(&oldest);
        }
    }

    /// Drops the keys of a session.
    pub(crate) fn remove(&mut self, key: &SessionKey) {
        self.sets.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use moai_transport::ids::{ModelId, SessionId};

    use super::*;
    use crate::engine::EngineError;

    struct NoKeys;

    impl PreparedKeys for NoKeys {
        fn evaluate(&self, _: &ModelId, _: &[u8]) -> Result<Vec<u8>, EngineError> {
            Ok(Vec::new())
        }
    }

    fn key(number: u8) -> SessionKey {
        let identity = "acme.r1".parse().unwrap();
        SessionKey { identity, session: SessionId::new(1, [number; 10]) }
    }

    #[test]
    fn the_set_that_was_used_longest_ago_goes_first() {
        let digest = Digest([1; 32]);
        let mut sets = PreparedSets::new(NonZeroUsize::new(2).unwrap());
        sets.insert(key(1), digest, Arc::new(NoKeys));
        sets.insert(key(2), digest, Arc::new(NoKeys));
        assert!(sets.get(&key(1), digest).is_some());
        sets.insert(key(3), digest, Arc::new(NoKeys));
        assert!(sets.get(&key(2), digest).is_none());
        assert!(sets.get(&key(1), digest).is_some());
        assert!(sets.get(&key(3), digest).is_some());
    }

    #[test]
    fn other_keys_of_the_same_session_are_not_found() {
        let mut sets = PreparedSets::new(NonZeroUsize::MIN);
        sets.insert(key(1), Digest([1; 32]), Arc::new(NoKeys));
        assert!(sets.get(&key(1), Digest([2; 32])).is_none());
        sets.remove(&key(1));
        assert!(sets.get(&key(1), Digest([1; 32])).is_none());
    }
}
