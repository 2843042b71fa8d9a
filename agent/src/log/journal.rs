//! Events as entries of systemd's journal, with their fields:
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
//!
//! Invariants:
//! - an event is one entry: a text for people that has everything, and each field by itself, as
//!   `MOAI_` and its name;
//! - no value can pass for a field: one with line breaks goes with its length;
//! - a journal that takes nothing costs the entry, and holds nothing up for long.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const SOCKET: &str = "/run/systemd/journal/socket";
const IDENTIFIER: &str = "moai-agent";
const PREFIX: &str = "MOAI_";
/// How long the journal may take for an entry.
const PATIENCE: Duration = Duration::from_millis(100);
/// An entry is one datagram, of which the kernel takes no more than some 200 KiB.
const MAX_VALUE_LEN: usize = 8 * 1024;
/// What the bridge from the crate `log` says of an event's origin.
const BRIDGE: &str = "log.";

/// Whether standard error is a stream to the journal, as systemd says in `JOURNAL_STREAM`.
pub(super) fn has_stderr() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Sends events to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// # Errors
    /// There is no socket to be had, or no journal.
    pub(super) fn open() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let journal = Self { socket, path: path.to_owned() };
        // An entry without fields is none, and taken all the same.
        journal.send(&[])?;
        Ok(journal)
    }

    fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send_to(entry, &self.path).map(drop)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = Entry::default();
        event.record(&mut entry);
        entry.field("PRIORITY", priority(*metadata.level()));
        entry.field("SYSLOG_IDENTIFIER", IDENTIFIER);
        if !entry.has_target {
            entry.field("MOAI_TARGET", metadata.target());
        }
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            entry.field("CODE_FILE", file);
            entry.field("CODE_LINE", &line.to_string());
        }
        // Whoever cannot log has nowhere to say so.
        let _ = self.send(&entry.finish());
    }
}

/// As `syslog(3)` numbers them.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

#[derive(Default)]
struct Entry {
    bytes: Vec<u8>,
    message: String,
    /// The fields, behind the message.
    rest: String,
    has_target: bool,
}

impl Entry {
    fn field(&mut self, name: &str, value: &str) {
        let value = capped(value);
        self.bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }

    fn take(&mut self, name: &str, value: &str) {
        if name == "message" {
            value.clone_into(&mut self.message);
        } else if let Some(name) = name.strip_prefix(BRIDGE) {
            if name == "target" {
                self.has_target = true;
                self.field("MOAI_TARGET", value);
            }
        } else {
            // Writing to a String cannot fail.
            let _ = write!(self.rest, " {name}={value}");
            self.field(&field_name(name), value);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let text = format!("{}{}", self.message, self.rest);
        self.field("MESSAGE", text.trim_start());
        self.bytes
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field.name(), &format!("{value:?}"));
    }
}

fn capped(value: &str) -> &str {
    &value[..value.floor_char_boundary(MAX_VALUE_LEN)]
}

/// Capital letters, digits and underscores are what the journal takes.
fn field_name(name: &str) -> String {
    let letter = |letter: char| {
        if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' }
    };
    PREFIX.chars().chain(name.chars().map(letter)).collect()
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// What the journal is sent meanwhile.
    fn sent(log: impl FnOnce()) -> Vec<Vec<u8>> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_nonblocking(true).unwrap();
        let layer = Journal::at(&path).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let mut entries = Vec::new();
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(length) = journal.recv(&mut buffer) {
            entries.push(buffer[..length].to_vec());
        }
        // What was tried at the start.
        assert_eq!(entries.remove(0), b"");
        entries
    }

    fn fields(entry: &[u8]) -> Vec<&str> {
        std::str::from_utf8(entry).unwrap().lines().collect()
    }

    #[test]
    fn an_event_is_an_entry_with_a_text_for_people_and_its_fields() {
        let entries = sent(|| {
            tracing::warn!(task = "arm", error = %"gone: away", number = 7, "inputs are disconnected");
            tracing::debug!(session.id = ?Some(1), "");
        });
        let [first, second] = &entries[..] else { panic!("two entries") };
        let first = fields(first);
        for field in [
            "MESSAGE=inputs are disconnected task=arm error=gone: away number=7",
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=moai-agent",
            "MOAI_TASK=arm",
            "MOAI_ERROR=gone: away",
            "MOAI_NUMBER=7",
            "MOAI_TARGET=moai_agent::log::journal::tests",
        ] {
            assert!(first.contains(&field), "{field} is not in {first:?}");
        }
        let second = fields(second);
        for field in ["MESSAGE=session.id=Some(1)", "PRIORITY=7", "MOAI_SESSION_ID=Some(1)"] {
            assert!(second.contains(&field), "{field} is not in {second:?}");
        }
    }

    #[test]
    fn a_value_with_line_breaks_begins_no_field_of_its_own() {
        let value = "line\nPRIORITY=0";
        let entries = sent(|| tracing::info!(value, "message"));
        let entry = &entries[0];
        let at = entry.windows(11).position(|bytes| bytes == b"MOAI_VALUE\n").unwrap() + 11;
        let (length, rest) = entry[at..].split_at(8);
        assert_eq!(length, (value.len() as u64).to_le_bytes());
        assert_eq!(&rest[..=value.len()], format!("{value}\n").as_bytes());
    }

    #[test]
    fn a_long_value_is_cut_between_two_characters() {
        let long = "ä".repeat(MAX_VALUE_LEN);
        let entries = sent(|| tracing::info!(x = 1, "a{long}"));
        let lines = fields(&entries[0]);
        let message = lines.iter().find_map(|line| line.strip_prefix("MESSAGE=")).unwrap();
        assert_eq!(message.len(), MAX_VALUE_LEN - 1);
    }

    #[test]
    fn without_a_journal_there_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(Journal::at(&scratch.path().join("socket")).is_err());
    }
}
