//! Ports that stay ours.
//!
//! Invariants:
//! - a reserved port lies below the ephemeral range, so that while its server is down no outgoing
//!   connection takes it as its source port (restarts on the same port must work);
//! - two tests, also of different processes, never hold the same port: each has a locked file.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

const FIRST: u16 = 20_000;
const PAIRS: u16 = 6_000;

/// Two neighbouring free TCP ports on loopback, reserved until dropped.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    _lock: File,
}

impl Ports {
    /// Reserves a pair.
    ///
    /// # Errors
    /// All pairs are taken, or the directory of the lock files cannot be written.
    pub fn reserve() -> Result<Self> {
        let user = rustix::process::getuid().as_raw();
        let directory = std::env::temp_dir().join(format!("moai-ports-{user}"));
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        // Processes start looking at different places, so that they seldom try the same one.
        let start = u16::try_from(std::process::id() % u32::from(PAIRS)).unwrap_or(0);
        for step in 0..PAIRS {
            let first = FIRST + 2 * ((start + step) % PAIRS);
            let lock = File::create(directory.join(first.to_string()))?;
            match lock.try_lock() {
                Ok(()) if is_free(first) && is_free(first + 1) => {
                    return Ok(Self { first, _lock: lock });
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        bail!("no two neighbouring TCP ports are free between {FIRST} and {}", FIRST + 2 * PAIRS)
    }

    /// The first port of the pair.
    #[must_use]
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The port after it.
    #[must_use]
    pub fn second(&self) -> u16 {
        self.first + 1
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
