//! What a person asks of the running agent's tasks and sessions.

use std::io::{BufRead as _, Write as _};

use anyhow::{Result, bail};

use super::arguments::{Session, Task};
use super::{print, runtime};
use crate::config::Config;
use crate::control::{self, Request};
use crate::status_table;

/// What has to be typed before an emergency.
const WORD: &str = "emergency";

pub(super) fn task(config: &Config, command: &Task) -> Result<()> {
    let socket = &config.control_socket;
    match command {
        Task::List => {
            let status = runtime()?.block_on(control::status(socket))?;
            print(&status_table::tasks(&status))
        }
        Task::Rotate { task } => {
            let request = Request::RotateTask { task: task.clone() };
            runtime()?.block_on(control::order(socket, request))?;
            print(&format!("{task} goes on with new keys as soon as they are ready."))
        }
        Task::Close { task } => {
            let request = Request::CloseTask { task: task.clone() };
            runtime()?.block_on(control::order(socket, request))?;
            print(&format!("{task} takes nothing more and ends when what waits is answered."))
        }
        Task::Revoke { task, stay_closed } => {
            revoke(config, Request::RevokeTask { task: task.clone(), stay_closed: *stay_closed })
        }
    }
}

pub(super) fn session(config: &Config, command: &Session) -> Result<()> {
    let Session::Revoke { session } = command;
    revoke(config, Request::RevokeSession { session: session.clone() })
}

fn revoke(config: &Config, request: Request) -> Result<()> {
    let revoked = runtime()?.block_on(control::revoke(&config.control_socket, request))?;
    print(&format!("Revoked, the keys are gone: {}.", revoked.sessions.join(", ")))
}

pub(super) fn emergency(config: &Config, yes: bool, stay_closed: bool) -> Result<()> {
    if !yes && !confirmed()? {
        bail!("nothing was done");
    }
    let report = runtime()?.block_on(control::emergency(&config.control_socket, stay_closed))?;
    let after =
        if stay_closed { "All tasks are closed." } else { "Tasks go on with new sessions." };
    print(&format!(
        "Sessions revoked: {}; their keys are gone. Key sets made ahead and destroyed: {}. Epoch {} \
         is in force. {after}",
        report.sessions.len(),
        report.warm,
        report.rotated.epoch
    ))
}

/// Asks on standard error, so that standard output has what was asked for only.
fn confirmed() -> Result<bool> {
    eprint!(
        "Every session of this robot ends now, and jobs that wait are lost. Type \"{WORD}\" to go \
         on: "
    );
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == WORD)
}
