//! Whoever has no business here is refused, with words that help the one who has.

use std::time::Duration;

use anyhow::{Context, Result};
use moai_fhe::Context as FheContext;
use moai_tests::World;
use moai_tests::broker::OPERATOR;
use moai_tests::onboard::SLOW;
use moai_tests::pki::Pki;
use moai_tests::settings::quoted;
use moai_transport::chunk::manifest;
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::{ContextId, Digest, Identity, SessionId, WorkerId};
use moai_transport::message::{ErrorBody, ErrorCode};
use moai_transport::topic::Topic;
use rumqttc::v5::mqttbytes::v5::{PubAckReason, PublishProperties};

use crate::stage::{ARM, QUICK, Stage, new_session, start, trials};

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
    let forger = Forger::new(&stage)?;
    for topic in [forger.open(&session), forger.job(&session), forger.delete(&session)] {
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

/// Somebody whom the broker lets write where he likes.
struct Forger<'s> {
    stage: &'s Stage,
    robot: Identity,
    worker: WorkerId,
}

impl<'s> Forger<'s> {
    fn new(stage: &'s Stage) -> Result<Self> {
        let worker = stage.compute.worker()?.parse()?;
        Ok(Self { stage, robot: "acme.robot-1".parse()?, worker })
    }

    fn open(&self, session: &SessionId) -> Topic {
        Topic::Open { identity: self.robot.clone(), session: session.clone() }
    }

    fn job(&self, session: &SessionId) -> Topic {
        let (identity, worker) = (self.robot.clone(), self.worker.clone());
        Topic::Job { identity, worker, session: session.clone() }
    }

    fn delete(&self, session: &SessionId) -> Topic {
        let (identity, worker) = (self.robot.clone(), self.worker.clone());
        Topic::Delete { identity, worker, session: session.clone() }
    }

    fn claims(&self, session: &SessionId, number: u64) -> Result<Claims> {
        Ok(Claims {
            identity: Some(self.robot.clone()),
            session: Some(session.clone()),
            number,
            model: Some(QUICK.parse()?),
            context: Some(context()),
            ..Claims::default()
        })
    }

    /// A job as the robot itself would send it, but for its content.
    fn job_frame(&self, session: &SessionId, number: u64) -> Result<Frame> {
        let claims = self.claims(session, number)?;
        Ok(Frame { kind: FrameKind::Job, claims, body: b"no ciphertext".to_vec() })
    }

    /// An open as the robot itself would send it, but for its signature.
    fn open_frame(&self, session: &SessionId, ttl: Duration) -> Result<Frame> {
        let body = manifest(context(), ttl, b"short-lived keys", 1)?.encode()?;
        Ok(Frame { kind: FrameKind::Open, claims: self.claims(session, 0)?, body })
    }

    /// Sends bytes and returns with what the server refuses them: code and job.
    async fn refused(&self, topic: &Topic, payload: Vec<u8>) -> Result<(ErrorCode, u64)> {
        const ERRORS: &str = "moai/v1/down/acme.robot-1/+/error";
        self.stage.operator.publish(&topic.to_string(), payload).await?;
        let message = self.stage.operator.wait_for(ERRORS, "refusal", SLOW, |_| true).await?;
        assert!(topic.session().is_some_and(|session| {
            message.topic.split('/').any(|level| level == session.to_string())
        }));
        let frame = Frame::decode(&message.payload)?;
        Ok((ErrorBody::decode(&frame.body)?.code, frame.claims.number))
    }
}

fn context() -> ContextId {
    ContextId(Digest(FheContext::tfhe().digest()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_refuses_what_the_broker_should_not_have_let_through() -> Result<()> {
    let stage = start(World::builder()).await?;
    let live: SessionId = stage.open_arm().await?.parse()?;
    stage.operator.subscribe("moai/v1/down/+/+/error").await?;
    let forger = Forger::new(&stage)?;
    let strange = new_session();

    let garbage = forger.refused(&forger.job(&live), b"MOAI garbage".to_vec()).await?;
    assert_eq!(garbage, (ErrorCode::MalformedFrame, 0));

    let mut cut = forger.job_frame(&live, 90)?.encode()?;
    cut.pop();
    assert_eq!(forger.refused(&forger.job(&live), cut).await?, (ErrorCode::MalformedFrame, 0));

    let mut other_robots = forger.job_frame(&live, 91)?;
    other_robots.claims.identity = Some("globex.robot-9".parse()?);
    let answer = forger.refused(&forger.job(&live), other_robots.encode()?).await?;
    assert_eq!(answer, (ErrorCode::IdentityMismatch, 91));

    let other_sessions = forger.job_frame(&strange, 92)?.encode()?;
    let answer = forger.refused(&forger.job(&live), other_sessions).await?;
    assert_eq!(answer, (ErrorCode::IdentityMismatch, 92));

    let unopened = forger.job_frame(&strange, 93)?.encode()?;
    let answer = forger.refused(&forger.job(&strange), unopened).await?;
    assert_eq!(answer, (ErrorCode::UnknownSession, 93));

    let mut other_model = forger.job_frame(&live, 94)?;
    other_model.claims.model = Some("nonesuch".parse()?);
    let answer = forger.refused(&forger.job(&live), other_model.encode()?).await?;
    assert_eq!(answer, (ErrorCode::UnknownModel, 94));

    let no_ciphertext = forger.job_frame(&live, 95)?.encode()?;
    let answer = forger.refused(&forger.job(&live), no_ciphertext).await?;
    assert_eq!(answer, (ErrorCode::MalformedCiphertext, 95));

    // None of it touched the session it was aimed at.
    stage.submit(&trials()?[0]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    assert_eq!(stage.close_arm().await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_opens_no_session_that_its_robot_has_not_signed() -> Result<()> {
    let stage = start(World::builder().agent_stopped()).await?;
    stage.operator.subscribe("moai/v1/down/+/+/error").await?;
    let forger = Forger::new(&stage)?;
    let session = new_session();
    let topic = forger.open(&session);
    let open = forger.open_frame(&session, Duration::from_mins(1))?;
    let robot = stage.pki.client("acme.robot-1")?.signer()?;

    // The header of an unsigned frame, in the place of the signed one.
    let mut unsigned = Frame { kind: FrameKind::Have, ..open.clone() }.encode()?;
    unsigned[5] = FrameKind::Open as u8;
    assert_eq!(forger.refused(&topic, unsigned).await?, (ErrorCode::BadSignature, 0));

    let mut bad = open.encode_signed(&robot)?;
    let last_of_signature = bad.len() - open.body.len() - 1;
    bad[last_of_signature] ^= 1;
    assert_eq!(forger.refused(&topic, bad).await?, (ErrorCode::BadSignature, 0));

    let other = stage.pki.client("acme.robot-2")?.signer()?;
    let others = forger.refused(&topic, open.encode_signed(&other)?).await?;
    assert_eq!(others, (ErrorCode::IdentityMismatch, 0));

    let foreign = Pki::new(&stage.directory().join("foreign"))?.client("acme.robot-1")?.signer()?;
    let foreign = forger.refused(&topic, open.encode_signed(&foreign)?).await?;
    assert_eq!(foreign, (ErrorCode::UntrustedCertificate, 0));

    let expired = stage.pki.client_until("acme.robot-1", -1)?.signer()?;
    let expired = forger.refused(&topic, open.encode_signed(&expired)?).await?;
    assert_eq!(expired, (ErrorCode::UntrustedCertificate, 0));

    let elsewhere = forger.open(&SessionId::new(1, [7; 10]));
    let moved = forger.refused(&elsewhere, open.encode_signed(&robot)?).await?;
    assert_eq!(moved, (ErrorCode::IdentityMismatch, 0));

    let server = stage.compute.process()?.log().clone();
    for words in [
        "must be signed",
        "not by the key of its certificate",
        "but acme.robot-2 signed it",
        "not from an authority that is trusted for robots",
        "the certificate expired on",
        "on the topic of another session",
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
    stage.operator.subscribe("moai/v1/down/#").await?;
    let forger = Forger::new(&stage)?;
    let session = new_session();
    let second = Duration::from_secs(1);
    let open = forger.open_frame(&session, second)?;
    let open = open.encode_signed(&stage.pki.client("acme.robot-1")?.signer()?)?;
    stage.operator.publish(&forger.open(&session).to_string(), open).await?;
    stage.operator.wait_for("moai/v1/down/+/+/have", "have", SLOW, |_| true).await?;

    let server = stage.compute.process()?;
    let expired = server.wait_for_line("session expired, keys deleted", SLOW).await?;
    assert!(expired.contains(&session.to_string()), "{expired}");
    let late = forger.job_frame(&session, 1)?.encode()?;
    let answer = forger.refused(&forger.job(&session), late).await?;
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
