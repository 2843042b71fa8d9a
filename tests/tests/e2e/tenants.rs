//! Two tenants on one server: neither gets at anything of the other, nor takes its room.

use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_tests::scan::Needles;
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::SessionId;
use moai_transport::keys::SessionSigningKey;
use moai_transport::message::ErrorCode;
use moai_transport::topic::Topic;
use rumqttc::v5::mqttbytes::v5::{PubAckReason, PublishProperties};
use serde_json::Value;

use crate::played::Played;
use crate::stage::{ARM, QUICK, Stage, frames, start, trials};

const STRANGER: &str = "globex.robot-9";
const MINUTE: Duration = Duration::from_mins(1);

/// A robot of the other tenant, in a session of its own.
async fn stranger(stage: &Stage) -> Result<Played<'_>> {
    Ok(Played {
        identity: STRANGER.parse()?,
        session: SessionId::new(1_800_000_000_000, [9; 10]),
        signer: stage.pki.client(STRANGER)?.signer()?,
        key: SessionSigningKey::from_seed(&[9; 32]),
        ..Played::new(stage).await?
    })
}

/// The server's audit log.
fn audit(stage: &Stage) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(stage.compute.audit_log())?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_gets_at_no_session_key_model_or_topic_of_another() -> Result<()> {
    let rules = "[tenants.globex]\nmodels = [\"grasp\"]\n";
    let stage = start(World::builder().other_robot(STRANGER).server_toml(rules)).await?;
    stage.watch_uplink().await?;
    let session: SessionId = stage.open_arm().await?.parse()?;
    // The victim's topics, and not its keys.
    let victim = Played { session: session.clone(), ..Played::new(&stage).await? };
    let stranger = stranger(&stage).await?;
    stranger.register().await?;
    let chunk = Topic::Chunk {
        identity: victim.identity.clone(),
        worker: victim.worker.clone(),
        session: session.clone(),
    };

    // Through the broker, with a certificate of its own.
    let client = stage.uplink_client(STRANGER).await?;
    client.subscribe("moai/v1/#").await?;
    for topic in [victim.open(), victim.job(), victim.delete(), chunk.clone()] {
        let none = PublishProperties::default();
        let answer = client.try_publish(&topic.to_string(), "x", none, false).await?;
        assert_eq!(answer, PubAckReason::NotAuthorized, "{topic}");
    }

    // Past the broker's rules: its own frames on the victim's topics, and frames in the victim's name.
    let own_job = stranger.job_bytes(1, b"an input")?;
    let refused = victim.refused(&victim.job(), own_job).await?;
    assert_eq!(refused, (ErrorCode::BadSignature, 0), "its own job");
    let forged_job = victim.job_frame(1, b"an input")?.encode_as_session(&stranger.key)?;
    let refused = victim.refused(&victim.job(), forged_job).await?;
    assert_eq!(refused, (ErrorCode::BadSignature, 0), "a job in its name");
    let refused = victim.refused(&victim.delete(), stranger.delete_bytes()?).await?;
    assert_eq!(refused, (ErrorCode::BadSignature, 0), "its own delete");
    let refused = victim.refused(&victim.delete(), victim.delete_bytes()?).await?;
    assert_eq!(refused, (ErrorCode::BadSignature, 0), "a delete in its name");
    let refused = victim.refused(&victim.open(), stranger.open_bytes(9, MINUTE)?).await?;
    assert_eq!(refused, (ErrorCode::IdentityMismatch, 0), "its own open");
    let forged = victim.open_frame(1 << 40, MINUTE)?.encode_as_robot(&stranger.signer)?;
    let refused = victim.refused(&victim.open(), forged).await?;
    assert_eq!(refused, (ErrorCode::IdentityMismatch, 0), "an open in its name");
    let claims = Claims { model: None, ..stranger.claims(0)? };
    let own_chunk = Frame { kind: FrameKind::Chunk, claims, body: b"other keys".to_vec() };
    let refused = victim.refused(&chunk, own_chunk.encode()?).await?;
    assert_eq!(refused, (ErrorCode::IdentityMismatch, 0), "its own chunk");

    // The victim's session under its own name is no session.
    let namesake = Played {
        session: session.clone(),
        identity: stranger.identity.clone(),
        key: SessionSigningKey::from_seed(&[9; 32]),
        ..Played::new(&stage).await?
    };
    let refused = namesake.refused(&namesake.job(), namesake.job_bytes(1, b"an input")?).await?;
    assert_eq!(refused, (ErrorCode::UnknownSession, 0));

    // A model of others does not exist; one of its own does.
    let refused = stranger.refused(&stranger.job(), stranger.job_bytes(2, b"an input")?).await?;
    assert_eq!(refused, (ErrorCode::UnknownModel, 2));
    let mut visible = stranger.job_frame(3, b"an input")?;
    visible.claims.model = Some("grasp".parse()?);
    let visible = visible.encode_as_session(&stranger.key)?;
    let refused = stranger.refused(&stranger.job(), visible).await?;
    assert_eq!(refused, (ErrorCode::MalformedCiphertext, 3));
    stage.operator.subscribe("moai/v1/models/#").await?;
    let topic = "moai/v1/models/globex";
    let catalogue = stage.operator.wait_for(topic, "catalogue", SLOW, |_| true).await?;
    let catalogue = stage.pki.answered(&catalogue.payload)?.body;
    let names = |model: &str| catalogue.windows(model.len()).any(|part| part == model.as_bytes());
    assert!(names("grasp") && !names(QUICK), "{}", String::from_utf8_lossy(&catalogue));

    // The victim noticed nothing.
    stage.submit(&trials()?[0]).await?;
    let result = stage.robot.onboard.result(ARM).await?;
    assert_eq!(
        (&result["job"], result["session"].as_str()),
        (&1.into(), Some(&*session.to_string()))
    );
    let own = ["moai/v1/workers/", topic, "moai/v1/down/globex.robot-9/"];
    for message in client.history() {
        assert!(own.iter().any(|own| message.topic.starts_with(own)), "it heard {message}");
    }

    // All of it stands in the audit log, under the session it was tried on; and nothing else does.
    let audit = audit(&stage)?;
    let of = |tenant: &str, event: &str, code: Option<&str>| {
        let is_it = |line: &&Value| {
            line["tenant"] == tenant && line["event"] == event && line["code"].as_str() == code
        };
        audit.iter().filter(is_it).count()
    };
    for (tenant, code, count) in [
        ("acme", "bad_signature", 4),
        ("acme", "identity_mismatch", 3),
        ("globex", "unknown_session", 1),
        ("globex", "unknown_model", 1),
        ("globex", "malformed_ciphertext", 1),
    ] {
        assert_eq!(of(tenant, "refused", Some(code)), count, "{tenant} {code}: {audit:?}");
    }
    for event in ["opened", "registered", "computed"] {
        assert_eq!(of("acme", event, None), 1, "{event}");
    }
    assert_eq!(of("acme", "deleted", None), 0);

    // And nothing of a key or a ciphertext.
    let mut needles = Needles::default();
    for kind in [FrameKind::Chunk, FrameKind::Job, FrameKind::Result] {
        let seen = frames(&stage.operator, kind);
        let real = seen.iter().filter(|frame| frame.body.len() > 32).take(4);
        for (index, frame) in real.enumerate() {
            needles.bytes(&format!("{kind:?} {index}"), &frame.body[..32])?;
        }
    }
    let found = needles.build()?.path(&stage.compute.audit_log())?;
    assert!(found.is_empty(), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_at_its_limit_is_told_which_and_disturbs_no_other() -> Result<()> {
    let rules = "[tenants.acme]\nmax_sessions = 1\n[tenants.globex]\nmax_bytes = 20\n";
    let builder = World::builder().agent_stopped().other_robot(STRANGER).server_toml(rules);
    let stage = start(builder).await?;
    let first = Played::new(&stage).await?;
    first.publish(&first.open(), first.open_bytes(1, MINUTE)?).await?;
    first.have().await?;
    let second = Played { session: SessionId::new(2, [2; 10]), ..Played::new(&stage).await? };
    let refused = second.refused(&second.open(), second.open_bytes(1, MINUTE)?).await?;
    assert_eq!(refused, (ErrorCode::Busy, 0));

    let other = stranger(&stage).await?;
    other.publish(&other.open(), other.open_bytes(1, MINUTE)?).await?;
    other.have().await?;
    let more = Played { session: SessionId::new(3, [3; 10]), ..stranger(&stage).await? };
    let refused = more.refused(&more.open(), more.open_bytes(1, MINUTE)?).await?;
    assert_eq!(refused, (ErrorCode::TooLarge, 0), "two keys of 16 bytes each");

    // What was there goes on, and what ended makes room.
    first.publish(&first.open(), first.open_bytes(2, MINUTE)?).await?;
    first.have().await?;
    first.publish(&first.delete(), first.delete_bytes()?).await?;
    stage.compute.process()?.wait_for_line("session and keys deleted", SLOW).await?;
    second.publish(&second.open(), second.open_bytes(2, MINUTE)?).await?;
    second.have().await?;

    let messages: Vec<String> = audit(&stage)?
        .iter()
        .filter(|line| line["event"] == "refused")
        .filter_map(|line| Some(line["message"].as_str()?.to_owned()))
        .collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages[0].contains("max_sessions"), "{messages:?}");
    assert!(messages[1].contains("max_bytes"), "{messages:?}");
    Ok(())
}
