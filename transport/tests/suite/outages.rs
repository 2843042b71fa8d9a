//! Brokers that die, forget and freeze.

use std::collections::BTreeSet;
use std::time::Duration;

use moai_transport::link::{LinkConfig, LinkError, LinkEvent, PublishError};

use crate::support::broker::Broker;
use crate::support::{Subject, config, outgoing, subscribing};

/// Publishes requests until each is answered, as the cycle of job and result does.
async fn ask_all(mut asker: Subject, count: u32) -> Vec<u32> {
    let mut open: BTreeSet<u32> = (0..count).collect();
    let mut answered = Vec::new();
    let mut is_up = true;
    let mut publishing = tokio::task::JoinSet::new();
    let mut to_send: Vec<u32> = open.iter().copied().collect();
    while !open.is_empty() {
        while is_up
            && publishing.len() < 8
            && let Some(number) = to_send.pop()
        {
            let link = asker.link.clone();
            publishing.spawn(async move {
                (number, link.publish(outgoing("ask", number.to_string())).await)
            });
        }
        tokio::select! {
            Some(done) = publishing.join_next() => match done.unwrap() {
                (_, Ok(())) => {}
                (number, Err(error)) => {
                    assert_eq!(error, PublishError::Down);
                    to_send.push(number);
                }
            },
            event = asker.event() => match event.expect("the link ended") {
                LinkEvent::Up => {
                    is_up = true;
                    // Taken by the broker does not mean answered: everything open is asked again.
                    to_send = open.iter().copied().collect();
                }
                LinkEvent::Down(error) => {
                    assert!(!error.is_fatal(), "{error}");
                    is_up = false;
                }
                LinkEvent::Message(message) => {
                    let text = std::str::from_utf8(&message.payload).unwrap();
                    match text.parse::<u32>() {
                        Ok(number) if open.remove(&number) => answered.push(number),
                        Ok(_) => {}
                        // The other end is back: it may have missed anything.
                        Err(_) => to_send = open.iter().copied().collect(),
                    }
                }
            },
        }
    }
    asker.close().await;
    answered
}

/// Answers every request, and says so when it comes back.
async fn answer_all(mut answerer: Subject) {
    let mut publishing = tokio::task::JoinSet::new();
    loop {
        let payload = match answerer.event().await {
            Some(LinkEvent::Up) => "back".into(),
            Some(LinkEvent::Message(message)) => message.payload,
            Some(LinkEvent::Down(_)) => continue,
            None => return,
        };
        let link = answerer.link.clone();
        // An answer that fails is asked for again.
        publishing.spawn(async move {
            let _ = link.publish(outgoing("answer", payload.to_vec())).await;
        });
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
    let mut answered = asking.await.unwrap();
    answered.sort_unstable();
    assert_eq!(answered, (0..2000).collect::<Vec<_>>());
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
    // More than the kernel's buffers hold, so that the client library hangs in its write.
    let link = robot.link.clone();
    let waiting = tokio::spawn(async move {
        let mut outcomes = Vec::new();
        for _ in 0..32 {
            outcomes.push(link.publish(outgoing("a", vec![0; 1_000_000])).await);
        }
        outcomes
    });
    let error = robot.expect_down().await;
    assert!(matches!(error, LinkError::Stalled(_)), "{error:?}");
    assert!(waiting.await.unwrap().contains(&Err(PublishError::Down)));
}
