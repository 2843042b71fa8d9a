//! Brokers that are none, and brokers that mean ill.

use std::time::Duration;

use moai_transport::link::{
    Endpoint, LinkConfig, LinkError, LinkEvent, Outgoing, PublishError, Qos,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{PATIENCE, Subject, config, outgoing, subscribing};

const CONNACK: &[u8] = &[0x20, 3, 0, 0, 0];

/// A listener, and a link that subscribes to one topic through it.
async fn listener() -> (TcpListener, LinkConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port, tls: None };
    (listener, subscribing(config("robot", endpoint), &["a"]))
}

/// Accepts a connection and reads the first packet, which is CONNECT.
async fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(packet(&mut stream).await[0], 0x10);
    stream
}

/// Reads one packet of up to 127 bytes.
async fn packet(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.unwrap();
    let mut rest = vec![0; usize::from(head[1])];
    stream.read_exact(&mut rest).await.unwrap();
    [&head[..], &rest].concat()
}

/// Acknowledges the one subscription with this reason code.
async fn grant(stream: &mut TcpStream, code: u8) {
    let subscribe = packet(stream).await;
    assert_eq!(subscribe[0], 0x82);
    let suback = [0x90, 4, subscribe[2], subscribe[3], 0, code];
    stream.write_all(&suback).await.unwrap();
}

#[tokio::test]
async fn refusals_are_told_apart() {
    type IsExpected = fn(&LinkError) -> bool;
    let cases: [(u8, IsExpected); 4] = [
        (0x87, |error| matches!(error, LinkError::Refused(_)) && error.is_fatal()),
        (0x8a, |error| matches!(error, LinkError::Refused(_)) && error.is_fatal()),
        (0x89, |error| matches!(error, LinkError::Unavailable(_)) && !error.is_fatal()),
        (0x88, |error| matches!(error, LinkError::Unavailable(_)) && !error.is_fatal()),
    ];
    for (code, is_expected) in cases {
        let (listener, config) = listener().await;
        let mut robot = Subject::spawn(config);
        let mut stream = accept(&listener).await;
        stream.write_all(&[0x20, 3, 0, code, 0]).await.unwrap();
        let error = robot.expect_down().await;
        assert!(is_expected(&error), "{code:#x}: {error:?}");
    }
}

#[tokio::test]
async fn a_subscription_that_is_not_fully_granted_is_an_error() {
    for code in [0x87, 0x00] {
        let (listener, config) = listener().await;
        let mut robot = Subject::spawn(config);
        let mut stream = accept(&listener).await;
        stream.write_all(CONNACK).await.unwrap();
        grant(&mut stream, code).await;
        let error = robot.expect_down().await;
        let LinkError::Subscription { filter, .. } = &error else { panic!("{error:?}") };
        assert!(filter == "a" && error.is_fatal());
    }
}

#[tokio::test]
async fn a_broker_that_accepts_and_then_says_nothing_is_given_up() {
    let (listener, config) = listener().await;
    let connect_timeout = Duration::from_millis(500);
    let mut robot = Subject::spawn(LinkConfig { connect_timeout, ..config });
    let mut stream = accept(&listener).await;
    stream.write_all(CONNACK).await.unwrap();
    let error = robot.expect_down().await;
    assert!(matches!(error, LinkError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn a_link_can_be_cancelled_at_every_step() {
    for step in 0..3 {
        let (listener, config) = listener().await;
        let robot = Subject::spawn(config);
        let mut stream = None;
        if step > 0 {
            stream = Some(accept(&listener).await);
        }
        if let Some(stream) = stream.as_mut().filter(|_| step > 1) {
            stream.write_all(CONNACK).await.unwrap();
            assert_eq!(packet(stream).await[0], 0x82);
        }
        robot.close().await;
    }
}

#[tokio::test]
async fn whoever_takes_our_client_id_is_told_about() {
    let (listener, config) = listener().await;
    let mut robot = Subject::spawn(config);
    let mut stream = accept(&listener).await;
    stream.write_all(CONNACK).await.unwrap();
    grant(&mut stream, 1).await;
    robot.expect_up().await;
    stream.write_all(&[0xe0, 2, 0x8e, 0]).await.unwrap();
    let error = robot.expect_down().await;
    assert!(error == LinkError::TakenOver && error.is_fatal(), "{error:?}");
}

#[tokio::test]
async fn messages_are_acknowledged_in_order_and_not_before_the_consumer_has_room() {
    let (listener, config) = listener().await;
    let mut robot = Subject::spawn(config);
    let mut stream = accept(&listener).await;
    stream.write_all(CONNACK).await.unwrap();
    grant(&mut stream, 1).await;
    robot.expect_up().await;
    for id in 1..=40 {
        stream.write_all(&[0x32, 6, 0, 1, b'a', 0, id, 0]).await.unwrap();
    }
    let puback = |id| vec![0x40, 2, 0, id];
    for id in 1..=16 {
        assert_eq!(packet(&mut stream).await, puback(id));
    }
    // Whatever the link has to say next, it is this and not an acknowledgement.
    let unsure = Outgoing { qos: Qos::AtMostOnce, ..outgoing("b", "x") };
    robot.link.publish(unsure).await.unwrap();
    assert_eq!(packet(&mut stream).await[0], 0x30);
    robot.expect_message().await;
    assert_eq!(packet(&mut stream).await, puback(17));
    for _ in 2..=40 {
        robot.expect_message().await;
    }
    for id in 18..=40 {
        assert_eq!(packet(&mut stream).await, puback(id));
    }
}

#[tokio::test]
async fn what_had_arrived_is_told_before_the_end_of_its_connection() {
    let (listener, config) = listener().await;
    let mut robot = Subject::spawn(config);
    let mut stream = accept(&listener).await;
    stream.write_all(CONNACK).await.unwrap();
    grant(&mut stream, 1).await;
    robot.expect_up().await;
    for id in 1..=40 {
        stream.write_all(&[0x32, 6, 0, 1, b'a', 0, id, 0]).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    for _ in 1..=40 {
        robot.expect_message().await;
    }
    assert!(matches!(robot.expect_down().await, LinkError::Broken(_)));
}

#[tokio::test]
async fn a_publication_nobody_acknowledges_brings_the_link_down() {
    let (listener, config) = listener().await;
    let keep_alive = Duration::from_secs(5);
    let mut robot = Subject::spawn(LinkConfig { keep_alive, ..config });
    let mut stream = accept(&listener).await;
    stream.write_all(CONNACK).await.unwrap();
    grant(&mut stream, 1).await;
    robot.expect_up().await;
    let answering_pings = tokio::spawn(async move {
        loop {
            let mut head = [0; 2];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            stream.read_exact(&mut vec![0; usize::from(head[1])]).await.unwrap();
            if head[0] == 0xc0 {
                stream.write_all(&[0xd0, 0]).await.unwrap();
            }
        }
    });
    let publication = robot.link.publish(outgoing("b", "x"));
    let outcome = tokio::time::timeout(PATIENCE, publication).await.expect("it waits for ever");
    assert_eq!(outcome, Err(PublishError::Down));
    let error = robot.expect_down().await;
    let LinkError::Stalled(reason) = error else { panic!("{error:?}") };
    assert!(reason.contains("not acknowledged"), "{reason}");
    answering_pings.await.unwrap();
}

/// Packets that are likely to get somewhere in a parser.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let packet = (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(kind, body)| [vec![kind, u8::try_from(body.len()).unwrap()], body].concat());
    let packets = proptest::collection::vec(packet, 0..6).prop_map(|packets| packets.concat());
    prop_oneof![packets, proptest::collection::vec(any::<u8>(), 0..100)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a broker sends, and whenever, the link comes back to connect again.
    #[test]
    fn no_bytes_from_a_broker_end_a_link(garbage in garbage(), stage in 0..3_u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (listener, config) = listener().await;
            let mut robot = Subject::spawn(config);
            let mut stream = accept(&listener).await;
            if stage > 0 {
                stream.write_all(CONNACK).await.unwrap();
            }
            if stage > 1 {
                grant(&mut stream, 1).await;
            }
            // The link may hang up before it has read everything.
            let _ = stream.write_all(&garbage).await;
            let _ = stream.shutdown().await;
            drop(stream);
            let mut again = accept(&listener).await;
            again.write_all(CONNACK).await.unwrap();
            grant(&mut again, 1).await;
            while !matches!(robot.event().await.expect("the link ended"), LinkEvent::Down(_)) {}
            robot.wait_up().await;
            robot.cancel.cancel();
        });
    }
}
