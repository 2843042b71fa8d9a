//! The CKKS server, asked by a robot that has TenSEAL's keys and speaks by moai-transport.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ciborium::Value;
use moai_tests::broker::{Acl, Broker, OPERATOR};
use moai_tests::compute::{Compute, WORKER_STATUS};
use moai_tests::mqtt::{Address, Client};
use moai_tests::onboard::SLOW;
use moai_tests::pki::{Pki, unix_now};
use moai_tests::process::{Finished, STEP};
use moai_tests::reference::Scheme;
use moai_tests::tenseal;
use moai_tests::world::IDENTITY;
use moai_transport::frame::{Frame, FrameKind};
use moai_transport::ids::{ContextId, SessionId};
use moai_transport::message::ErrorCode;
use serde_json::Value as Json;

use crate::played::Played;

/// A broker and a CKKS server; the fields are dropped in this order.
struct Scene {
    server: Compute,
    operator: Client,
    broker: Broker,
    pki: Pki,
    scratch: tempfile::TempDir,
}

impl Scene {
    async fn start() -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("moai-").tempdir()?;
        let pki = Pki::new(&scratch.path().join("pki"))?;
        let uplink = scratch.path().join("uplink");
        let acl = Acl { robots: vec![IDENTITY.to_owned()], ..Acl::default() };
        let broker = Broker::uplink(&uplink, &pki, &acl, false).await?;
        let credentials = Some(pki.client(OPERATOR)?);
        let (port, client_id) = (broker.port(), OPERATOR.to_owned());
        let operator = Client::connect(Address { port, credentials, client_id }).await?;
        operator.subscribe(WORKER_STATUS).await?;
        let (scheme, directory) = (Scheme::Ckks, scratch.path().join("server"));
        let mut server = Compute::new(scheme, &directory, port, &pki, &scheme.models(), &[])?;
        server.start(&operator).await?;
        Ok(Self { server, operator, broker, pki, scratch })
    }

    /// A robot that asks for a model of the catalogue.
    async fn robot(&self, model: &'static str) -> Result<Played<'_>> {
        let robot = Played::at(&self.operator, &self.pki, self.server.worker()?).await?;
        let card = self.card(model).await?;
        let context = field(&card, "context").and_then(Value::as_text).context("a context")?;
        let context: ContextId = context.parse()?;
        Ok(Played { model, context, ..robot })
    }

    /// A model's card, from the catalogue that the server signed.
    async fn card(&self, model: &str) -> Result<Value> {
        const TOPIC: &str = "moai/v1/models/acme";
        let watcher = self.watcher().await?;
        watcher.subscribe(TOPIC).await?;
        let message = watcher.wait_for(TOPIC, "catalogue", STEP, |_| true).await?;
        let frame = self.pki.answered(&message.payload)?;
        ensure!(frame.kind == FrameKind::Models, "no catalogue");
        let cards: Vec<Value> = ciborium::from_reader(frame.body.as_slice())?;
        let named = |card: &Value| field(card, "id").and_then(Value::as_text) == Some(model);
        cards.into_iter().find(named).with_context(|| format!("no {model} in the catalogue"))
    }

    /// The robot's own connection, to which the broker says again what it retains.
    async fn watcher(&self) -> Result<Client> {
        let credentials = Some(self.pki.client(IDENTITY)?);
        let port = self.broker.port();
        Client::connect(Address { port, credentials, client_id: IDENTITY.to_owned() }).await
    }

    /// Keys and inputs of a session, made by TenSEAL.
    async fn material(&self, model: &str) -> Result<Material> {
        let directory = self.scratch.path().join(model);
        std::fs::create_dir_all(&directory)?;
        let material = Material { directory, model: model.to_owned() };
        material.python("make").await?;
        Ok(material)
    }
}

/// What one session's robot has on its disk in a test.
struct Material {
    directory: PathBuf,
    model: String,
}

impl Material {
    fn file(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.directory.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn result(&self, number: u64, body: &[u8]) -> Result<()> {
        Ok(std::fs::write(self.directory.join(format!("result-{number}")), body)?)
    }

    async fn python(&self, command: &str) -> Result<Finished> {
        let directory = self.directory.to_str().context("a path of text")?;
        let arguments = [command, &self.model, directory];
        let finished = tenseal::run(&self.directory, "tests.robot", &arguments).await?;
        ensure!(finished.status.success(), "{}", finished.log.text());
        Ok(finished)
    }

    /// What the results say, beside what the model says in the clear.
    async fn answers(&self) -> Result<Vec<Json>> {
        let finished = self.python("read").await?;
        let lines = finished.log.lines();
        let line = lines.iter().find(|line| line.contains("is_exact")).context("no answers")?;
        let json = line.find('[').and_then(|start| line.get(start..)).context("no list")?;
        Ok(serde_json::from_str(json)?)
    }
}

fn field<'c>(card: &'c Value, name: &str) -> Option<&'c Value> {
    let entries = card.as_map()?;
    entries.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
}

/// Opens a session, asks so many jobs, and compares the answers with the model in the clear.
async fn ask(scene: &Scene, model: &'static str, jobs: u64) -> Result<()> {
    let (robot, material) = (scene.robot(model).await?, scene.material(model).await?);
    robot.register_keys(material.file("keys")?).await?;
    for number in 0..jobs {
        let input = material.file(&format!("input-{number}"))?;
        robot.publish(&robot.job(), robot.job_bytes(number + 1, &input)?).await?;
        let result = robot.result().await?;
        assert_eq!(result.claims.number, number + 1);
        assert_eq!(result.claims.model.as_ref().map(ToString::to_string).as_deref(), Some(model));
        assert_eq!(result.claims.context, Some(robot.context));
        material.result(number, &result.body)?;
    }
    let answers = material.answers().await?;
    assert_eq!(answers.len() as u64, jobs);
    for answer in &answers {
        assert_eq!((&answer["label"], &answer["is_exact"]), (&answer["expected"], &true.into()));
    }
    Ok(())
}

fn events(audit: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(audit)?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Json>, _>>()?;
    Ok(lines.iter().filter_map(|line| Some(line["event"].as_str()?.to_owned())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn its_unit_tests_pass() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let root = moai_tests::repository().join("server/tenseal");
    let root = root.to_str().context("a path of text")?;
    let arguments =
        ["discover", "--buffer", "--start-directory", root, "--top-level-directory", root];
    let finished = tenseal::run(scratch.path(), "unittest", &arguments).await?;
    assert!(finished.status.success(), "{}", finished.log.text());
    assert!(!finished.log.contains("Ran 0 tests"), "{}", finished.log.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linear_model_answers_what_it_answers_in_the_clear() -> Result<()> {
    let mut scene = Scene::start().await?;
    ask(&scene, "failure-linear", 3).await?;
    let robot = scene.robot("failure-linear").await?;
    robot.publish(&robot.delete(), robot.delete_bytes()?).await?;
    let ended = robot.refused(&robot.job(), robot.job_bytes(9, b"any")?).await?;
    assert_eq!(ended, (ErrorCode::ExpiredSession, 9));
    let gone = scene.operator.wait_for(WORKER_STATUS, "worker that is gone", STEP, |message| {
        message.json().is_ok_and(|status| status["up"] == false)
    });
    scene.server.process()?.log().wait_for("deleted", STEP).await?;
    let audit = scene.server.audit_log();
    drop(robot);
    scene.server.stop().await?;
    gone.await?;
    let expected =
        ["opened", "registered", "computed", "computed", "computed", "deleted", "refused"];
    assert_eq!(events(&audit)?, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_answers_what_it_answers_in_the_clear() -> Result<()> {
    ask(&Scene::start().await?, "grasp-mlp", 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_its_robots_is_refused() -> Result<()> {
    let scene = Scene::start().await?;
    let robot = scene.robot("failure-linear").await?;
    let topic = robot.open();
    let open = robot.open_frame(1, Duration::from_mins(1))?;

    let mut bad = open.encode_as_robot(&robot.signer)?;
    let last_of_signature = bad.len() - open.body.len() - 1;
    bad[last_of_signature] ^= 1;
    assert_eq!(robot.refused(&topic, bad).await?, (ErrorCode::BadSignature, 0));

    let other = open.encode_as_robot(&scene.pki.client("acme.robot-2")?.signer()?)?;
    assert_eq!(robot.refused(&topic, other).await?, (ErrorCode::IdentityMismatch, 0));

    let foreign = Pki::new(&scene.scratch.path().join("foreign"))?;
    let foreign = open.encode_as_robot(&foreign.client("acme.robot-1")?.signer()?)?;
    assert_eq!(robot.refused(&topic, foreign).await?, (ErrorCode::UntrustedCertificate, 0));

    let mut late = open.clone();
    late.claims.expires_at = unix_now()? - 400;
    let late = late.encode_as_robot(&robot.signer)?;
    assert_eq!(robot.refused(&topic, late).await?, (ErrorCode::ExpiredFrame, 0));

    let strange = Played { session: SessionId::new(7, [7; 10]), ..scene.robot("grasp-mlp").await? };
    let strangers = strange.job_bytes(1, b"input")?;
    assert_eq!(strange.refused(&strange.job(), strangers).await?, (ErrorCode::UnknownSession, 0));

    let material = scene.material("failure-linear").await?;
    let registered = robot.register_keys(material.file("keys")?).await?;
    assert_eq!(robot.refused(&topic, registered).await?, (ErrorCode::Replayed, 0));

    let mut input = material.file("input-0")?;
    let forged = robot
        .job_frame(1, &input)?
        .encode_as_session(&moai_transport::keys::SessionSigningKey::from_seed(&[8; 32]))?;
    assert_eq!(robot.refused(&robot.job(), forged).await?, (ErrorCode::BadSignature, 0));
    let no_input = robot.job_bytes(1, b"no ciphertext")?;
    let answer = robot.refused(&robot.job(), no_input).await?;
    assert_eq!(answer, (ErrorCode::MalformedCiphertext, 1));

    // Longer than any input of the context, and shorter than any frame's limit.
    input.resize(FrameKind::Job.max_body_len(), 0);
    let answer = robot.refused(&robot.job(), robot.job_bytes(2, &input)?).await?;
    assert_eq!(answer, (ErrorCode::MalformedCiphertext, 2));

    let answer = robot.refused(&robot.job(), robot.job_bytes(10_001, b"input")?).await?;
    assert_eq!(answer, (ErrorCode::TooLarge, 10_001));

    // None of it kept the robot from its answer.
    let input = material.file("input-1")?;
    robot.publish(&robot.job(), robot.job_bytes(3, &input)?).await?;
    let result = robot.result().await?;
    let again = robot.job_bytes(3, &material.file("input-2")?)?;
    assert_eq!(robot.refused(&robot.job(), again).await?, (ErrorCode::NumberReused, 3));
    material.result(1, &result.body)?;
    let answers = material.answers().await?;
    assert_eq!((&answers[0]["label"], answers.len()), (&answers[0]["expected"], 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_too_many_or_hold_a_secret_are_refused() -> Result<()> {
    let scene = Scene::start().await?;
    let robot = scene.robot("failure-linear").await?;
    let material = scene.material("failure-linear").await?;
    let mut many = material.file("keys")?;
    many.resize(3_000_000, 0);
    let ttl = Duration::from_mins(10);
    let manifest =
        moai_transport::chunk::manifest(robot.context, ttl, robot.key.public(), &many, 1)?;
    let claims = robot.claims(1)?;
    let open = Frame { kind: FrameKind::Open, claims, body: manifest.encode()? };
    let open = open.encode_as_robot(&robot.signer)?;
    assert_eq!(robot.refused(&robot.open(), open).await?, (ErrorCode::TooLarge, 0));

    // A robot that uploads its secret key by mistake is told so, and nobody loads it.
    let log = scene.server.process()?.log().clone();
    tokio::select! {
        registered = robot.register_keys(material.file("secret")?) => {
            registered?;
            bail!("a secret key was registered");
        }
        refused = log.wait_for("they hold a secret key", SLOW) => drop(refused?),
    }
    Ok(())
}
