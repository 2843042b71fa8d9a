//! The manual of the agent's command line: man pages and completions of shells.
//!
//! Invariant: it follows from the command line alone, so that whoever generates it gets the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::repository;

const NAME: &str = "moai-agent";

/// What the page of the whole program has at its end.
const FILES: &str = r".SH FILES
.TP
\fI/etc/moai\-agent/agent.toml\fR
The configuration.
.TP
\fI/etc/moai\-agent/policies.d\fR
Signed boot policies.
.TP
\fI/var/lib/moai\-agent\fR
The sealed root secret, sessions, jobs that wait, the audit log.
.TP
\fI/run/moai\-agent/control.sock\fR
Where the running agent is asked.
.SH SEE ALSO
systemctl(1), journalctl(1), mosquitto(8)
";

/// Where it is kept.
#[must_use]
pub fn directory() -> PathBuf {
    repository().join("docs/cli")
}

/// The files, by their names.
///
/// # Errors
/// A page cannot be written.
pub fn files() -> Result<BTreeMap<String, Vec<u8>>> {
    // A page for `help` would say nothing.
    let mut command = moai_agent::cli::command().disable_help_subcommand(true);
    command.build();
    let mut files = BTreeMap::new();
    pages(&command, &mut files)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, NAME, &mut script);
        let name = match shell {
            Shell::Zsh => format!("_{NAME}"),
            shell => format!("{NAME}.{shell}"),
        };
        // The generator for bash reads the dash of a program's name as the start of a subcommand, but
        // only in every second place.
        let script = String::from_utf8(script)?.replace("moai__subcmd__agent", "moai__agent");
        files.insert(name, script.into_bytes());
    }
    Ok(files)
}

/// The page of a command, and those of its subcommands.
fn pages(command: &Command, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for subcommand in command.get_subcommands() {
        pages(subcommand, files)?;
    }
    let source = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    let page = Man::new(command.clone()).source(source).manual(NAME);
    let mut text = Vec::new();
    page.render(&mut text)?;
    // What a command says at the end of its help.
    let mut text = String::from_utf8(text)?.replace(".SH EXTRA", ".SH NOTES");
    if command.get_name() == NAME {
        text = text.replace(".SH NOTES\nExit status:", ".SH EXIT STATUS");
        text.push_str(FILES);
    }
    files.insert(page.get_filename(), text.into_bytes());
    Ok(())
}
