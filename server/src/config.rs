//! The compute server's configuration file.
//!
//! Invariant: a [`Config`] only exists if the whole file was understood.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moai_settings::{Section, SettingsError};
use moai_transport::ids::{Tenant, WorkerGroup};

/// Where the configuration lies unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/moai-server/server.toml";

/// Everything an operator can set.
#[derive(Debug)]
pub struct Config {
    /// Name of the shared subscription all workers of this service use; keep it secret, whoever
    /// knows it and may subscribe could take registrations away.
    pub worker_group: WorkerGroup,
    /// Tenants that get the catalogue.
    pub tenants: BTreeSet<Tenant>,
    /// PEM file with the key that signs what this server says; every worker of a group has the same,
    /// and robots are configured with its public half.
    pub signing_key: PathBuf,
    /// Every `*.json` in it is a model.
    pub models_directory: PathBuf,
    /// The longest a session's keys are kept, whatever its manifest asks for.
    pub max_ttl: Duration,
    /// Threads that evaluate.
    pub threads: usize,
    /// Sessions held at a time; one takes about 90 MB when its keys are ready.
    pub max_sessions: usize,
    /// Jobs that may wait for evaluation.
    pub max_waiting_jobs: usize,
    /// `[attestation]`: where the enrolments of robots lie, `{tenant}.{robot}.json`. They are used
    /// only where attestation is required on the command line.
    pub enrolments: PathBuf,
    /// The broker.
    pub broker: BrokerConfig,
    /// Log filter and format.
    pub log: LogConfig,
}

/// `[broker]`
#[derive(Debug)]
pub struct BrokerConfig {
    /// Host name, as in the broker's certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// PEM file with the authority that signed the broker's certificate.
    pub ca: PathBuf,
    /// PEM file with the authorities that sign robots' certificates; the broker's if not set.
    pub robots_ca: PathBuf,
    /// PEM file with the server's certificate chain.
    pub certificate: PathBuf,
    /// PEM file with the server's private key.
    pub key: PathBuf,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
}

/// `[log]`
#[derive(Debug)]
pub struct LogConfig {
    /// A tracing filter.
    pub level: String,
    /// JSON instead of text.
    pub json: bool,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or has problems; every problem is listed with its line.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        moai_settings::load(path, build)
    }
}

fn build(root: &mut Section<'_>) -> Option<Config> {
    let worker_group = root.required::<WorkerGroup>("worker_group");
    let tenants = root.required_list::<Tenant>("tenants");
    let signing_key = root.required("signing_key");
    let models_directory = root.required("models_directory");
    let max_ttl = root.integer("max_ttl_seconds", 1..=14400, Some(14400));
    let threads = root.integer("threads", 1..=256, Some(2));
    let max_sessions = root.integer("max_sessions", 1..=100_000, Some(64));
    let max_waiting_jobs = root.integer("max_waiting_jobs", 1..=100_000, Some(256));
    let enrolments = root.section("attestation", |attestation| {
        attestation.optional("enrolments", PathBuf::from("/etc/moai-server/robots"))
    });
    let broker = root.section("broker", |broker| {
        let host = broker.required("host");
        let port = broker.integer("port", 1..=65535, Some(8883));
        let ca = broker.optional("ca", PathBuf::from("/etc/moai-server/ca.pem"));
        let robots_ca = broker.maybe("robots_ca");
        let certificate =
            broker.optional("certificate", PathBuf::from("/etc/moai-server/server.pem"));
        let key = broker.optional("key", PathBuf::from("/etc/moai-server/server.key"));
        let keep_alive = broker.integer("keep_alive_seconds", 5..=1200, Some(30));
        Some(BrokerConfig {
            host: host?,
            port: u16::try_from(port?).ok()?,
            robots_ca: robots_ca?.or_else(|| ca.clone())?,
            ca: ca?,
            certificate: certificate?,
            key: key?,
            keep_alive: Duration::from_secs(keep_alive?),
        })
    });
    let log = root.section("log", |log| {
        let level = log.optional("level", LogFilter("info".to_owned()));
        let format = log.optional("format", LogFormat { json: false });
        Some(LogConfig { level: level?.0, json: format?.json })
    });
    Some(Config {
        worker_group: worker_group?,
        tenants: tenants?.into_iter().collect(),
        signing_key: signing_key?,
        models_directory: models_directory?,
        max_ttl: Duration::from_secs(max_ttl?),
        threads: usize::try_from(threads?).ok()?,
        max_sessions: usize::try_from(max_sessions?).ok()?,
        max_waiting_jobs: usize::try_from(max_waiting_jobs?).ok()?,
        enrolments: enrolments?,
        broker: broker?,
        log: log?,
    })
}

struct LogFilter(String);

impl std::str::FromStr for LogFilter {
    type Err = tracing_subscriber::filter::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<tracing_subscriber::EnvFilter>()?;
        Ok(Self(text.to_owned()))
    }
}

struct LogFormat {
    json: bool,
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self { json: false }),
            "json" => Ok(Self { json: true }),
            _ => Err("it must be \"text\" or \"json\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_a_list_and_every_mistake_is_named() {
        let text = "worker_group = 'g'\ntenants = ['acme', 'globex']\nmodels_directory = 'm'\n\
                    signing_key = 'k'\n[broker]\nhost = 'b'\n";
        let config = moai_settings::read(Path::new("s.toml"), text, build).unwrap();
        assert_eq!(config.tenants.len(), 2);
        assert_eq!(config.enrolments, Path::new("/etc/moai-server/robots"));

        let text = "worker_group = 'a/b'\ntenants = ['Acme']\nthreads = 0\n";
        let message =
            moai_settings::read(Path::new("s.toml"), text, build).unwrap_err().to_string();
        for expected in [
            "s.toml:1: `worker_group`",
            "s.toml:2: `tenants`",
            "s.toml:3: `threads`",
            "`models_directory` is missing",
            "`signing_key` is missing",
            "`broker.host` is missing",
        ] {
            assert!(message.contains(expected), "{expected} is not in:\n{message}");
        }
    }
}
