//! Which opens were seen, so that none is obeyed twice.
//!
//! Invariants:
//! - the numbers of a session's opens only grow; an open that is not above the newest is a replay;
//! - a session that its robot deleted is not opened again;
//! - a name is kept until no open of it that was seen can be fresh any more, however the clocks
//!   differ: from then on their expiry refuses them;
//! - the table is bounded by what robots can open and sessions there are to delete, and a full one
//!   refuses newcomers instead of forgetting anybody.

use std::collections::HashMap;

use moai_transport::frame::{CLOCK_ALLOWANCE, MAX_OPEN_LIFETIME};
use moai_transport::message::ErrorCode;

use crate::refusal::Refused;
use crate::sessions::SessionKey;

const MAX_NAMES: usize = 65_536;

struct Seen {
    newest: u64,
    /// Until when the frames are good, in seconds since 1970; the clocks' allowance comes on top.
    expires_at: u64,
    deleted: bool,
}

/// The opens of all sessions that may still be fresh.
#[derive(Default)]
pub(crate) struct Opens(HashMap<SessionKey, Seen>);

impl Opens {
    /// Takes note of an open whose signature and expiry were checked, or refuses it.
    pub(crate) fn admit(
        &mut self,
        key: &SessionKey,
        number: u64,
        expires_at: u64,
    ) -> Result<(), Refused> {
        let replayed = |message: String| Err(Refused(ErrorCode::Replayed, message));
        if let Some(seen) = self.0.get_mut(key) {
            if seen.deleted {
                return replayed("the session was deleted; open another".to_owned());
            }
            if number <= seen.newest {
                let newest = seen.newest;
                return replayed(format!("open {number} comes after open {newest} of its session"));
            }
            seen.newest = number;
            seen.expires_at = seen.expires_at.max(expires_at);
            return Ok(());
        }
        if self.0.len() >= MAX_NAMES {
            let message = "too many sessions were opened lately".to_owned();
            return Err(Refused(ErrorCode::Busy, message));
        }
        self.0.insert(key.clone(), Seen { newest: number, expires_at, deleted: false });
        Ok(())
    }

    /// The robot deleted the session at `now`, in seconds since 1970: no open of it counts any more,
    /// not even one that is still on its way.
    pub(crate) fn delete(&mut self, key: &SessionKey, now: u64) {
        let expires_at = now.saturating_add(MAX_OPEN_LIFETIME.as_secs());
        let seen = Seen { newest: u64::MAX, expires_at, deleted: true };
        self.0.insert(key.clone(), seen);
    }

    /// Forgets what is over at `now`, in seconds since 1970.
    pub(crate) fn expire(&mut self, now: u64) {
        let allowance = CLOCK_ALLOWANCE.as_secs();
        self.0.retain(|_, seen| seen.expires_at.saturating_add(allowance) > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moai_transport::ids::SessionId;

    const ALLOWANCE: u64 = CLOCK_ALLOWANCE.as_secs();

    fn key(session: u8) -> SessionKey {
        SessionKey {
            identity: "acme.r1".parse().unwrap(),
            session: SessionId::new(1, [session; 10]),
        }
    }

    fn code(outcome: Result<(), Refused>) -> Option<ErrorCode> {
        outcome.err().map(|Refused(code, _)| code)
    }

    #[test]
    fn numbers_only_grow_and_each_session_has_its_own() {
        let mut opens = Opens::default();
        for number in [1, 2, 1 << 32, u64::MAX] {
            assert_eq!(code(opens.admit(&key(1), number, 100)), None);
            for replayed in [number, 1] {
                let refused = opens.admit(&key(1), replayed, 100);
                assert_eq!(code(refused), Some(ErrorCode::Replayed), "{replayed} after {number}");
            }
        }
        assert_eq!(code(opens.admit(&key(2), 1, 100)), None);
    }

    #[test]
    fn a_deleted_session_stays_so_until_its_opens_have_expired_for_everybody() {
        let mut opens = Opens::default();
        assert_eq!(code(opens.admit(&key(1), 1, 200)), None);
        opens.delete(&key(1), 100);
        // One whose opens were forgotten, or went to another worker, and that may have one on its way.
        opens.delete(&key(2), 100);
        let last = 100 + MAX_OPEN_LIFETIME.as_secs() + ALLOWANCE;
        opens.expire(last - 1);
        for key in [key(1), key(2)] {
            assert_eq!(code(opens.admit(&key, 3, 1000)), Some(ErrorCode::Replayed));
        }
        opens.expire(last);
        assert_eq!(code(opens.admit(&key(1), 3, 1000)), None);
    }

    #[test]
    fn a_name_is_kept_as_long_as_the_longest_of_its_opens() {
        let mut opens = Opens::default();
        assert_eq!(code(opens.admit(&key(1), 1, 200)), None);
        assert_eq!(code(opens.admit(&key(1), 2, 100)), None);
        opens.expire(200 + ALLOWANCE - 1);
        assert_eq!(code(opens.admit(&key(1), 1, 200)), Some(ErrorCode::Replayed));
        opens.expire(200 + ALLOWANCE);
        assert_eq!(code(opens.admit(&key(1), 1, 1000)), None);
    }

    #[test]
    fn a_full_table_refuses_newcomers_and_forgets_nobody() {
        let mut opens = Opens::default();
        for index in 0..MAX_NAMES {
            let mut random = [0; 10];
            random[..8].copy_from_slice(&index.to_be_bytes());
            // Two bits of the random part give way to the UUID's variant.
            let key = SessionKey { session: SessionId::new(index as u64, random), ..key(0) };
            assert_eq!(code(opens.admit(&key, 1, 100)), None);
        }
        assert_eq!(code(opens.admit(&key(9), 1, 100)), Some(ErrorCode::Busy));
        opens.expire(100 + ALLOWANCE);
        assert_eq!(code(opens.admit(&key(9), 1, 200)), None);
    }
}
