//! What nobody may find in the memory of a running agent: the root secret, and anything secret of a
//! session that has ended. gdb takes the memory by force, as an attacker who is root would.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use moai_agent::secrets::VaultKey;
use moai_agent::vault::SessionRecord;
use moai_fhe::Context;
use moai_tests::World;
use moai_tests::dump::{Dump, Scope};
use moai_tests::process::STEP;
use moai_tests::scan::{Finding, Needles, Scanner, list};
use moai_tpm::RootSecret;

use crate::secrecy::{open_vault, root_secret};
use crate::stage::{ARM, Stage, start, trials};

/// An agent's memory at four moments, and its secrets.
struct Scene {
    /// It has unsealed the root secret.
    started: Dump,
    /// It has begun a new epoch.
    rotated: Dump,
    /// A session has computed and is active.
    active: Dump,
    /// What a core of that moment has, taken by the rules.
    granted: Dump,
    /// The session has ended; nothing happened since.
    ended: Dump,
    /// The root secrets of both epochs.
    roots: [RootSecret; 2],
    session: SessionRecord,
}

async fn play(mut stage: Stage) -> Result<Scene> {
    let first = root_secret(&stage.robot).await?;
    stage.robot.start_agent().await?;
    let started = dump(&stage, Scope::Everything).await?;
    stage.robot.agent.command(&["rotate", "root"]).await?.success()?;
    let rotated = dump(&stage, Scope::Everything).await?;

    let id = stage.open_arm().await?;
    stage.submit(trials()?.first().context("there are recordings")?).await?;
    stage.robot.onboard.result(ARM).await?;
    let [active, granted] =
        [dump(&stage, Scope::Everything).await?, dump(&stage, Scope::Granted).await?];
    let kept = stage.directory().join("kept.redb");
    std::fs::copy(stage.robot.agent.state_directory().join("vault.redb"), &kept)?;

    stage.robot.onboard.close(ARM).await?;
    stage.robot.agent.process()?.wait_for_line("session ended", STEP).await?;
    let ended = dump(&stage, Scope::Everything).await?;

    stage.robot.agent.stop().await?;
    let roots = [first, root_secret(&stage.robot).await?];
    let mut records = open_vault(&kept, &roots[1])?.into_iter();
    let session = records
        .find(|record| record.id.to_string() == id)
        .context("a live session is in the vault")?;
    Ok(Scene { started, rotated, active, granted, ended, roots, session })
}

async fn dump(stage: &Stage, scope: Scope) -> Result<Dump> {
    Dump::take(stage.robot.agent.process()?, scope, stage.directory()).await
}

impl Scene {
    fn root_scanner(&self) -> Result<Scanner> {
        let mut needles = Needles::default();
        let [first, second] = &self.roots;
        needles.parts("root secret", first.expose())?.parts("root secret", second.expose())?;
        needles.build()
    }

    /// What opens the records of an epoch; those of the first stay in flash memory.
    fn vault_key_scanner(&self, epoch: usize) -> Result<Scanner> {
        let mut needles = Needles::default();
        needles.parts("vault key", VaultKey::derive(&self.roots[epoch]).expose())?;
        needles.build()
    }

    fn session_scanner(&self) -> Result<Scanner> {
        let mut needles = Needles::default();
        let seed = self.session.seed.fhe_seed("tfhe");
        needles.parts("session seed", self.session.seed.expose())?;
        needles.parts("key seed", seed.expose())?;
        needles.parts("signing key", &**self.session.seed.signing_seed())?;
        let keys = seed.expose_keys(&Context::tfhe());
        for (name, seed) in &keys.seeds {
            needles.parts(name, seed)?;
        }
        for (name, coefficients) in &keys.coefficients {
            needles.bits(name, coefficients)?;
        }
        needles.build()
    }
}

/// The secrets that were found, without part and rendering.
fn names(findings: &[Finding]) -> BTreeSet<&str> {
    findings.iter().filter_map(|finding| finding.what.split(',').next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_of_a_root_secret_or_of_an_ended_session() -> Result<()> {
    let scene = play(start(World::builder().agent_stopped()).await?).await?;
    let (root, session) = (scene.root_scanner()?, scene.session_scanner()?);
    let [first_key, second_key] = [scene.vault_key_scanner(0)?, scene.vault_key_scanner(1)?];
    for (moment, dump) in [
        ("once started", &scene.started),
        ("once rotated", &scene.rotated),
        ("with a session", &scene.active),
        ("when it has ended", &scene.ended),
    ] {
        let findings = dump.search(&root);
        assert!(findings.is_empty(), "{moment}:\n{}", list(&findings));
    }
    // What is in use is there, and the search sees it. The root secret's own traces are its keys.
    assert!(names(&scene.started.search(&first_key)).contains("vault key"));
    assert!(names(&scene.rotated.search(&second_key)).contains("vault key"));
    let live = scene.active.search(&session);
    for secret in ["session seed", "GLWE secret key", "LWE secret key", "encryption seed"] {
        assert!(names(&live).contains(secret), "{secret} is not among {:?}", names(&live));
    }
    // When it is no longer in use, it is gone.
    let mut findings = scene.rotated.search(&first_key);
    findings.extend(scene.ended.search(&session));
    assert!(findings.is_empty(), "{}", list(&findings));
    // A core taken by the rules has registers and what the kernel maps, no memory of ours.
    assert!(scene.granted.memory_len() < 64 * 1024, "{} bytes", scene.granted.memory_len());
    for scanner in [&root, &second_key, &session] {
        let findings = scene.granted.search(scanner);
        assert!(findings.is_empty(), "{}", list(&findings));
    }
    Ok(())
}

/// The root secret is not among what is left: it is wiped where it is used, not by the allocator.
#[tokio::test(flavor = "multi_thread")]
async fn without_protection_the_same_search_finds_secrets() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    stage.robot.agent.use_double(&[("MOAI_TEST_UNPROTECTED", "1")]);
    let scene = play(stage).await?;
    let session = scene.session_scanner()?;
    let left = scene.ended.search(&session);
    // Most often parts of the session seed. Which copies nothing else overwrites is chance, so that
    // they are shown and not demanded.
    println!("{}", list(&left));
    // Nothing keeps memory out of a core, and the search finds what is in it.
    let granted = scene.granted.search(&session);
    assert!(names(&granted).contains("GLWE secret key"), "{:?}", names(&granted));
    let granted = scene.granted.search(&scene.vault_key_scanner(1)?);
    assert!(names(&granted).contains("vault key"), "{:?}", names(&granted));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_what_of_the_protection_is_in_force() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let memory = memory_status(&stage).await?;
    // Locked only with the capability for it, which tests need not have.
    assert!(memory.ends_with("locked, not dumpable, no core, overwritten when freed"), "{memory}");
    // The agent started itself anew, and is still found by its name.
    let agent = stage.robot.agent.process()?;
    let name = std::fs::read_to_string(format!("/proc/{}/comm", agent.id()))?;
    assert_eq!(name.trim(), "moai-agent");

    stage.robot.agent.stop().await?;
    stage.robot.agent.use_double(&[("MOAI_TEST_UNPROTECTED", "1")]);
    stage.robot.start_agent().await?;
    let memory = memory_status(&stage).await?;
    assert_eq!(memory, "not locked, dumpable, core possible, not overwritten when freed");
    let log = stage.robot.agent.process()?.log().text();
    assert!(log.contains("processes of the same user can read the agent's memory"), "{log}");
    Ok(())
}

async fn memory_status(stage: &Stage) -> Result<String> {
    let log = stage.robot.agent.command(&["status", "--json"]).await?.success()?;
    let status: serde_json::Value = serde_json::from_str(&log.text())?;
    Ok(status["memory"].as_str().context("the status says how memory is protected")?.to_owned())
}
