//! mosquitto, as the robot's own broker and as the broker of the uplink.
//!
//! Invariants:
//! - both listen on loopback only and keep their port over restarts;
//! - the uplink broker takes nobody without a certificate of the test's CA; the certificate's
//!   common name is user name and client id, and the access rules hang on it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::pki::{Credentials, Pki};
use crate::ports::Ports;
use crate::process::{Launch, Process, STEP, program};

/// The common name of [`Acl::default`]'s compute server.
pub const SERVER: &str = "server";
/// The common name that may give robots commands.
pub const FLEET: &str = "fleet";
/// The common name that may read and write every topic: for tests that watch or forge traffic.
pub const OPERATOR: &str = "operator";

/// Who may read and write what on the uplink broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// Common names of compute servers.
    pub servers: Vec<String>,
    /// Common names of robots, `tenant.robot`; only for what cannot be said by a pattern.
    pub robots: Vec<String>,
}

impl Default for Acl {
    fn default() -> Self {
        Self { servers: vec![SERVER.to_owned()], robots: Vec::new() }
    }
}

impl Acl {
    /// The rules in mosquitto's format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# every certificate holder: its own topics, nobody else's\n\
             pattern write moai/v1/up/%u/#\n\
             pattern read moai/v1/down/%u/#\n\
             pattern read moai/v1/workers/+/status\n",
        );
        for robot in &self.robots {
            let tenant = robot.split('.').next().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = write!(text, "\nuser {robot}\ntopic read moai/v1/models/{tenant}\n");
        }
        for server in &self.servers {
            let _ = write!(
                text,
                "\nuser {server}\n\
                 topic read moai/v1/up/#\n\
                 topic write moai/v1/down/#\n\
                 topic readwrite moai/v1/workers/#\n\
                 topic readwrite moai/v1/models/#\n"
            );
        }
        let _ = write!(
            text,
            "\nuser {FLEET}\n\
             topic write moai/v1/down/+/command\n\
             topic read moai/v1/up/+/report\n"
        );
        let _ = write!(text, "\nuser {OPERATOR}\ntopic readwrite #\n");
        text
    }
}

/// A mosquitto.
#[derive(Debug)]
pub struct Broker {
    name: &'static str,
    process: Option<Process>,
    ports: Ports,
    directory: PathBuf,
}

impl Broker {
    /// Starts the robot's own broker: plain TCP, anybody on loopback; `options` are lines of
    /// mosquitto's configuration.
    ///
    /// # Errors
    /// mosquitto is not installed or does not come up.
    pub async fn onboard(directory: &Path, options: &str) -> Result<Self> {
        let options = format!("allow_anonymous true\n{options}");
        Self::start("onboard-broker", directory, &options).await
    }

    /// Starts the broker of the uplink: mTLS with certificates of `pki`.
    ///
    /// With `durable`, retained messages and queues survive a restart.
    ///
    /// # Errors
    /// mosquitto is not installed or does not come up.
    pub async fn uplink(directory: &Path, pki: &Pki, acl: &Acl, durable: bool) -> Result<Self> {
        let options = if durable { Self::durable(directory)? } else { String::new() };
        Self::uplink_with(directory, pki, acl, &options).await
    }

    /// The same with more options, in mosquitto's format; they come last.
    ///
    /// # Errors
    /// As for [`Self::uplink`].
    pub async fn uplink_with(directory: &Path, pki: &Pki, acl: &Acl, more: &str) -> Result<Self> {
        let Credentials { ca, certificate, key } = pki.server()?;
        std::fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        let rules = directory.join("acl");
        write_private(&rules, &acl.text())?;
        let options = format!(
            "cafile {}\ncertfile {}\nkeyfile {}\n\
             tls_version tlsv1.3\n\
             require_certificate true\n\
             use_identity_as_username true\n\
             use_username_as_clientid true\n\
             allow_anonymous false\n\
             acl_file {}\n\
             max_packet_size 524288\n{more}",
            ca.display(),
            certificate.display(),
            key.display(),
            rules.display(),
        );
        Self::start("uplink-broker", &directory, &options).await
    }

    fn durable(directory: &Path) -> Result<String> {
        std::fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        Ok(format!(
            "persistence true\npersistence_location {}/\nautosave_on_changes true\n\
             autosave_interval 1\n",
            directory.display()
        ))
    }

    async fn start(name: &'static str, directory: &Path, options: &str) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        let ports = Ports::reserve()?;
        // Started as root, mosquitto becomes the user "mosquitto", who may not read our keys.
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let config = format!(
            "listener {} 127.0.0.1\nlog_type all\n{options}{user}log_dest stderr\n\
             set_tcp_nodelay true\n",
            ports.first()
        );
        write_private(&directory.join("mosquitto.conf"), &config)?;
        let mut broker = Self { name, process: None, ports, directory };
        broker.start_again().await?;
        Ok(broker)
    }

    /// The port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.first()
    }

    /// The process.
    ///
    /// # Errors
    /// It is stopped.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("the {} is stopped", self.name))
    }

    /// Starts the broker on the port and with the rules it had.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&mut self) -> Result<()> {
        let logs = self.directory.join("logs");
        let process = Launch::new(self.name, &program("mosquitto")?, &logs)
            .args(["-c".as_ref(), self.directory.join("mosquitto.conf").as_os_str()])
            .spawn()?;
        crate::wait_for_port(&process, self.port()).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the broker cleanly.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.terminate(STEP).await?;
        }
        Ok(())
    }

    /// Kills the broker: clients see their connections break.
    ///
    /// # Errors
    /// The kernel refuses the signal.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    /// Ends the broker and starts it on the same port.
    ///
    /// # Errors
    /// It does not end or not come up.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }
}

/// mosquitto complains about rules that others may read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?)
}

#[cfg(test)]
mod tests {
    use rumqttc::v5::mqttbytes::v5::{PubAckReason, PublishProperties};

    use super::*;
    use crate::mqtt::{Address, Client};

    struct Uplink {
        broker: Broker,
        pki: Pki,
        scratch: tempfile::TempDir,
    }

    impl Uplink {
        async fn start() -> Self {
            let scratch = tempfile::tempdir().unwrap();
            let pki = Pki::new(&scratch.path().join("pki")).unwrap();
            let acl = Acl { robots: vec!["acme.one".to_owned()], ..Acl::default() };
            let broker = Broker::uplink(&scratch.path().join("broker"), &pki, &acl, true).await;
            Self { broker: broker.unwrap(), pki, scratch }
        }

        async fn join(&self, credentials: Option<Credentials>) -> Result<Client> {
            let client_id = "somebody".to_owned();
            Client::connect(Address { port: self.broker.port(), credentials, client_id }).await
        }

        async fn join_as(&self, common_name: &str) -> Client {
            self.join(Some(self.pki.client(common_name).unwrap())).await.unwrap()
        }
    }

    async fn write(client: &Client, topic: &str) -> PubAckReason {
        client.try_publish(topic, "x", PublishProperties::default(), false).await.unwrap()
    }

    #[tokio::test]
    async fn who_has_no_certificate_of_this_ca_stays_outside() {
        let uplink = Uplink::start().await;
        assert!(uplink.join(None).await.is_err(), "plain TCP");
        let foreign = Pki::new(&uplink.scratch.path().join("foreign")).unwrap();
        let foreign = foreign.client("acme.one").unwrap().trusting(uplink.pki.ca());
        assert!(uplink.join(Some(foreign)).await.is_err(), "a foreign CA");
        assert!(uplink.join(Some(uplink.pki.client("acme.one").unwrap())).await.is_ok());
    }

    #[tokio::test]
    async fn a_robot_writes_only_below_its_own_topic() {
        let uplink = Uplink::start().await;
        let robot = uplink.join_as("acme.one").await;
        assert_eq!(
            write(&robot, "moai/v1/up/acme.one/status").await,
            PubAckReason::NoMatchingSubscribers
        );
        for topic in
            ["up/acme.two/status", "up/acme.one.x/status", "down/acme.one/x", "models/acme"]
        {
            let answer = write(&robot, &format!("moai/v1/{topic}")).await;
            assert_eq!(answer, PubAckReason::NotAuthorized, "{topic}");
        }
    }

    #[tokio::test]
    async fn a_robot_reads_only_what_is_meant_for_it() {
        let uplink = Uplink::start().await;
        let (one, two) = (uplink.join_as("acme.one").await, uplink.join_as("acme.two").await);
        for robot in [&one, &two] {
            robot.subscribe("moai/v1/#").await.unwrap();
        }
        let server = uplink.join_as(SERVER).await;
        for topic in ["down/acme.one/s/have", "models/acme", "workers/w/status"] {
            server.publish(&format!("moai/v1/{topic}"), "x").await.unwrap();
        }
        for (robot, expected) in [(&one, 3), (&two, 1)] {
            robot.wait_for("moai/v1/workers/#", "worker", STEP, |_| true).await.unwrap();
            assert_eq!(robot.history().len(), expected);
        }
    }

    #[tokio::test]
    async fn clients_and_retained_messages_survive_a_restart_of_the_broker() {
        let mut uplink = Uplink::start().await;
        let operator = uplink.join_as(OPERATOR).await;
        operator.subscribe("a/#").await.unwrap();
        let none = PublishProperties::default();
        operator.try_publish("a/kept", "1", none, true).await.unwrap();
        operator.wait_for("a/kept", "message", STEP, |_| true).await.unwrap();
        uplink.broker.restart().await.unwrap();
        let again = operator.wait_for("a/kept", "retained message", STEP, |m| m.retained).await;
        assert_eq!(again.unwrap().payload, b"1");
        operator.publish("a/new", "2").await.unwrap();
        operator.wait_for("a/new", "message", STEP, |_| true).await.unwrap();
    }
}
