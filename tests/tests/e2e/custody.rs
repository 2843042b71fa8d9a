//! The root secret: rotated, lost, found again, and refused with words that help.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_tests::process::{Launch, STEP, binary};
use moai_tests::robot::{Agent, Robot};
use moai_tests::settings::quoted;
use p256::ecdsa::SigningKey;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use serde_json::Value;

use crate::stage::{ARM, Stage, numbers, start, trials};
use crate::supervision::Systemd;

const SEALED: i32 = 77;
const NO_AGENT: i32 = 69;
const SIGKILL: i32 = 9;

async fn status(agent: &Agent) -> Result<Value> {
    let text = agent.command(&["status", "--json"]).await?.success()?.text();
    Ok(serde_json::from_str(&text)?)
}

async fn answer_one(stage: &Stage, trial: usize) -> Result<u64> {
    stage.submit(trials()?.get(trial).context("there are recordings")?).await?;
    stage.robot.onboard.result(ARM).await?["job"].as_u64().context("a result names its job")
}

fn state_file(robot: &Robot, name: &str) -> PathBuf {
    robot.agent.state_directory().join(name)
}

/// Starts the agent, which must refuse with these words, and `status` must repeat them.
async fn refuses(robot: &Robot, words: &[&str]) -> Result<()> {
    let run = robot.agent.command(&["run"]).await?;
    ensure!(run.status.code() == Some(SEALED), "{}", run.log.tail());
    let status = robot.agent.command(&["status"]).await?;
    ensure!(status.status.code() == Some(NO_AGENT), "{}", status.log.tail());
    for words in words {
        ensure!(run.log.contains(words), "{words} is not in:\n{}", run.log.text());
        ensure!(status.log.contains(words), "{words} is not in:\n{}", status.log.text());
    }
    ensure!(!run.log.contains("uplink is up"), "it connected nevertheless");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_killed_at_any_step_leaves_one_epoch_and_the_open_task_goes_on() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let session = stage.open_arm().await?;
    assert_eq!(answer_one(&stage, 0).await?, 1);
    let mut epoch = 1;
    for (job, (step, begins)) in
        (2..).zip([("sealed", 0), ("vault", 1), ("renamed", 1), ("retired", 1)])
    {
        stage.robot.agent.stop().await?;
        stage.robot.agent.use_double(&[("MOAI_TEST_KILL_AT", step)]);
        stage.robot.start_agent().await?;
        assert_eq!(stage.active_session().await?, session);
        let rotation = stage.robot.agent.command(&["rotate", "root"]).await?;
        assert!(!rotation.status.success(), "nobody was left to answer");
        let killed = stage.robot.agent.process()?.wait(STEP).await?;
        assert_eq!(killed.signal(), Some(SIGKILL), "at {step}");

        stage.robot.agent.use_real();
        stage.robot.start_agent().await?;
        assert_eq!(stage.active_session().await?, session, "after {step}");
        epoch += begins;
        assert_eq!(status(&stage.robot.agent).await?["epoch"], epoch, "after {step}");
        assert!(!state_file(&stage.robot, "root.next").exists(), "after {step}");
        assert_eq!(answer_one(&stage, 1).await?, job, "after {step}");
    }
    assert_eq!(numbers(&stage.close_arm().await?), [1, 2, 3, 4, 5]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_an_old_copy_of_the_disk_is_worthless_on_the_same_board() -> Result<()> {
    const FILES: [&str; 2] = ["root.sealed", "vault.redb"];
    let mut stage = start(World::builder()).await?;
    let session = stage.open_arm().await?;
    stage.robot.agent.stop().await?;
    let image = stage.directory().join("image");
    fs::create_dir(&image)?;
    for file in FILES {
        fs::copy(state_file(&stage.robot, file), image.join(file))?;
    }
    stage.robot.start_agent().await?;
    assert_eq!(stage.active_session().await?, session);
    let rotated = stage.robot.agent.command(&["rotate", "root"]).await?.success()?;
    assert!(rotated.contains("Epoch 2 is in force"), "{}", rotated.text());
    assert_eq!(answer_one(&stage, 0).await?, 1);
    stage.robot.agent.stop().await?;

    let present = stage.directory().join("present");
    fs::create_dir(&present)?;
    for file in FILES {
        fs::copy(state_file(&stage.robot, file), present.join(file))?;
        fs::copy(image.join(file), state_file(&stage.robot, file))?;
    }
    refuses(&stage.robot, &["no longer has the storage key of epoch 1", "old copy"]).await?;
    // Neither does the old vault open under the new root secret.
    fs::copy(present.join("root.sealed"), state_file(&stage.robot, "root.sealed"))?;
    refuses(&stage.robot, &["vault is of epoch 1, the root secret of epoch 2", "old copy"]).await?;

    fs::copy(present.join("vault.redb"), state_file(&stage.robot, "vault.redb"))?;
    stage.robot.start_agent().await?;
    assert_eq!(stage.active_session().await?, session);
    assert_eq!(answer_one(&stage, 1).await?, 2);
    let failure = state_file(&stage.robot, "last-failure.json");
    assert!(!failure.exists(), "an agent that is ready leaves no failure behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_goes_by_the_clock_and_without_an_agent_too() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let rotated = stage.robot.agent.command(&["rotate", "root"]).await?.success()?;
    assert!(rotated.contains("Epoch 2 is in force"), "{}", rotated.text());
    // The root secret was sealed a day ago, as far as its file says.
    let file = fs::File::options().write(true).open(state_file(&stage.robot, "root.sealed"))?;
    let day = std::time::Duration::from_hours(24);
    file.set_modified(std::time::SystemTime::now() - day)?;
    drop(file);
    stage.robot.start_agent().await?;
    stage.robot.agent.process()?.wait_for_line("root secret rotated", SLOW).await?;
    assert_eq!(status(&stage.robot.agent).await?["epoch"], 3);
    Ok(())
}

/// The fleet's policy key and what it signs.
struct Fleet<'s> {
    stage: &'s Stage,
    key: PathBuf,
    policies: PathBuf,
}

impl<'s> Fleet<'s> {
    fn new(stage: &'s Stage) -> Result<Self> {
        let directory = stage.directory().join("fleet");
        let fleet =
            Self { stage, key: directory.join("key"), policies: directory.join("policies") };
        fs::create_dir_all(&fleet.policies)?;
        let key = SigningKey::from_slice(&[7; 32])?;
        fs::write(&fleet.key, key.to_pkcs8_pem(LineEnding::LF)?.as_bytes())?;
        let public = key.verifying_key().to_public_key_pem(LineEnding::LF)?;
        fs::write(directory.join("key.pub"), public)?;
        Ok(fleet)
    }

    fn toml(&self) -> String {
        let public = self.key.with_extension("pub");
        format!("[tpm]\npolicy_key = {}\npolicies = {}", quoted(&public), quoted(&self.policies))
    }

    /// Signs the present state of the robot's TPM, where the key is kept: without configuration.
    async fn sign_present(&self, name: &str) -> Result<()> {
        let value = hex::encode(self.stage.robot.tpm.read_pcr(7).await?);
        Launch::new("policy-sign", &binary("moai-agent")?, self.stage.directory())
            .args(["policy", "sign", "--measurements", &format!("sha256:7={value}"), "--key"])
            .args([&self.key])
            .args(["--out".as_ref(), self.policies.join(name).as_os_str()])
            .run(STEP)
            .await?
            .success()
            .map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_ships_a_signed_policy_unseals_without_resealing() -> Result<()> {
    let mut stage = start(World::builder().unprovisioned()).await?;
    let fleet = Fleet::new(&stage)?;
    let toml = fleet.toml();
    fleet.sign_present("1.json").await?;
    stage.robot.agent.configure(&toml)?;
    let provisioned = stage.robot.agent.provision().await?;
    assert!(provisioned.contains("and to those that policy key"), "{}", provisioned.text());
    stage.robot.start_agent().await?;
    let session = stage.open_arm().await?;
    stage.robot.agent.stop().await?;
    let sealed = fs::read(state_file(&stage.robot, "root.sealed"))?;

    // The update boots; its policy is not there yet.
    stage.robot.tpm.extend_pcr(7, &[0xab; 32]).await?;
    refuses(&stage.robot, &["no signed policy is for the present state", "PCR 7"]).await?;
    let fleet = Fleet::new(&stage)?;
    fleet.sign_present("2.json").await?;
    let shown = stage.robot.agent.command(&["policy", "show"]).await?.success()?;
    assert!(shown.contains("2.json: fits"), "{}", shown.text());
    assert!(shown.contains("1.json: is for another boot state: PCR 7"), "{}", shown.text());
    stage.robot.start_agent().await?;
    assert_eq!(stage.active_session().await?, session);
    assert_eq!(answer_one(&stage, 0).await?, 1);
    assert_eq!(fs::read(state_file(&stage.robot, "root.sealed"))?, sealed, "it was resealed");
    Ok(())
}

/// The recovery code on the screen of whoever provisions or recovers.
fn recovery_code(screen: &moai_tests::log::Log) -> Result<String> {
    const GROUPS: usize = 7;
    let is_code = |line: &str| {
        let groups: Vec<&str> = line.split('-').collect();
        groups.len() == GROUPS && groups.iter().all(|group| group.len() == 5)
    };
    let lines = screen.lines();
    let code = lines.iter().map(|line| line.trim()).find(|line| is_code(line));
    code.map(ToOwned::to_owned).context("no recovery code was shown")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_code_opens_another_boot_state_and_is_replaced() -> Result<()> {
    let mut stage = start(World::builder().unprovisioned()).await?;
    let code = recovery_code(&stage.robot.agent.provision().await?)?;
    stage.robot.start_agent().await?;
    let session = stage.open_arm().await?;
    stage.robot.agent.stop().await?;
    let before = fs::read(state_file(&stage.robot, "root.sealed"))?;
    stage.robot.tpm.extend_pcr(7, &[0xab; 32]).await?;
    refuses(&stage.robot, &["PCR 7", "recovery code"]).await?;

    let mut mistyped = code.clone();
    mistyped.replace_range(..1, if code.starts_with('0') { "1" } else { "0" });
    let refused = stage.robot.agent.command_with_input(&["recover"], &mistyped).await?;
    assert!(refused.log.contains("group 1"), "{}", refused.log.text());
    let typed = code.to_lowercase().replace('-', " ");
    let recovered = stage.robot.agent.command_with_input(&["recover"], &typed).await?.success()?;
    let new_code = recovery_code(&recovered)?;
    assert_ne!(new_code, code);
    stage.robot.start_agent().await?;
    assert_eq!(stage.active_session().await?, session);
    assert_eq!(answer_one(&stage, 0).await?, 1);
    stage.robot.agent.stop().await?;

    let agent = &stage.robot.agent;
    let old = agent.command_with_input(&["recover"], &code).await?;
    assert_eq!(old.status.code(), Some(SEALED), "{}", old.log.tail());
    assert!(old.log.contains("refuses the recovery code"), "{}", old.log.text());
    // Not even with the file that it once opened.
    let present = fs::read(state_file(&stage.robot, "root.sealed"))?;
    fs::write(state_file(&stage.robot, "root.sealed"), before)?;
    let old = agent.command_with_input(&["recover"], &code).await?;
    assert_eq!(old.status.code(), Some(SEALED), "{}", old.log.tail());
    fs::write(state_file(&stage.robot, "root.sealed"), present)?;
    agent.command_with_input(&["recover"], &new_code).await?.success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_comes_late_is_waited_for_and_status_says_so() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    stage.robot.tpm.power_off().await?;
    let socket = stage.directory().join("notify");
    let systemd = Systemd::listen(&socket)?;
    stage.robot.agent.set_env("NOTIFY_SOCKET", &socket.to_string_lossy());
    let agent = stage.robot.agent.spawn()?.log().clone();
    agent.wait_for("the root secret is not at hand yet", STEP).await?;
    let waiting = status(&stage.robot.agent).await?;
    assert_eq!(waiting["status"], "starting");
    let reason = waiting["reasons"][0].as_str().context("it has a reason")?;
    assert!(reason.contains("no TPM at swtpm:") && reason.contains("start swtpm"), "{reason}");
    let told = systemd.told("EXTEND_TIMEOUT_USEC=").await?.concat();
    assert!(told.contains("STATUS=starting: no TPM at swtpm:"), "{told}");
    assert!(!told.contains("READY=1"), "{told}");
    let refused = stage.robot.agent.command(&["rotate", "root"]).await?;
    assert!(refused.log.contains("still starting: no TPM at"), "{}", refused.log.text());
    stage.robot.tpm.power_on().await?;
    stage.robot.onboard.health("up").await?;
    systemd.told("READY=1").await?;
    assert_eq!(status(&stage.robot.agent).await?["epoch"], 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_that_lead_into_lockout_keep_no_robot_from_starting() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    stage.robot.tpm.lock_out().await?;
    stage.robot.start_agent().await?;
    stage.robot.agent.command(&["rotate", "root"]).await?.success()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reason_why_a_root_secret_stays_sealed_has_words_of_its_own() -> Result<()> {
    let mut stage = start(World::builder().unprovisioned()).await?;
    refuses(&stage.robot, &["there is no root secret at", "moai-agent provision"]).await?;
    stage.robot.agent.provision().await?;
    let again = stage.robot.agent.provision().await.err().context("it must not be replaced")?;
    assert!(format!("{again:#}").contains("is provisioned already"), "{again:#}");

    stage.robot.tpm.extend_pcr(7, &[0xab; 32]).await?;
    refuses(&stage.robot, &["PCR 7 (Secure Boot state)", "recovery code"]).await?;
    stage.robot.tpm.restart().await?;

    stage.robot.tpm.fail().await?;
    refuses(&stage.robot, &["failure mode", "power-cycle"]).await?;
    stage.robot.tpm.restart().await?;

    let board = stage.another_robot("acme.robot-2").await?;
    board.agent.provision().await?;
    fs::copy(state_file(&stage.robot, "root.sealed"), state_file(&board, "root.sealed"))?;
    refuses(&board, &["sealed by another TPM", "put the storage back"]).await?;

    let root = state_file(&stage.robot, "root.sealed");
    let intact = fs::read(&root)?;
    let (half, _) = intact.split_at(intact.len() / 2);
    fs::write(&root, half)?;
    refuses(&stage.robot, &["damaged or cut short", "restore the file"]).await?;
    fs::write(&root, &intact)?;

    stage.robot.start_agent().await?;
    stage.robot.agent.stop().await?;
    stage.robot.tpm.clear().await?;
    refuses(&stage.robot, &["owner hierarchy was cleared"]).await
}
