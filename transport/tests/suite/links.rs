//! Links in good weather, and errors that a person has to set right.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use moai_transport::link::{
    Acknowledge, Endpoint, LinkConfig, LinkError, LinkEvent, Outgoing, PublishError, Qos,
};
use moai_transport::tls::{
    CertificateFacts, CredentialError, CredentialFile, certificate_chain, client_config,
    client_config_resolving,
};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::support::broker::{Broker, Options};
use crate::support::certificates::Authority;
use crate::support::{PATIENCE, Subject, config, outgoing, subscribing};

const UP: &str = "moai/v1/up/acme.robot-1";

#[tokio::test]
async fn a_robot_and_a_server_talk_through_a_broker_that_checks_certificates() {
    let broker = Broker::start();
    let server = subscribing(config("server", broker.endpoint("server")), &["moai/v1/up/#"]);
    let mut server = Subject::up(server).await;
    let robot = Subject::up(config("robot", broker.endpoint("acme.robot-1"))).await;
    let message = Outgoing {
        content_type: Some("application/cbor".to_owned()),
        correlation_data: Some(Bytes::from_static(b"7")),
        expiry: Some(Duration::from_millis(59_500)),
        ..outgoing(&format!("{UP}/x"), vec![9; 300_000])
    };
    robot.link.publish(message).await.unwrap();
    let arrived = server.expect_message().await;
    assert_eq!(arrived.topic, format!("{UP}/x"));
    assert_eq!(arrived.payload, vec![9; 300_000]);
    assert_eq!(arrived.content_type.as_deref(), Some("application/cbor"));
    assert_eq!(arrived.correlation_data.as_deref(), Some(&b"7"[..]));
    assert!(!arrived.retained);

    let unsure = Outgoing { qos: Qos::AtMostOnce, ..outgoing(&format!("{UP}/y"), "unsure") };
    robot.link.publish(unsure).await.unwrap();
    assert_eq!(server.expect_message().await.payload, "unsure");
    robot.close().await;
    server.close().await;
}

#[tokio::test]
async fn what_the_broker_kept_is_marked_as_retained() {
    let broker = Broker::start();
    let first = Subject::up(config("first", broker.plain_endpoint())).await;
    let kept = Outgoing { retain: true, ..outgoing("state", "up") };
    first.link.publish(kept).await.unwrap();
    let second = subscribing(config("second", broker.plain_endpoint()), &["state"]);
    let mut second = Subject::up(second).await;
    assert!(second.expect_message().await.retained);
}

#[tokio::test]
async fn what_was_not_confirmed_comes_again_and_what_was_missed_comes_after_it() {
    let broker = Broker::start();
    let first = LinkConfig {
        acknowledge: Acknowledge::WhenConfirmed,
        session_expiry: Duration::from_mins(1),
        ..subscribing(config("keeper", broker.plain_endpoint()), &["news"])
    };
    let again = first.clone();
    let mut keeper = Subject::up(first).await;
    let publisher = Subject::up(config("publisher", broker.plain_endpoint())).await;
    for news in ["one", "two", "three"] {
        publisher.link.publish(outgoing("news", news)).await.unwrap();
    }
    let mut arrived = Vec::new();
    for _ in 0..3 {
        arrived.push(keeper.expect_message().await);
    }
    // Out of order: the first and the last, so that the first alone can be acknowledged.
    let unconfirmed = arrived.remove(1);
    for message in arrived.into_iter().rev() {
        message.receipt.expect("the link issues receipts").confirm();
    }
    keeper.close().await;
    assert!(unconfirmed.receipt.is_some_and(|receipt| receipt.is_stale()));
    publisher.link.publish(outgoing("news", "four")).await.unwrap();

    let mut keeper = Subject::up(again).await;
    for news in ["two", "three", "four"] {
        let message = keeper.expect_message().await;
        assert_eq!(message.payload, news);
        message.receipt.expect("the link issues receipts").confirm();
    }
}

#[tokio::test]
async fn a_robot_cannot_publish_as_another_and_its_link_survives_the_attempt() {
    let broker = Broker::start();
    let robot = Subject::up(config("robot", broker.endpoint("acme.robot-1"))).await;
    let foreign = outgoing("moai/v1/up/acme.robot-2/x", "forged");
    let error = robot.link.publish(foreign).await.unwrap_err();
    assert_eq!(error, PublishError::Refused("NotAuthorized".to_owned()));
    assert!(!error.is_transient());
    robot.link.publish(outgoing(&format!("{UP}/x"), "own")).await.unwrap();
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_fatal() {
    let broker = Broker::start();
    let stranger = Authority::new();
    let ours = broker.authority().issue("acme.robot-1", &[]);
    let theirs = stranger.issue("acme.robot-1", &[]);

    let wrong_authority = broker.tls_endpoint("localhost", stranger.client(&ours));
    let wrong_client = broker.endpoint_with(&theirs);
    for endpoint in [wrong_authority, wrong_client] {
        let mut robot = Subject::spawn(config("robot", endpoint));
        let error = robot.expect_down().await;
        assert!(matches!(error, LinkError::Certificate(_)), "{error:?}");
        assert!(error.is_fatal());
        assert!(error.to_string().contains("authority file"), "{error}");
        let publication = robot.link.publish(outgoing("x", "x"));
        assert_eq!(publication.await, Err(PublishError::Down));
    }
}

/// A key that does not sign while it is busy, as one in a TPM.
#[derive(Debug, Clone)]
struct Hardware {
    key: Arc<dyn SigningKey>,
    chain: Vec<CertificateDer<'static>>,
    busy: Arc<AtomicBool>,
}

impl ResolvesClientCert for Hardware {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::new(CertifiedKey::new(self.chain.clone(), Arc::new(self.clone()))))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl SigningKey for Hardware {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(self.clone()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Hardware {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        if self.busy.load(Ordering::Relaxed) {
            return Err(rustls::Error::General("the TPM is busy".to_owned()));
        }
        self.key.choose_scheme(&[self.scheme()]).unwrap().sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

#[tokio::test]
async fn a_key_that_cannot_sign_just_now_is_asked_again() {
    let broker = Broker::start();
    let ours = broker.authority().issue("acme.robot-1", &[]);
    let key = PrivateKeyDer::from_pem_slice(ours.key.as_bytes()).unwrap();
    let hardware = Hardware {
        key: rustls::crypto::ring::sign::any_ecdsa_type(&key).unwrap(),
        chain: certificate_chain(ours.certificate.as_bytes()).unwrap(),
        busy: Arc::new(AtomicBool::new(true)),
    };
    let busy = Arc::clone(&hardware.busy);
    let ca = broker.authority().pem();
    let tls = client_config_resolving(ca.as_bytes(), Arc::new(hardware)).unwrap();
    let mut robot = Subject::spawn(config("robot", broker.tls_endpoint("localhost", tls)));
    let error = robot.expect_down().await;
    assert!(!error.is_fatal() && error.to_string().contains("the TPM is busy"), "{error:?}");
    busy.store(false, Ordering::Relaxed);
    robot.wait_up().await;
    robot.close().await;
}

#[tokio::test]
async fn a_broker_for_another_name_is_not_our_broker() {
    let broker = Broker::start();
    let ours = broker.authority().issue("acme.robot-1", &[]);
    // The broker's certificate is for "localhost" and says nothing of addresses.
    let by_address = broker.tls_endpoint("127.0.0.1", broker.authority().client(&ours));
    let error = Subject::spawn(config("robot", by_address)).expect_down().await;
    assert!(matches!(error, LinkError::Certificate(_)) && error.is_fatal(), "{error:?}");
    Subject::up(config("robot", broker.endpoint_with(&ours))).await;
}

#[tokio::test]
async fn plain_tcp_stays_on_this_machine_and_bad_configuration_ends_the_link() {
    let remote = Endpoint { host: "broker.example".to_owned(), port: 1883, tls: None };
    let good = config("robot", remote.clone());
    let here = Endpoint { host: "127.0.0.1".to_owned(), ..remote.clone() };
    let will = outgoing("a/+/b", "x");
    let broken = [
        (good, "not this machine"),
        (config("robot", Endpoint { host: String::new(), ..here.clone() }), "host is empty"),
        (
            LinkConfig { keep_alive: Duration::from_secs(4), ..config("robot", here.clone()) },
            "keep-alive",
        ),
        (LinkConfig { receive_maximum: 0, ..config("robot", here.clone()) }, "receive maximum"),
        (LinkConfig { last_will: Some(will), ..config("robot", here.clone()) }, "last will"),
        (subscribing(config("robot", here), &["a/#/b"]), "no topic filter"),
    ];
    for (config, expected) in broken {
        let mut robot = Subject::spawn(config);
        let error = robot.expect_down().await;
        assert!(matches!(error, LinkError::Configuration(_)), "{error:?}");
        assert!(error.is_fatal() && error.to_string().contains(expected), "{error}");
        assert!(robot.event().await.is_none());
        robot.link.closed().await;
        assert_eq!(robot.link.publish(outgoing("x", "x")).await, Err(PublishError::Closed));
    }
}

#[tokio::test]
async fn a_message_the_broker_does_not_take_is_refused_before_it_breaks_the_connection() {
    let broker =
        Broker::start_with(&Options { max_packet_size: Some(100_000), ..Options::default() });
    let mut robot = Subject::up(config("robot", broker.endpoint("acme.robot-1"))).await;
    let topic = format!("{UP}/x");
    let too_large = robot.link.publish(outgoing(&topic, vec![0; 100_000])).await.unwrap_err();
    assert!(
        matches!(too_large, PublishError::TooLarge { len, max: 100_000 } if len > 100_000),
        "{too_large:?}"
    );
    // 1 byte of type, 3 of length, 2 + 26 of topic, 2 of packet id, 1 of properties.
    let most = 100_000 - 1 - 3 - 2 - topic.len() - 2 - 1;
    robot.link.publish(outgoing(&topic, vec![0; most])).await.unwrap();
    let error = robot.link.publish(outgoing(&topic, vec![0; most + 1])).await.unwrap_err();
    assert_eq!(error, PublishError::TooLarge { len: 100_001, max: 100_000 });
    robot.link.publish(outgoing(&topic, "small")).await.unwrap();
    assert!(robot.events.try_recv().is_err(), "the link went down");
}

#[tokio::test]
async fn what_mqtt_cannot_carry_is_refused() {
    let broker = Broker::start();
    let robot = Subject::up(config("robot", broker.plain_endpoint())).await;
    let long = "x".repeat(65_536);
    let mut wrong = vec![outgoing("", "x"), outgoing("a/+", "x"), outgoing("#", "x")];
    wrong.push(outgoing(&long, "x"));
    wrong.push(Outgoing { content_type: Some(long), ..outgoing("a", "x") });
    for message in wrong {
        let error = robot.link.publish(message).await.unwrap_err();
        assert!(matches!(error, PublishError::Invalid(_)), "{error:?}");
    }
    robot.link.publish(outgoing("a", "x")).await.unwrap();
}

#[tokio::test]
async fn a_last_will_is_sent_for_a_process_that_dies_and_not_for_one_that_leaves() {
    let broker = Broker::start();
    let observer = subscribing(config("observer", broker.plain_endpoint()), &["state"]);
    let mut observer = Subject::up(observer).await;
    let with_will = |name| LinkConfig {
        last_will: Some(outgoing("state", "gone")),
        ..config(name, broker.plain_endpoint())
    };

    // A runtime that ends takes its tasks and sockets along, as a process does.
    let dying = with_will("dying");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let subject = runtime.spawn(async move { Subject::up(dying).await }).await.unwrap();
    runtime.shutdown_background();
    assert_eq!(observer.expect_message().await.payload, "gone");
    drop(subject);

    let leaving = Subject::up(with_will("leaving")).await;
    leaving.close().await;
    let marker = Subject::up(config("marker", broker.plain_endpoint())).await;
    marker.link.publish(outgoing("state", "marker")).await.unwrap();
    assert_eq!(observer.expect_message().await.payload, "marker");

    // Nobody takes its events any more: a link has no reason to stay.
    let Subject { link, events, cancel } = Subject::up(with_will("deserted")).await;
    drop(events);
    tokio::time::timeout(PATIENCE, link.closed()).await.unwrap();
    marker.link.publish(outgoing("state", "marker 2")).await.unwrap();
    assert_eq!(observer.expect_message().await.payload, "marker 2");
    drop(cancel);
}

#[tokio::test]
async fn a_slow_consumer_loses_nothing_and_does_not_hold_up_its_own_publications() {
    let broker = Broker::start();
    let slow = LinkConfig {
        receive_maximum: 4,
        ..subscribing(config("slow", broker.plain_endpoint()), &["in"])
    };
    let mut slow = Subject::up(slow).await;
    let fast = Subject::up(config("fast", broker.plain_endpoint())).await;
    for number in 0..500 {
        fast.link.publish(outgoing("in", number.to_string())).await.unwrap();
    }
    // Not one message was taken, and the link still serves its other direction.
    for _ in 0..100 {
        slow.link.publish(outgoing("out", "alive")).await.unwrap();
    }
    for number in 0..500 {
        assert_eq!(slow.expect_message().await.payload, number.to_string());
    }
}

#[tokio::test]
async fn messages_of_at_most_once_wait_up_to_a_limit() {
    let broker = Broker::start();
    let subscriptions =
        vec![("in".to_owned(), Qos::AtMostOnce), ("end".to_owned(), Qos::AtLeastOnce)];
    let (max_packet, inbox_bytes) = (10_000, 40_000);
    let plain = config("slow", broker.plain_endpoint());
    let mut slow =
        Subject::up(LinkConfig { subscriptions, max_packet, inbox_bytes, ..plain }).await;
    let fast = Subject::up(config("fast", broker.plain_endpoint())).await;
    for _ in 0..1000 {
        let message = Outgoing { qos: Qos::AtMostOnce, ..outgoing("in", vec![0; 742]) };
        fast.link.publish(message).await.unwrap();
    }
    fast.link.publish(outgoing("end", "x")).await.unwrap();
    // The broker serves in order: when it answers this, it has sent all that.
    slow.link.publish(outgoing("out", "x")).await.unwrap();
    let mut taken = 0;
    while slow.expect_message().await.topic != "end" {
        taken += 1;
    }
    // What the channel holds, and a quarter of the inbox.
    assert_eq!(taken, 16 + 10 - 1 + 1);
}

#[tokio::test]
async fn what_must_not_be_lost_and_has_no_room_ends_the_connection_and_the_link_comes_back() {
    let broker = Broker::start();
    let plain = subscribing(config("slow", broker.plain_endpoint()), &["in"]);
    let limits = LinkConfig { max_packet: 100_000, inbox_bytes: 500_000, ..plain };
    let mut slow = Subject::up(limits).await;
    let fast = Subject::up(config("fast", broker.plain_endpoint())).await;
    // mosquitto sends them all, if only the first was taken.
    for _ in 0..200 {
        fast.link.publish(outgoing("in", vec![0; 90_000])).await.unwrap();
    }
    let mut taken = 0;
    let error = loop {
        match slow.event().await.unwrap() {
            LinkEvent::Message(_) => taken += 1,
            LinkEvent::Down(error) => break error,
            LinkEvent::Up => panic!("up again"),
        }
    };
    assert_eq!(error, LinkError::Overrun);
    assert!(!error.is_fatal());
    assert!((16..200).contains(&taken), "{taken}");
    slow.wait_up().await;
    fast.link.publish(outgoing("in", "again")).await.unwrap();
    assert_eq!(slow.expect_message().await.payload, "again");
}

#[tokio::test]
async fn a_cancelled_link_answers_everyone_and_ends() {
    let broker = Broker::start();
    let robot = Subject::up(config("robot", broker.plain_endpoint())).await;
    broker.freeze();
    let link = robot.link.clone();
    let waiting = tokio::spawn(async move { link.publish(outgoing("a", "x")).await });
    let link = robot.link.clone();
    tokio::task::yield_now().await;
    robot.close().await;
    assert_eq!(waiting.await.unwrap(), Err(PublishError::Closed));
    assert_eq!(link.publish(outgoing("a", "x")).await, Err(PublishError::Closed));
}

#[test]
fn credentials_that_do_not_fit_are_named_by_their_file() {
    let authority = Authority::new();
    let good = authority.issue("acme.robot-1", &[]);
    let other = authority.issue("acme.robot-2", &[]);
    let ca = authority.pem();
    let build = |ca: &str, certificate: &str, key: &str| {
        client_config(ca.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap_err()
    };
    let empty = |error: CredentialError| match error {
        CredentialError::Empty { file, .. } => file,
        error => panic!("{error}"),
    };
    assert_eq!(empty(build("", &good.certificate, &good.key)), CredentialFile::Authority);
    assert_eq!(empty(build(&ca, &good.key, &good.key)), CredentialFile::Certificate);
    assert_eq!(empty(build(&ca, &good.certificate, &ca)), CredentialFile::Key);
    let mismatch = build(&ca, &good.certificate, &other.key);
    assert!(matches!(mismatch, CredentialError::KeyMismatch), "{mismatch}");
    let cut = &good.key[..good.key.len() / 2];
    let error = build(&ca, &good.certificate, cut);
    assert!(matches!(error, CredentialError::Pem { file: CredentialFile::Key, .. }), "{error}");
    assert!(!error.to_string().contains(&good.key[40..60]), "{error}");
}

#[test]
fn a_certificate_tells_whose_it_is_and_how_long() {
    let authority = Authority::new();
    let facts = |name: &str| {
        let pem = authority.issue(name, &[]).certificate;
        CertificateFacts::from_pem(pem.as_bytes()).unwrap()
    };
    let robot = facts("acme.robot-1");
    assert_eq!(robot.identity().unwrap().to_string(), "acme.robot-1");
    assert!(robot.not_before < robot.not_after);
    assert!(facts("server").identity().is_err());
    assert!(CertificateFacts::from_pem(b"").is_err());
}

#[tokio::test]
async fn a_link_that_cannot_reach_its_broker_says_so_and_comes_up_when_it_can() {
    let mut broker = Broker::start();
    broker.kill();
    let mut robot = Subject::spawn(config("robot", broker.endpoint("acme.robot-1")));
    let error = robot.expect_down().await;
    assert!(matches!(error, LinkError::Unreachable(_)) && !error.is_fatal(), "{error:?}");
    assert_eq!(robot.link.publish(outgoing("a", "x")).await, Err(PublishError::Down));
    broker.restart();
    robot.wait_up().await;
    let event = robot.events.try_recv();
    assert!(!matches!(event, Ok(LinkEvent::Down(_))), "{event:?}");
}
