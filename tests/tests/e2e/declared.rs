//! Tasks of the configuration, and the ways of samples that need no JSON of ours.

use std::time::Duration;

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::mqtt::Message;
use moai_tests::onboard::{Onboard, SLOW};
use moai_tests::recordings::{CHANNELS, Trial};
use moai_tests::reference::{Reference, Scheme};
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

use crate::stage::{ARM, QUICK, start, trials};

const FORCE: &str = "gripper/force";
const TORQUE: &str = "gripper/torque";
const DECISIONS: &str = "gripper/decision";
const REPLIES: &str = "operator/replies";

/// A task that makes samples of two topics, none of which knows the agent.
const ON_EXISTING_TOPICS: &str = r#"
    [[tasks]]
    name = "arm"
    model = "force-alarm"
    result_topic = "gripper/decision"
    trigger = "gripper/torque"
    max_age_ms = 60000
    when_full = "block"

    [[tasks.topics]]
    topic = "gripper/force"
    pointers = ["/wrench/force/x", "/wrench/force/y", "/wrench/force/z"]

    [[tasks.topics]]
    topic = "gripper/torque"
    format = "f32"
    channels = 3
"#;

/// The whole recording as other software of the robot would publish it.
async fn publish_on_existing_topics(onboard: &Onboard, trial: &Trial) -> Result<()> {
    for sample in &trial.samples {
        let [fx, fy, fz, torque @ ..] = *sample;
        let force = json!({ "wrench": { "force": { "x": fx, "y": fy, "z": fz }, "frame": "tcp" } });
        onboard.client.publish(FORCE, serde_json::to_vec(&force)?).await?;
        let torque: Vec<u8> = torque.iter().flat_map(|v| f32::from(*v).to_le_bytes()).collect();
        onboard.client.publish(TORQUE, torque).await?;
    }
    Ok(())
}

async fn next_on(onboard: &Onboard, topic: &str) -> Result<Message> {
    onboard.client.wait_for(topic, "message", SLOW, |_| true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_task_reads_topics_that_exist_and_stays_open() -> Result<()> {
    let mut stage = start(World::builder().agent_toml(ON_EXISTING_TOPICS)).await?;
    let plaintext = Reference::load(Scheme::Tfhe, QUICK)?;
    stage.robot.onboard.client.subscribe(DECISIONS).await?;
    stage.active_session().await?;
    for trial in &trials()?[..2] {
        publish_on_existing_topics(&stage.robot.onboard, trial).await?;
        let decision = next_on(&stage.robot.onboard, DECISIONS).await?.json()?;
        assert_eq!(decision["label"], plaintext.label(trial)?);
    }
    stage.robot.onboard.close(ARM).await?;
    assert_eq!(stage.robot.onboard.error(ARM).await?["code"], "not_closable");
    stage.robot.onboard.client.publish(FORCE, r#"{"wrench": 7}"#).await?;
    let refusal = stage.robot.onboard.error(ARM).await?;
    assert_eq!(refusal["code"], "malformed");
    assert!(refusal["message"].to_string().contains("/wrench/force/x"), "{refusal}");

    // What is published while the agent is away waits at the broker.
    stage.robot.agent.kill().await?;
    let trial = &trials()?[2];
    publish_on_existing_topics(&stage.robot.onboard, trial).await?;
    stage.robot.start_agent().await?;
    let decision = next_on(&stage.robot.onboard, DECISIONS).await?.json()?;
    assert_eq!(decision["label"], plaintext.label(trial)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_that_does_not_fit_the_model_is_said_in_state_health_and_error() -> Result<()>
{
    let toml = ON_EXISTING_TOPICS.replace("channels = 3", "channels = 2");
    let mut stage = start(World::builder().agent_toml(&toml).agent_stopped()).await?;
    stage.start_ailing_agent()?;
    let refusal = stage.robot.onboard.error(ARM).await?;
    assert_eq!(refusal["code"], "wrong_channels");
    let words = "takes 6 channels (fx, fy, fz, tx, ty, tz), the task's topics give 5";
    assert!(refusal["message"].to_string().contains(words), "{refusal}");
    stage.health_says(words).await
}

fn asking(content_type: Option<&str>, correlation: &'static [u8]) -> PublishProperties {
    PublishProperties {
        content_type: content_type.map(str::to_owned),
        response_topic: Some(REPLIES.to_owned()),
        correlation_data: Some(correlation.into()),
        ..PublishProperties::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_is_answered_and_whoever_asks_gets_a_reply() -> Result<()> {
    let world = start(World::builder()).await?;
    let onboard = &world.robot.onboard;
    onboard.client.subscribe(REPLIES).await?;
    let ask = async |verb: &str, payload: Vec<u8>, properties| {
        let topic = format!("moai/task/{ARM}/{verb}");
        onboard.client.try_publish(&topic, payload, properties, false).await?;
        let reply = next_on(onboard, REPLIES).await?;
        let correlation = reply.properties.correlation_data.clone().unwrap_or_default();
        anyhow::Ok((reply.json()?, correlation))
    };
    let open = serde_json::to_vec(&json!({ "model": QUICK }))?;
    let (state, correlation) = ask("open", open, asking(None, b"open")).await?;
    assert_eq!((&state["state"], &correlation[..]), (&json!("active"), &b"open"[..]));

    let trial = trials()?.into_iter().next().context("there are recordings")?;
    let label = Reference::load(Scheme::Tfhe, QUICK)?.label(&trial)?;
    let values = || trial.samples.as_flattened().iter().copied();
    let mut cbor = Vec::new();
    ciborium::into_writer(&json!({ "samples": trial.samples }), &mut cbor)?;
    for (content_type, payload) in [
        ("application/json", serde_json::to_vec(&json!({ "samples": trial.samples }))?),
        ("application/cbor", cbor),
        ("application/vnd.moai.f32", values().flat_map(|v| f32::from(v).to_le_bytes()).collect()),
        ("application/vnd.moai.i16", values().flat_map(i16::to_le_bytes).collect()),
    ] {
        let properties = asking(Some(content_type), b"input");
        let (result, correlation) = ask("input", payload, properties).await?;
        assert_eq!(result["label"], label, "{content_type}: {result}");
        assert_eq!(&correlation[..], b"input");
        assert_eq!(onboard.result(ARM).await?, result, "the task's own topic has it too");
    }
    let short = vec![0; 2 * (CHANNELS + 1)];
    let properties = asking(Some("application/vnd.moai.i16"), b"short");
    let (refusal, correlation) = ask("input", short, properties).await?;
    assert_eq!((&refusal["code"], &correlation[..]), (&json!("wrong_length"), &b"short"[..]));
    let (state, _) = ask("close", Vec::new(), asking(None, b"close")).await?;
    assert_eq!(state["state"], "ended");

    // Where the agent listens itself, it does not answer.
    let circle = PublishProperties {
        response_topic: Some(format!("moai/task/{ARM}/open")),
        ..PublishProperties::default()
    };
    let topic = format!("moai/task/{ARM}/close");
    onboard.client.try_publish(&topic, Vec::new(), circle, false).await?;
    let is_refused = |message: &Message| {
        message.json().is_ok_and(|error: Value| error["code"] == "bad_response_topic")
    };
    let topic = format!("moai/task/{ARM}/error");
    let limit = Duration::from_secs(30);
    onboard.client.wait_for(&topic, "refusal", limit, is_refused).await?;
    Ok(())
}
