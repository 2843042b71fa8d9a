//! The service itself, in this process, with an engine that does what a test wants of it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_server::audit::{Audit, AuditTarget};
use moai_server::engine::{Engine, EngineError, PreparedKeys};
use moai_server::service::{Parts, Service, ServiceSettings, Trust};
use moai_server::store::{Budget, DirectoryStore, UnixMillis};
use moai_server::tenants::TenantRules;
use moai_tests::World;
use moai_tests::broker::SERVER;
use moai_tests::compute::WORKER_STATUS;
use moai_tests::process::STEP;
use moai_transport::chunk::manifest;
use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::{ContextId, ModelId, SessionId, WorkerId};
use moai_transport::keys::SessionSigningKey;
use moai_transport::link::{self, Endpoint, LinkConfig, Qos};
use moai_transport::message::{ErrorBody, ErrorCode};
use moai_transport::tls::client_config;
use moai_transport::topic::{Topic, worker_filters};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

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

/// A service in this process, in the place of the world's own.
struct Inside {
    gate: Arc<Gate>,
    worker: WorkerId,
    store: PathBuf,
    _stop: [DropGuard; 2],
}

impl Inside {
    async fn start(stage: &mut Stage, max_jobs: usize, max_prepared: usize) -> Result<Self> {
        stage.compute.stop().await?;
        let directory = stage.directory().join("inside");
        std::fs::create_dir_all(&directory)?;
        let worker: WorkerId = "w-inside".parse()?;
        let credentials = stage.pki.client(SERVER)?;
        let read = |path: &PathBuf| std::fs::read(path);
        let tls = client_config(
            &read(&credentials.ca)?,
            &read(&credentials.certificate)?,
            &read(&credentials.key)?,
        )?;
        let port = stage.broker.port();
        let endpoint = Endpoint { host: "localhost".to_owned(), port, tls: Some(tls) };
        let mut config = LinkConfig::new("broker", endpoint, worker.to_string());
        config.max_packet = 1024 * 1024;
        config.subscriptions = worker_filters(&"inside".parse()?, &worker)
            .into_iter()
            .map(|filter| (filter, Qos::AtLeastOnce))
            .collect();
        let links = CancellationToken::new();
        let (link, events) = link::spawn(config, links.clone());

        let budget = Budget { sessions: 9, bytes: 1 << 20 };
        let rules = TenantRules { models: None, budget, max_jobs };
        let tenants: BTreeMap<_, _> =
            [("acme".parse()?, rules.clone()), ("globex".parse()?, rules)].into();
        let settings = ServiceSettings {
            tenants,
            max_ttl: Duration::from_mins(10),
            threads: 1,
            max_waiting_jobs: 100,
            max_prepared: NonZeroUsize::new(max_prepared).context("some")?,
        };
        let (gate, store) = (Arc::new(Gate::default()), directory.join("store"));
        let trust = Trust {
            signing_key: stage.pki.server_signer()?,
            robots: stage.pki.robots()?,
            attestation: None,
        };
        let audit = AuditTarget::File(directory.join("audit.jsonl"));
        let service = Service::new(Parts {
            worker: worker.clone(),
            settings,
            engine: Arc::new(Backwards(Arc::clone(&gate))),
            store: Arc::new(DirectoryStore::open(&store)?),
            trust,
            audit: Audit::open(audit, worker.clone(), context())?,
            health: None,
            clock: UnixMillis::now,
            link,
        })?;
        let stop = CancellationToken::new();
        let (_, reopen) = mpsc::channel(1);
        stage.operator.skip(WORKER_STATUS);
        tokio::spawn(service.run(events, reopen, stop.clone()));
        let is_up = |status: &moai_tests::mqtt::Message| {
            status.topic.contains("w-inside")
                && status.json().is_ok_and(|status| status["up"] == true)
        };
        stage.operator.wait_for(WORKER_STATUS, "service", STEP, is_up).await?;
        Ok(Self { gate, worker, store, _stop: [stop.drop_guard(), links.drop_guard()] })
    }

    /// A robot in a session of this service.
    async fn robot<'s>(&self, stage: &'s Stage, identity: &str, id: u8) -> Result<Played<'s>> {
        Ok(Played {
            identity: identity.parse()?,
            session: SessionId::new(1_800_000_000_000, [id; 10]),
            signer: stage.pki.client(identity)?.signer()?,
            key: SessionSigningKey::from_seed(&[id; 32]),
            worker: self.worker.clone(),
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
    let inside = Inside::start(&mut stage, 2, 9).await?;
    let acme = inside.registered(&stage, "acme.robot-1", 1).await?;
    let globex = inside.registered(&stage, "globex.robot-9", 2).await?;
    acme.submit(1, b"acme 1").await?;
    acme.submit(2, b"acme 2").await?;
    let third = acme.job_bytes(3, b"acme 3")?;
    assert_eq!(acme.refused(&acme.job(), third).await?, (ErrorCode::Busy, 3));
    let log = std::fs::read_to_string(stage.directory().join("inside/audit.jsonl"))?;
    assert!(log.contains("2 jobs of the tenant are under way, its limit max_jobs"), "{log}");
    globex.submit(1, b"globex 1").await?;
    globex.submit(2, b"globex 2").await?;
    let third = globex.job_bytes(3, b"globex 3")?;
    assert_eq!(globex.refused(&globex.job(), third).await?, (ErrorCode::Busy, 3));

    inside.gate.open(4);
    // Results are published side by side.
    let answers = BTreeSet::from([acme.answered().await?, acme.answered().await?]);
    assert_eq!(answers, [(1, b"1 emca".to_vec()), (2, b"2 emca".to_vec())].into());
    let answers = BTreeSet::from([globex.answered().await?, globex.answered().await?]);
    assert_eq!(answers, [(1, b"1 xebolg".to_vec()), (2, b"2 xebolg".to_vec())].into());
    let computed = inside.gate.state().computed.clone();
    let expected: [&[u8]; 4] = [b"acme 1", b"globex 1", b"acme 2", b"globex 2"];
    assert_eq!(computed, expected);

    // What was refused may come again.
    inside.gate.open(1);
    acme.submit(3, b"acme 3").await?;
    assert_eq!(acme.answered().await?, (3, b"3 emca".to_vec()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_ends_one_job_and_one_that_refuses_keys_one_session() -> Result<()> {
    let mut stage = stage().await?;
    let inside = Inside::start(&mut stage, 9, 9).await?;
    inside.gate.open(9);
    let robot = inside.registered(&stage, "acme.robot-1", 1).await?;
    let fatal = robot.job_bytes(1, FATAL)?;
    assert_eq!(robot.refused(&robot.job(), fatal).await?, (ErrorCode::Internal, 1));
    let bad = robot.job_bytes(2, BAD)?;
    assert_eq!(robot.refused(&robot.job(), bad).await?, (ErrorCode::MalformedCiphertext, 2));
    robot.submit(3, b"good").await?;
    assert_eq!(robot.answered().await?, (3, b"doog".to_vec()));
    // The number of a job that failed is free again.
    robot.submit(1, b"better").await?;
    assert_eq!(robot.answered().await?, (1, b"retteb".to_vec()));

    let refused = inside.with_keys(&stage, "acme.robot-1", 2, BAD_KEYS).await?;
    let filter = format!("moai/v1/down/acme.robot-1/{}/error", refused.session);
    let error = stage.operator.wait_for(&filter, "refusal", STEP, |_| true).await?;
    let error = stage.pki.answered(&error.payload)?;
    let code = ErrorBody::decode(&error.body)?.code;
    assert_eq!(code, ErrorCode::MalformedCiphertext);
    let sessions = inside.store.join("sessions");
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
    let inside = Inside::start(&mut stage, 9, 1).await?;
    inside.gate.open(99);
    let one = inside.registered(&stage, "acme.robot-1", 1).await?;
    let two = inside.registered(&stage, "acme.robot-1", 2).await?;
    assert_eq!(inside.gate.state().prepared, 2);
    for number in 1..=3 {
        for robot in [&one, &two] {
            robot.submit(number, b"input").await?;
            assert_eq!(robot.answered().await?, (number, b"tupni".to_vec()));
        }
    }
    assert_eq!(inside.gate.state().prepared, 8, "one set at a time, each use after another's");

    // Somebody changed the store: the keys are not used, and their robot is told.
    let file = inside.store.join(format!("sessions/acme.robot-1.{}.keys", one.session));
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
    assert_eq!(inside.gate.state().prepared, 8);
    Ok(())
}
