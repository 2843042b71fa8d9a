//! Under systemd the agent's log is entries of the journal.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_tests::process::{Launch, STEP, binary, program};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;

use crate::stage::{ARM, start};

/// Gives a program a `/run` of its own, and says of its standard error that it is the journal's.
const UNDER_SYSTEMD: &str = "mount --bind \"$1\" /run && shift && \
                             export JOURNAL_STREAM=\"$(stat -L -c %d:%i /dev/stderr)\" && exec \"$@\"";

/// The fields of an entry whose values have no line breaks.
fn fields(entry: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(entry);
    let fields = text.lines().filter_map(|line| line.split_once('='));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_an_entry_of_the_journal_and_nothing_goes_to_standard_error() -> Result<()> {
    let stage = start(World::builder().agent_stopped().log_level("info")).await?;
    let run = stage.directory().join("run");
    std::fs::create_dir_all(run.join("systemd/journal"))?;
    let journal = UnixDatagram::bind(run.join("systemd/journal/socket"))?;
    let config = stage.robot.agent.config_file();
    // Whoever is not root is so in a namespace.
    let is_root = rustix::process::geteuid().is_root();
    let user: &[&str] = if is_root { &[] } else { &["--user", "--map-root-user"] };
    let agent = Launch::new("agent", &program("unshare")?, stage.directory())
        .args(user)
        .args(["--mount", "--", "sh", "-c", UNDER_SYSTEMD, "sh"])
        .args([run.as_os_str(), binary("moai-agent")?.as_os_str()])
        .args(["--config".as_ref(), config.as_os_str(), "run".as_ref()])
        .spawn()?;
    stage.robot.onboard.client.show_on_failure(agent.log());
    // Who writes to a journal that nobody reads waits.
    let (entries, mut read) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length) = journal.recv(&mut buffer).await
            && entries.send(fields(&buffer[..length])).is_ok()
        {}
    });
    stage.robot.onboard.health("up").await?;
    let session = stage.open_arm().await?;
    let entry = async {
        loop {
            let fields = read.recv().await.context("the journal has ended")?;
            if fields.get("MESSAGE").is_some_and(|text| text.starts_with("session is active")) {
                return anyhow::Ok(fields);
            }
        }
    };
    let entry = tokio::time::timeout(SLOW, entry).await.context("no such entry")??;
    assert_eq!(entry["MESSAGE"], format!("session is active session={session}"));
    for (name, value) in [
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "moai-agent"),
        ("MOAI_SESSION", &session),
        ("MOAI_TARGET", "moai_agent::session::actor"),
    ] {
        assert_eq!(entry.get(name).map(String::as_str), Some(value), "{name} of {entry:?}");
    }
    stage.robot.onboard.close(ARM).await?;
    assert!(agent.terminate(STEP).await?.success(), "{}", agent.log().tail());
    assert_eq!(agent.log().text(), "", "all of it is in the journal");
    Ok(())
}
