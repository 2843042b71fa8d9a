//! The inputs of a task of the configuration: a connection of its own to the robot's broker.
//!
//! Invariants:
//! - a task that holds its inputs up holds up nobody else's, and no keep-alive;
//! - where nothing may be dropped, the broker keeps what the task has not taken, also while the agent
//!   is away, and a message is acknowledged when the task has it;
//! - messages that do not fit are refused at most once a second, with their number;
//! - what the broker had retained is no new sample, and is ignored.

use std::sync::Arc;
use std::time::Duration;

use moai_transport::ids::TaskId;
use moai_transport::link::{self, Acknowledge, Link, LinkConfig, LinkEvent, Message, Qos, Receipt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{DeclaredTask, WhenFull};
use crate::onboard::{Code, Command, Joined, Joiner, Refusal, Request, Sender, Topics, check_len};
use crate::services::Services;
use crate::throttle::Throttle;

/// How long the broker keeps what comes while the agent is away.
const KEPT_FOR: Duration = Duration::from_hours(1);

/// The connection, with what it makes of messages.
pub struct Feed {
    task: TaskId,
    topics: Arc<Topics>,
    joiner: Joiner,
    events: mpsc::Receiver<LinkEvent>,
    link: Link,
    /// Ends the link.
    own: CancellationToken,
    refused: Throttle,
    incomplete: Throttle,
}

impl Feed {
    /// Connects for a task, until `own` is cancelled; `base` says to which broker and as whom.
    #[must_use]
    pub fn open(
        base: &LinkConfig,
        task: &DeclaredTask,
        services: &Services,
        own: CancellationToken,
    ) -> Self {
        let topics = Arc::clone(services.onboard.topics());
        let input = (topics.input(&task.id), Qos::AtLeastOnce);
        let existing = task.topics.iter().map(|topic| (topic.name.to_string(), Qos::AtLeastOnce));
        let mut config = LinkConfig {
            name: format!("inputs of {}", task.id),
            client_id: format!("{}-{}", base.client_id, task.id),
            subscriptions: if task.topics.is_empty() { vec![input] } else { existing.collect() },
            last_will: None,
            ..base.clone()
        };
        if task.when_full == WhenFull::Block {
            config.acknowledge = Acknowledge::WhenConfirmed;
            config.session_expiry = KEPT_FOR;
        }
        let (link, events) = link::spawn(config, own.clone());
        Self {
            task: task.id.clone(),
            topics,
            joiner: Joiner::new(task),
            events,
            link,
            own,
            refused: Throttle::default(),
            incomplete: Throttle::default(),
        }
    }

    /// Brings inputs into the task's queue until the agent stops or the feed is ended; then the
    /// connection is closed when it returns.
    pub async fn run(mut self, services: Arc<Services>, queue: Sender) {
        let (stop, own) = (services.stop.clone(), self.own.clone());
        let serve = async {
            while let Some(event) = self.events.recv().await {
                match event {
                    LinkEvent::Up => tracing::debug!(task = %self.task, "inputs are connected"),
                    LinkEvent::Down(error) => {
                        tracing::warn!(task = %self.task, %error, "inputs are disconnected");
                    }
                    LinkEvent::Message(message) => self.message(message, &services, &queue).await,
                }
            }
        };
        stop.run_until_cancelled(own.run_until_cancelled(serve)).await;
        if own.is_cancelled() {
            drop(self.events);
            self.link.closed().await;
        }
    }

    async fn message(&mut self, message: Message, services: &Services, queue: &Sender) {
        if message.receipt.as_ref().is_some_and(Receipt::is_stale) {
            // It comes again.
            return;
        }
        if message.retained {
            tracing::warn!(task = %self.task, topic = %message.topic, "retained message ignored");
            return confirm(message.receipt);
        }
        let now = Instant::now();
        let read = check_len(&message.payload).map_or_else(
            |refusal| Some(Err(refusal)),
            |()| {
                let content_type = message.content_type.as_deref();
                self.joiner.take(&message.topic, content_type, &message.payload, now)
            },
        );
        let refusal = match read {
            Some(Ok(Joined::Samples(samples))) => {
                let receipt = message.receipt;
                let command = Ok(Command::Input(samples));
                // An input always finds its place in the end.
                let _ = queue.push(Request { receipt, ..Request::new(command) }).await;
                return;
            }
            Some(Ok(Joined::Waits)) => None,
            Some(Ok(Joined::Incomplete)) => self.incomplete(now),
            Some(Err(refusal)) => self.refused(&message.topic, refusal, now),
            // The API's own input topic, which may ask for a reply.
            None if self.topics.parse(&message.topic).is_some() => {
                if let Some((_, _, request)) = Request::of(message, &self.topics) {
                    let _ = queue.push(request).await;
                }
                return;
            }
            // The broker remembers what an earlier declaration of the task read.
            None => return confirm(message.receipt),
        };
        if let Some(refusal) = refusal {
            services
                .board
                .update(&self.task, |status| status.refused += refusal.count.unwrap_or(1));
            services.onboard.refuse(&self.task, &refusal, None).await;
        }
        confirm(message.receipt);
    }

    fn incomplete(&mut self, now: Instant) -> Option<Refusal> {
        self.incomplete.note(1);
        let count = self.incomplete.take(now)?;
        let message = format!(
            "{count} triggers made no sample: another topic of the task is silent, or its values are \
             older than {} ms",
            self.joiner.max_age().unwrap_or_default().as_millis()
        );
        Some(Refusal { count: Some(count), ..Refusal::new(Code::Incomplete, message) })
    }

    fn refused(&mut self, topic: &str, refusal: Refusal, now: Instant) -> Option<Refusal> {
        self.refused.note(1);
        let count = self.refused.take(now)?;
        let message = format!("{topic}: {}", refusal.message);
        Some(Refusal { message, count: Some(count), ..refusal })
    }
}

fn confirm(receipt: Option<Receipt>) {
    if let Some(receipt) = receipt {
        receipt.confirm();
    }
}
