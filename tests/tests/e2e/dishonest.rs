//! A broker that lies: it invents, holds back, repeats and swaps. It gets neither an answer nor a
//! session by that, and the robot's work goes on.

use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_tests::World;
use moai_tests::bench::subject;
use moai_tests::mqtt::{Message, matches};
use moai_tests::onboard::SLOW;
use moai_tests::peek::peek;
use moai_tests::pki::{Pki, unix_now};
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::message::{ErrorBody, ErrorCode};

use crate::played::Played;
use crate::stage::{ARM, Stage, frames, start, trials};

const RESULTS: &str = "moai/v1/down/+/+/result";

/// The last message that the operator saw on a topic of this form.
fn last(stage: &Stage, filter: &str) -> Result<Message> {
    let mut history = stage.operator.history().into_iter().rev();
    history.find(|message| matches(filter, &message.topic)).with_context(|| filter.to_owned())
}

/// Waits until the agent has refused something for this reason.
async fn agent_refuses(stage: &Stage, why: &str) -> Result<()> {
    let log = stage.robot.agent.process()?.log().clone();
    let line = log.wait_for(why, SLOW).await?;
    assert!(line.contains("refused"), "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_result_ends_no_job() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    stage.watch_uplink().await?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    let genuine = stage.operator.wait_for(RESULTS, "result", SLOW, |_| true).await?;

    // While a job waits for a server that is gone, the broker answers in its place.
    stage.compute.kill().await?;
    stage.submit(&trials()?[1]).await?;
    let mut forged = peek(&genuine.payload)?;
    forged.claims.number = 2;
    forged.claims.expires_at = unix_now()? + 60;
    let foreign = Pki::new(&stage.directory().join("foreign"))?.server_signer()?;
    let forged = forged.encode_as_server(&foreign)?;
    stage.operator.publish(&genuine.topic, forged).await?;
    agent_refuses(&stage, "by no server whose key is trusted here").await?;

    // The signature of one result, the number of the other.
    let mut spliced = genuine.payload.clone();
    let claims = spliced.windows(2).position(|bytes| bytes == [0x03, 0x01]).context("number 1")?;
    spliced[claims + 1] = 0x02;
    stage.operator.publish(&genuine.topic, spliced).await?;
    // And the genuine one once more.
    stage.operator.publish(&genuine.topic, genuine.payload).await?;

    stage.start_compute().await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 2);
    assert_eq!(stage.close_arm().await?.len(), 2, "one answer for each job");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_of_another_session_is_none_of_this_one() -> Result<()> {
    let stage = start(World::builder()).await?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    let first = stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    let result = stage.operator.wait_for(RESULTS, "result", SLOW, |_| true).await?;
    stage.robot.onboard.rotate(ARM).await?;
    let second = stage.active_session().await?;
    assert_ne!(first, second);
    stage.operator.publish(&result.topic.replace(&first, &second), result.payload).await?;
    agent_refuses(&stage, "on the topic of another session").await?;
    stage.submit(&trials()?[1]).await?;
    let answer = stage.robot.onboard.result(ARM).await?;
    assert_eq!((&answer["job"], answer["session"].as_str()), (&1.into(), Some(second.as_str())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_open_takes_no_slot() -> Result<()> {
    let one = "[tenants.acme]\nmax_sessions = 1\n";
    let stage = start(World::builder().agent_stopped().server_toml(one)).await?;
    let robot = Played::new(&stage).await?;
    let minute = Duration::from_mins(1);
    let first = robot.open_bytes(1, minute)?;
    robot.publish(&robot.open(), first.clone()).await?;
    robot.have().await?;
    assert_eq!(robot.refused(&robot.open(), first.clone()).await?, (ErrorCode::Replayed, 0));

    // Late, after a newer one.
    robot.publish(&robot.open(), robot.open_bytes(3, minute)?).await?;
    robot.have().await?;
    let late = robot.open_bytes(2, minute)?;
    assert_eq!(robot.refused(&robot.open(), late).await?, (ErrorCode::Replayed, 0));

    robot.publish(&robot.delete(), robot.delete_bytes()?).await?;
    let server = stage.compute.process()?;
    server.wait_for_line("session and keys deleted", SLOW).await?;
    for number in [1, 4] {
        let open = robot.open_bytes(number, minute)?;
        let refused = robot.refused(&robot.open(), open).await?;
        assert_eq!(refused, (ErrorCode::ExpiredSession, 0), "open {number} of a deleted session");
    }
    // Another robot's session, or this one's next, finds the one slot free.
    let next = Played { session: subject::session(1), ..Played::new(&stage).await? };
    next.publish(&next.open(), next.open_bytes(1, minute)?).await?;
    next.have().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_job_is_answered_from_memory_and_a_number_is_good_for_one_job() -> Result<()> {
    let stage = start(World::builder().agent_stopped()).await?;
    let robot = Played::new(&stage).await?;
    robot.register().await?;
    let input = quick_input()?;
    let job = robot.job_bytes(1, &input)?;
    robot.publish(&robot.job(), job.clone()).await?;
    let first = robot.result().await?;
    robot.publish(&robot.job(), job.clone()).await?;
    let again = robot.result().await?;
    assert_eq!((again.body, again.claims.number), (first.body, 1));
    let other = robot.job_bytes(1, &quick_input()?)?;
    assert_eq!(robot.refused(&robot.job(), other).await?, (ErrorCode::NumberReused, 1));

    // So many others that the first answer is no longer kept.
    for number in 2..=66 {
        robot.publish(&robot.job(), robot.job_bytes(number, &input)?).await?;
        robot.result().await?;
    }
    assert_eq!(robot.refused(&robot.job(), job).await?, (ErrorCode::Replayed, 1));
    let log = stage.compute.process()?.log().clone();
    log.wait_for("its answer is not kept", SLOW).await?;
    let computed = log.lines().iter().filter(|line| line.contains("job computed")).count();
    assert_eq!(computed, 66, "each job once");
    Ok(())
}

/// An encrypted window for the quick model, another each time.
fn quick_input() -> Result<Vec<u8>> {
    let json = std::fs::read(moai_tests::repository().join("server/models/force-alarm.json"))?;
    let model = moai_fhe::Model::from_json(&json)?;
    let levels = subject::levels(model.card())?;
    let mut entropy = moai_agent::secrets::OsEntropy;
    Ok(subject::engine()?.encrypt(model.card(), &levels, &mut entropy)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_sessions_key_signed_is_refused() -> Result<()> {
    let stage = start(World::builder().agent_stopped()).await?;
    let robot = Played::new(&stage).await?;
    robot.publish(&robot.open(), robot.open_bytes(1, Duration::from_mins(1))?).await?;
    robot.have().await?;
    let other = Played {
        key: moai_transport::keys::SessionSigningKey::from_seed(&[8; 32]),
        ..Played::new(&stage).await?
    };
    let job = other.job_bytes(1, b"input")?;
    assert_eq!(robot.refused(&robot.job(), job).await?, (ErrorCode::BadSignature, 0));
    let delete = other.delete_bytes()?;
    assert_eq!(robot.refused(&robot.delete(), delete).await?, (ErrorCode::BadSignature, 0));
    let log = stage.compute.process()?.log().clone();
    assert!(log.contains("not by the key that the session was opened with"), "{}", log.text());
    assert!(!log.contains("session deleted"), "a stranger deleted it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_or_older_catalogue_changes_nothing() -> Result<()> {
    const MODELS: &str = "moai/v1/models/acme";
    let stage = start(World::builder()).await?;
    stage.operator.subscribe("moai/v1/models/+").await?;
    let genuine = stage.operator.wait_for(MODELS, "catalogue", SLOW, |_| true).await?;
    let genuine = peek(&genuine.payload)?;
    let empty = |number, expires_at| Frame {
        kind: FrameKind::Models,
        claims: Claims { number, expires_at, ..genuine.claims.clone() },
        body: vec![0x80],
    };
    let newest = genuine.claims.number + 1000;
    let soon = unix_now()? + 60;
    let foreign = Pki::new(&stage.directory().join("foreign"))?.server_signer()?;
    let server = stage.pki.server_signer()?;
    let others = Frame {
        claims: Claims { tenant: Some("globex".parse()?), ..empty(newest, soon).claims },
        ..empty(newest, soon)
    };
    for (payload, why) in [
        (empty(newest, soon).encode_as_server(&foreign)?, "by no server whose key is trusted here"),
        (empty(1, soon).encode_as_server(&server)?, "older than the one we have"),
        (empty(newest, soon - 3600).encode_as_server(&server)?, "the frame was good until"),
        (others.encode_as_server(&server)?, "on the topic of another tenant"),
    ] {
        stage.operator.publish(MODELS, payload).await?;
        agent_refuses(&stage, why).await?;
    }
    // It still knows the model.
    stage.open_arm().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_whose_clock_differs_is_told() -> Result<()> {
    let stage = start(World::builder()).await?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    stage.watch_uplink().await?;
    stage.compute.process()?;
    let session = stage.open_arm().await?;
    assert!(!frames(&stage.operator, FrameKind::Have).is_empty());
    // What a server says to an open that comes from another time.
    let (robot, log) = (Played::new(&stage).await?, stage.robot.agent.process()?.log().clone());
    let mut open = robot.open_frame(1, Duration::from_mins(1))?;
    open.claims.expires_at = unix_now()? - 7200;
    robot.publish(&robot.open(), open.encode_as_robot(&robot.signer)?).await?;
    let topic = format!("moai/v1/down/acme.robot-1/{}/error", robot.session);
    let error = stage.operator.wait_for(&topic, "refusal", SLOW, |_| true).await?;
    let error = ErrorBody::decode(&stage.pki.answered(&error.payload)?.body)?;
    assert_eq!(error.code, ErrorCode::ExpiredFrame);
    assert!(error.message.contains("and here it is"), "{}", error.message);
    assert!(error.message.contains("check the clocks"), "{}", error.message);

    // What a robot says to an answer that does.
    let have = last(&stage, "moai/v1/down/+/+/have")?;
    assert!(have.topic.contains(&session));
    let mut late = peek(&have.payload)?;
    late.claims.expires_at = unix_now()? - 7200;
    let late = late.encode_as_server(&stage.pki.server_signer()?)?;
    stage.operator.publish(&have.topic, late).await?;
    let line = log.wait_for("the frame was good until", SLOW).await?;
    assert!(line.contains("check the clocks"), "{line}");
    Ok(())
}
