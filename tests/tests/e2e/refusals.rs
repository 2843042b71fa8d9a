//! Whoever has no business here is refused, with words that help the one who has.

use std::time::Duration;

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::broker::OPERATOR;
use moai_tests::onboard::SLOW;
use moai_tests::pki::{Pki, Signer, unix_now};
use moai_tests::settings::quoted;
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::SessionId;
use moai_transport::message::ErrorCode;
use moai_transport::topic::Topic;
use rumqttc::v5::mqttbytes::v5::{PubAckReason, PublishProperties};

use crate::played::Played;
use crate::stage::{ARM, start, trials};

const SEALED: i32 = 77;

#[tokio::test(flavor = "multi_thread")]
async fn after_a_pcr_changed_the_agent_refuses_to_start_and_says_what_to_do() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    stage.robot.tpm.extend_pcr(7, &[0xab; 32]).await?;
    let refused = stage.robot.agent.command(&["run"]).await?;
    assert_eq!(refused.status.code(), Some(SEALED), "{}", refused.log.tail());
    for words in ["sha256:7", "not in the state the root secret was sealed to", "recovery code"] {
        assert!(refused.log.contains(words), "{words} is not in:\n{}", refused.log.text());
    }
    assert!(!refused.log.contains("uplink is up"), "it connected nevertheless");
    stage.robot.tpm.restart().await?;
    stage.robot.start_agent().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_foreign_authority_is_refused_by_the_broker() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let foreign = Pki::new(&stage.directory().join("foreign"))?.client("acme.robot-1")?;
    let (certificate, key) = (quoted(&foreign.certificate), quoted(&foreign.key));
    stage.robot.agent.configure(&format!(
        "development = true\n[uplink]\ncertificate = {certificate}\nkey = {key}"
    ))?;
    let agent = stage.robot.agent.spawn()?.log().clone();
    let down = agent.wait_for("uplink is down", SLOW).await?;
    assert!(down.contains("TLS: ") && down.contains("check the authority file"), "{down}");
    let health = stage.robot.onboard.health("degraded").await?;
    assert!(health["reasons"][0].as_str().is_some_and(|why| why.starts_with("uplink: ")));
    assert!(!agent.contains("uplink is up"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_robots_certificate_is_refused_by_the_agent_itself() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let other = stage.pki.client("acme.robot-2")?;
    let (certificate, key) = (quoted(&other.certificate), quoted(&other.key));
    stage.robot.agent.configure(&format!(
        "development = true\n[uplink]\ncertificate = {certificate}\nkey = {key}"
    ))?;
    let refused = stage.robot.agent.command(&["run"]).await?;
    assert!(!refused.status.success());
    assert!(refused.log.contains("is acme.robot-2's"), "{}", refused.log.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_keeps_a_robot_of_another_tenant_off_our_topics() -> Result<()> {
    let stage = start(World::builder().other_robot("globex.robot-9")).await?;
    let session: SessionId = stage.open_arm().await?.parse()?;
    let stranger = stage.uplink_client("globex.robot-9").await?;
    stranger.subscribe("moai/v1/#").await?;
    let ours = Played { session, ..Played::new(&stage).await? };
    for topic in [ours.open(), ours.job(), ours.delete()] {
        let none = PublishProperties::default();
        let answer = stranger.try_publish(&topic.to_string(), "x", none, false).await?;
        assert_eq!(answer, PubAckReason::NotAuthorized, "{topic}");
    }
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    let own = ["moai/v1/workers/", "moai/v1/models/globex"];
    for message in stranger.history() {
        assert!(own.iter().any(|own| message.topic.starts_with(own)), "it heard {message}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_refuses_what_the_broker_should_not_have_let_through() -> Result<()> {
    let stage = start(World::builder()).await?;
    stage.open_arm().await?;
    let robot = Played::new(&stage).await?;
    robot.register().await?;
    let strange = Played { session: SessionId::new(7, [7; 10]), ..Played::new(&stage).await? };
    let job = |number| robot.job_frame(number, b"no ciphertext");

    let garbage = robot.refused(&robot.job(), b"MOAI garbage".to_vec()).await?;
    assert_eq!(garbage, (ErrorCode::MalformedFrame, 0));

    let mut cut = robot.job_bytes(90, b"no ciphertext")?;
    cut.pop();
    assert_eq!(robot.refused(&robot.job(), cut).await?, (ErrorCode::MalformedFrame, 0));

    let mut other_robots = job(91)?;
    other_robots.claims.identity = Some("globex.robot-9".parse()?);
    let answer = robot.refused(&robot.job(), other_robots.encode_as_session(&robot.key)?).await?;
    assert_eq!(answer, (ErrorCode::IdentityMismatch, 91));

    let answer = robot.refused(&robot.job(), strange.job_bytes(92, b"")?).await?;
    assert_eq!(answer, (ErrorCode::IdentityMismatch, 92));

    let answer = strange.refused(&strange.job(), strange.job_bytes(93, b"")?).await?;
    assert_eq!(answer, (ErrorCode::UnknownSession, 0));

    let mut other_model = job(94)?;
    other_model.claims.model = Some("nonesuch".parse()?);
    let answer = robot.refused(&robot.job(), other_model.encode_as_session(&robot.key)?).await?;
    assert_eq!(answer, (ErrorCode::UnknownModel, 94));

    let answer = robot.refused(&robot.job(), robot.job_bytes(95, b"no ciphertext")?).await?;
    assert_eq!(answer, (ErrorCode::MalformedCiphertext, 95));

    let answer = robot.refused(&robot.job(), robot.job_bytes(10_001, b"no ciphertext")?).await?;
    assert_eq!(answer, (ErrorCode::TooLarge, 10_001));

    // None of it touched the robot's other session.
    stage.submit(&trials()?[0]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    assert_eq!(stage.close_arm().await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_opens_no_session_that_its_robot_has_not_signed() -> Result<()> {
    let stage = start(World::builder().agent_stopped()).await?;
    let robot = Played::new(&stage).await?;
    let topic = robot.open();
    let open = robot.open_frame(1, Duration::from_mins(1))?;
    let signed_by = |signer: &Signer| open.encode_as_robot(signer);

    // The header of an unsigned frame, in the place of the signed one.
    let claims = Claims { model: None, ..open.claims.clone() };
    let mut unsigned =
        Frame { kind: FrameKind::Chunk, claims, body: open.body.clone() }.encode()?;
    unsigned[5] = FrameKind::Open as u8;
    assert_eq!(robot.refused(&topic, unsigned).await?, (ErrorCode::BadSignature, 0));

    let mut bad = signed_by(&robot.signer)?;
    let last_of_signature = bad.len() - open.body.len() - 1;
    bad[last_of_signature] ^= 1;
    assert_eq!(robot.refused(&topic, bad).await?, (ErrorCode::BadSignature, 0));

    let other = signed_by(&stage.pki.client("acme.robot-2")?.signer()?)?;
    assert_eq!(robot.refused(&topic, other).await?, (ErrorCode::IdentityMismatch, 0));

    let foreign = Pki::new(&stage.directory().join("foreign"))?.client("acme.robot-1")?.signer()?;
    let foreign = robot.refused(&topic, signed_by(&foreign)?).await?;
    assert_eq!(foreign, (ErrorCode::UntrustedCertificate, 0));

    let expired = stage.pki.client_until("acme.robot-1", -1)?.signer()?;
    let expired = robot.refused(&topic, signed_by(&expired)?).await?;
    assert_eq!(expired, (ErrorCode::UntrustedCertificate, 0));

    let elsewhere =
        Topic::Open { session: SessionId::new(1, [7; 10]), identity: robot.identity.clone() };
    let moved = robot.refused(&elsewhere, signed_by(&robot.signer)?).await?;
    assert_eq!(moved, (ErrorCode::IdentityMismatch, 0));

    for (what, seconds) in [("the past", -400_i64), ("the future", 700)] {
        let mut open = open.clone();
        open.claims.expires_at = unix_now()?.saturating_add_signed(seconds);
        let refused = robot.refused(&topic, open.encode_as_robot(&robot.signer)?).await?;
        assert_eq!(refused, (ErrorCode::ExpiredFrame, 0), "{what}");
    }

    let server = stage.compute.process()?.log().clone();
    for words in [
        "must be signed",
        "not by the key of its certificate",
        "but acme.robot-2 signed it",
        "not from an authority that is trusted for robots",
        "the certificate expired on",
        "on the topic of another session",
        "the frame was good until",
        "the frame is to be good until",
    ] {
        let said = server.lines().into_iter().any(|line| {
            line.contains("refused") && line.contains("acme.robot-1") && line.contains(words)
        });
        assert!(said, "{words} is not in:\n{}", server.text());
    }
    assert!(!server.contains("session opens"), "{}", server.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_that_a_session_has_expired() -> Result<()> {
    let stage = start(World::builder().agent_stopped()).await?;
    let robot = Played::new(&stage).await?;
    robot.publish(&robot.open(), robot.open_bytes(1, Duration::from_secs(1))?).await?;
    robot.have().await?;

    let server = stage.compute.process()?;
    let expired = server.wait_for_line("session expired, keys deleted", SLOW).await?;
    assert!(expired.contains(&robot.session.to_string()), "{expired}");
    let answer = robot.refused(&robot.job(), robot.job_bytes(1, b"late")?).await?;
    assert_eq!(answer, (ErrorCode::ExpiredSession, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_certificate_of_ours_speaks_to_the_broker() -> Result<()> {
    let stage = start(World::builder().agent_stopped()).await?;
    let foreign = Pki::new(&stage.directory().join("foreign"))?.client(OPERATOR)?;
    for credentials in [None, Some(foreign.trusting(stage.pki.ca()))] {
        let client_id = OPERATOR.to_owned();
        let port = stage.broker.port();
        let address = moai_tests::mqtt::Address { port, credentials, client_id };
        let refused = moai_tests::mqtt::Client::connect(address).await;
        refused.err().context("the broker let somebody in")?;
    }
    Ok(())
}
