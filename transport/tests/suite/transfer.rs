//! A key crosses a real broker that dies on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moai_transport::chunk::{self, ChunkReceiver, ChunkSender};
use moai_transport::frame::{Frame, FrameKind};
use moai_transport::ids::{Identity, SessionId};
use moai_transport::link::{LinkConfig, LinkEvent, Outgoing, Qos};
use moai_transport::message::{Have, Manifest};
use moai_transport::topic::{Topic, robot_filters, worker_filters};
use tokio::task::JoinSet;

use crate::support::broker::Broker;
use crate::support::signer::SESSION;
use crate::support::values::{claims, context, decode, encode, frame, identity, session, worker};
use crate::support::{Subject, config};

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

/// A robot: opens, sends what is missing, opens again. Returns how many chunks it sent.
async fn upload(
    mut robot: Subject,
    key: Bytes,
    progress: tokio::sync::watch::Sender<usize>,
    sent: Arc<AtomicUsize>,
) {
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
        while let Some(part) = sender.next(Instant::now()) {
            let worker = sender.worker().unwrap().clone();
            let topic = topic(|identity, session| Topic::Chunk { identity, worker, session });
            let mut frame = frame(FrameKind::Chunk, part.bytes.to_vec());
            frame.claims =
                moai_transport::frame::Claims { number: part.index, ..claims(FrameKind::Chunk) };
            let outgoing = framed(&topic, &frame);
            let link = robot.link.clone();
            publishing.spawn(async move { (part.index, link.publish(outgoing).await.is_ok()) });
            sent.fetch_add(1, Ordering::SeqCst);
        }
        tokio::select! {
            Some(done) = publishing.join_next() => {
                let (index, is_ok) = done.unwrap();
                if is_ok {
                    sender.on_acked(index, Instant::now());
                    news = tokio::time::Instant::now();
                } else {
                    sender.on_failed(index);
                }
                progress.send_replace(sender.progress().0);
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
    robot.link.publish(framed(&topic, &frame(FrameKind::Delete, []))).await.unwrap();
    robot.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_arrives_whole_through_a_broker_that_dies_twice() {
    let mut broker = Broker::start();
    let key: Bytes = (0..KEY_LEN).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect();
    let group = "g".parse().unwrap();
    let server = at_least_once(
        config("server", broker.endpoint("server")),
        worker_filters(&group, &worker()),
    );
    let server = Subject::up(server).await;
    let [arrived, sent] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let server_cancel = server.cancel.clone();
    let working = tokio::spawn(work(server, Arc::clone(&arrived)));
    let robot = at_least_once(
        config("acme.robot-1", broker.endpoint("acme.robot-1")),
        robot_filters(&identity()),
    );
    let robot = Subject::up(robot).await;
    let (progress, mut seen) = tokio::sync::watch::channel(0);
    let uploading = tokio::spawn(upload(robot, key.clone(), progress, Arc::clone(&sent)));
    let total = KEY_LEN.div_ceil(chunk::CHUNK_LEN);
    let window = chunk::MAX_WINDOW.div_ceil(chunk::CHUNK_LEN);
    let mut most = 0;
    for part in [total / 4, total / 2] {
        seen.wait_for(|done| *done >= part).await.unwrap();
        let missing = total - arrived.load(Ordering::SeqCst);
        broker.restart();
        // From here on only what is missing is sent, and a window that goes into the dead link.
        most = sent.load(Ordering::SeqCst) + missing + window;
    }
    uploading.await.unwrap();
    let sent = sent.load(Ordering::SeqCst);
    let (received, duplicates) = working.await.unwrap();
    assert!(received == key, "another key arrived");
    assert!(sent <= most && sent >= total + duplicates, "{sent} of {total}, at most {most}");
    server_cancel.cancel();
}
