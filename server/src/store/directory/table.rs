//! What a store in a directory has, in memory.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use moai_transport::ids::Tenant;

use super::files::{RECORD, Whole, discard, understand, unusable};
use crate::store::{Held, Record, SessionKey, StoreError, UnixMillis, Usage};

#[derive(Default)]
pub(super) struct Table {
    pub(super) open: HashMap<SessionKey, Entry>,
    pub(super) ended: HashMap<SessionKey, UnixMillis>,
}

pub(super) struct Entry {
    pub(super) record: Record,
    /// None until the file was looked at.
    pub(super) held: Option<Held>,
}

/// What a session is whose files are there.
pub(super) enum State {
    Open,
    /// Its time is over, and nobody has swept it.
    Ended,
    /// So is that of its opens.
    Forgotten,
}

impl Entry {
    pub(super) fn state(&self, now: UnixMillis) -> State {
        if self.record.expires_at > now {
            State::Open
        } else if self.record.opens_until > now {
            State::Ended
        } else {
            State::Forgotten
        }
    }
}

impl Table {
    /// What a tenant keeps; of `except`, nothing counts.
    pub(super) fn usage(
        &self,
        tenant: &Tenant,
        except: Option<&SessionKey>,
        now: UnixMillis,
    ) -> Usage {
        let mut usage = Usage::default();
        for (key, entry) in &self.open {
            if key.identity.tenant != *tenant || Some(key) == except {
                continue;
            }
            match entry.state(now) {
                State::Open => {
                    usage.sessions += 1;
                    usage.bytes = usage.bytes.saturating_add(entry.record.manifest.key_len);
                }
                State::Ended => usage.tombstones += 1,
                State::Forgotten => {}
            }
        }
        let ended = self.ended.iter();
        let ended = ended.filter(|(key, until)| key.identity.tenant == *tenant && **until > now);
        usage.tombstones += ended.count() as u64;
        usage
    }
}

/// Reads what an earlier run left, and removes what is not whole.
pub(super) fn read_table(sessions: &Path) -> Result<Table, StoreError> {
    let mut table = Table::default();
    let mut keys = Vec::new();
    for entry in fs::read_dir(sessions).map_err(|error| unusable(sessions, &error))? {
        let path = entry.map_err(|error| unusable(sessions, &error))?.path();
        match understand(&path) {
            Some(Whole::Record(key, record)) => {
                table.open.insert(key, Entry { record, held: None });
            }
            Some(Whole::Ended(key, until)) => {
                table.ended.insert(key, until);
            }
            Some(Whole::Keys(key)) => keys.push((key, path)),
            None => discard(&path)?,
        }
    }
    // A tombstone is written before its record goes: where both are, the session has ended.
    for key in table.ended.keys() {
        if table.open.remove(key).is_some() {
            discard(&sessions.join(format!("{key}.{RECORD}")))?;
        }
    }
    for (key, path) in keys {
        if !table.open.contains_key(&key) {
            discard(&path)?;
        }
    }
    Ok(table)
}
