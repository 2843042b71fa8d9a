//! The service itself, in this process, with an engine that does what a test wants of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_server::engine::{Engine, EngineError, PreparedKeys};
use moai_tests::World;
use moai_tests::inside::{Inside, Limits};
use moai_tests::pki::Pki;
use moai_tests::process::STEP;
use moai_transport::chunk::manifest;
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::{ContextId, ModelId, SessionId};
use moai_transport::keys::SessionSigningKey;
use moai_transport::message::{ErrorBody, ErrorCode};
use moai_transport::topic::Topic;
use serde_json::Value;

use crate::played::{Played, context};
use crate::stage::{QUICK, Stage, start};

/// Keys that the engine refuses.
const BAD_KEYS: &[u8] = b"no keys at all";
/// Inputs that it refuses, and that it fails at.
const BAD: &[u8] = b"no input";
const FATAL: &[u8] = b"panic";

/// How often keys were prepared, which inputs were computed, and how many more may be.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    prepared: usize,
    computed: Vec<Vec<u8>>,
    permits: usize,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets so many more jobs be computed.
    fn open(&self, jobs: usize) {
        self.state().permits += jobs;
        self.changed.notify_all();
    }
}

/// An engine that says the input backwards, when the gate lets it.
struct Backwards(Arc<Gate>);

impl Engine for Backwards {
    fn context(&self) -> ContextId {
        context()
    }

    fn max_key_len(&self) -> u64 {
        1024
    }

    fn models(&self) -> Vec<ModelId> {
        QUICK.parse().into_iter().collect()
    }

    fn catalogue(&self, _: &[ModelId]) -> Vec<u8> {
        vec![0x80]
    }

    fn prepare(&self, keys: &[u8]) -> Result<Arc<dyn PreparedKeys>, EngineError> {
        if keys == BAD_KEYS {
            return Err(EngineError::Keys("these are no keys".to_owned()));
        }
        self.0.state().prepared += 1;
        Ok(Arc::new(Backwards(Arc::clone(&self.0))))
    }
}

impl PreparedKeys for Backwards {
    fn evaluate(&self, _: &ModelId, input: &[u8]) -> Result<Vec<u8>, EngineError> {
        let mut state = self.0.state();
        while state.permits == 0 {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.permits -= 1;
        state.computed.push(input.to_vec());
        drop(state);
        assert_ne!(input, FATAL, "as was asked");
        if input == BAD {
            return Err(EngineError::Input("this is no input".to_owned()));
        }
        Ok(input.iter().rev().copied().collect())
    }
}

/// A service in this process, behind a gate.
struct Gated {
    gate: Arc<Gate>,
    inside: Inside,
}

impl Gated {
    async fn start(stage: &mut Stage, max_jobs: usize, max_prepared: usize) -> Result<Self> {
        let gate = Arc::new(Gate::default());
        let engine = Arc::new(Backwards(Arc::clone(&gate)));
        let inside = Inside::start(stage, engine, Limits { max_jobs, max_prepared }).await?;
        Ok(Self { gate, inside })
    }

    /// A robot in a session of this service.
    async fn robot<'s>(&self, stage: &'s Stage, identity: &str, id: u8) -> Result<Played<'s>> {
        Ok(Played {
            identity: identity.parse()?,
            session: SessionId::new(1_800_000_000_000, [id; 10]),
            signer: stage.pki.client(identity)?.signer()?,
            key: SessionSigningKey::from_seed(&[id; 32]),
            worker: self.inside.worker.clone(),
            ..Played::new(stage).await?
        })
    }

    /// The same, with these keys on the way.
    async fn with_keys<'s>(
        &self,
        stage: &'s Stage,
        identity: &str,
        id: u8,
        keys: &[u8],
    ) -> Result<Played<'s>> {
        let robot = self.robot(stage, identity, id).await?;
        let ttl = Duration::from_mins(5);
        let body = manifest(context(), ttl, robot.key.public(), keys, 1)?.encode()?;
        let open = Frame { kind: FrameKind::Open, claims: robot.claims(1)?, body };
        robot.publish(&robot.open(), open.encode_as_robot(&robot.signer)?).await?;
        robot.have().await?;
        let topic = Topic::Chunk {
            identity: robot.identity.clone(),
            worker: robot.worker.clone(),
            session: robot.session.clone(),
        };
        let claims = Claims { model: None, ..robot.claims(0)? };
        let chunk = Frame { kind: FrameKind::Chunk, claims, body: keys.to_vec() };
        robot.publish(&topic, chunk.encode()?).await?;
        Ok(robot)
    }

    /// The same, registered.
    async fn registered<'s>(&self, stage: &'s Stage, identity: &str, id: u8) -> Result<Played<'s>> {
        let robot = self.with_keys(stage, identity, id, &[id; 100]).await?;
        anyhow::ensure!(robot.have().await?.registered, "its keys are not registered");
        Ok(robot)
    }
}

impl Played<'_> {
    async fn submit(&self, number: u64, input: &[u8]) -> Result<()> {
        self.publish(&self.job(), self.job_bytes(number, input)?).await
    }

    /// The next answer: of which job, and what.
    async fn answered(&self) -> Result<(u64, Vec<u8>)> {
        let frame = self.result().await?;
        Ok((frame.claims.number, frame.body))
    }
}

async fn stage() -> Result<Stage> {
    start(World::builder().agent_stopped().other_robot("globex.robot-9")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_too_many_jobs_is_refused_by_name_and_the_others_have_their_turns()
-> Result<()> {
    let mut stage = stage().await?;
    let gated = Gated::start(&mut stage, 2, 9).await?;
    let acme = gated.registered(&stage, "acme.robot-1", 1).await?;
    let globex = gated.registered(&stage, "globex.robot-9", 2).await?;
    acme.submit(1, b"acme 1").await?;
    acme.submit(2, b"acme 2").await?;
    let third = acme.job_bytes(3, b"acme 3")?;
    assert_eq!(acme.refused(&acme.job(), third).await?, (ErrorCode::Busy, 3));
    let log = std::fs::read_to_string(gated.inside.audit_log())?;
    assert!(log.contains("2 jobs of the tenant are under way, its limit max_jobs"), "{log}");
    globex.submit(1, b"globex 1").await?;
    globex.submit(2, b"globex 2").await?;
    let third = globex.job_bytes(3, b"globex 3")?;
    assert_eq!(globex.refused(&globex.job(), third).await?, (ErrorCode::Busy, 3));

    gated.gate.open(4);
    // Results are published side by side.
    let answers = BTreeSet::from([acme.answered().await?, acme.answered().await?]);
    assert_eq!(answers, [(1, b"1 emca".to_vec()), (2, b"2 emca".to_vec())].into());
    let answers = BTreeSet::from([globex.answered().await?, globex.answered().await?]);
    assert_eq!(answers, [(1, b"1 xebolg".to_vec()), (2, b"2 xebolg".to_vec())].into());
    let computed = gated.gate.state().computed.clone();
    let expected: [&[u8]; 4] = [b"acme 1", b"globex 1", b"acme 2", b"globex 2"];
    assert_eq!(computed, expected);

    // What was refused may come again.
    gated.gate.open(1);
    acme.submit(3, b"acme 3").await?;
    assert_eq!(acme.answered().await?, (3, b"3 emca".to_vec()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_ends_one_job_and_one_that_refuses_keys_one_session() -> Result<()> {
    let mut stage = stage().await?;
    let gated = Gated::start(&mut stage, 9, 9).await?;
    gated.gate.open(9);
    let robot = gated.registered(&stage, "acme.robot-1", 1).await?;
    let fatal = robot.job_bytes(1, FATAL)?;
    assert_eq!(robot.refused(&robot.job(), fatal).await?, (ErrorCode::Internal, 1));
    let bad = robot.job_bytes(2, BAD)?;
    assert_eq!(robot.refused(&robot.job(), bad).await?, (ErrorCode::MalformedCiphertext, 2));
    robot.submit(3, b"good").await?;
    assert_eq!(robot.answered().await?, (3, b"doog".to_vec()));
    // The number of a job that failed is free again.
    robot.submit(1, b"better").await?;
    assert_eq!(robot.answered().await?, (1, b"retteb".to_vec()));

    let refused = gated.with_keys(&stage, "acme.robot-1", 2, BAD_KEYS).await?;
    let filter = format!("moai/v1/down/acme.robot-1/{}/error", refused.session);
    let error = stage.operator.wait_for(&filter, "refusal", STEP, |_| true).await?;
    let error = stage.pki.answered(&error.payload)?;
    let code = ErrorBody::decode(&error.body)?.code;
    assert_eq!(code, ErrorCode::MalformedCiphertext);
    let sessions = gated.inside.store().join("sessions");
    let left: BTreeSet<String> = std::fs::read_dir(sessions)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.as_ref().is_ok_and(|name| name.contains(&refused.session.to_string())))
        .collect::<Result<_>>()?;
    let tombstone = format!("acme.robot-1.{}.ended", refused.session);
    assert_eq!(left, [tombstone].into());
    let again = refused.open_bytes(2, Duration::from_mins(1))?;
    let again = refused.refused(&refused.open(), again).await?;
    assert_eq!(again, (ErrorCode::ExpiredSession, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_had_to_make_room_are_loaded_again_from_the_store() -> Result<()> {
    let mut stage = stage().await?;
    let gated = Gated::start(&mut stage, 9, 1).await?;
    gated.gate.open(99);
    let one = gated.registered(&stage, "acme.robot-1", 1).await?;
    let two = gated.registered(&stage, "acme.robot-1", 2).await?;
    assert_eq!(gated.gate.state().prepared, 2);
    for number in 1..=3 {
        for robot in [&one, &two] {
            robot.submit(number, b"input").await?;
            assert_eq!(robot.answered().await?, (number, b"tupni".to_vec()));
        }
    }
    assert_eq!(gated.gate.state().prepared, 8, "one set at a time, each use after another's");

    // Somebody changed the store: the keys are not used, and their robot is told.
    let file = gated.inside.store().join(format!("sessions/acme.robot-1.{}.keys", one.session));
    std::fs::write(file, [9; 100])?;
    one.submit(4, b"input").await?;
    let filter = format!("moai/v1/down/acme.robot-1/{}/error", one.session);
    let mut refused = BTreeSet::new();
    for _ in 0..2 {
        let error = stage.operator.wait_for(&filter, "refusal", STEP, |_| true).await?;
        let error = stage.pki.answered(&error.payload)?;
        assert_eq!(ErrorBody::decode(&error.body)?.code, ErrorCode::UnknownSession);
        refused.insert(error.claims.number);
    }
    assert_eq!(refused, [0, 4].into(), "the session and its job");
    assert_eq!(gated.gate.state().prepared, 8);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_class_of_refusal_is_told_to_the_robot_and_noted_in_the_audit_log() -> Result<()> {
    use ErrorCode as Code;
    let minute = Duration::from_mins(1);
    let mut stage = stage().await?;
    let gated = Gated::start(&mut stage, 1, 9).await?;
    let robot = gated.registered(&stage, "acme.robot-1", 1).await?;
    let strange = gated.robot(&stage, "acme.robot-1", 2).await?;
    let ended = gated.registered(&stage, "acme.robot-1", 3).await?;
    ended.publish(&ended.delete(), ended.delete_bytes()?).await?;
    let foreign = Pki::new(&stage.directory().join("foreign"))?.client("acme.robot-1")?.signer()?;
    let mut other_model = robot.job_frame(1, b"good")?;
    other_model.claims.model = Some("nonesuch".parse()?);
    let mut other_robot = robot.job_frame(2, b"good")?;
    other_robot.claims.identity = Some("acme.robot-2".parse()?);
    let mut expired = strange.open_frame(1, minute)?;
    expired.claims.expires_at -= 3600;

    // Computed with the right answer, before anything is refused.
    gated.gate.open(1);
    robot.submit(10, b"good").await?;
    assert_eq!(robot.answered().await?, (10, b"doog".to_vec()));
    gated.gate.open(2);
    let (job, open) = (robot.job(), robot.open());
    let other_key = robot.job_frame(3, b"good")?.encode_as_session(&ended.key)?;
    for (code, number, from, topic, bytes) in [
        (Code::MalformedFrame, 0, &robot, &job, b"MOAI garbage".to_vec()),
        (Code::UnknownModel, 1, &robot, &job, other_model.encode_as_session(&robot.key)?),
        (Code::IdentityMismatch, 2, &robot, &job, other_robot.encode_as_session(&robot.key)?),
        (Code::BadSignature, 0, &robot, &job, other_key),
        (Code::MalformedCiphertext, 4, &robot, &job, robot.job_bytes(4, BAD)?),
        (Code::Internal, 5, &robot, &job, robot.job_bytes(5, FATAL)?),
        (Code::NumberReused, 10, &robot, &job, robot.job_bytes(10, b"bad")?),
        (Code::TooLarge, 10_001, &robot, &job, robot.job_bytes(10_001, b"good")?),
        (Code::Replayed, 0, &robot, &open, robot.open_bytes(1, minute)?),
        (Code::UnknownSession, 0, &strange, &strange.job(), strange.job_bytes(1, b"good")?),
        (Code::ExpiredFrame, 0, &strange, &strange.open(), expired.encode_as_robot(&robot.signer)?),
        (
            Code::UntrustedCertificate,
            0,
            &strange,
            &strange.open(),
            strange.open_frame(1, minute)?.encode_as_robot(&foreign)?,
        ),
        (Code::ExpiredSession, 0, &ended, &ended.open(), ended.open_bytes(2, minute)?),
    ] {
        refused(&gated, from, topic, bytes, code, number).await?;
    }
    // One job is under way and as many may be.
    robot.submit(20, b"good").await?;
    refused(&gated, &robot, &job, robot.job_bytes(21, b"good")?, Code::Busy, 21).await?;
    gated.gate.open(1);
    assert_eq!(robot.answered().await?, (20, b"doog".to_vec()));
    Ok(())
}

/// The server refuses these bytes with this code, and the newest line of its audit log says so.
async fn refused(
    gated: &Gated,
    robot: &Played<'_>,
    topic: &Topic,
    bytes: Vec<u8>,
    code: ErrorCode,
    number: u64,
) -> Result<()> {
    assert_eq!(robot.refused(topic, bytes).await?, (code, number));
    let log = std::fs::read_to_string(gated.inside.audit_log())?;
    let line: Value = serde_json::from_str(log.lines().last().context("an empty log")?)?;
    let code = serde_json::to_value(code)?;
    for (key, wanted) in [
        ("event", "refused".into()),
        ("code", code),
        ("job", number.into()),
        ("tenant", "acme".into()),
        ("robot", "robot-1".into()),
        ("session", robot.session.to_string().into()),
        ("worker", gated.inside.worker.to_string().into()),
    ] {
        assert_eq!(line[key], wanted, "{key} of {line}");
    }
    assert!(line["message"].as_str().is_some_and(|message| message.len() > 9), "{line}");
    Ok(())
}
