//! A server that serves attested robots only: whom it serves, and what it says to the others.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use moai_attestation::Enrolment;
use moai_tests::World;
use moai_tests::mqtt::{Message, matches};
use moai_tests::onboard::SLOW;
use moai_tests::robot::Agent;
use moai_tests::world::IDENTITY;
use moai_transport::frame::FrameKind;
use moai_transport::message::{Challenge, ErrorBody, ErrorCode};
use moai_transport::topic::Topic;

use crate::played::Played;
use crate::stage::{ARM, QUICK, Stage, frames, start, trials};

const ERRORS: &str = "moai/v1/down/+/+/error";
const CHALLENGES: &str = "moai/v1/down/+/+/challenge";

/// A server that requires attestation and knows nobody yet, and a robot whose agent is stopped.
async fn strict() -> Result<Stage> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let enrolments = enrolments(&stage);
    fs::create_dir(&enrolments)?;
    stage.compute.stop().await?;
    stage.compute.require_attestation(&enrolments)?;
    stage.start_compute().await?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    stage.watch_uplink().await?;
    Ok(stage)
}

fn enrolments(stage: &Stage) -> PathBuf {
    stage.directory().join("enrolments")
}

/// What `moai-agent identity enrolment` prints.
async fn enrolment(agent: &Agent) -> Result<String> {
    let printed = agent.command(&["identity", "enrolment"]).await?.success()?.text();
    let (begin, end) = (printed.find('{'), printed.rfind('}'));
    let json = printed.get(begin.context("no JSON")?..=end.context("no JSON")?);
    Ok(json.context("no JSON")?.to_owned())
}

fn enrol(stage: &Stage, json: &str) -> Result<()> {
    Ok(fs::write(enrolments(stage).join(format!("{IDENTITY}.json")), json)?)
}

/// The next refusal of a session that goes down to the robot.
async fn refusal(stage: &Stage) -> Result<ErrorBody> {
    let message = stage.operator.wait_for(ERRORS, "refusal", SLOW, |_| true).await?;
    Ok(ErrorBody::decode(&stage.pki.answered(&message.payload)?.body)?)
}

/// Lets the agent open its task, which must be refused with these words; no session begins.
async fn is_refused(stage: &mut Stage, words: &str) -> Result<()> {
    stage.robot.start_agent().await?;
    stage.robot.onboard.open(ARM, QUICK).await?;
    let refused = refusal(stage).await?;
    assert_eq!(refused.code, ErrorCode::NotAttested, "{}", refused.message);
    assert!(refused.message.contains(words), "{}", refused.message);
    stage.robot.onboard.state(ARM, "opening").await?;
    assert!(frames(&stage.operator, FrameKind::Have).is_empty(), "it was served");
    assert!(!stage.compute.process()?.log().contains("session opens"), "a session opened");
    let audit = fs::read_to_string(stage.compute.audit_log())?;
    let noted = audit.lines().any(|line| line.contains("\"not_attested\"") && line.contains(words));
    assert!(noted, "{audit}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolled_robot_is_attested_and_served() -> Result<()> {
    let mut stage = strict().await?;
    let json = enrolment(&stage.robot.agent).await?;
    assert_eq!(Enrolment::from_json(&json)?.identity(), IDENTITY);
    enrol(&stage, &json)?;
    stage.robot.start_agent().await?;
    let session = stage.open_arm().await?;
    let attested = stage.compute.process()?.wait_for_line("robot attested", SLOW).await?;
    assert!(attested.contains(&session), "{attested}");
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    // Asking again for its key was asking an attested robot.
    assert_eq!(frames(&stage.operator, FrameKind::Attest).len(), 1);

    // The next run has it in the store, and one that lost its store asks anew.
    stage.compute.kill().await?;
    stage.start_compute().await?;
    stage.active_session().await?;
    assert_eq!(frames(&stage.operator, FrameKind::Attest).len(), 1);
    stage.compute.kill().await?;
    fs::remove_dir_all(stage.compute.store())?;
    stage.start_compute().await?;
    stage.compute.process()?.wait_for_line("robot attested", SLOW).await?;
    stage.active_session().await?;
    stage.submit(&trials()?[1]).await?;
    stage.robot.onboard.result(ARM).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_that_is_not_enrolled_is_refused_until_it_is() -> Result<()> {
    let mut stage = strict().await?;
    let json = enrolment(&stage.robot.agent).await?;
    is_refused(&mut stage, "acme.robot-1 is not enrolled").await?;
    enrol(&stage, &json)?;
    stage.active_session().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tpm_is_refused() -> Result<()> {
    let mut stage = strict().await?;
    // This robot has an attestation key too, but the enrolment is that of another TPM.
    enrolment(&stage.robot.agent).await?;
    let other = stage.another_robot("acme.robot-2").await?;
    other.agent.provision().await?;
    let json = enrolment(&other.agent).await?;
    enrol(&stage, &json.replace("acme.robot-2", IDENTITY))?;
    is_refused(&mut stage, "this is another TPM").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_in_another_state_is_refused_by_the_pcr_that_changed() -> Result<()> {
    let mut stage = strict().await?;
    // The root secret was sealed to PCR 7, which does not change; what is attested does.
    stage.robot.agent.configure("[tpm]\npcrs = \"sha256:7,23\"")?;
    let json = enrolment(&stage.robot.agent).await?;
    assert_eq!(Enrolment::from_json(&json)?.pcrs(), "sha256:7,23");
    enrol(&stage, &json)?;
    stage.robot.tpm.extend_pcr(23, &[0xab; 32]).await?;
    is_refused(&mut stage, "PCR 23 differ").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_without_an_attestation_key_says_so() -> Result<()> {
    let mut stage = strict().await?;
    stage.robot.start_agent().await?;
    stage.robot.onboard.open(ARM, QUICK).await?;
    let agent = stage.robot.agent.process()?;
    let line = agent.wait_for_line("challenge cannot be answered", SLOW).await?;
    assert!(line.contains("moai-agent identity enrolment"), "{line}");
    assert!(frames(&stage.operator, FrameKind::Have).is_empty(), "it was served");
    Ok(())
}

/// The last message of a kind that went up from the robot.
fn last(stage: &Stage, filter: &str) -> Result<Message> {
    let mut history = stage.operator.history().into_iter().rev();
    history.find(|message| matches(filter, &message.topic)).with_context(|| filter.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_evidence_is_refused() -> Result<()> {
    let mut stage = strict().await?;
    enrol(&stage, &enrolment(&stage.robot.agent).await?)?;
    stage.robot.start_agent().await?;
    stage.open_arm().await?;
    let open = last(&stage, "moai/v1/up/+/open/+")?;
    let attest = last(&stage, "moai/v1/up/+/to/+/+/attest")?;
    stage.robot.agent.kill().await?;

    // To the same worker: its challenge is used up.
    stage.operator.skip(ERRORS);
    stage.operator.publish(&attest.topic, attest.payload.clone()).await?;
    assert_eq!(refusal(&stage).await?.code, ErrorCode::UnknownSession);

    // To one that has the session in its store: the robot's own open was there before.
    stage.compute.stop().await?;
    stage.start_compute().await?;
    stage.operator.skip(ERRORS);
    stage.operator.publish(&open.topic, open.payload.clone()).await?;
    assert_eq!(refusal(&stage).await?.code, ErrorCode::Replayed);

    // To one that knows nothing of it, after the robot's own open, replayed as well.
    stage.compute.stop().await?;
    fs::remove_dir_all(stage.compute.store())?;
    stage.start_compute().await?;
    stage.operator.skip(CHALLENGES);
    stage.operator.skip(ERRORS);
    stage.operator.publish(&open.topic, open.payload).await?;
    let asked = stage.operator.wait_for(CHALLENGES, "challenge", SLOW, |_| true).await?;
    let challenge = Challenge::decode(&stage.pki.answered(&asked.payload)?.body)?;
    let Topic::Attest { identity, session, .. } = attest.topic.parse()? else {
        anyhow::bail!("{} is no attest topic", attest.topic);
    };
    let topic = Topic::Attest { identity, worker: challenge.worker, session };
    stage.operator.publish(&topic.to_string(), attest.payload).await?;
    let refused = refusal(&stage).await?;
    assert_eq!(refused.code, ErrorCode::NotAttested);
    assert!(refused.message.contains("answers another challenge"), "{}", refused.message);
    assert!(!stage.compute.process()?.log().contains("session opens"), "a session opened");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_require_attestation_never_challenges() -> Result<()> {
    let stage = start(World::builder()).await?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    assert!(frames(&stage.operator, FrameKind::Challenge).is_empty());
    assert!(!frames(&stage.operator, FrameKind::Have).is_empty(), "nothing was seen");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_start_with_an_enrolment_it_cannot_read() -> Result<()> {
    let mut stage = start(World::builder().unprovisioned()).await?;
    let enrolments = enrolments(&stage);
    stage.compute.stop().await?;
    stage.compute.require_attestation(&enrolments)?;
    let refused = stage.compute.command(&["run", "--require-attestation"]).await?;
    assert!(!refused.status.success());
    assert!(refused.log.contains("check that it exists"), "{}", refused.log.text());
    fs::create_dir(&enrolments)?;
    enrol(&stage, "{}")?;
    let refused = stage.compute.command(&["run", "--require-attestation"]).await?;
    assert!(!refused.status.success());
    assert!(refused.log.contains("acme.robot-1.json: not an enrolment"), "{}", refused.log.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_opened_without_evidence_is_not_served_where_evidence_is_required() -> Result<()>
{
    let mut stage = start(World::builder().agent_stopped()).await?;
    Played::new(&stage).await?.register().await?;
    let enrolments = enrolments(&stage);
    fs::create_dir(&enrolments)?;
    stage.compute.stop().await?;
    stage.compute.require_attestation(&enrolments)?;
    stage.start_compute().await?;
    // The same session, at the worker that came after.
    let robot = Played::new(&stage).await?;
    let refused = robot.refused(&robot.job(), robot.job_bytes(1, b"an input")?).await?;
    assert_eq!(refused, (ErrorCode::UnknownSession, 0));
    assert!(!stage.compute.process()?.log().contains("session taken over"));
    Ok(())
}
