//! The agent's configuration file.
//!
//! Invariants:
//! - a [`Config`] is complete and consistent: it only exists if the whole file was understood;
//! - it holds paths to secrets, never a secret.
//!
//! docs/configuration.md is its reference.

mod changes;
mod custody;
#[cfg(test)]
mod reference;
mod tasks;

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moai_settings::{Problem, Section, SettingsError};
use moai_tpm::{PcrSelection, Tcti};
use moai_transport::ids::Identity;
use moai_transport::keys::{MAX_KEY_FILE_LEN, Operator, Server, TrustedKeys};
use moai_transport::message::MAX_JOBS;

pub use changes::Changes;
pub use custody::{CustodianConfig, CustodyConfig, EscrowConfig, KmsConfig, Pkcs11Config};
pub use tasks::{DeclaredTask, Join, TaskTopic, TopicChannels, WhenFull};

use crate::audit::AuditLimits;
use crate::custody::files::read_capped;
use crate::spool::SpoolLimits;
use crate::ttl::{Lifetimes, MAX_LIFETIME};
use crate::warm::MAX_WARM;

/// Where the configuration lies unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/moai-agent/agent.toml";

/// Everything an operator can set.
#[derive(Debug)]
pub struct Config {
    /// `tenant.robot`, the CN of the robot's certificate.
    pub identity: Identity,
    /// Permits what must not be on a robot in the field: the custodian `env` and a software key.
    pub development: bool,
    /// Holds the sealed root secret, the vault and the spool.
    pub state_directory: PathBuf,
    /// Unix socket that `moai-agent status` asks.
    pub control_socket: PathBuf,
    /// What keeps the root secret.
    pub custody: CustodyConfig,
    /// The TPM of custodian `tpm` and of the identity key.
    pub tpm: TpmConfig,
    /// The robot's own broker.
    pub onboard: OnboardConfig,
    /// The broker toward the compute server.
    pub uplink: UplinkConfig,
    /// How long sessions live and what they may do.
    pub sessions: SessionsConfig,
    /// `[spool]`: how much waits for answers.
    pub spool: SpoolLimits,
    /// `[audit]`: how much of the audit log is kept.
    pub audit: AuditLimits,
    /// `[[tasks]]`: tasks that open by themselves.
    pub tasks: Vec<DeclaredTask>,
    /// What is logged and how.
    pub log: LogConfig,
}

/// `[tpm]`
#[derive(Debug, Clone)]
pub struct TpmConfig {
    /// How the TPM is reached.
    pub tcti: Tcti,
    /// The platform configuration registers the root secret is bound to.
    pub pcrs: PcrSelection,
    /// How long one TPM command may take before the agent gives up on it.
    pub deadline: Duration,
    /// PEM file with the fleet's policy key: boot states it signed unseal without resealing.
    pub policy_key: Option<PathBuf>,
    /// Directory of signed policies.
    pub policies: PathBuf,
}

/// `[onboard]`
#[derive(Debug)]
pub struct OnboardConfig {
    /// Host name or address; plain TCP, so it must be the robot itself.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// First topic level of the onboard API.
    pub prefix: String,
}

/// `[uplink]`
#[derive(Debug)]
pub struct UplinkConfig {
    /// Host name, as in the broker's certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// PEM file with the authority that signed the broker's certificate.
    pub ca: PathBuf,
    /// PEM file with the authorities that servers trust for robots; `ca` if not set.
    pub robots_ca: PathBuf,
    /// PEM file with the public keys of the servers to believe.
    pub server_key: KeyFile<Server>,
    /// PEM file with the public keys of who may give commands over the uplink; none may if not set.
    pub operator_key: Option<KeyFile<Operator>>,
    /// PEM file with the robot's certificate chain.
    pub certificate: PathBuf,
    /// Where the certificate's private key is.
    pub key: IdentityKeySource,
    /// Program and arguments that renew the certificate: a CSR (PEM) on standard input, the new
    /// chain (PEM) on standard output. Empty if something else renews it.
    pub renew_command: Vec<String>,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
}

/// A file with public keys of a role, and where the configuration says so.
#[derive(Debug, Clone)]
pub struct KeyFile<R> {
    /// The file.
    pub path: PathBuf,
    config: PathBuf,
    line: usize,
    key: &'static str,
    remedy: &'static str,
    role: PhantomData<R>,
}

impl<R> KeyFile<R> {
    /// The keys.
    ///
    /// # Errors
    /// The file cannot be read or holds something else; the error has the line of the configuration.
    pub fn read(&self) -> Result<TrustedKeys<R>, SettingsError> {
        let problem = |why: &dyn std::fmt::Display| SettingsError::Invalid {
            path: self.config.clone(),
            problems: vec![Problem {
                line: self.line,
                message: format!(
                    "`uplink.{}` is not usable: {}: {why}; place there what {} prints",
                    self.key,
                    self.path.display(),
                    self.remedy
                ),
            }],
        };
        let pem = read_capped(&self.path, MAX_KEY_FILE_LEN).map_err(|error| problem(&error))?;
        TrustedKeys::from_pem(&pem).map_err(|error| problem(&error))
    }
}

/// Where the private key of the robot's certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityKeySource {
    /// In the TPM, from where it cannot be copied.
    Tpm,
    /// In a PEM file; for development.
    File(PathBuf),
}

/// `[sessions]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionsConfig {
    /// How long sessions of each class live.
    pub lifetimes: Lifetimes,
    /// Key sets made ahead of the sessions that need them.
    pub warm: usize,
    /// Most results that a session decrypts, which is most jobs it takes.
    pub decryption_budget: u64,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A tracing filter, such as `info` or `moai_agent=debug`.
    pub level: String,
    /// Text for people or JSON for machines.
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("it must be \"text\" or \"json\""),
        }
    }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or has problems; every problem is listed with its line.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        moai_settings::load(path, |root| build(path, root))
    }
}

fn build(path: &Path, root: &mut Section<'_>) -> Option<Config> {
    let identity = root.required("identity");
    let development = root.boolean("development", false)?;
    let state_directory = root.optional("state_directory", PathBuf::from("/var/lib/moai-agent"));
    let control_socket =
        root.optional("control_socket", PathBuf::from("/run/moai-agent/control.sock"));
    let custody = custody::read(root, development);
    let tpm = root.section("tpm", tpm);
    let onboard = root.section("onboard", |onboard| {
        let host = onboard.optional("host", "127.0.0.1".to_owned());
        let port = port(onboard, 1883);
        let prefix = onboard.optional("prefix", TopicPrefix("moai".to_owned()));
        Some(OnboardConfig { host: host?, port: port?, prefix: prefix?.0 })
    });
    let uplink = root.section("uplink", |section| uplink(path, section, development));
    let sessions = root.section("sessions", |sessions| {
        let default = Lifetimes::default();
        let general = lifetime(sessions, "general_ttl_seconds", default.general);
        let sensitive = lifetime(sessions, "sensitive_ttl_seconds", default.sensitive);
        let long = lifetime(sessions, "long_ttl_seconds", default.long);
        let warm = sessions.integer("warm", 0..=MAX_WARM as u64, Some(1));
        let budget = sessions.integer("decryption_budget", 1..=MAX_JOBS, Some(MAX_JOBS));
        Some(SessionsConfig {
            lifetimes: Lifetimes { general: general?, sensitive: sensitive?, long: long? },
            warm: usize::try_from(warm?).ok()?,
            decryption_budget: budget?,
        })
    });
    let spool = root.section("spool", |spool| {
        let default = SpoolLimits::default();
        let max_bytes = spool.integer("max_bytes", 1 << 16..=1 << 32, Some(default.max_bytes));
        let max_age = spool.integer(
            "max_age_seconds",
            1..=MAX_LIFETIME.as_secs(),
            Some(default.max_age.as_secs()),
        );
        Some(SpoolLimits { max_bytes: max_bytes?, max_age: Duration::from_secs(max_age?) })
    });
    let audit = root.section("audit", |audit| {
        let default = AuditLimits::default();
        let file_bytes = audit.integer("file_bytes", 16_384..=1 << 30, Some(default.file_bytes));
        let files = audit.integer("files", 2..=1000, Some(default.files as u64));
        Some(AuditLimits { file_bytes: file_bytes?, files: usize::try_from(files?).ok()? })
    });
    let tasks = tasks::read(root, onboard.as_ref().map(|onboard| onboard.prefix.as_str()));
    let log = root.section("log", |log| {
        let level = log.optional("level", LogFilter("info".to_owned()));
        let format = log.optional("format", LogFormat::Text);
        Some(LogConfig { level: level?.0, format: format? })
    });
    Some(Config {
        identity: identity?,
        development,
        state_directory: state_directory?,
        control_socket: control_socket?,
        custody: custody?,
        tpm: tpm?,
        onboard: onboard?,
        uplink: uplink?,
        sessions: sessions?,
        spool: spool?,
        audit: audit?,
        tasks: tasks?,
        log: log?,
    })
}

fn tpm(tpm: &mut Section<'_>) -> Option<TpmConfig> {
    let tcti = tpm.text_or("tcti", "device:/dev/tpmrm0");
    let pcrs = tpm.text_or("pcrs", "sha256:7");
    let deadline = tpm.integer("deadline_seconds", 1..=120, Some(10));
    let policy_key = tpm.maybe("policy_key");
    let policies = tpm.optional("policies", PathBuf::from("/etc/moai-agent/policies.d"));
    Some(TpmConfig {
        tcti: tcti?,
        pcrs: pcrs?,
        deadline: Duration::from_secs(deadline?),
        policy_key: policy_key?,
        policies: policies?,
    })
}

fn uplink(config: &Path, uplink: &mut Section<'_>, development: bool) -> Option<UplinkConfig> {
    let host = uplink.required("host");
    let port = port(uplink, 8883);
    let ca = uplink.optional("ca", PathBuf::from("/etc/moai-agent/ca.pem"));
    let robots_ca = uplink.maybe("robots_ca");
    let line = uplink.line("server_key");
    let server_key = uplink.optional("server_key", PathBuf::from("/etc/moai-agent/server-key.pem"));
    let operator_line = uplink.line("operator_key");
    let operator_key = uplink.maybe("operator_key");
    let certificate =
        uplink.optional("certificate", PathBuf::from("/var/lib/moai-agent/robot.pem"));
    let key = uplink.optional("key", "tpm".to_owned());
    let key = match key.as_deref() {
        Some("tpm") => Some(IdentityKeySource::Tpm),
        Some(path) if development => Some(IdentityKeySource::File(path.into())),
        Some(_) => {
            uplink.problem(
                "`uplink.key` names a file, which anybody who gets at the disk can copy: leave it \
                 out to keep the key in the TPM, or set `development = true` on a machine that \
                 holds nothing worth protecting",
            );
            None
        }
        None => None,
    };
    let renew_command = uplink.list("renew_command");
    let keep_alive = uplink.integer("keep_alive_seconds", 5..=1200, Some(30));
    let server_key = KeyFile {
        path: server_key?,
        config: config.to_owned(),
        line,
        key: "server_key",
        remedy: "`moai-server key public`",
        role: PhantomData,
    };
    let operator_key = operator_key?.map(|path| KeyFile {
        path,
        config: config.to_owned(),
        line: operator_line,
        key: "operator_key",
        remedy: "`openssl pkey -pubout -in` with the operator's key",
        role: PhantomData,
    });
    Some(UplinkConfig {
        host: host?,
        port: port?,
        robots_ca: robots_ca?.or_else(|| ca.clone())?,
        ca: ca?,
        server_key,
        operator_key,
        certificate: certificate?,
        key: key?,
        renew_command: renew_command?,
        keep_alive: Duration::from_secs(keep_alive?),
    })
}

fn lifetime(section: &mut Section<'_>, key: &'static str, default: Duration) -> Option<Duration> {
    let seconds = section.integer(key, 1..=MAX_LIFETIME.as_secs(), Some(default.as_secs()))?;
    Some(Duration::from_secs(seconds))
}

fn port(section: &mut Section<'_>, default: u16) -> Option<u16> {
    let port = section.integer("port", 1..=u64::from(u16::MAX), Some(u64::from(default)))?;
    u16::try_from(port).ok()
}

/// One or more topic levels without wildcards.
struct TopicPrefix(String);

impl std::str::FromStr for TopicPrefix {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let level = |level: &str| {
            !level.is_empty() && !level.starts_with('$') && !level.contains(['+', '#', '\0'])
        };
        if text.len() <= 128 && text.split('/').all(level) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a topic prefix has up to 128 bytes, no empty level, no wildcard and no leading $")
        }
    }
}

/// A filter that tracing understands.
struct LogFilter(String);

impl std::str::FromStr for LogFilter {
    type Err = tracing_subscriber::filter::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<tracing_subscriber::filter::Targets>()?;
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, SettingsError> {
        let path = Path::new("agent.toml");
        moai_settings::read(path, text, |root| build(path, root))
    }

    #[test]
    fn identity_and_uplink_host_are_all_a_robot_must_say() {
        let config = read("identity = 'acme.robot-1'\n[uplink]\nhost = 'broker'\n").unwrap();
        assert_eq!(config.identity.to_string(), "acme.robot-1");
        assert_eq!(config.tpm.tcti.to_string(), "device:/dev/tpmrm0");
        assert_eq!(config.uplink.port, 8883);
        assert_eq!(config.log.format, LogFormat::Text);
    }

    #[test]
    fn what_weakens_custody_needs_the_word_development() {
        let text =
            "identity = 'a.b'\n[custody]\ncustodian = 'env'\n[uplink]\nhost = 'h'\nkey = '/k'\n";
        let message = read(text).unwrap_err().to_string();
        assert!(message.contains("agent.toml:2: `custody.custodian`"), "{message}");
        assert!(message.contains("agent.toml:4: `uplink.key`"), "{message}");
        let config = read(&format!("development = true\n{text}")).unwrap();
        assert!(matches!(config.custody.custodian, CustodianConfig::Env));
        assert_eq!(config.uplink.key, IdentityKeySource::File("/k".into()));
    }

    #[test]
    fn a_custodian_needs_its_section_and_the_escrow_its_own() {
        let text = |custody: &str| format!("identity = 'a.b'\nuplink.host = 'h'\n{custody}");
        for (custody, section) in [
            ("custody.custodian = 'pkcs11'", "[pkcs11] is missing"),
            ("custody.custodian = 'kms'", "[kms] is missing"),
            ("escrow.recipient = 'kms'", "[kms] is missing"),
            ("[escrow]", "`escrow.recipient` is missing"),
        ] {
            let message = read(&text(custody)).unwrap_err().to_string();
            assert!(message.contains(section), "{section} is not in:\n{message}");
        }
        let config =
            read(&text("escrow.recipient = '/e.pub'\n[custody]\nrotate_hours = 0")).unwrap();
        assert!(matches!(config.custody.escrow, Some(EscrowConfig::PublicKey(_))));
        assert_eq!(config.custody.rotate_every, None);
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let text = "identity = 'Acme.Robot'\n[tpm]\ntcti = 'swtpm:path=/run/x'\n[onboard]\n\
                    prefix = 'a/+/b'\n[uplink]\nport = 0\n[log]\nlevel = 'a=b=c'\nstyle = 'json'\n";
        let message = read(text).unwrap_err().to_string();
        for line in [1, 3, 5, 6, 7, 9, 10] {
            let place = format!("agent.toml:{line}: ");
            assert!(message.contains(&place), "line {line} is not in:\n{message}");
        }
    }
}
