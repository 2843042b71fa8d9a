//! Brokers that die, forget and freeze.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use moai_transport::link::{LinkConfig, LinkError, LinkEvent, PublishError};
use tokio::time::Instant;

use crate::support::broker::Broker;
use crate::support::{Subject, config, outgoing, subscribing};

/// Unanswered requests that wait at a time.
const WINDOW: usize = 50;
/// Requests that are not answered for so long are sent again.
const RESEND_AFTER: Duration = Duration::from_millis(500);

/// Publishes requests until each is answered, as the cycle of job and result does.
async fn ask_all(mut asker: Subject, count: u32) -> Vec<u32> {
    let mut unasked: VecDeque<u32> = (0..count).collect();
    let mut open: BTreeSet<u32> = BTreeSet::new();
    let mut answered = Vec::new();
    let mut publishing = tokio::task::JoinSet::new();
    let mut resend_at = Instant::now() + RESEND_AFTER;
    while !(unasked.is_empty() && open.is_empty()) {
        while open.len() < WINDOW
            && let Some(number) = unasked.pop_front()
        {
            open.insert(number);
            let link = asker.link.clone();
            publishing
                .spawn(async move { link.publish(outgoing("ask", number.to_string())).await });
        }
        tokio::select! {
            Some(done) = publishing.join_next() => {
                let outcome = done.unwrap();
                assert!(matches!(outcome, Ok(()) | Err(PublishError::Down)), "{outcome:?}");
            }
            event = asker.event() => match event.expect("the link ended") {
                LinkEvent::Up => resend_at = Instant::now(),
                LinkEvent::Down(error) => assert!(!error.is_fatal(), "{error}"),
                LinkEvent::Message(message) => {
                    let number = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
                    if open.remove(&number) {
                        answered.push(number);
                        resend_at = Instant::now() + RESEND_AFTER;
                    }
                }
            },
            () = tokio::time::sleep_until(resend_at) => {
                unasked.extend(std::mem::take(&mut open));
                resend_at = Instant::now() + RESEND_AFTER;
            }
        }
    }
    asker.close().await;
    answered
}

/// Answers every request.
async fn answer_all(mut answerer: Subject) {
    let mut publishing = tokio::task::JoinSet::new();
    while let Some(event) = answerer.event().await {
        if let LinkEvent::Message(message) = event {
            let link = answerer.link.clone();
            // An answer that fails is asked for again.
            publishing.spawn(async move {
                let _ = link.publish(outgoing("answer", message.payload)).await;
            });
        }
        while publishing.try_join_next().is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_survive_a_broker_that_dies_again_and_again() {
    let mut broker = Broker::start();
    let endpoint = broker.plain_endpoint();
    let answerer = Subject::up(subscribing(config("answerer", endpoint.clone()), &["ask"])).await;
    let cancel = answerer.cancel.clone();
    let answering = tokio::spawn(answer_all(answerer));
    let asker = Subject::up(subscribing(config("asker", endpoint.clone()), &["answer"])).await;
    let mut observer = Subject::up(subscribing(config("observer", endpoint), &["answer"])).await;
    let asking = tokio::spawn(ask_all(asker, 2000));
    for _ in 0..4 {
        // Somewhere in the midst of it: after some answers were seen.
        for _ in 0..50 {
            if !matches!(observer.event().await, Some(LinkEvent::Message(_))) {
                break;
            }
        }
        broker.kill();
        assert!(!asking.is_finished());
        broker.restart();
        observer.wait_up().await;
    }
    let mut numbers = asking.await.unwrap();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
    cancel.cancel();
    answering.await.unwrap();
}

#[tokio::test]
async fn publications_under_way_fail_when_the_broker_dies() {
    let mut broker = Broker::start();
    let mut robot = Subject::up(config("robot", broker.plain_endpoint())).await;
    broker.freeze();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let link = robot.link.clone();
        waiting.spawn(async move { link.publish(outgoing("a", vec![0; 10_000])).await });
    }
    tokio::task::yield_now().await;
    broker.kill();
    let error = robot.expect_down().await;
    assert!(matches!(error, LinkError::Broken(_)), "{error:?}");
    assert_eq!(waiting.join_all().await, vec![Err(PublishError::Down); 5]);
}

#[tokio::test]
async fn a_broker_that_forgot_everything_gets_the_subscriptions_again() {
    let mut broker = Broker::start();
    let robot = subscribing(config("robot", broker.plain_endpoint()), &["a/+", "b"]);
    let mut robot = Subject::up(robot).await;
    let mut other = Subject::up(config("other", broker.plain_endpoint())).await;
    for _ in 0..3 {
        broker.restart();
        robot.wait_up().await;
        other.wait_up().await;
        other.link.publish(outgoing("a/x", "1")).await.unwrap();
        other.link.publish(outgoing("b", "2")).await.unwrap();
        assert_eq!(robot.expect_message().await.payload, "1");
        assert_eq!(robot.expect_message().await.payload, "2");
    }
}

#[tokio::test]
async fn a_frozen_broker_is_given_up() {
    let broker = Broker::start();
    let keep_alive = Duration::from_secs(5);
    let robot = LinkConfig { keep_alive, ..config("robot", broker.plain_endpoint()) };
    let mut robot = Subject::up(robot).await;
    broker.freeze();
    // More than the kernel's buffers hold: the client library hangs in its write, where it cannot
    // see that its pings are not answered.
    let much = outgoing("a", vec![0; 64_000_000]);
    let link = robot.link.clone();
    let waiting = tokio::spawn(async move { link.publish(much).await });
    let error = robot.expect_down().await;
    let LinkError::Stalled(reason) = error else { panic!("{error:?}") };
    assert!(reason.contains("no sign of life"), "{reason}");
    assert_eq!(waiting.await.unwrap(), Err(PublishError::Down));
}
