//! The robot's identity: a key that stays in its TPM, certificates that come and go, and servers that
//! believe nobody else.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use moai_agent::identity::key::KEY_FILE;
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_tests::pki::{Pki, signed, unix_now};
use moai_tests::settings::quoted;
use moai_tests::world::IDENTITY;
use moai_tpm::{KeyBlob, KeyKind};
use moai_transport::tls::CertificateFacts;
use moai_transport::trust::RobotCertificate;

use crate::stage::{ARM, QUICK, Stage, opens, start, trials};

const DAY: i64 = 24 * 60 * 60;
const CERTIFICATE_FILE: &str = "robot.pem";

/// The public half of the robot's identity key.
fn public_key(stage: &Stage) -> Result<[u8; 65]> {
    let blob = std::fs::read(stage.robot.agent.state_directory().join(KEY_FILE))?;
    let blob = KeyBlob::from_bytes(&blob)?;
    assert_eq!(blob.kind(), KeyKind::Identity);
    Ok(blob.public_key())
}

/// The certificate file of the robot.
fn certificate(stage: &Stage) -> PathBuf {
    stage.robot.agent.state_directory().join(CERTIFICATE_FILE)
}

/// Every regular file below a directory.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(self::files(&path)?);
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// Who signed the newest open that the operator saw.
fn last_signer(stage: &Stage) -> Result<RobotCertificate> {
    let history = stage.operator.history();
    let open = history.iter().rev().find(|message| message.topic.contains("/open/"));
    let bytes = &open.context("the operator saw no open")?.payload;
    let verified = signed(bytes)?.verify_robot(&stage.pki.robots()?, unix_now()?)?;
    Ok(verified.signer().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tpm_proves_who_the_robot_is_and_no_private_key_is_on_its_disk() -> Result<()> {
    let stage = start(World::builder()).await?;
    stage.watch_uplink().await?;
    stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;

    let key = public_key(&stage)?;
    let facts = CertificateFacts::from_pem(&std::fs::read(certificate(&stage))?)?;
    assert_eq!((facts.common_name.as_str(), facts.p256_key), (IDENTITY, Some(key)));
    assert!(!opens(&stage)?.is_empty());
    let signer = last_signer(&stage)?;
    assert_eq!((signer.identity.to_string().as_str(), signer.public_key), (IDENTITY, key));

    let robot = stage.directory().join(IDENTITY).join("agent");
    let files = files(&robot)?;
    assert!(files.iter().any(|file| file.ends_with(KEY_FILE)), "{files:?}");
    for file in files {
        let text = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
        assert!(!text.contains("PRIVATE KEY"), "{} has a private key", file.display());
    }
    let mode = robot.join("state").join(KEY_FILE).metadata()?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = stage.robot.agent.command(&["status"]).await?.success()?;
    assert!(status.contains("key in the TPM, certificate valid until"), "{}", status.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_waits_for_its_authority_and_says_so() -> Result<()> {
    const REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----";
    let mut stage = start(World::builder().unprovisioned()).await?;
    let agent = &stage.robot.agent;
    let provisioned = agent.command(&["provision"]).await?.success()?;
    assert!(provisioned.contains(REQUEST), "{}", provisioned.text());
    assert!(agent.command(&["identity", "csr"]).await?.success()?.contains(REQUEST));
    for command in [["run"].as_slice(), &["config", "check"]] {
        let finished = agent.command(command).await?;
        assert!(finished.log.contains("hand what `moai-agent identity csr` prints to your"));
        let code = if command == ["run"] { 77 } else { 0 };
        assert_eq!(finished.status.code(), Some(code), "{}", finished.log.tail());
    }

    let key = public_key(&stage)?;
    let answer = stage.directory().join("answer.pem");
    std::fs::write(&answer, stage.pki.robot(IDENTITY, key, -1..DAY)?)?;
    let install = ["identity", "install", &answer.to_string_lossy()];
    agent.command(&install).await?.success()?;
    stage.robot.start_agent().await?;
    stage.open_arm().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_and_used_without_a_restart() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    stage.watch_uplink().await?;
    let key = public_key(&stage)?;
    // Two thirds of its life are over.
    std::fs::write(certificate(&stage), stage.pki.robot(IDENTITY, key, -2 * DAY..DAY)?)?;
    let desk = stage.directory().join("desk");
    std::fs::create_dir(&desk)?;
    let renewed = stage.pki.robot(IDENTITY, key, -1..7 * DAY)?;
    std::fs::write(desk.join("new.pem"), &renewed)?;
    let script = format!("cat > {0}/request.pem && cat {0}/new.pem", desk.display());
    let command = format!("[uplink]\nrenew_command = [\"sh\", \"-c\", {script:?}]");
    stage.robot.agent.configure(&command)?;
    stage.robot.start_agent().await?;
    let agent = stage.robot.agent.process()?;
    let (pid, log) = (agent.id(), agent.log().clone());
    log.wait_for("certificate renewed", SLOW).await?;
    assert_eq!(std::fs::read_to_string(certificate(&stage))?, renewed);
    let request = std::fs::read_to_string(desk.join("request.pem"))?;
    assert!(request.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{request}");

    // The next handshake and the next registration are the new certificate's.
    stage.broker.restart().await?;
    stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    let facts = CertificateFacts::from_pem(renewed.as_bytes())?;
    assert_eq!(last_signer(&stage)?.not_after, facts.not_after);
    assert_eq!(stage.robot.agent.process()?.id(), pid);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_installed_beside_a_running_agent_is_noticed_and_what_is_not_ours_is_refused()
-> Result<()> {
    let stage = start(World::builder()).await?;
    let agent = &stage.robot.agent;
    let log = agent.process()?.log().clone();
    let present = std::fs::read(certificate(&stage))?;
    let install = async |name: &str, pem: String| -> Result<_> {
        let file = stage.directory().join(name);
        std::fs::write(&file, pem)?;
        agent.command(&["identity", "install", &file.to_string_lossy()]).await
    };
    let key = public_key(&stage)?;
    let foreign = Pki::new(&stage.directory().join("foreign"))?;
    let other_key = std::fs::read_to_string(stage.pki.client(IDENTITY)?.certificate)?;
    for (name, pem, words) in [
        ("robot", stage.pki.robot("acme.robot-2", key, -1..DAY)?, "is acme.robot-2's"),
        ("key", other_key, "not for this robot's identity key"),
        ("authority", foreign.robot(IDENTITY, key, -1..DAY)?, "not from an authority"),
        ("expired", stage.pki.robot(IDENTITY, key, -DAY..-1)?, "expired on"),
    ] {
        let refused = install(name, pem).await?;
        assert!(!refused.status.success(), "{name}");
        assert!(refused.log.contains(words), "{words} is not in:\n{}", refused.log.text());
        assert_eq!(std::fs::read(certificate(&stage))?, present);
    }
    let next = stage.pki.robot(IDENTITY, key, -1..7 * DAY)?;
    install("next", next).await?.success()?;
    log.wait_for("the certificate file was replaced, the new certificate is in use", SLOW).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nothing_renews_degrades_the_robots_health() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let key = public_key(&stage)?;
    std::fs::write(certificate(&stage), stage.pki.robot(IDENTITY, key, -2 * DAY..DAY)?)?;
    stage.robot.agent.spawn()?;
    let warned = |health: &serde_json::Value| {
        let reasons = health["reasons"].as_array().cloned().unwrap_or_default();
        reasons.iter().any(|reason| {
            let reason = reason.as_str().unwrap_or_default();
            reason.starts_with("certificate: ") && reason.contains("nothing renews it")
        })
    };
    let health = stage.robot.onboard.health("degraded").await?;
    assert!(warned(&health), "{health}");
    // It works nevertheless.
    stage.open_arm().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_trusts_another_authority_registers_nothing() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let foreign = Pki::new(&stage.directory().join("foreign"))?;
    stage.compute.configure(&format!("[broker]\nrobots_ca = {}", quoted(&foreign.ca())))?;
    stage.compute.stop().await?;
    stage.start_compute().await?;
    stage.robot.onboard.open(ARM, QUICK).await?;
    let server = stage.compute.process()?.log().clone();
    let refused = server.wait_for("not from an authority that is trusted for robots", SLOW).await?;
    assert!(refused.contains("refused") && refused.contains("UntrustedCertificate"), "{refused}");
    let waiting = |state: &serde_json::Value| {
        let reason = state["reason"].as_str().unwrap_or_default();
        reason.contains("the server does not trust this robot")
    };
    while !waiting(&stage.robot.onboard.state(ARM, "opening").await?) {}
    assert!(!server.contains("session opens"), "{}", server.text());

    // Nothing has to be done on the robot once the server knows its authority.
    let own = quoted(&stage.pki.ca());
    stage.compute.configure(&format!("[broker]\nrobots_ca = {own}"))?;
    stage.compute.stop().await?;
    stage.start_compute().await?;
    stage.active_session().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_software_key_is_for_development_and_said_aloud() -> Result<()> {
    let mut stage = start(World::builder().software_key()).await?;
    let loud = "DEVELOPMENT ONLY: the identity key is a file";
    let log = stage.robot.agent.process()?.log().clone();
    assert!(log.contains(loud), "{}", log.text());
    stage.open_arm().await?;
    stage.robot.agent.stop().await?;

    stage.robot.agent.configure("development = false")?;
    for command in ["run", "provision"] {
        let refused = stage.robot.agent.command(&[command]).await?;
        assert_eq!(refused.status.code(), Some(78), "{}", refused.log.tail());
        assert!(refused.log.contains("`uplink.key` names a file"), "{}", refused.log.text());
    }
    Ok(())
}
