//! The messages of one task that wait for it.
//!
//! Invariants:
//! - what waits is bounded in number and in bytes, and the order of arrival is kept;
//! - where the oldest are dropped, these are inputs, never other requests, and every value of them
//!   is counted and told to the task before anything younger;
//! - where nothing is dropped, whoever brings an input waits for room; other requests never wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Command, Request};
use crate::config::WhenFull;

/// Most messages that wait.
pub const MAX_WAITING: usize = 8192;
/// Most bytes that wait, unless it is one message alone.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;
/// Most requests that are not inputs.
const MAX_CONTROLS: usize = 64;
/// What a message weighs beyond its values.
const OVERHEAD: usize = 160;

/// What the task gets.
pub enum Next {
    /// The oldest message.
    Request(Request),
    /// So many values of inputs were dropped here.
    Gap(u64),
}

/// Which messages the task can work on now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The oldest, whatever it is.
    Any,
    /// The oldest that is not an input.
    Controls,
}

#[derive(Default)]
struct State {
    when_full: WhenFull,
    waiting: VecDeque<Request>,
    bytes: usize,
    controls: usize,
    dropped: u64,
    senders: usize,
}

struct Shared {
    state: Mutex<State>,
    /// Something came, or the last sender went.
    filled: Notify,
    /// Something left.
    freed: Notify,
}

/// The end that messages come in at.
pub struct Sender(Arc<Shared>);

/// The task's end.
pub struct Receiver(Arc<Shared>);

/// An empty queue.
#[must_use]
pub fn queue(when_full: WhenFull) -> (Sender, Receiver) {
    let state = Mutex::new(State { senders: 1, when_full, ..State::default() });
    let shared = Arc::new(Shared { state, filled: Notify::new(), freed: Notify::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

fn weight(request: &Request) -> usize {
    let values = match &request.command {
        Ok(Command::Input(samples)) => samples.value_count(),
        _ => 0,
    };
    OVERHEAD + values * size_of::<f64>()
}

fn is_input(request: &Request) -> bool {
    matches!(request.command, Ok(Command::Input(_)))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, weight: usize) -> bool {
        self.waiting.is_empty()
            || (self.waiting.len() < MAX_WAITING && self.bytes + weight <= MAX_WAITING_BYTES)
    }

    fn remove(&mut self, index: usize) -> Option<Request> {
        let request = self.waiting.remove(index)?;
        self.bytes = self.bytes.saturating_sub(weight(&request));
        if !is_input(&request) {
            self.controls = self.controls.saturating_sub(1);
        }
        Some(request)
    }

    fn drop_oldest_input(&mut self) -> bool {
        let Some(index) = self.waiting.iter().position(is_input) else { return false };
        if let Some(Request { command: Ok(Command::Input(samples)), .. }) = self.remove(index) {
            self.dropped += samples.value_count() as u64;
        }
        true
    }
}

impl Sender {
    /// Brings a message. Waits for room if it is an input and none may be dropped.
    ///
    /// # Errors
    /// The message, if too many requests that are no inputs wait already.
    pub async fn push(&self, request: Request) -> Result<(), Box<Request>> {
        let mut request = request;
        loop {
            let freed = self.0.freed.notified();
            match self.try_push(request)? {
                None => return Ok(()),
                Some(back) => request = back,
            }
            freed.await;
        }
    }

    /// What becomes of inputs for which there is no room from now on, those that wait for it too.
    pub fn set_when_full(&self, when_full: WhenFull) {
        self.0.state().when_full = when_full;
        self.0.freed.notify_waiters();
    }

    /// Gives the message back if there is no room yet.
    fn try_push(&self, request: Request) -> Result<Option<Request>, Box<Request>> {
        let mut state = self.0.state();
        if !is_input(&request) {
            if state.controls >= MAX_CONTROLS {
                return Err(Box::new(request));
            }
            state.controls += 1;
        } else if !state.has_room(weight(&request)) {
            match state.when_full {
                WhenFull::Block => return Ok(Some(request)),
                WhenFull::DropOldest => {
                    while !state.has_room(weight(&request)) && state.drop_oldest_input() {}
                }
            }
        }
        state.bytes += weight(&request);
        state.waiting.push_back(request);
        drop(state);
        self.0.filled.notify_one();
        Ok(None)
    }
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state().senders -= 1;
        self.0.filled.notify_one();
    }
}

impl Receiver {
    /// The next message; `None` when no more can come. May be dropped at any time.
    pub async fn next(&mut self, wanted: Wanted) -> Option<Next> {
        loop {
            let filled = self.0.filled.notified();
            {
                let mut state = self.0.state();
                if let Some(next) = Self::take(&mut state, wanted) {
                    drop(state);
                    self.0.freed.notify_waiters();
                    return Some(next);
                }
                if state.senders == 0 {
                    return None;
                }
            }
            filled.await;
        }
    }

    fn take(state: &mut State, wanted: Wanted) -> Option<Next> {
        if wanted == Wanted::Controls {
            let index = state.waiting.iter().position(|request| !is_input(request))?;
            return state.remove(index).map(Next::Request);
        }
        if state.dropped > 0 {
            return Some(Next::Gap(std::mem::take(&mut state.dropped)));
        }
        state.remove(0).map(Next::Request)
    }

    /// How many messages wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.state().waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values were dropped and not told yet.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.state().dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::onboard::Samples;

    fn input(value: u32) -> Request {
        let samples = Samples::one(vec![f64::from(value); 2]).unwrap();
        Request::new(Ok(Command::Input(samples)))
    }

    fn value(next: Option<Next>) -> u32 {
        let Some(Next::Request(Request { command: Ok(Command::Input(samples)), .. })) = next else {
            panic!("no input")
        };
        let width = std::num::NonZeroUsize::new(2).unwrap();
        let row = samples.rows(width).unwrap().next().unwrap();
        format!("{}", row[0]).parse().unwrap()
    }

    #[tokio::test]
    async fn the_oldest_inputs_give_way_and_are_counted_before_what_is_younger() {
        let (sender, mut receiver) = queue(WhenFull::DropOldest);
        let more = 5;
        for n in 0..u32::try_from(MAX_WAITING).unwrap() + more {
            assert!(sender.push(input(n)).await.is_ok());
        }
        assert_eq!((receiver.len(), receiver.dropped()), (MAX_WAITING, u64::from(more) * 2));
        let gap = receiver.next(Wanted::Any).await;
        assert!(matches!(gap, Some(Next::Gap(values)) if values == u64::from(more) * 2));
        assert_eq!(value(receiver.next(Wanted::Any).await), more);
    }

    #[tokio::test]
    async fn a_bringer_waits_for_room_and_a_request_that_is_no_input_does_not() {
        let (sender, mut receiver) = queue(WhenFull::Block);
        for n in 0..u32::try_from(MAX_WAITING).unwrap() {
            assert!(sender.push(input(n)).await.is_ok());
        }
        let bringer = sender.clone();
        let last = u32::try_from(MAX_WAITING).unwrap();
        let waiting = tokio::spawn(async move { bringer.push(input(last)).await.is_ok() });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(sender.push(Request::new(Ok(Command::Close))).await.is_ok());
        assert!(matches!(
            receiver.next(Wanted::Controls).await,
            Some(Next::Request(Request { command: Ok(Command::Close), .. }))
        ));
        assert_eq!(value(receiver.next(Wanted::Any).await), 0);
        assert!(waiting.await.unwrap());
        drop(sender);
        for n in 1..=last {
            assert_eq!(value(receiver.next(Wanted::Any).await), n);
        }
        assert!(receiver.next(Wanted::Any).await.is_none());
    }

    #[tokio::test]
    async fn a_flood_of_requests_is_given_back() {
        let (sender, mut receiver) = queue(WhenFull::DropOldest);
        for _ in 0..MAX_CONTROLS {
            assert!(sender.push(Request::new(Ok(Command::Rotate))).await.is_ok());
        }
        assert!(sender.push(Request::new(Ok(Command::Rotate))).await.is_err());
        assert!(sender.push(input(1)).await.is_ok());
        assert!(receiver.next(Wanted::Any).await.is_some());
        assert!(sender.push(Request::new(Ok(Command::Rotate))).await.is_ok());
    }

    proptest! {
        /// Inputs and requests in any order: what is dropped is counted, the rest keeps its order.
        #[test]
        fn nothing_disappears_unseen(batches in prop::collection::vec((1..4000_u32, any::<bool>()), 1..8)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (sender, mut receiver) = queue(WhenFull::DropOldest);
                let (mut sent, mut controls) = (0, 0);
                for (inputs, control) in batches {
                    for _ in 0..inputs {
                        assert!(sender.push(input(sent)).await.is_ok());
                        sent += 1;
                    }
                    if control {
                        assert!(sender.push(Request::new(Ok(Command::Rotate))).await.is_ok());
                        controls += 1;
                    }
                }
                drop(sender);
                let (mut expected, mut seen_controls) = (0, 0);
                while let Some(next) = receiver.next(Wanted::Any).await {
                    match next {
                        Next::Gap(values) => expected += u32::try_from(values / 2).unwrap(),
                        Next::Request(Request { command: Ok(Command::Rotate), .. }) => seen_controls += 1,
                        next @ Next::Request(_) => {
                            assert_eq!(value(Some(next)), expected);
                            expected += 1;
                        }
                    }
                }
                assert_eq!((expected, seen_controls), (sent, controls));
            });
        }
    }
}
