//! Evaluation keys through a real broker, as agent and server move them, against bare rumqttc.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use moai_transport::chunk::{ChunkReceiver, ChunkSender, MAX_WINDOW, manifest};
use moai_transport::frame::{ChunkFrame, Frame, FrameKind, Received, encode_chunk};
use moai_transport::ids::{Digest, SessionId};
use moai_transport::keys::{ServerKeys, ServerSigningKey};
use moai_transport::link::{Endpoint, Link, LinkConfig, LinkEvent, Message, Outgoing, Qos, spawn};
use moai_transport::message::{Have, Manifest};
use moai_transport::topic::{Topic, robot_filters, worker_filters};
use moai_transport::trust::TrustedRobots;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Run;
use super::measure::{Series, Stopwatch};
use super::plain_mqtt::Pair;
use super::report::Figure;
use super::subject;
use crate::broker::{Acl, Broker, OPERATOR, SERVER};
use crate::pki::{self, Credentials, Pki, Signer};
use crate::process::STEP;

const SECTION: &str = "upload";
const PLAIN_ROBOT: &str = "acme.robot-2";
const PLAIN_TOPIC: &str = "moai/v1/up/acme.robot-2/bench";
const MAX_KEY_LEN: u64 = 32 << 20;
/// How often each byte is hashed: when its chunk arrives, and as part of the whole.
const DIGESTS: f64 = 2.0;
const TTL: Duration = Duration::from_hours(1);

/// Measures the section.
///
/// # Errors
/// mosquitto does not come up, or a transfer fails.
pub async fn run(run: &mut Run) -> Result<()> {
    run.step("uploading keys");
    let scratch = tempfile::tempdir()?;
    let pki = Pki::new(&scratch.path().join("pki"))?;
    let robots = vec![subject::IDENTITY.to_owned(), PLAIN_ROBOT.to_owned()];
    let acl = Acl { robots, ..Acl::default() };
    let mut broker = Broker::uplink(&scratch.path().join("broker"), &pki, &acl, false).await?;
    let port = broker.port();
    let robot = robot_filters(&subject::identity()?);
    let server = worker_filters(&"bench".parse()?, &subject::worker()?);
    let mut robot = Party::connect(subject::IDENTITY, robot, port, &pki).await?;
    let mut server = Party::connect(SERVER, server, port, &pki).await?;
    let credentials = [pki.client(PLAIN_ROBOT)?, pki.client(OPERATOR)?];
    let mut plain = Pair::connect(port, &credentials[0], &credentials[1], PLAIN_TOPIC).await?;
    let key = Bytes::from(subject::engine()?.evaluation_keys()?);
    let [mut ours, mut bare, mut hashing] = <[Series; 3]>::default();
    for round in 0..=run.repeats(15, 3) as u64 {
        let session = subject::session(round);
        let manifest =
            manifest(subject::context_id(), TTL, subject::session_key().public(), &key, 1)?;
        let sender = ChunkSender::new(key.clone(), manifest)?;
        let watch = Stopwatch::start();
        // Two tasks, as agent and server are two processes.
        let receiving = tokio::spawn(receive(server, session.clone()));
        let sent = tokio::time::timeout(2 * STEP, send(&mut robot, &session, sender));
        sent.await.context("the upload stands still")??;
        let received;
        (server, received) = receiving.await??;
        let own = watch.cost();
        ensure!(received == key, "another key arrived");
        drop(received);
        let watch = Stopwatch::start();
        plain.transfer(&key).await?;
        // The first round grows buffers and windows of all parties.
        if round > 0 {
            ours.push(own);
            bare.push(watch.cost());
            let watch = Stopwatch::start();
            std::hint::black_box(Digest::of(&key));
            hashing.push(watch.cost());
        }
    }
    let length = f64::from(u32::try_from(key.len())?) / 1e6;
    let share = bare.wall_over(&ours) * 100.0;
    run.add(
        Figure::new(SECTION, "a key through mosquitto, mTLS", length / ours.wall(), "MB/s")
            .against("bare rumqttc, chunks as long", length / bare.wall(), share, "% of it")
            .goal("≥ 80 % of it", share >= 80.0),
    );
    run.add(Figure::new(SECTION, "time of one upload", ours.wall() * 1e3, "ms").against(
        "bare rumqttc",
        bare.wall() * 1e3,
        ours.wall_over(&bare),
        "times as long",
    ));
    run.add(Figure::new(SECTION, "CPU time of both ends", ours.cpu() * 1e3, "ms").against(
        "bare rumqttc",
        bare.cpu() * 1e3,
        ours.cpu_over(&bare),
        "times as much",
    ));
    let digests = DIGESTS * hashing.cpu() * 1e3;
    let share = DIGESTS * hashing.cpu_over(&ours) * 100.0;
    run.add(Figure::new(SECTION, "… of it two SHA-256 of every byte", digests, "ms").against(
        "both ends",
        ours.cpu() * 1e3,
        share,
        "% of it",
    ));
    let window = MAX_WINDOW / 1024;
    run.note(
        SECTION,
        format!(
            "from open to registered: frames, digests, at most {window} KiB ahead of the broker; \
         the baseline only counts bytes"
        ),
    );
    drop((robot, server, plain));
    broker.stop().await
}

/// One end of the uplink.
struct Party {
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
    signer: Signer,
    server_signer: ServerSigningKey,
    robots: TrustedRobots,
    servers: ServerKeys,
    _cancel: DropGuard,
}

impl Party {
    async fn connect(name: &str, filters: Vec<String>, port: u16, pki: &Pki) -> Result<Self> {
        let credentials: Credentials = pki.client(name)?;
        let endpoint = Endpoint { host: "localhost".into(), port, tls: Some(credentials.tls()?) };
        let mut config = LinkConfig::new(name, endpoint, name);
        config.subscriptions = filters.into_iter().map(|f| (f, Qos::AtLeastOnce)).collect();
        let cancel = CancellationToken::new();
        let (link, events) = spawn(config, cancel.clone());
        let mut party = Self {
            link,
            events,
            signer: credentials.signer()?,
            server_signer: pki.server_signer()?,
            robots: pki.robots()?,
            servers: pki.servers()?,
            _cancel: cancel.drop_guard(),
        };
        match tokio::time::timeout(STEP, party.events.recv()).await? {
            Some(LinkEvent::Up) => Ok(party),
            other => bail!("{name} does not come up: {other:?}"),
        }
    }

    async fn message(&mut self) -> Result<Message> {
        match self.events.recv().await.context("the link has ended")? {
            LinkEvent::Message(message) => Ok(message),
            other => bail!("{other:?}"),
        }
    }

    /// What a message holds, checked as agent and server check it.
    fn checked(&self, message: &Message) -> Result<Checked> {
        let topic: Topic = message.topic.parse()?;
        let frame = match Received::decode(&message.payload)? {
            Received::Chunk(chunk) => {
                chunk.frame().check_topic(&topic)?;
                return Ok(Checked::Chunk(chunk));
            }
            Received::Signed(open) if open.kind() == FrameKind::Open => {
                open.verify_robot(&self.robots, pki::unix_now()?)?.into_frame()
            }
            Received::Signed(answer) => answer.verify_server(&self.servers, pki::unix_now()?)?,
        };
        frame.check_topic(&topic)?;
        Ok(Checked::Signed(frame))
    }
}

/// What arrived.
enum Checked {
    Chunk(ChunkFrame),
    Signed(Frame),
}

fn outgoing(topic: &Topic, payload: Vec<u8>) -> Outgoing {
    let outgoing = Outgoing::new(topic.to_string(), payload, Qos::AtLeastOnce);
    Outgoing { expiry: Some(TTL), ..outgoing }
}

/// The robot: opens, sends what the worker has not, until the worker has registered the key.
async fn send(robot: &mut Party, session: &SessionId, mut sender: ChunkSender) -> Result<()> {
    let identity = subject::identity()?;
    let open = Topic::Open { identity: identity.clone(), session: session.clone() };
    let body = sender.reopen(2).encode()?;
    let frame = subject::frame(FrameKind::Open, session, 1, body)?;
    robot.link.publish(outgoing(&open, frame.encode_as_robot(&robot.signer)?)).await?;
    let mut publishing = JoinSet::new();
    while !sender.is_registered() {
        while let Some(part) = sender.next_chunk() {
            let worker = sender.worker().context("nobody asked for chunks")?.clone();
            let (identity, session) = (identity.clone(), session.clone());
            let topic = Topic::Chunk { identity, worker, session: session.clone() };
            let link = robot.link.clone();
            publishing.spawn(async move {
                let Frame { claims, .. } =
                    subject::frame(FrameKind::Chunk, &session, part.index, Vec::new())?;
                let payload = encode_chunk(&claims, &part.bytes, part.digest)?;
                link.publish_bulk(outgoing(&topic, payload)).await?;
                anyhow::Ok(part.index)
            });
        }
        tokio::select! {
            Some(sent) = publishing.join_next() => sender.on_acked(sent??),
            message = robot.message() => {
                let Checked::Signed(frame) = robot.checked(&message?)? else {
                    bail!("a chunk came down")
                };
                ensure!(frame.kind == FrameKind::Have, "a {:?} came", frame.kind);
                sender.on_have(&Have::decode(&frame.body)?);
            }
        }
    }
    Ok(())
}

/// The server: says what it has, collects chunks, checks the whole and registers it.
async fn receive(mut server: Party, session: SessionId) -> Result<(Party, Vec<u8>)> {
    let mut receiver: Option<ChunkReceiver> = None;
    let mut progress = None;
    loop {
        let message = server.message().await?;
        match server.checked(&message)? {
            Checked::Signed(frame) => {
                ensure!(frame.kind == FrameKind::Open, "a {:?} came", frame.kind);
                let manifest = Manifest::decode(&frame.body, MAX_KEY_LEN)?;
                let opened = receiver.insert(ChunkReceiver::new(manifest, MAX_KEY_LEN)?);
                progress = Some((opened.manifest().nonce, opened.bitmap()));
            }
            Checked::Chunk(chunk) => {
                receiver.as_mut().context("chunks come after an open")?.accept_frame(&chunk)?;
            }
        }
        if let Some((nonce, bitmap)) = progress.take() {
            have(&server, &session, nonce, bitmap, false).await?;
        }
        if let Some(complete) = receiver.take_if(|receiver| receiver.is_complete()) {
            let (nonce, bitmap) = (complete.manifest().nonce, complete.bitmap());
            let key = tokio::task::spawn_blocking(move || complete.into_key()).await??;
            have(&server, &session, nonce, bitmap, true).await?;
            return Ok((server, key));
        }
    }
}

async fn have(
    server: &Party,
    session: &SessionId,
    nonce: u64,
    bitmap: Vec<u8>,
    registered: bool,
) -> Result<()> {
    let have = Have { worker: subject::worker()?, nonce, bitmap, registered };
    let topic = Topic::Have { identity: subject::identity()?, session: session.clone() };
    let frame = subject::frame(FrameKind::Have, session, 0, have.encode()?)?;
    let payload = frame.encode_as_server(&server.server_signer)?;
    Ok(server.link.publish(outgoing(&topic, payload)).await?)
}
