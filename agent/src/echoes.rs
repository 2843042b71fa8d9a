//! Which outcomes the robot's broker has published, as the broker itself tells.
//!
//! The agent subscribes to its own outcomes, in a session that the broker keeps. An agent that was
//! killed between publishing an outcome and ending the job hears so at its next start that the outcome
//! is out, and does not publish it again. The same for a connection that broke before the broker's
//! acknowledgement came.
//!
//! Invariants:
//! - an outcome that came back leaves the spool before the broker may forget it;
//! - when a fence has passed, everything that was published before it has come back, provided that the
//!   broker lived and kept the session;
//! - when other topics take outcomes, it connects anew, as the same client: what was published before
//!   comes with the session that the broker keeps;
//! - nobody waits for a fence longer than [`PATIENCE`]: then an outcome may be published twice rather
//!   than never.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moai_transport::ids::{JobNumber, SessionId};
use moai_transport::link::{self, Acknowledge, Link, LinkConfig, LinkEvent, Message, Qos};
use serde::Deserialize;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::onboard::{Declared, Onboard, ReleaseStep, Topics};
use crate::secrets::OsEntropy;
use crate::spool::Spool;

/// How long the broker keeps what comes while the agent is away.
const KEPT_FOR: Duration = Duration::from_hours(1);
/// How long a fence may take on a link that is up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Outcomes that are remembered; many more than are ever under way.
const MAX_KNOWN: usize = 8192;
const FENCE_QUEUE_LEN: usize = 64;

/// A job, over all sessions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// Its session.
    pub session: SessionId,
    /// Its number there.
    pub number: JobNumber,
}

impl JobKey {
    /// From the words of an outcome; `None` if the session's id is none.
    #[must_use]
    pub fn parse(session: &str, job: u64) -> Option<Self> {
        Some(Self { session: session.parse().ok()?, number: JobNumber(job) })
    }

    /// The job that an outcome ends; `None` if the message ends none.
    fn of(payload: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Outcome {
            session: String,
            job: u64,
        }
        let Outcome { session, job } = serde_json::from_slice(payload).ok()?;
        Self::parse(&session, job)
    }
}

/// The newest outcomes that came back.
#[derive(Default)]
struct Known {
    jobs: HashSet<JobKey>,
    order: VecDeque<JobKey>,
}

impl Known {
    fn insert(&mut self, job: JobKey) {
        if self.jobs.insert(job.clone()) {
            self.order.push_back(job);
        }
        if self.order.len() > MAX_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }
}

type Passed = oneshot::Sender<()>;

/// A handle to what came back.
#[derive(Clone)]
pub struct Echoes {
    known: Arc<Mutex<Known>>,
    fences: mpsc::Sender<Passed>,
    /// Whether the first fence has passed.
    begun: watch::Receiver<bool>,
    first: Arc<OnceCell<bool>>,
}

impl Echoes {
    /// Connects; `base` says to which broker and as whom.
    #[must_use]
    pub fn open(
        base: &LinkConfig,
        topics: &Topics,
        links: &CancellationToken,
    ) -> (Self, EchoListener) {
        let config = LinkConfig {
            name: "outcomes".to_owned(),
            client_id: format!("{}-outcomes", base.client_id),
            subscriptions: subscriptions(topics),
            last_will: None,
            acknowledge: Acknowledge::WhenConfirmed,
            session_expiry: KEPT_FOR,
            ..base.clone()
        };
        let connection = links.child_token();
        let (link, events) = link::spawn(config.clone(), connection.clone());
        let (echoes, mut listener) = Self::on(link, events, topics);
        listener.line = Some(Line { config, links: links.clone(), connection });
        (echoes, listener)
    }

    /// On a link that subscribes to [`Topics::outcomes`].
    #[must_use]
    pub fn on(
        link: Link,
        events: mpsc::Receiver<LinkEvent>,
        topics: &Topics,
    ) -> (Self, EchoListener) {
        let (fences, asked) = mpsc::channel(FENCE_QUEUE_LEN);
        let known = Arc::<Mutex<Known>>::default();
        let (begun, has_begun) = watch::channel(false);
        let listener = EchoListener {
            known: Arc::clone(&known),
            marker_topic: topics.marker(),
            asked,
            begun,
            declarations: topics.declarations(),
            events,
            link,
            line: None,
            waiting: Vec::new(),
            run: random_word(),
            markers: 0,
            under_way: None,
        };
        (Self { known, fences, begun: has_begun, first: Arc::default() }, listener)
    }

    /// Whether an outcome of this job has been published by an earlier run of the agent or, if the
    /// broker may have taken it since `in_doubt`, by this one. To be asked while the onboard link is up.
    pub async fn is_published(&self, job: &JobKey, in_doubt: bool) -> bool {
        if in_doubt {
            self.fence().await;
        } else {
            self.first.get_or_init(|| self.first_fence()).await;
        }
        self.known().jobs.contains(job)
    }

    async fn first_fence(&self) -> bool {
        let mut begun = self.begun.clone();
        wait_patiently(async { begun.wait_for(|begun| *begun).await.is_ok() }).await
    }

    async fn fence(&self) -> bool {
        let (reply, passed) = oneshot::channel();
        wait_patiently(async { self.fences.send(reply).await.is_ok() && passed.await.is_ok() })
            .await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn wait_patiently(fence: impl Future<Output = bool>) -> bool {
    let has_passed = timeout(PATIENCE, fence).await.unwrap_or(false);
    if !has_passed {
        tracing::warn!(
            "the onboard broker does not tell what was published: it may be published twice"
        );
    }
    has_passed
}

/// Listens to what comes back.
pub struct EchoListener {
    known: Arc<Mutex<Known>>,
    marker_topic: String,
    asked: mpsc::Receiver<Passed>,
    begun: watch::Sender<bool>,
    declarations: watch::Receiver<Declared>,
    events: mpsc::Receiver<LinkEvent>,
    link: Link,
    /// How to connect anew.
    line: Option<Line>,
    /// Fences that were asked for since the marker under way was published.
    waiting: Vec<Passed>,
    /// Earlier runs of the agent may have left markers of theirs.
    run: String,
    markers: u64,
    /// A marker, and the fences that pass when it comes back.
    under_way: Option<(String, Vec<Passed>)>,
}

/// A link as it was asked for.
struct Line {
    config: LinkConfig,
    links: CancellationToken,
    /// Ends the link.
    connection: CancellationToken,
}

fn subscriptions(topics: &Topics) -> Vec<(String, Qos)> {
    topics.outcomes().into_iter().map(|topic| (topic, Qos::AtLeastOnce)).collect()
}

impl EchoListener {
    /// Listens until the link ends.
    pub async fn run(mut self, onboard: Onboard, spool: Spool) {
        let mut publishing = JoinSet::new();
        let mut is_new = self.next_marker();
        loop {
            if is_new && let Some((marker, _)) = &self.under_way {
                let (onboard, marker) = (onboard.clone(), marker.clone());
                publishing.abort_all();
                publishing.spawn(async move { onboard.marker(marker).await });
            }
            is_new = tokio::select! {
                event = self.events.recv() => match event {
                    None => return,
                    // What had been asked on another connection may have been lost with it.
                    Some(LinkEvent::Up) => self.under_way.is_some(),
                    Some(LinkEvent::Down(error)) => {
                        tracing::debug!(%error, "outcomes are disconnected");
                        false
                    }
                    Some(LinkEvent::Message(message)) => self.message(message, &onboard, &spool).await,
                },
                Some(passed) = self.asked.recv() => {
                    self.waiting.push(passed);
                    self.next_marker()
                }
                Some(_) = publishing.join_next() => false,
                Ok(()) = self.declarations.changed() => {
                    self.listen_anew(onboard.topics()).await;
                    false
                }
            };
        }
    }

    /// Connects with other subscriptions, if they are others.
    async fn listen_anew(&mut self, topics: &Topics) {
        let Some(line) = &mut self.line else { return };
        let subscriptions = subscriptions(topics);
        if line.config.subscriptions == subscriptions {
            return;
        }
        line.config.subscriptions = subscriptions;
        line.connection.cancel();
        self.events.close();
        self.link.closed().await;
        line.connection = line.links.child_token();
        (self.link, self.events) = link::spawn(line.config.clone(), line.connection.clone());
    }

    /// Takes the next marker if fences wait for one, or it is the first, and none is under way.
    fn next_marker(&mut self) -> bool {
        if self.under_way.is_some() || (self.waiting.is_empty() && *self.begun.borrow()) {
            return false;
        }
        self.markers += 1;
        let marker = format!("{}-{}", self.run, self.markers);
        self.under_way = Some((marker, std::mem::take(&mut self.waiting)));
        true
    }

    /// True if there is a marker to publish.
    async fn message(&mut self, message: Message, onboard: &Onboard, spool: &Spool) -> bool {
        let mut is_new = false;
        if message.topic == self.marker_topic {
            let awaited = self.under_way.take_if(|(marker, _)| message.payload == *marker);
            if let Some((_, waiting)) = awaited {
                self.begun.send_replace(true);
                for passed in waiting {
                    // Whoever has lost patience needs no answer.
                    let _ = passed.send(());
                }
                is_new = self.next_marker();
            }
        } else if let Some(JobKey { session, number }) = JobKey::of(&message.payload)
            && !message.retained
        {
            let job = JobKey { session: session.clone(), number };
            onboard.observe(ReleaseStep::Published);
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(job);
            if let Err(error) = spool.remove(&session, number).await {
                tracing::error!(%session, %number, %error, "an ended job stays in the spool");
            }
        }
        if let Some(receipt) = message.receipt {
            receipt.confirm();
        }
        is_new
    }
}

fn random_word() -> String {
    // Without randomness a marker of an earlier run with this process id could pass for ours.
    let random = OsEntropy::bytes().map_or(0, u64::from_be_bytes);
    format!("{}-{random:016x}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: u64) -> JobKey {
        JobKey { session: SessionId::new(1_800_000_000_000, [7; 10]), number: JobNumber(number) }
    }

    #[test]
    fn an_outcome_names_the_job_it_ends() {
        let session = job(0).session;
        let result = format!(r#"{{"job": 3, "session": "{session}", "label": "normal"}}"#);
        assert_eq!(JobKey::of(result.as_bytes()), Some(job(3)));
        for other in [r#"{"code": "not_open"}"#, r#"{"job": 3, "session": "x"}"#, "", "[1]"] {
            assert_eq!(JobKey::of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_newest_are_remembered() {
        let mut known = Known::default();
        for number in 0..=MAX_KNOWN as u64 {
            known.insert(job(number));
            known.insert(job(number));
        }
        assert_eq!((known.jobs.len(), known.order.len()), (MAX_KNOWN, MAX_KNOWN));
        assert!(!known.jobs.contains(&job(0)) && known.jobs.contains(&job(1)));
    }

    proptest::proptest! {
        #[test]
        fn no_message_panics(payload: Vec<u8>) {
            let _ = JobKey::of(&payload);
        }
    }
}
