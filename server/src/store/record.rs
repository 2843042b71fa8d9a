//! What a store keeps of a session beside its chunks, and which chunks are there.
//!
//! Invariants:
//! - a record is bound to its session's name: under another name it does not decode;
//! - a record is bound to its bytes by a digest: a torn one does not decode.

use moai_transport::ids::Digest;
use moai_transport::message::Manifest;

use super::{SessionKey, UnixMillis};

/// Largest record: a manifest, which fits a frame of 64 KiB, and little else.
pub(super) const MAX_RECORD_LEN: usize = 72 * 1024;
const MAGIC: &[u8; 8] = b"moaikey1";
const DIGEST_LEN: usize = 32;
const FIXED_LEN: usize = 8 + 8 + 8 + 1 + 1 + 2 * DIGEST_LEN;

/// What is kept of a session beside its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The manifest of its newest open.
    pub manifest: Manifest,
    /// The number of its newest open.
    pub open_number: u64,
    /// When the session is over.
    pub expires_at: UnixMillis,
    /// When the last open that was taken, sent again by whoever has seen it, would no longer be
    /// taken. So long the name of the session is kept after its end.
    pub opens_until: UnixMillis,
    /// The digest of the identity key that was attested in this session, if one was.
    pub attested: Option<Digest>,
    /// All chunks were there, were checked and are evaluation keys.
    pub registered: bool,
}

impl Record {
    /// A digest of what makes two opens those of the same keys.
    pub(super) fn fingerprint(&self) -> Digest {
        let manifest = &self.manifest;
        let mut bytes = manifest.context.0.0.to_vec();
        bytes.extend_from_slice(manifest.session_key.as_bytes());
        bytes.extend_from_slice(&manifest.key_digest.0);
        bytes.extend_from_slice(&manifest.key_len.to_be_bytes());
        bytes.extend_from_slice(&manifest.chunk_len.to_be_bytes());
        for chunk in &manifest.chunk_digests {
            bytes.extend_from_slice(&chunk.0);
        }
        Digest::of(&bytes)
    }

    /// The record with what a later open of the same keys changes; none if that is of other keys.
    pub(super) fn continued(&self, newer: &Self) -> Option<Self> {
        (self.fingerprint() == newer.fingerprint()).then(|| Self {
            manifest: newer.manifest.clone(),
            open_number: newer.open_number,
            expires_at: self.expires_at.min(newer.expires_at),
            opens_until: self.opens_until.max(newer.opens_until),
            attested: newer.attested.or(self.attested),
            registered: self.registered,
        })
    }

    /// The bytes of the record of this session.
    ///
    /// # Errors
    /// The manifest is inconsistent.
    pub(super) fn encode(&self, key: &SessionKey) -> Result<Vec<u8>, String> {
        let manifest = self.manifest.encode().map_err(|error| error.to_string())?;
        let mut bytes = Vec::with_capacity(MAGIC.len() + FIXED_LEN + manifest.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.open_number.to_be_bytes());
        bytes.extend_from_slice(&self.expires_at.0.to_be_bytes());
        bytes.extend_from_slice(&self.opens_until.0.to_be_bytes());
        bytes.push(u8::from(self.registered));
        bytes.push(u8::from(self.attested.is_some()));
        bytes.extend_from_slice(&self.attested.unwrap_or(Digest([0; DIGEST_LEN])).0);
        bytes.extend_from_slice(&manifest);
        let digest = digest(key, &bytes);
        bytes.extend_from_slice(&digest.0);
        Ok(bytes)
    }

    /// The record in these bytes; none if they are torn, another session's or of another version.
    pub(super) fn decode(key: &SessionKey, bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_RECORD_LEN {
            return None;
        }
        let (content, found) = bytes.split_last_chunk::<DIGEST_LEN>()?;
        if digest(key, content) != Digest(*found) {
            return None;
        }
        let rest = content.strip_prefix(MAGIC)?;
        let (open_number, rest) = rest.split_first_chunk()?;
        let (expires_at, rest) = rest.split_first_chunk()?;
        let (opens_until, rest) = rest.split_first_chunk()?;
        let ([registered, is_attested], rest) = rest.split_first_chunk()?;
        let (attested, manifest) = rest.split_first_chunk()?;
        Some(Self {
            manifest: Manifest::decode(manifest, u64::MAX).ok()?,
            open_number: u64::from_be_bytes(*open_number),
            expires_at: UnixMillis(u64::from_be_bytes(*expires_at)),
            opens_until: UnixMillis(u64::from_be_bytes(*opens_until)),
            attested: (*is_attested == 1).then_some(Digest(*attested)),
            registered: *registered == 1,
        })
    }
}

/// The bytes of a tombstone of this session.
pub(super) fn encode_tombstone(key: &SessionKey, until: UnixMillis) -> Vec<u8> {
    let mut bytes = until.0.to_be_bytes().to_vec();
    let digest = digest(key, &bytes);
    bytes.extend_from_slice(&digest.0);
    bytes
}

/// Until when the tombstone in these bytes stands; none if it is torn or another session's.
pub(super) fn decode_tombstone(key: &SessionKey, bytes: &[u8]) -> Option<UnixMillis> {
    let (until, found) = bytes.split_first_chunk()?;
    let is_whole = digest(key, until).0 == *found;
    is_whole.then_some(UnixMillis(u64::from_be_bytes(*until)))
}

fn digest(key: &SessionKey, content: &[u8]) -> Digest {
    let mut bytes = key.to_string().into_bytes();
    bytes.push(b'\n');
    bytes.extend_from_slice(content);
    Digest::of(&bytes)
}

impl std::fmt::Display for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.identity, self.session)
    }
}

impl std::str::FromStr for SessionKey {
    type Err = ParseSessionKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (identity, session) = text.rsplit_once('.').ok_or(ParseSessionKeyError)?;
        match (identity.parse(), session.parse()) {
            (Ok(identity), Ok(session)) => Ok(Self { identity, session }),
            _ => Err(ParseSessionKeyError),
        }
    }
}

/// A text that is no session's full name, `{tenant}.{robot}.{session}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the full name of a session")]
pub struct ParseSessionKeyError;

/// Which chunks of a key are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    bitmap: Vec<u8>,
    count: usize,
    missing: usize,
}

impl Held {
    /// None of `count` chunks.
    #[must_use]
    pub fn none(count: usize) -> Self {
        Self { bitmap: vec![0; count.div_ceil(8)], count, missing: count }
    }

    /// These of `count` chunks; indices beyond count for nothing.
    #[must_use]
    pub fn these(count: usize, indices: impl IntoIterator<Item = usize>) -> Self {
        let mut held = Self::none(count);
        for index in indices {
            held.insert(index);
        }
        held
    }

    /// Whether a chunk is there.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.bitmap.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    /// Notes that a chunk is there.
    pub fn insert(&mut self, index: usize) {
        if index >= self.count || self.contains(index) {
            return;
        }
        if let Some(byte) = self.bitmap.get_mut(index / 8) {
            *byte |= 1 << (index % 8);
            self.missing -= 1;
        }
    }

    /// Whether all are there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// As a have tells them: chunk `i` is bit `i % 8` of byte `i / 8`.
    #[must_use]
    pub fn bitmap(&self) -> &[u8] {
        &self.bitmap
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use moai_transport::chunk;
    use moai_transport::ids::{ContextId, SessionId};
    use moai_transport::keys::SessionSigningKey;
    use proptest::prelude::*;

    use super::*;

    fn key(robot: &str) -> SessionKey {
        let identity = format!("acme.{robot}").parse().unwrap();
        SessionKey { identity, session: SessionId::new(1, [3; 10]) }
    }

    fn record() -> Record {
        let context = ContextId(Digest([1; 32]));
        let session_key = SessionSigningKey::from_seed(&[1; 32]).public();
        let ttl = Duration::from_mins(5);
        let manifest = chunk::manifest(context, ttl, session_key, &vec![7; 300_000], 9).unwrap();
        let attested = Some(Digest([2; 32]));
        let expires_at = UnixMillis(1_800_000_000_000);
        let opens_until = expires_at + Duration::from_mins(5);
        Record { manifest, open_number: 3, expires_at, opens_until, attested, registered: true }
    }

    #[test]
    fn a_record_comes_back_under_its_own_name_only() {
        let bytes = record().encode(&key("r1")).unwrap();
        assert_eq!(Record::decode(&key("r1"), &bytes), Some(record()));
        assert_eq!(Record::decode(&key("r2"), &bytes), None);
    }

    #[test]
    fn a_later_open_of_the_same_keys_never_prolongs_and_of_other_keys_is_another_session() {
        let old = record();
        let mut newer = Record { open_number: 4, attested: None, registered: false, ..record() };
        newer.expires_at = old.expires_at + Duration::from_secs(1);
        let continued = old.continued(&newer).unwrap();
        assert_eq!(continued, Record { open_number: 4, ..record() });
        let mut other = newer.clone();
        other.manifest.key_digest = Digest([9; 32]);
        assert_eq!(old.continued(&other), None);
        newer.manifest.session_key = SessionSigningKey::from_seed(&[2; 32]).public();
        assert_eq!(old.continued(&newer), None);
    }

    #[test]
    fn chunks_are_counted_once_and_only_if_they_exist() {
        let mut held = Held::these(10, [0, 9, 9, 10, 1000]);
        assert_eq!(held.bitmap(), [0b0000_0001, 0b0000_0010]);
        (0..10).for_each(|index| held.insert(index));
        assert!(held.is_complete());
        assert_eq!(held.bitmap(), [0xff, 0b11]);
    }

    #[test]
    fn a_session_has_one_full_name() {
        let name = key("r1").to_string();
        assert_eq!(name.parse(), Ok(key("r1")));
        for wrong in ["", "acme.r1", "acme.r1.x", &name.to_uppercase(), &format!("{name}.keys")] {
            assert!(wrong.parse::<SessionKey>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_torn_record_is_none(cut in 0_usize..500, flip in any::<prop::sample::Index>()) {
            let mut bytes = record().encode(&key("r1")).unwrap();
            let whole = bytes.len();
            bytes.truncate(whole - cut.min(whole));
            if cut == 0 {
                let place = flip.index(whole);
                bytes[place] ^= 1;
            }
            prop_assert_eq!(Record::decode(&key("r1"), &bytes), None);
        }

        #[test]
        fn anything_is_no_record(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Record::decode(&key("r1"), &bytes), None);
        }
    }
}
