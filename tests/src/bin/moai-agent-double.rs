//! The agent with what tests change about it, in place of `moai-agent`.
//!
//! - `MOAI_TEST_UNPROTECTED=1`: memory is not protected. This program wipes no freed heap in any case:
//!   it installs no zeroizing allocator.
//! - `MOAI_TEST_KILL_AT=STEP`: kill -9 as soon as a rotation's step (`sealed`, `vault`, `renamed` or
//!   `retired`) is durable, or a job's outcome is `decided` or `published`.

use std::process::ExitCode;

use moai_agent::cli::{self, Hooks};
use rustix::process::{Signal, getpid, kill_process};

fn main() -> ExitCode {
    let unprotected = std::env::var_os("MOAI_TEST_UNPROTECTED").is_some_and(|value| value == "1");
    cli::main(&Hooks {
        protect_memory: !unprotected,
        rotation_step: |step| kill_at(&step.to_string()),
        release_step: |step| kill_at(&step.to_string()),
    })
}

fn kill_at(step: &str) {
    if std::env::var_os("MOAI_TEST_KILL_AT").is_some_and(|wanted| wanted == *step) {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    }
}
