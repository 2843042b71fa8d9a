//! A key crosses real brokers and bad links: brokers die and freeze, links break, middlemen shuffle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use moai_transport::chunk::{self, ChunkReceiver, ChunkSender};
use moai_transport::frame::{Frame, FrameKind};
use moai_transport::ids::{Identity, SessionId};
use moai_transport::link::{
    Endpoint, Link, LinkConfig, LinkError, LinkEvent, Message, Outgoing, Qos,
};
use moai_transport::message::{Have, Manifest};
use moai_transport::topic::{Topic, robot_filters, worker_filters};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::broker::{Broker, Options};
use crate::support::pipe::Pipe;
use crate::support::signer::SESSION;
use crate::support::values::{claims, context, decode, encode, frame, identity, session, worker};
use crate::support::{PATIENCE, Subject, config, outgoing, subscribing};

const KEY_LEN: usize = 12_000_000;
/// After so long without news the sender opens again.
const REOPEN_AFTER: Duration = Duration::from_millis(300);

fn at_least_once(config: LinkConfig, filters: Vec<String>) -> LinkConfig {
    let subscriptions = filters.into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect();
    LinkConfig { subscriptions, ..config }
}

fn framed(topic: &Topic, frame: &Frame) -> Outgoing {
    frame.check_topic(topic).unwrap();
    Outgoing::new(topic.to_string(), encode(frame).unwrap(), Qos::AtLeastOnce)
}

fn topic(make: impl FnOnce(Identity, SessionId) -> Topic) -> Topic {
    make(identity(), session())
}

/// A worker: answers opens, collects chunks. Returns the key.
async fn work(mut server: Subject, arrived: Arc<AtomicUsize>) -> (Vec<u8>, usize) {
    let mut receiver: Option<ChunkReceiver> = None;
    let mut duplicates = 0;
    let mut answers = JoinSet::new();
    loop {
        let message = match server.event().await.expect("the link ended") {
            LinkEvent::Message(message) => message,
            LinkEvent::Up | LinkEvent::Down(_) => continue,
        };
        let topic: Topic = message.topic.parse().unwrap();
        let frame = decode(&message.payload).unwrap();
        frame.check_topic(&topic).unwrap();
        let tells = match frame.kind {
            FrameKind::Open => {
                let manifest = Manifest::decode(&frame.body, KEY_LEN as u64).unwrap();
                match receiver.as_mut() {
                    Some(receiver) => assert!(receiver.reopen(&manifest)),
                    None => receiver = Some(ChunkReceiver::new(manifest, KEY_LEN as u64).unwrap()),
                }
                true
            }
            FrameKind::Chunk => {
                let receiver = receiver.as_mut().expect("chunks come after an open");
                let accepted = receiver.accept(frame.claims.number, &frame.body).unwrap();
                let is_duplicate = accepted == chunk::Accepted::Duplicate;
                duplicates += usize::from(is_duplicate);
                arrived.fetch_add(usize::from(!is_duplicate), Ordering::SeqCst);
                receiver.is_complete()
            }
            FrameKind::Delete => {
                return (receiver.unwrap().into_key().unwrap(), duplicates);
            }
            other => panic!("{other:?}"),
        };
        if let Some(receiver) = receiver.as_ref().filter(|_| tells) {
            let have = Have {
                worker: worker(),
                nonce: receiver.manifest().nonce,
                bitmap: receiver.bitmap(),
                registered: receiver.is_complete(),
            };
            let topic = self::topic(|identity, session| Topic::Have { identity, session });
            let answer = framed(&topic, &self::frame(FrameKind::Have, have.encode().unwrap()));
            let link = server.link.clone();
            // An answer that fails is asked for again.
            answers.spawn(async move { link.publish(answer).await.is_ok() });
        }
        while answers.try_join_next().is_some() {}
    }
}

/// A robot: opens, sends what is missing, opens again, until all is registered. Returns the robot, and
/// what ends the worker's part.
async fn upload(
    mut robot: Subject,
    key: Bytes,
    progress: tokio::sync::watch::Sender<u64>,
    sent: Arc<AtomicUsize>,
) -> (Subject, Outgoing) {
    let manifest =
        chunk::manifest(context(), Duration::from_mins(1), SESSION.public(), &key, 1).unwrap();
    let mut sender = ChunkSender::new(key, manifest).unwrap();
    let mut publishing: JoinSet<(u64, bool)> = JoinSet::new();
    let mut opens = JoinSet::new();
    let open_topic = topic(|identity, session| Topic::Open { identity, session });
    let mut news = tokio::time::Instant::now();
    let mut is_open = false;
    while !sender.is_registered() {
        if !is_open {
            is_open = true;
            let nonce = sender.manifest().nonce + 1;
            let body = sender.reopen(nonce).encode().unwrap();
            let open = framed(&open_topic, &frame(FrameKind::Open, body));
            let link = robot.link.clone();
            opens.spawn(async move { link.publish(open).await.is_ok() });
            news = tokio::time::Instant::now();
        }
        while let Some(part) = sender.next_chunk() {
            let worker = sender.worker().unwrap().clone();
            let topic = topic(|identity, session| Topic::Chunk { identity, worker, session });
            let mut frame = frame(FrameKind::Chunk, part.bytes.to_vec());
            frame.claims =
                moai_transport::frame::Claims { number: part.index, ..claims(FrameKind::Chunk) };
            let outgoing = framed(&topic, &frame);
            let link = robot.link.clone();
            publishing
                .spawn(async move { (part.index, link.publish_bulk(outgoing).await.is_ok()) });
            sent.fetch_add(1, Ordering::SeqCst);
        }
        tokio::select! {
            Some(done) = publishing.join_next() => {
                let (index, is_ok) = done.unwrap();
                if is_ok {
                    sender.on_acked(index);
                    news = tokio::time::Instant::now();
                } else {
                    sender.on_failed(index);
                }
                progress.send_replace(sender.progress().bytes);
            }
            event = robot.event() => match event.expect("the link ended") {
                LinkEvent::Up => is_open = false,
                LinkEvent::Down(error) => assert!(!error.is_fatal(), "{error}"),
                LinkEvent::Message(message) => {
                    let frame = decode(&message.payload).unwrap();
                    if sender.on_have(&Have::decode(&frame.body).unwrap()) {
                        news = tokio::time::Instant::now();
                    }
                }
            },
            () = tokio::time::sleep_until(news + REOPEN_AFTER) => is_open = false,
        }
        while opens.try_join_next().is_some() {}
    }
    let worker = sender.worker().unwrap().clone();
    let topic = topic(|identity, session| Topic::Delete { identity, worker, session });
    (robot, framed(&topic, &frame(FrameKind::Delete, [])))
}

/// A key of some length.
fn key(len: usize) -> Bytes {
    (0..len).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect()
}

fn server_config(endpoint: Endpoint) -> LinkConfig {
    let group = "g".parse().unwrap();
    at_least_once(config("server", endpoint), worker_filters(&group, &worker()))
}

fn robot_config(endpoint: Endpoint) -> LinkConfig {
    at_least_once(config("acme.robot-1", endpoint), robot_filters(&identity()))
}

/// A key on its way from a robot to a worker.
struct Transfer {
    key: Bytes,
    /// The robot's link, for what it has to say besides.
    link: Link,
    arrived: Arc<AtomicUsize>,
    sent: Arc<AtomicUsize>,
    seen: tokio::sync::watch::Receiver<u64>,
    working: JoinHandle<(Vec<u8>, usize)>,
    uploading: JoinHandle<(Subject, Outgoing)>,
}

impl Transfer {
    async fn start(key: Bytes, server: LinkConfig, robot: LinkConfig) -> Self {
        let server = Subject::up(server).await;
        let [arrived, sent] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let working = tokio::spawn(work(server, Arc::clone(&arrived)));
        let robot = Subject::up(robot).await;
        let link = robot.link.clone();
        let (progress, seen) = tokio::sync::watch::channel(0);
        let uploading = tokio::spawn(upload(robot, key.clone(), progress, Arc::clone(&sent)));
        Self { key, link, arrived, sent, seen, working, uploading }
    }

    fn chunks(&self) -> usize {
        self.key.len().div_ceil(chunk::CHUNK_LEN)
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    fn missing(&self) -> usize {
        self.chunks() - self.arrived.load(Ordering::SeqCst)
    }

    /// Waits until so many of four quarters have gone up.
    async fn quarters(&mut self, quarters: u64) {
        let bytes = self.key.len() as u64 * quarters / 4;
        self.seen.wait_for(|done| *done >= bytes).await.unwrap();
    }

    /// Waits until the worker has the key, and checks it; returns how many chunks were sent, and how
    /// many of them the worker had already.
    async fn end(self) -> (usize, usize) {
        let uploaded = tokio::time::timeout(PATIENCE, self.uploading).await;
        let (robot, delete) = uploaded.expect("it does not end").unwrap();
        let mut working = self.working;
        let (received, duplicates) = loop {
            // What the broker acknowledges is lost if the worker is away just then.
            let _ = robot.link.publish(delete.clone()).await;
            if let Ok(done) = tokio::time::timeout(REOPEN_AFTER, &mut working).await {
                break done.unwrap();
            }
        };
        robot.close().await;
        assert!(received == self.key, "another key arrived");
        (self.sent.load(Ordering::SeqCst), duplicates)
    }
}

/// What may go into a link that has died already.
fn window() -> usize {
    chunk::MAX_WINDOW.div_ceil(chunk::CHUNK_LEN)
}

/// Something happens after one and after two quarters. From then on only what is missing is sent,
/// and what goes into the dead link.
async fn only_what_is_missing_is_sent_again(
    options: &Options,
    mut trouble: impl AsyncFnMut(&mut Broker),
) {
    let mut broker = Broker::start_with(options);
    let server = server_config(broker.endpoint("server"));
    let robot = robot_config(broker.endpoint("acme.robot-1"));
    let mut transfer = Transfer::start(key(KEY_LEN), server, robot).await;
    let mut most = 0;
    for quarters in [1, 2] {
        transfer.quarters(quarters).await;
        let missing = transfer.missing();
        trouble(&mut broker).await;
        most = transfer.sent() + missing + window();
    }
    let total = transfer.chunks();
    let (sent, duplicates) = transfer.end().await;
    assert!(sent <= most && sent >= total + duplicates, "{sent} of {total}, at most {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_arrives_whole_through_a_broker_that_dies_twice() {
    only_what_is_missing_is_sent_again(&Options::default(), async |broker| {
        broker.kill();
        broker.restart();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_through_a_broker_that_keeps_what_it_has_over_a_restart() {
    let options = Options { persistent: true, ..Options::default() };
    only_what_is_missing_is_sent_again(&options, async |broker| broker.restart()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robot_whose_link_breaks_again_and_again_sends_no_chunk_for_nothing() {
    let broker = Broker::start();
    let pipe = Pipe::start(broker.tls_port(), None).await;
    let endpoint = Endpoint { port: pipe.port(), ..broker.endpoint("acme.robot-1") };
    let server = server_config(broker.endpoint("server"));
    let mut transfer = Transfer::start(key(KEY_LEN), server, robot_config(endpoint)).await;
    for quarters in 1..4 {
        transfer.quarters(quarters).await;
        pipe.cut();
    }
    let total = transfer.chunks();
    let (sent, duplicates) = transfer.end().await;
    assert_eq!(pipe.connections(), 4);
    assert!(duplicates <= 3 * window(), "{duplicates}");
    assert!(sent <= total + 2 * 3 * window(), "{sent} of {total}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_freezes_in_the_middle_holds_the_key_up_and_no_more() {
    let broker = Broker::start();
    let quick = |config| LinkConfig { keep_alive: Duration::from_secs(5), ..config };
    let mut observer = Subject::up(quick(config("observer", broker.plain_endpoint()))).await;
    let server = quick(server_config(broker.endpoint("server")));
    let robot = quick(robot_config(broker.endpoint("acme.robot-1")));
    let mut transfer = Transfer::start(key(KEY_LEN), server, robot).await;
    transfer.quarters(2).await;
    broker.freeze();
    let error = observer.expect_down().await;
    assert!(matches!(error, LinkError::Stalled(_)), "{error:?}");
    broker.thaw();
    let total = transfer.chunks();
    let (sent, _) = transfer.end().await;
    assert!(sent <= total + 2 * window(), "{sent} of {total}");
}

/// A little randomness, the same each time (Knuth's MMIX generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Carries messages from one link to another: drops some, doubles some, and delays all, each by
/// another time. What ends the test passes.
async fn shuffle(mut from: Subject, to: Link, seed: u64) {
    const HELD: usize = 6;
    const IDLE: Duration = Duration::from_millis(30);
    let mut dice = Dice(seed);
    let mut held: Vec<(String, Bytes)> = Vec::new();
    loop {
        let mut is_idle = false;
        match tokio::time::timeout(IDLE, from.events.recv()).await {
            Ok(None) => return,
            Ok(Some(LinkEvent::Message(message))) if message.topic.ends_with("/delete") => {
                to.publish(outgoing(&message.topic, message.payload)).await.unwrap();
                continue;
            }
            Ok(Some(LinkEvent::Message(Message { topic, payload, .. }))) => match dice.below(10) {
                0 => {}
                1 | 2 => held.extend([(topic.clone(), payload.clone()), (topic, payload)]),
                _ => held.push((topic, payload)),
            },
            Ok(Some(_)) => {}
            Err(_) => is_idle = true,
        }
        while held.len() > if is_idle { 0 } else { HELD } {
            let (topic, payload) = held.swap_remove(dice.below(held.len()));
            to.publish(outgoing(&topic, payload)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_middleman_who_drops_doubles_and_shuffles_changes_nothing() {
    let [robots, servers] = [Broker::start(), Broker::start()];
    let up = subscribing(config("up", robots.plain_endpoint()), &["moai/v1/up/#"]);
    let down = subscribing(config("down", servers.plain_endpoint()), &["moai/v1/down/#"]);
    let [up, down] = [Subject::up(up).await, Subject::up(down).await];
    let (to_server, to_robot) = (down.link.clone(), up.link.clone());
    let middlemen =
        [tokio::spawn(shuffle(up, to_server, 1)), tokio::spawn(shuffle(down, to_robot, 2))];
    let server = server_config(servers.plain_endpoint());
    let robot = robot_config(robots.plain_endpoint());
    let transfer = Transfer::start(key(KEY_LEN), server, robot).await;
    let total = transfer.chunks();
    let (sent, duplicates) = transfer.end().await;
    assert!(sent > total, "nothing was dropped");
    assert!(duplicates > 0, "nothing was doubled");
    assert!(sent < 2 * total, "{sent} of {total}");
    for middleman in middlemen {
        middleman.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_slow_link_jobs_and_pings_pass_an_upload() {
    const RATE: u32 = 120_000;
    let keep_alive = Duration::from_secs(5);
    let broker = Broker::start();
    let pipe = Pipe::start(broker.tls_port(), Some(RATE)).await;
    let endpoint = Endpoint { port: pipe.port(), ..broker.endpoint("acme.robot-1") };
    let robot = LinkConfig { keep_alive, ..robot_config(endpoint) };
    let server = server_config(broker.endpoint("server"));
    // More than two keep-alives.
    let transfer = Transfer::start(key(1_500_000), server, robot).await;
    let mut slowest = Duration::ZERO;
    let mut jobs = 0;
    while !transfer.uploading.is_finished() {
        let start = tokio::time::Instant::now();
        let job = outgoing("moai/v1/up/acme.robot-1/job", vec![0; 500]);
        if transfer.link.publish(job).await.is_err() {
            break;
        }
        slowest = slowest.max(start.elapsed());
        jobs += 1;
    }
    let total = transfer.chunks();
    let (sent, _) = transfer.end().await;
    assert_eq!((pipe.connections(), sent), (1, total), "the link broke");
    // A chunk takes one second. Without a pace, all chunks together would be in front of a job.
    assert!(jobs >= 5 && slowest < Duration::from_millis(2500), "{jobs} jobs, {slowest:?}");
}
