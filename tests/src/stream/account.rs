//! What was sent against what came back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::Stream;
use crate::mqtt::{Address, Client};
use crate::onboard::PREFIX;
use crate::tiny;

/// What came of a stream.
#[derive(Debug, Default)]
pub struct Account {
    /// Windows that the samples made, if none was dropped.
    pub windows: u64,
    /// Windows with the right answer, and how long each waited for it from the publication of its
    /// last sample.
    pub answered: BTreeMap<u64, Duration>,
    /// From the last sample's arrival at the agent to the answer, as each answer says.
    pub in_agent: Vec<Duration>,
    /// Answers that came again, or of a job that had an outcome.
    pub doubled: u64,
    /// Answers to no window of the stream.
    pub wrong: u64,
    /// Answers that came after a younger window's of the same session.
    pub disordered: u64,
    /// Refusals: how many windows, samples or messages, by code.
    pub refused: BTreeMap<String, u64>,
}

impl Account {
    /// Windows without an answer, the first of them by their numbers.
    #[must_use]
    pub fn missing(&self) -> (u64, Vec<u64>) {
        let missing = (0..self.windows).filter(|window| !self.answered.contains_key(window));
        (missing.clone().count() as u64, missing.take(10).collect())
    }

    /// Whether every window has its one right answer, in order, and nothing else came.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let Self { windows, answered, doubled, wrong, disordered, refused, .. } = self;
        answered.len() as u64 == *windows
            && (*doubled, *wrong, *disordered) == (0, 0, 0)
            && refused.is_empty()
    }

    /// In one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Self { windows, answered, doubled, wrong, disordered, refused, .. } = self;
        let (missing, first) = self.missing();
        format!(
            "{windows} windows: {} answered, {missing} not (first {first:?}), {doubled} doubled, \
             {wrong} wrong, {disordered} out of order, refused: {refused:?}",
            answered.len()
        )
    }

    fn add(&mut self, message: &Arrived, published: &[Instant], seen: &mut Seen) {
        let body = &message.body;
        let session = body["session"].as_str().unwrap_or_default().to_owned();
        if let Some(job) = body["job"].as_u64()
            && !seen.jobs.insert((session.clone(), job))
        {
            self.doubled += 1;
            return;
        }
        if message.is_error {
            let code = body["code"].as_str().unwrap_or("unreadable").to_owned();
            *self.refused.entry(code).or_default() += body["count"].as_u64().unwrap_or(1);
            return;
        }
        let window = tiny::answered(body).filter(|window| *window < self.windows);
        let sent = window.and_then(|window| published.get(usize::try_from(window).ok()?));
        let (Some(window), Some(sent)) = (window, sent) else {
            self.wrong += 1;
            return;
        };
        let before = seen.newest.insert(session, window);
        if self.answered.insert(window, message.at.saturating_duration_since(*sent)).is_some() {
            self.doubled += 1;
        } else if before.is_some_and(|before| before > window) {
            self.disordered += 1;
        }
        self.in_agent.extend(body["timing"]["total_us"].as_u64().map(Duration::from_micros));
    }
}

/// What has been counted.
#[derive(Default)]
struct Seen {
    jobs: BTreeSet<(String, u64)>,
    /// The window that each session answered last.
    newest: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Arrived {
    is_error: bool,
    body: Value,
    at: Instant,
}

/// Onboard software that reads all that a task says. Dropping it ends it.
#[derive(Debug)]
pub struct Listener {
    arrived: Arc<Mutex<Vec<Arrived>>>,
    /// Answers.
    count: watch::Receiver<u64>,
    collecting: JoinHandle<()>,
}

impl Listener {
    /// Listens from now on.
    ///
    /// # Errors
    /// The broker is down.
    pub async fn start(port: u16, task: &str) -> Result<Self> {
        const FOR_EVER: Duration = Duration::from_hours(24);
        let client_id = format!("listener-{task}");
        let client = Client::connect(Address { port, credentials: None, client_id }).await?;
        for what in ["result", "error"] {
            client.subscribe(&format!("{PREFIX}/task/{task}/{what}")).await?;
        }
        let (sender, count) = watch::channel(0);
        let (arrived, all) = (Arc::<Mutex<Vec<Arrived>>>::default(), format!("{PREFIX}/#"));
        let record = Arc::clone(&arrived);
        let collecting = tokio::spawn(async move {
            while let Ok(message) = client.wait_for(&all, "outcome", FOR_EVER, |_| true).await {
                let (at, is_error) = (Instant::now(), message.topic.ends_with("/error"));
                let body = message.json().unwrap_or(Value::Null);
                record.lock().unwrap_or_else(PoisonError::into_inner).push(Arrived {
                    is_error,
                    body,
                    at,
                });
                sender.send_modify(|count| *count += u64::from(!is_error));
            }
        });
        Ok(Self { arrived, count, collecting })
    }

    /// Waits until so many answers have come as the stream has windows, or none has come for
    /// `patience`, and counts all that came.
    pub(super) async fn account(
        mut self,
        stream: &Stream,
        published: &[Instant],
        patience: Duration,
    ) -> Result<Account> {
        let windows = stream.windows();
        loop {
            if *self.count.borrow_and_update() >= windows {
                break;
            }
            match timeout(patience, self.count.changed()).await {
                Ok(changed) => changed?,
                Err(_) => break,
            }
        }
        let mut account = Account { windows, ..Account::default() };
        let mut seen = Seen::default();
        for message in self.arrived.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            account.add(message, published, &mut seen);
        }
        Ok(account)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.collecting.abort();
    }
}
