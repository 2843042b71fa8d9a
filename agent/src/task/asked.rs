//! Who asked for something that takes a while, and wants to hear when it is done.
//!
//! Invariant: each is told once.

use crate::onboard::ReplyTo;

/// Most who wait at a time; who asks beyond that hears from the task's own topics only.
const MAX_ASKED: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    Active,
    Ended,
}

/// Who waits for which state.
#[derive(Default)]
pub(super) struct Asked(Vec<(Until, ReplyTo)>);

impl Asked {
    /// Wants to hear when the task is active, or has ended instead.
    pub(super) fn when_active(&mut self, reply: Option<ReplyTo>) {
        self.add(Until::Active, reply);
    }

    /// Wants to hear when the task has ended.
    pub(super) fn when_ended(&mut self, reply: Option<ReplyTo>) {
        self.add(Until::Ended, reply);
    }

    fn add(&mut self, until: Until, reply: Option<ReplyTo>) {
        if self.0.len() < MAX_ASKED {
            self.0.extend(reply.map(|reply| (until, reply)));
        }
    }

    /// Those whom this state answers; they are told now.
    pub(super) fn answered_by(&mut self, state: &str) -> Vec<ReplyTo> {
        let is_answered = |until: Until| match until {
            Until::Active => state == "active" || state == "ended",
            Until::Ended => state == "ended",
        };
        self.0.extract_if(.., |(until, _)| is_answered(*until)).map(|(_, reply)| reply).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(topic: &str) -> ReplyTo {
        ReplyTo { topic: topic.parse().unwrap(), correlation: None }
    }

    fn topics(replies: &[ReplyTo]) -> Vec<&str> {
        replies.iter().map(|reply| reply.topic.as_str()).collect()
    }

    #[test]
    fn each_is_told_once_by_the_state_that_was_asked_for_or_by_the_end() {
        let mut asked = Asked::default();
        asked.when_active(Some(reply("open")));
        asked.when_ended(Some(reply("close")));
        asked.when_ended(None);
        assert_eq!(topics(&asked.answered_by("opening")), [""; 0]);
        assert_eq!(topics(&asked.answered_by("active")), ["open"]);
        asked.when_active(Some(reply("rotate")));
        assert_eq!(topics(&asked.answered_by("ended")), ["close", "rotate"]);
        assert_eq!(topics(&asked.answered_by("ended")), [""; 0]);
    }
}
