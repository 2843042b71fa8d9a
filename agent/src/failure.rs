//! Why the agent ended the last time, for `moai-agent status` when none runs.
//!
//! Invariants: the file says what standard error said, and nothing secret; it goes away as soon as
//! an agent is ready.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Name of the file in the state directory.
pub const FAILURE_FILE: &str = "last-failure.json";
const MAX_LEN: usize = 64 * 1024;

/// An agent that ended with an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFailure {
    /// When, in seconds of Unix time, as far as the robot knew.
    pub at: u64,
    /// Cause and remedy.
    pub message: String,
    /// What the process ended with.
    pub exit_code: u8,
}

impl LastFailure {
    /// What is kept of it; `None` if the last agent was ready once, or there was none.
    #[must_use]
    pub fn load(state: &Path) -> Option<Self> {
        let bytes = crate::custody::files::read_capped(&state.join(FAILURE_FILE), MAX_LEN).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Keeps it. That may fail, as the failure may be that of the disk: standard error has it anyway.
    pub(crate) fn keep(&self, state: &Path) {
        let kept = serde_json::to_vec(self)
            .map_err(std::io::Error::other)
            .and_then(|json| std::fs::write(state.join(FAILURE_FILE), json));
        if let Err(error) = kept {
            tracing::warn!(%error, "{FAILURE_FILE} cannot be written");
        }
    }

    /// An agent is ready.
    pub(crate) fn forget(state: &Path) {
        // Most of the time there is none.
        let _ = std::fs::remove_file(state.join(FAILURE_FILE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_kept_until_it_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(LastFailure::load(state.path()), None);
        let failure = LastFailure { at: 7, message: "no TPM".to_owned(), exit_code: 77 };
        failure.keep(state.path());
        assert_eq!(LastFailure::load(state.path()), Some(failure));
        LastFailure::forget(state.path());
        assert_eq!(LastFailure::load(state.path()), None);
    }

    #[test]
    fn a_file_that_is_none_is_ignored() {
        let state = tempfile::tempdir().unwrap();
        for bytes in [&b"{}"[..], b"", &vec![b'['; MAX_LEN * 2]] {
            std::fs::write(state.path().join(FAILURE_FILE), bytes).unwrap();
            assert_eq!(LastFailure::load(state.path()), None);
        }
    }
}
