//! A command for a robot of the fleet, signed and published here, and what the robot says to it.
//!
//! Invariants:
//! - a report is believed only if the robot it is about has signed it;
//! - the command stays with the broker until it expires or another follows: a robot that is away gets
//!   it later, and the exit code says that it has not done it yet.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use moai_transport::frame::{Claims, Frame, FrameKind, Received};
use moai_transport::keys::OperatorSigningKey;
use moai_transport::link::{self, Endpoint, LinkConfig, LinkEvent, Outgoing, Qos};
use moai_transport::message::{Command, Report};
use moai_transport::tls;
use moai_transport::topic::Topic;
use moai_transport::trust::TrustedRobots;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::arguments::{Remote, RemoteCommand};
use super::print;

/// How long a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn run(arguments: &Remote) -> Result<()> {
    let now = SystemTime::UNIX_EPOCH.elapsed().context("the clock is before 1970")?;
    let (number, valid) = (
        u64::try_from(now.as_millis()).context("the clock is far ahead")?,
        Duration::from_secs(arguments.valid_minutes * 60),
    );
    let payload = sign(arguments, number, (now + valid).as_secs())?;
    if let Some(path) = &arguments.out {
        std::fs::write(path, &payload)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let topic = Topic::Command { identity: arguments.robot.clone() };
        return print(&format!(
            "{} is to be published as it is, retained, on {topic} within {} minutes.",
            path.display(),
            arguments.valid_minutes
        ));
    }
    let broker = Broker::of(arguments)?;
    let stop = CancellationToken::new();
    let _ends_with_us = stop.clone().drop_guard();
    let (link, mut events) = link::spawn(broker.link, stop);
    connected(&mut events, arguments).await?;
    let topic = Topic::Command { identity: arguments.robot.clone() }.to_string();
    let outgoing = Outgoing::new(topic, payload, Qos::AtLeastOnce);
    link.publish(Outgoing { retain: true, expiry: Some(valid), ..outgoing })
        .await
        .context("the broker does not take the command; may this certificate write there?")?;
    let patience = Duration::from_secs(arguments.wait_seconds);
    let report = reported(&mut events, arguments, &broker.robots, number);
    let Ok(report) = tokio::time::timeout(patience, report).await else {
        bail!(
            "the broker has the command, and {} has not answered within {} s; it obeys when it is \
             back, for {} minutes from now",
            arguments.robot,
            arguments.wait_seconds,
            arguments.valid_minutes
        );
    };
    let Report { done, message } = report?;
    if !done {
        bail!("{} did not do it: {message}", arguments.robot);
    }
    print(&format!("{}: {message}.", arguments.robot))
}

fn sign(arguments: &Remote, number: u64, expires_at: u64) -> Result<Vec<u8>> {
    let path = &arguments.key;
    let pem = Zeroizing::new(read(path)?);
    let pem = std::str::from_utf8(&pem).with_context(|| format!("{} is no PEM", path.display()))?;
    let key = OperatorSigningKey::from_pem(pem)
        .with_context(|| format!("{} cannot be used", path.display()))?;
    let identity = Some(arguments.robot.clone());
    let claims = Claims { identity, number, expires_at, ..Claims::default() };
    let body = command(&arguments.command).encode()?;
    Ok(Frame { kind: FrameKind::Command, claims, body }.encode_as_operator(&key)?)
}

fn command(command: &RemoteCommand) -> Command {
    match command {
        RemoteCommand::RotateTask { task } => Command::RotateTask { task: task.clone() },
        RemoteCommand::CloseTask { task } => Command::CloseTask { task: task.clone() },
        RemoteCommand::RevokeTask { task, stay_closed } => {
            Command::RevokeTask { task: task.clone(), stay_closed: *stay_closed }
        }
        RemoteCommand::RevokeSession { session } => {
            Command::RevokeSession { session: session.clone() }
        }
        RemoteCommand::Emergency { stay_closed } => {
            Command::Emergency { stay_closed: *stay_closed }
        }
    }
}

/// How to reach the broker, and whom to believe there.
struct Broker {
    link: LinkConfig,
    robots: TrustedRobots,
}

impl Broker {
    fn of(arguments: &Remote) -> Result<Self> {
        let Remote {
            robot,
            host: Some(host),
            port,
            ca: Some(ca),
            robots_ca,
            certificate: Some(certificate),
            certificate_key: Some(key),
            ..
        } = arguments
        else {
            bail!("--host, --ca, --certificate and --certificate-key say how to reach the broker");
        };
        let robots = TrustedRobots::from_pem(&read(robots_ca.as_ref().unwrap_or(ca))?)?;
        let tls = tls::client_config(&read(ca)?, &read(certificate)?, &Zeroizing::new(read(key)?))?;
        let endpoint = Endpoint { host: host.clone(), port: *port, tls: Some(tls) };
        let client_id = format!("moai-remote-{}", std::process::id());
        let report = Topic::Report { identity: robot.clone() };
        let mut link = LinkConfig::new("broker", endpoint, client_id);
        link.subscriptions = vec![(report.to_string(), Qos::AtLeastOnce)];
        Ok(Self { link, robots })
    }
}

async fn connected(events: &mut mpsc::Receiver<LinkEvent>, arguments: &Remote) -> Result<()> {
    let event = tokio::time::timeout(CONNECT_PATIENCE, events.recv()).await;
    let host = arguments.host.as_deref().unwrap_or_default();
    match event.ok().flatten() {
        Some(LinkEvent::Up) => Ok(()),
        Some(LinkEvent::Down(error)) => {
            Err(error).with_context(|| format!("no connection to {host}:{}", arguments.port))
        }
        _ => bail!("no connection to {host}:{}: it does not answer", arguments.port),
    }
}

/// The robot's report of the command with this number.
async fn reported(
    events: &mut mpsc::Receiver<LinkEvent>,
    arguments: &Remote,
    robots: &TrustedRobots,
    number: u64,
) -> Result<Report> {
    let topic = Topic::Report { identity: arguments.robot.clone() };
    loop {
        let message = match events.recv().await.context("the connection has ended")? {
            LinkEvent::Message(message) => message,
            LinkEvent::Up => continue,
            LinkEvent::Down(error) => {
                eprintln!("moai-agent: the connection broke and is tried again: {error}");
                continue;
            }
        };
        match report(&message.payload, &topic, robots) {
            Ok((reported, report)) if reported == number => return Ok(report),
            Ok(_) => {}
            Err(error) => eprintln!("moai-agent: a report is not believed: {error:#}"),
        }
    }
}

fn report(payload: &[u8], topic: &Topic, robots: &TrustedRobots) -> Result<(u64, Report)> {
    let Received::Signed(signed) = Received::decode(payload)? else {
        bail!("it is not signed");
    };
    let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let frame = signed.verify_robot(robots, now)?.into_frame();
    frame.check_topic(topic)?;
    Ok((frame.claims.number, Report::decode(&frame.body)?))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
