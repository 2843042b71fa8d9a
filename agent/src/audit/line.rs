//! One entry of the log: a line of JSON that is chained to the one before and bears a MAC.
//!
//! ```text
//! {"sequence":7,"time":1764096000,"boot":"…","event":"agent_started","version":"0.1.0",
//!  "previous":"SHA-256 of the line before","mac":"HMAC-SHA256 of all of the line before `,"mac"`"}
//! ```
//!
//! Invariants:
//! - a line is authenticated before it is parsed, on its exact bytes;
//! - reading never panics, whatever the bytes.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::event::AuditEvent;
use super::seal::AuditKey;

/// No entry is longer; what is, is none.
pub(super) const MAX_LINE_LEN: usize = 4096;

const MAC_START: &[u8] = b",\"mac\":\"";
const MAC_END: &[u8] = b"\"}";
const MAC_LEN: usize = 64;

/// SHA-256 of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineHash(pub(super) [u8; 32]);

impl LineHash {
    /// What the first line of all is chained to.
    pub(super) const NONE: Self = Self([0; 32]);

    pub(super) fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }
}

/// When and where an entry is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp<'a> {
    pub(super) unix_seconds: u64,
    pub(super) boot: &'a str,
}

#[derive(Serialize)]
struct Entry<'a> {
    sequence: u64,
    time: u64,
    boot: &'a str,
    #[serde(flatten)]
    event: &'a AuditEvent,
    previous: String,
}

/// An entry's place in the chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) previous: LineHash,
}

#[derive(Deserialize)]
struct Place {
    sequence: u64,
    previous: String,
}

/// Writes an entry, without its line feed.
///
/// # Errors
/// It cannot be written as JSON, or is longer than an entry may be.
pub(super) fn write(
    key: &AuditKey,
    sequence: u64,
    stamp: Stamp<'_>,
    event: &AuditEvent,
    previous: LineHash,
) -> Result<Vec<u8>, serde_json::Error> {
    let entry = Entry {
        sequence,
        time: stamp.unix_seconds,
        boot: stamp.boot,
        event,
        previous: hex::encode(previous.0),
    };
    let mut line = serde_json::to_vec(&entry)?;
    if line.len() + MAC_START.len() + MAC_LEN + MAC_END.len() > MAX_LINE_LEN {
        return Err(serde::ser::Error::custom("the entry is too long"));
    }
    // The MAC takes the place of the closing brace.
    line.pop();
    let mac = hex::encode(hmac(key, &line).finalize().into_bytes());
    line.extend_from_slice(MAC_START);
    line.extend_from_slice(mac.as_bytes());
    line.extend_from_slice(MAC_END);
    Ok(line)
}

/// The exact bytes that are authenticated, and their MAC; `None` if the line has another form.
fn split(line: &[u8]) -> Option<(&[u8], [u8; 32])> {
    let rest = line.strip_suffix(MAC_END)?;
    let (rest, mac) = rest.split_at_checked(rest.len().checked_sub(MAC_LEN)?)?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(mac, &mut bytes).ok()?;
    // One line has one form.
    let lower = !mac.iter().any(u8::is_ascii_uppercase);
    Some((rest.strip_suffix(MAC_START).filter(|_| lower)?, bytes))
}

/// Whether `key` made the line's MAC.
pub(super) fn is_authentic(key: &AuditKey, line: &[u8]) -> bool {
    if line.len() > MAX_LINE_LEN {
        return false;
    }
    split(line).is_some_and(|(signed, mac)| hmac(key, signed).verify_slice(&mac).is_ok())
}

/// Parses an authentic line.
pub(super) fn parse(line: &[u8]) -> Option<Link> {
    let Place { sequence, previous } = serde_json::from_slice(line).ok()?;
    let mut hash = [0; 32];
    hex::decode_to_slice(previous, &mut hash).ok()?;
    Some(Link { sequence, previous: LineHash(hash) })
}

fn hmac(key: &AuditKey, bytes: &[u8]) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
    mac.update(bytes);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(sequence: u64) -> Vec<u8> {
        let key = AuditKey::from_bytes([1; 32]);
        let stamp = Stamp { unix_seconds: 1_764_096_000, boot: "boot" };
        write(&key, sequence, stamp, &AuditEvent::AgentStopped, LineHash([7; 32])).unwrap()
    }

    #[test]
    fn a_line_is_json_with_its_place_in_the_chain() {
        let line = line(7);
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(json["event"], "agent_stopped");
        assert_eq!(json["time"], 1_764_096_000);
        assert_eq!(parse(&line), Some(Link { sequence: 7, previous: LineHash([7; 32]) }));
    }

    #[test]
    fn a_changed_byte_and_another_key_are_noticed() {
        let line = line(7);
        let key = AuditKey::from_bytes([1; 32]);
        assert!(is_authentic(&key, &line));
        assert!(!is_authentic(&AuditKey::from_bytes([2; 32]), &line));
        for index in 0..line.len() {
            for bit in 0..8 {
                let mut changed = line.clone();
                changed[index] ^= 1 << bit;
                assert!(!is_authentic(&key, &changed), "bit {bit} of byte {index}");
            }
            assert!(!is_authentic(&key, &line[..index]));
        }
    }

    #[test]
    fn an_endless_text_is_no_entry() {
        let key = AuditKey::from_bytes([1; 32]);
        let event = AuditEvent::SpoolDamaged { problem: "x".repeat(MAX_LINE_LEN) };
        let stamp = Stamp { unix_seconds: 0, boot: "boot" };
        assert!(write(&key, 1, stamp, &event, LineHash::NONE).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>) {
            let _ = is_authentic(&AuditKey::from_bytes([1; 32]), &line);
            let _ = parse(&line);
        }
    }
}
