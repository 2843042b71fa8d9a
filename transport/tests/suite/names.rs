//! Identifiers and topics: what is taken, what is refused, and that both forms agree.

use moai_transport::ids::{
    ContextId, Digest, Identity, JobNumber, ModelId, SessionId, TaskId, Tenant, WorkerGroup,
    WorkerId,
};
use moai_transport::topic::{Topic, robot_filters, worker_filters};
use proptest::prelude::*;

const SESSION: &str = "018f4d2a-7c00-7abc-8def-0123456789ab";

#[test]
fn a_session_id_keeps_its_time_and_its_random_bits() {
    let id = SessionId::new(0x0123_4567_89ab, [0xff; 10]);
    assert_eq!(id.to_string(), "01234567-89ab-7fff-bfff-ffffffffffff");
    assert_eq!(SessionId::from_bytes(*id.as_bytes()), Some(id.clone()));
    assert!(id < SessionId::new(0x0123_4567_89ac, [0; 10]), "ids sort by time");
}

#[test]
fn a_session_id_has_one_text() {
    assert!(SESSION.parse::<SessionId>().is_ok());
    for other in [
        "018F4D2A-7C00-7ABC-8DEF-0123456789AB",
        "018f4d2a7c007abc8def0123456789ab",
        "{018f4d2a-7c00-7abc-8def-0123456789ab}",
        "urn:uuid:018f4d2a-7c00-7abc-8def-0123456789ab",
        "018f4d2a-7c00-4abc-8def-0123456789ab", // version 4
        "018f4d2a-7c00-7abc-cdef-0123456789ab", // variant of Microsoft
        "",
    ] {
        assert!(other.parse::<SessionId>().is_err(), "{other}");
    }
}

#[test]
fn names_that_mean_something_to_mqtt_or_a_shell_are_refused() {
    for text in ["", "a b", "a/b", "+", "#", "$share", "Acme", "a.b", "ä", "a\0", &"x".repeat(33)]
    {
        assert!(text.parse::<Tenant>().is_err(), "{text:?}");
    }
    for text in ["", "a b", "a/b", "+", "#", "a.b", "ä", "a\n", &"x".repeat(65)] {
        assert!(text.parse::<TaskId>().is_err(), "{text:?}");
    }
    for text in ["acme", "acme.", ".robot", "acme.robot.1", "acme.Robot", "acme/robot"] {
        let error = text.parse::<Identity>().unwrap_err();
        assert!(error.to_string().contains("tenant.robot"), "{error}");
    }
}

#[test]
fn ids_are_text_in_json_and_what_is_no_id_is_no_json_either() {
    let identity: Identity = serde_json::from_str("\"acme.robot-1\"").unwrap();
    assert_eq!(serde_json::to_string(&identity).unwrap(), "\"acme.robot-1\"");
    assert!(serde_json::from_str::<Identity>("\"acme\"").is_err());
    assert!(serde_json::from_str::<ModelId>("\"a/b\"").is_err());
    let session: SessionId = serde_json::from_str(&format!("\"{SESSION}\"")).unwrap();
    assert_eq!(serde_json::to_string(&session).unwrap(), format!("\"{SESSION}\""));
    let context = ContextId(Digest::of(b"abc"));
    let json = serde_json::to_string(&context).unwrap();
    assert_eq!(json, "\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"");
    assert_eq!(serde_json::from_str::<ContextId>(&json).unwrap(), context);
    assert_eq!(serde_json::to_string(&JobNumber(7)).unwrap(), "7");
}

#[test]
fn a_robot_and_a_worker_subscribe_to_what_concerns_them() {
    let identity: Identity = "acme.robot-1".parse().unwrap();
    assert_eq!(
        robot_filters(&identity),
        [
            "moai/v1/down/acme.robot-1/+/+",
            "moai/v1/down/acme.robot-1/command",
            "moai/v1/workers/+/status",
            "moai/v1/models/acme"
        ]
    );
    let group: WorkerGroup = "g-secret".parse().unwrap();
    let worker: WorkerId = "w1".parse().unwrap();
    assert_eq!(
        worker_filters(&group, &worker),
        ["$share/g-secret/moai/v1/up/+/open/+", "moai/v1/up/+/to/w1/+/+"]
    );
}

#[test]
fn topics_are_written_as_specified() {
    let identity: Identity = "acme.r1".parse().unwrap();
    let worker: WorkerId = "W_1".parse().unwrap();
    let session: SessionId = SESSION.parse().unwrap();
    let text = Topic::Chunk { identity, worker, session }.to_string();
    assert_eq!(text, format!("moai/v1/up/acme.r1/to/W_1/{SESSION}/chunk"));
    for wrong in [
        String::new(),
        "moai/v1".to_owned(),
        "moai/v2/models/acme".to_owned(),
        "moai/v1/models/acme/".to_owned(),
        "/moai/v1/models/acme".to_owned(),
        "moai/v1/models/a.b".to_owned(),
        "moai/v1/up/acme.r1/open".to_owned(),
        format!("moai/v1/up/acme.r1/open/{SESSION}/x"),
        format!("moai/v1/up/acme.r1/to/W.1/{SESSION}/chunk"),
        format!("moai/v1/up/acme.r1/to/W_1/{SESSION}/Chunk"),
        format!("moai/v1/down/acme.r1/{SESSION}/job"),
        "moai/v1/down/acme.r1/command/x".to_owned(),
        "moai/v1/up/acme.r1/command".to_owned(),
        "moai/v1/workers/W_1/state".to_owned(),
    ] {
        assert!(wrong.parse::<Topic>().is_err(), "{wrong}");
    }
}

fn identity() -> impl Strategy<Value = Identity> {
    "[a-z0-9-]{1,32}\\.[a-z0-9-]{1,32}".prop_map(|text| text.parse().unwrap())
}

fn session() -> impl Strategy<Value = SessionId> {
    any::<(u64, [u8; 10])>().prop_map(|(millis, random)| SessionId::new(millis, random))
}

fn worker() -> impl Strategy<Value = WorkerId> {
    "[A-Za-z0-9_-]{1,64}".prop_map(|text| text.parse().unwrap())
}

fn topic() -> impl Strategy<Value = Topic> {
    let addressed = (identity(), worker(), session(), 0..12_u8).prop_map(
        |(identity, worker, session, which)| match which {
            0 => Topic::Open { identity, session },
            1 => Topic::Chunk { identity, worker, session },
            2 => Topic::Job { identity, worker, session },
            3 => Topic::Delete { identity, worker, session },
            4 => Topic::RobotStatus { identity },
            5 => Topic::Have { identity, session },
            6 => Topic::Result { identity, session },
            7 => Topic::Attest { identity, worker, session },
            8 => Topic::Challenge { identity, session },
            9 => Topic::Command { identity },
            10 => Topic::Report { identity },
            _ => Topic::Error { identity, session },
        },
    );
    prop_oneof![
        addressed,
        worker().prop_map(|worker| Topic::WorkerStatus { worker }),
        identity().prop_map(|identity| Topic::Models { tenant: identity.tenant }),
    ]
}

proptest! {
    #[test]
    fn a_topic_survives_its_text(topic in topic()) {
        let text = topic.to_string();
        prop_assert!(text.split('/').count() <= 8);
        prop_assert_eq!(text.parse::<Topic>(), Ok(topic));
    }

    #[test]
    fn what_parses_is_written_as_it_was(text in "(moai|v1|up|to|down|open|command|a\\.b|x|/|\\+|#|[0-9a-f-]{36}){0,12}") {
        if let Ok(topic) = text.parse::<Topic>() {
            prop_assert_eq!(topic.to_string(), text);
        }
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = text.parse::<Topic>();
        let _ = text.parse::<Identity>();
        let _ = text.parse::<SessionId>();
        let _ = text.parse::<Digest>();
        let _ = text.parse::<WorkerGroup>();
    }
}
