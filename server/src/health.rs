//! Whether a worker moves and the broker has it: a file that it writes, and `moai-server health` reads.
//!
//! Invariants:
//! - the file is replaced in one step, so whoever reads it sees a whole word;
//! - a worker that stands still writes nothing, and what it wrote last grows stale.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A worker that wrote nothing for so long stands still; it writes every second.
const MAX_AGE: Duration = Duration::from_secs(15);
const CONNECTED: &str = "connected";
const DISCONNECTED: &str = "disconnected";

/// What a worker shows of its health.
pub struct Beacon {
    path: PathBuf,
    is_connected: bool,
    has_failed: bool,
}

impl Beacon {
    /// Nothing is written yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, is_connected: false, has_failed: false }
    }

    /// Notes whether the broker has the worker, and writes.
    pub(crate) fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.beat();
    }

    /// Writes: the worker moves.
    pub(crate) fn beat(&mut self) {
        let word = if self.is_connected { CONNECTED } else { DISCONNECTED };
        let new = self.path.with_added_extension("new");
        let written = fs::write(&new, word).and_then(|()| fs::rename(&new, &self.path));
        if let Err(error) = &written
            && !self.has_failed
        {
            tracing::error!(%error, path = %self.path.display(), "the health file cannot be written");
        }
        self.has_failed = written.is_err();
    }
}

/// Why a worker is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// It never wrote.
    #[error("no worker has written {}: {source}", path.display())]
    Silent {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It writes no more.
    #[error("the worker stands still: it last moved {} s ago", .0.as_secs())]
    Still(Duration),
    /// The broker does not have it.
    #[error("the worker has no connection to its broker; its log says why")]
    Disconnected,
}

/// Whether the worker that writes this file moves at `now`, and, with `connected`, whether its broker
/// has it.
///
/// # Errors
/// It does not.
pub fn check(path: &Path, now: SystemTime, connected: bool) -> Result<(), Unhealthy> {
    let silent = |source| Unhealthy::Silent { path: path.to_owned(), source };
    let written = fs::metadata(path).and_then(|facts| facts.modified()).map_err(silent)?;
    // A clock that was set back makes no worker stand still.
    let age = now.duration_since(written).unwrap_or_default();
    if age > MAX_AGE {
        return Err(Unhealthy::Still(age));
    }
    let word = fs::read_to_string(path).map_err(silent)?;
    if connected && word != CONNECTED { Err(Unhealthy::Disconnected) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_alive_while_it_writes_and_ready_while_its_broker_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("health");
        let mut beacon = Beacon::new(path.clone());
        let now = SystemTime::now();
        assert!(matches!(check(&path, now, false), Err(Unhealthy::Silent { .. })));
        beacon.beat();
        assert!(check(&path, now, false).is_ok());
        assert!(matches!(check(&path, now, true), Err(Unhealthy::Disconnected)));
        beacon.set_connected(true);
        assert!(check(&path, now, true).is_ok());
        let late = now + MAX_AGE + Duration::from_secs(5);
        for connected in [false, true] {
            assert!(matches!(check(&path, late, connected), Err(Unhealthy::Still(_))));
        }
        beacon.set_connected(false);
        assert!(matches!(check(&path, now, true), Err(Unhealthy::Disconnected)));
    }
}
