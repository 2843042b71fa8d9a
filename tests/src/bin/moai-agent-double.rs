//! The agent with what tests change about it, in place of `moai-agent`.
//!
//! - `MOAI_TEST_UNPROTECTED=1`: memory is not protected. This program wipes no freed heap in any case:
//!   it installs no zeroizing allocator.
//! - `MOAI_TEST_KILL_AT=STEP`: kill -9 as soon as a rotation's step (`sealed`, `vault`, `renamed` or
//!   `retired`) is durable, or a job's outcome is `decided` or `published`.
//! - `MOAI_TEST_CLOCK=FILE`: the wall clock is ahead by so many seconds as the file says, if it is
//!   there.
//! - `MOAI_TEST_ENGINE=tiny`: sessions get the engine of [`moai_tests::tiny`] instead of one with real
//!   keys.
//! - `MOAI_TEST_HANG=FILE`: as long as the file names a part that the watchdog guards, that part hangs.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use moai_agent::cli::{self, Hooks};
use moai_agent::clock::{BootInstant, Clock, SystemClock};
use moai_agent::engines::{Engines, FheEngines};
use moai_tests::tiny::TinyEngines;
use rustix::process::{Signal, getpid, kill_process};

fn main() -> ExitCode {
    let unprotected = std::env::var_os("MOAI_TEST_UNPROTECTED").is_some_and(|value| value == "1");
    cli::main(&Hooks {
        protect_memory: !unprotected,
        rotation_step: |step| kill_at(&step.to_string()),
        release_step: |step| kill_at(&step.to_string()),
        pulse: hang,
        clock: || Arc::new(WrongClock),
        engines,
    })
}

fn engines() -> Arc<dyn Engines> {
    if std::env::var_os("MOAI_TEST_ENGINE").is_some_and(|value| value == "tiny") {
        Arc::new(TinyEngines)
    } else {
        Arc::new(FheEngines)
    }
}

/// Blocks the part's thread.
fn hang(part: &str) {
    let Some(path) = std::env::var_os("MOAI_TEST_HANG") else { return };
    while std::fs::read_to_string(&path).is_ok_and(|named| named == part) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill_at(step: &str) {
    if std::env::var_os("MOAI_TEST_KILL_AT").is_some_and(|wanted| wanted == *step) {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    }
}

/// A wall clock that can be set while the agent runs.
struct WrongClock;

impl Clock for WrongClock {
    fn boot(&self) -> BootInstant {
        SystemClock.boot()
    }

    fn unix(&self) -> Duration {
        let ahead = std::env::var_os("MOAI_TEST_CLOCK")
            .and_then(|path| std::fs::read_to_string(path).ok())
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0_i64);
        let right = SystemClock.unix();
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { right.saturating_sub(by) } else { right + by }
    }

    fn is_trusted(&self) -> bool {
        SystemClock.is_trusted()
    }
}
