//! The chunk protocol against a network that loses, doubles, delays and reorders.

use std::time::Duration;

use bytes::Bytes;
use moai_transport::chunk::{
    self, Accepted, CHUNK_LEN, ChunkError, ChunkReceiver, ChunkSender, MAX_WINDOW, Progress,
};
use moai_transport::ids::{Digest, WorkerId};
use moai_transport::message::{Have, Manifest};
use proptest::prelude::*;

use crate::support::signer::SESSION;
use crate::support::values::{context, worker};

const SMALL: u32 = 10;

fn key(len: usize) -> Bytes {
    (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect()
}

/// A manifest with small chunks, so that a short key has many.
fn manifest(key: &[u8], chunk_len: u32) -> Manifest {
    let len = usize::try_from(chunk_len).unwrap();
    Manifest {
        chunk_len,
        chunk_digests: key.chunks(len).map(Digest::of).collect(),
        ..chunk::manifest(context(), Duration::from_mins(1), SESSION.public(), key, 1).unwrap()
    }
}

fn pair(key: &Bytes, chunk_len: u32) -> (ChunkSender, ChunkReceiver) {
    let manifest = manifest(key, chunk_len);
    let receiver = ChunkReceiver::new(manifest.clone(), key.len() as u64).unwrap();
    (ChunkSender::new(key.clone(), manifest).unwrap(), receiver)
}

fn have(receiver: &ChunkReceiver, worker: WorkerId) -> Have {
    Have {
        worker,
        nonce: receiver.manifest().nonce,
        bitmap: receiver.bitmap(),
        registered: receiver.is_complete(),
    }
}

fn other_worker() -> WorkerId {
    "worker-2".parse().unwrap()
}

#[test]
fn nothing_leaves_before_the_open_is_answered() {
    let key = key(100);
    let (mut sender, receiver) = pair(&key, SMALL);
    assert_eq!(sender.next_chunk(), None);
    assert_eq!(sender.worker(), None);
    assert!(sender.on_have(&have(&receiver, worker())));
    assert_eq!(sender.worker(), Some(&worker()));
    let first = sender.next_chunk().unwrap();
    assert_eq!((first.index, first.bytes), (0, key.slice(0..10)));
    let nonce = sender.reopen(2).nonce;
    assert_eq!(nonce, 2);
    assert_eq!(sender.next_chunk(), None, "the second open is not answered yet");
}

#[test]
fn a_have_of_an_earlier_open_of_another_key_or_of_a_second_worker_says_nothing() {
    let key = key(100);
    let (mut sender, receiver) = pair(&key, SMALL);
    let good = have(&receiver, worker());
    assert!(!sender.on_have(&Have { nonce: 9, ..good.clone() }));
    assert!(!sender.on_have(&Have { bitmap: vec![0], ..good.clone() }));
    assert!(!sender.on_have(&Have { bitmap: vec![0, 0b100], ..good.clone() }), "an eleventh chunk");
    assert!(sender.on_have(&good));
    assert!(!sender.on_have(&Have { worker: other_worker(), ..good.clone() }));
    assert_eq!(sender.worker(), Some(&worker()));
}

#[test]
fn only_what_is_missing_is_sent_after_a_cut() {
    let key = key(100);
    let (mut sender, mut receiver) = pair(&key, SMALL);
    sender.on_have(&have(&receiver, worker()));
    // Three chunks reach the broker, and all but the second reach the worker.
    for index in 0..3 {
        let part = sender.next_chunk().unwrap();
        assert_eq!(part.index, index);
        sender.on_acked(index);
        if index != 1 {
            assert_eq!(receiver.accept(index, &part.bytes), Ok(Accepted::New));
        }
    }
    receiver.reopen(&sender.reopen(2).clone());
    assert!(sender.on_have(&have(&receiver, worker())));
    assert_eq!(sender.progress(), Progress { bytes: 20, of: 100 });
    let mut sent = Vec::new();
    while let Some(part) = sender.next_chunk() {
        sender.on_acked(part.index);
        sent.push(part.index);
        receiver.accept(part.index, &part.bytes).unwrap();
    }
    assert_eq!(sent, [1, 3, 4, 5, 6, 7, 8, 9]);
    assert!(sender.is_drained() && !sender.is_registered());
    assert!(sender.on_have(&have(&receiver, worker())), "the same nonce, when it is registered");
    assert!(sender.is_registered());
    assert_eq!(receiver.into_key().unwrap(), key);
}

#[test]
fn a_doubled_have_takes_nothing_back() {
    let key = key(30);
    let (mut sender, receiver) = pair(&key, SMALL);
    let empty = have(&receiver, worker());
    sender.on_have(&empty);
    for index in 0..2 {
        assert_eq!(sender.next_chunk().unwrap().index, index);
        sender.on_acked(index);
    }
    assert!(sender.on_have(&empty));
    assert_eq!(sender.next_chunk().unwrap().index, 2);
    assert_eq!(sender.next_chunk(), None);
}

#[test]
fn another_worker_begins_from_what_it_has() {
    let key = key(50);
    let (mut sender, mut receiver) = pair(&key, SMALL);
    sender.on_have(&have(&receiver, worker()));
    let first = sender.next_chunk().unwrap();
    sender.on_acked(0);
    receiver.accept(0, &first.bytes).unwrap();
    sender.next_chunk().unwrap();
    // The first worker is gone while the second chunk is on its way to it.
    let fresh = ChunkReceiver::new(sender.reopen(2).clone(), 50).unwrap();
    assert!(sender.on_have(&have(&fresh, other_worker())));
    assert_eq!(sender.worker(), Some(&other_worker()));
    assert_eq!(sender.progress(), Progress { bytes: 0, of: 50 });
    assert_eq!(sender.next_chunk().unwrap().index, 0);
    assert_eq!(sender.next_chunk().unwrap().index, 1, "it went to a worker that is gone");
}

#[test]
fn at_most_a_window_is_with_the_link_and_after_a_failure_nothing_until_the_open_is_answered() {
    let key = key(40 * CHUNK_LEN);
    let (mut sender, mut receiver) = pair(&key, u32::try_from(CHUNK_LEN).unwrap());
    sender.on_have(&have(&receiver, worker()));
    let handed_over = |sender: &mut ChunkSender| -> Vec<u64> {
        std::iter::from_fn(|| sender.next_chunk()).map(|part| part.index).collect()
    };
    let window = (MAX_WINDOW / CHUNK_LEN) as u64;
    assert_eq!(handed_over(&mut sender), (0..window).collect::<Vec<_>>());
    sender.on_acked(3);
    assert_eq!(handed_over(&mut sender), [window]);
    // The connection breaks.
    sender.on_failed(0);
    assert!(handed_over(&mut sender).is_empty(), "it is not known who listens");
    receiver.reopen(sender.reopen(2));
    assert!(sender.on_have(&have(&receiver, worker())));
    assert_eq!(handed_over(&mut sender), [0], "what failed");
    sender.on_acked(1);
    assert_eq!(handed_over(&mut sender), [3], "what the broker lost");
}

#[test]
fn a_receiver_stores_only_what_was_announced() {
    let key = key(25);
    let (_, mut receiver) = pair(&key, SMALL);
    let digest_error = |index| Err(ChunkError::ChunkDigest { index });
    assert_eq!(receiver.accept(0, &key[1..11]), digest_error(0));
    assert_eq!(receiver.accept(0, &key[0..9]), digest_error(0));
    assert_eq!(receiver.accept(2, &key[15..25]), digest_error(2));
    assert_eq!(receiver.accept(3, b""), Err(ChunkError::Index { index: 3, count: 3 }));
    let beyond = ChunkError::Index { index: u64::MAX, count: 3 };
    assert_eq!(receiver.accept(u64::MAX, b""), Err(beyond));
    assert_eq!(receiver.bitmap(), [0]);
    assert_eq!(receiver.accept(2, &key[20..25]), Ok(Accepted::New));
    assert_eq!(receiver.accept(2, &key[20..25]), Ok(Accepted::Duplicate));
    assert_eq!(receiver.bitmap(), [0b100]);
    assert_eq!(receiver.progress(), (1, 3));
    assert_eq!(receiver.into_key(), Err(ChunkError::Incomplete { missing: 2 }));
}

#[test]
fn a_manifest_whose_chunks_are_not_its_key_is_found_out() {
    let key = key(25);
    let lie = Manifest { key_digest: Digest::of(b"another key"), ..manifest(&key, SMALL) };
    let mut receiver = ChunkReceiver::new(lie, 25).unwrap();
    for (index, chunk) in key.chunks(10).enumerate() {
        receiver.accept(index as u64, chunk).unwrap();
    }
    assert_eq!(receiver.into_key(), Err(ChunkError::KeyDigest));
}

#[test]
fn an_open_of_another_key_does_not_pass_for_a_second_open() {
    let key = key(25);
    let (_, mut receiver) = pair(&key, SMALL);
    let again = Manifest { nonce: 5, ttl_seconds: 30, ..receiver.manifest().clone() };
    assert!(receiver.reopen(&again));
    assert_eq!(receiver.manifest(), &again);
    let other = Manifest { key_digest: Digest::of(b"another key"), nonce: 6, ..again.clone() };
    assert!(!receiver.reopen(&other));
    assert_eq!(receiver.manifest(), &again);
    assert!(ChunkReceiver::new(again, 24).is_err(), "larger than the receiver takes");
    assert!(ChunkSender::new(key.slice(1..), manifest(&key, SMALL)).is_err(), "not its key");
}

/// What the network does next.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The sender publishes what it may.
    Send,
    /// The broker acknowledges a chunk and has it on its way to the receiver.
    Ack(proptest::sample::Index),
    /// The broker acknowledges a chunk and loses it.
    AckAndLose(proptest::sample::Index),
    /// A publication fails before the broker has it.
    Fail(proptest::sample::Index),
    /// A chunk arrives; it may arrive again if `doubled`.
    Arrive(proptest::sample::Index, bool),
    /// The sender opens again and the open reaches the receiver.
    Reopen,
    /// A have arrives; it may arrive again if `doubled`.
    Have(proptest::sample::Index, bool),
    /// A have is lost.
    LoseHave(proptest::sample::Index),
    /// The worker dies and another one, which has nothing, answers from now on.
    OtherWorker,
}

fn step() -> impl Strategy<Value = Step> {
    let index = || any::<proptest::sample::Index>();
    prop_oneof![
        4 => Just(Step::Send),
        6 => index().prop_map(Step::Ack),
        2 => index().prop_map(Step::AckAndLose),
        2 => index().prop_map(Step::Fail),
        6 => (index(), any::<bool>()).prop_map(|(index, doubled)| Step::Arrive(index, doubled)),
        2 => Just(Step::Reopen),
        4 => (index(), any::<bool>()).prop_map(|(index, doubled)| Step::Have(index, doubled)),
        1 => index().prop_map(Step::LoseHave),
        1 => Just(Step::OtherWorker),
    ]
}

/// Sender, receiver, and what is between them.
struct Network {
    sender: ChunkSender,
    receiver: ChunkReceiver,
    workers: u32,
    /// With the worker each is addressed to.
    published: Vec<(u64, Bytes, WorkerId)>,
    arriving: Vec<(u64, Bytes)>,
    haves: Vec<Have>,
    /// Per chunk: the nonce under which it was last sent, if nothing has shown since that it is
    /// missing.
    sent_under: Vec<Option<u64>>,
}

impl Network {
    fn new(key: &Bytes) -> Self {
        let (sender, receiver) = pair(key, SMALL);
        let sent_under = vec![None; sender.manifest().chunk_digests.len()];
        let (published, arriving, haves) = (Vec::new(), Vec::new(), Vec::new());
        Self { sender, receiver, workers: 1, published, arriving, haves, sent_under }
    }

    fn worker(&self) -> WorkerId {
        format!("worker-{}", self.workers).parse().unwrap()
    }

    fn tell(&mut self) {
        self.haves.push(have(&self.receiver, self.worker()));
    }

    fn send(&mut self) {
        while let Some(part) = self.sender.next_chunk() {
            let nonce = self.sender.manifest().nonce;
            let earlier = self.sent_under[usize::try_from(part.index).unwrap()].replace(nonce);
            assert_eq!(earlier, None, "chunk {} is sent again and is not missing", part.index);
            let worker = self.sender.worker().unwrap().clone();
            self.published.push((part.index, part.bytes, worker));
        }
    }

    fn take<T>(from: &mut Vec<T>, index: proptest::sample::Index) -> Option<T> {
        (!from.is_empty()).then(|| from.swap_remove(index.index(from.len())))
    }

    /// The broker takes a chunk, which reaches nobody if its worker is gone.
    fn ack(&mut self, (index, bytes, worker): (u64, Bytes, WorkerId)) {
        self.sender.on_acked(index);
        if worker == self.worker() {
            self.arriving.push((index, bytes));
        }
    }

    fn arrive(&mut self, index: u64, bytes: &[u8]) {
        if self.receiver.accept(index, bytes) == Ok(Accepted::New) && self.receiver.is_complete() {
            self.tell();
        }
    }

    fn on_have(&mut self, have: &Have) {
        if self.sender.on_have(have) {
            for (index, sent_under) in self.sent_under.iter_mut().enumerate() {
                let is_held = have.bitmap[index / 8] & (1 << (index % 8)) != 0;
                *sent_under = sent_under.filter(|nonce| is_held || *nonce >= have.nonce);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send => self.send(),
            Step::Ack(index) => {
                if let Some(published) = Self::take(&mut self.published, index) {
                    self.ack(published);
                }
            }
            Step::AckAndLose(index) => {
                if let Some((index, ..)) = Self::take(&mut self.published, index) {
                    self.sender.on_acked(index);
                }
            }
            Step::Fail(index) => {
                if let Some((index, ..)) = Self::take(&mut self.published, index) {
                    self.sender.on_failed(index);
                    self.sent_under[usize::try_from(index).unwrap()] = None;
                }
            }
            Step::Arrive(index, doubled) => {
                if let Some((index, bytes)) = Self::take(&mut self.arriving, index) {
                    self.arrive(index, &bytes);
                    if doubled {
                        self.arriving.push((index, bytes));
                    }
                }
            }
            Step::Reopen => {
                let manifest = self.sender.reopen(self.sender.manifest().nonce + 1).clone();
                assert!(self.receiver.reopen(&manifest));
                self.tell();
            }
            Step::Have(index, doubled) => {
                if let Some(have) = Self::take(&mut self.haves, index) {
                    self.on_have(&have);
                    if doubled {
                        self.haves.push(have);
                    }
                }
            }
            Step::LoseHave(index) => drop(Self::take(&mut self.haves, index)),
            Step::OtherWorker => {
                self.workers += 1;
                let manifest = self.receiver.manifest().clone();
                self.receiver = ChunkReceiver::new(manifest, u64::MAX).unwrap();
                self.arriving.clear();
            }
        }
    }

    /// The network behaves from now on, and the sender opens until the worker has it all.
    fn settle(&mut self) {
        for _ in 0..5 {
            self.step(Step::Reopen);
            loop {
                self.send();
                let published = std::mem::take(&mut self.published);
                let is_quiet = published.is_empty() && self.arriving.is_empty();
                for published in published {
                    self.ack(published);
                }
                for (index, bytes) in std::mem::take(&mut self.arriving) {
                    self.arrive(index, &bytes);
                }
                let haves = std::mem::take(&mut self.haves);
                if is_quiet && haves.is_empty() {
                    break;
                }
                for have in haves {
                    self.on_have(&have);
                }
            }
            if self.sender.is_registered() {
                return;
            }
        }
        panic!("it does not end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_the_network_does_the_key_arrives_and_nothing_is_sent_for_nothing(
        len in 1..200_usize,
        steps in proptest::collection::vec(step(), 0..200),
    ) {
        let key = key(len);
        let mut network = Network::new(&key);
        network.tell();
        for step in &steps {
            network.step(*step);
        }
        network.settle();
        prop_assert!(network.sender.is_drained());
        prop_assert_eq!(network.receiver.into_key().unwrap(), key);
    }
}
