//! The compute server's configuration file.
//!
//! Invariant: a [`Config`] only exists if the whole file was understood.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use moai_settings::{Section, SettingsError};
use moai_transport::ids::{ModelId, Tenant, WorkerGroup};

use crate::audit::AuditTarget;
use crate::service::ServiceSettings;
use crate::store::{Budget, RedisUrl};
use crate::tenants::TenantRules;

/// Where the configuration lies unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/moai-server/server.toml";
/// Where sessions are kept unless the configuration says otherwise.
const DEFAULT_STORE: &str = "/var/lib/moai-server";

/// Everything an operator can set.
#[derive(Debug)]
pub struct Config {
    /// Name of the shared subscription all workers of this service use; keep it secret, whoever
    /// knows it and may subscribe could take registrations away.
    pub worker_group: WorkerGroup,
    /// PEM file with the key that signs what this server says; every worker of a group has the same,
    /// and robots are configured with its public half.
    pub signing_key: PathBuf,
    /// Every `*.json` in it is a model.
    pub models_directory: PathBuf,
    /// Whom it serves, and how far.
    pub service: ServiceSettings,
    /// `[store]`: where sessions are kept.
    pub store: StoreConfig,
    /// `[audit]`: where it is noted what happened.
    pub audit: AuditTarget,
    /// `[health]`: the file in which the worker shows its health; none if it does not.
    pub health: Option<PathBuf>,
    /// `[attestation]`: where the enrolments of robots lie, `{tenant}.{robot}.json`. They are used
    /// only where attestation is required on the command line.
    pub enrolments: PathBuf,
    /// The broker.
    pub broker: BrokerConfig,
    /// Log filter and format.
    pub log: LogConfig,
}

/// `[store]`
#[derive(Debug)]
pub enum StoreConfig {
    /// In a directory of this machine, for one worker.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// In a Redis or Valkey that workers share.
    Redis {
        /// Where it is.
        url: RedisUrl,
        /// PEM file with the authorities that sign its certificate; the system's if not set.
        ca: Option<PathBuf>,
    },
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
    let signing_key = root.required("signing_key");
    let models_directory = root.required("models_directory");
    let service = service(root);
    let store = root.section("store", store);
    let audit = root.section("audit", |audit| {
        Some(audit.maybe("path")?.map_or(AuditTarget::Stdout, AuditTarget::File))
    });
    let health = root.section("health", |health| health.maybe("path"));
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
        signing_key: signing_key?,
        models_directory: models_directory?,
        service: service?,
        store: store?,
        audit: audit?,
        health: health?,
        enrolments: enrolments?,
        broker: broker?,
        log: log?,
    })
}

fn service(root: &mut Section<'_>) -> Option<ServiceSettings> {
    let tenants = root.named_sections("tenants", tenant);
    let max_ttl = root.integer("max_ttl_seconds", 1..=14400, Some(14400));
    let threads = root.integer("threads", 1..=256, Some(2));
    let max_prepared = root.integer("max_prepared", 1..=100_000, Some(16));
    let max_waiting_jobs = root.integer("max_waiting_jobs", 1..=100_000, Some(256));
    let tenants: BTreeMap<Tenant, TenantRules> = tenants?.into_iter().collect();
    if tenants.is_empty() {
        root.problem("no tenant is served: add a table such as [tenants.acme]");
        return None;
    }
    Some(ServiceSettings {
        tenants,
        max_ttl: Duration::from_secs(max_ttl?),
        threads: usize::try_from(threads?).ok()?,
        max_prepared: NonZeroUsize::new(usize::try_from(max_prepared?).ok()?)?,
        max_waiting_jobs: usize::try_from(max_waiting_jobs?).ok()?,
    })
}

/// `[tenants.{tenant}]`
fn tenant(section: &mut Section<'_>) -> Option<TenantRules> {
    let is_restricted = section.has("models");
    let models = section.list::<ModelId>("models");
    let sessions = section.integer("max_sessions", 1..=1_000_000, Some(64));
    let bytes = section.integer("max_bytes", 1..=1 << 50, Some(4 << 30));
    let max_jobs = section.integer("max_jobs", 1..=100_000, Some(64));
    Some(TenantRules {
        models: models.map(|models| is_restricted.then(|| models.into_iter().collect()))?,
        budget: Budget { sessions: sessions?, bytes: bytes? },
        max_jobs: usize::try_from(max_jobs?).ok()?,
    })
}

fn store(section: &mut Section<'_>) -> Option<StoreConfig> {
    let kind = section.text_or::<StoreKind>("kind", "directory");
    match kind? {
        StoreKind::Directory => {
            let path = section.optional("path", PathBuf::from(DEFAULT_STORE))?;
            Some(StoreConfig::Directory { path })
        }
        StoreKind::Redis => {
            let ca = section.maybe("ca");
            let urls = (section.maybe("url")?, section.maybe::<UrlFile>("url_file")?);
            let ((Some(url), None) | (None, Some(UrlFile(url)))) = urls else {
                section.problem("the store \"redis\" needs either `url` or `url_file`");
                return None;
            };
            Some(StoreConfig::Redis { url, ca: ca? })
        }
    }
}

enum StoreKind {
    Directory,
    Redis,
}

impl std::str::FromStr for StoreKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "directory" => Ok(Self::Directory),
            "redis" => Ok(Self::Redis),
            _ => Err("it must be \"directory\" or \"redis\""),
        }
    }
}

/// A file with the URL, which may hold a password.
struct UrlFile(RedisUrl);

impl std::str::FromStr for UrlFile {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let url = RedisUrl::from_file(Path::new(path));
        url.map(Self).map_err(|error| format!("{path}: {error}"))
    }
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

    const SMALLEST: &str = "worker_group = 'g'\nmodels_directory = 'm'\nsigning_key = 'k'\n\
                            [broker]\nhost = 'b'\n";

    fn read(text: &str) -> Result<Config, SettingsError> {
        moai_settings::read(Path::new("s.toml"), text, build)
    }

    #[test]
    fn tenants_are_tables_with_limits_of_their_own() {
        let text = format!(
            "{SMALLEST}[tenants.acme]\n[tenants.globex]\nmodels = ['grasp']\nmax_bytes = 7\n"
        );
        let config = read(&text).unwrap();
        let rules = |tenant: &str| &config.service.tenants[&tenant.parse().unwrap()];
        assert_eq!(rules("acme").budget, Budget { sessions: 64, bytes: 4 << 30 });
        assert_eq!(rules("globex").budget.bytes, 7);
        let grasp = "grasp".parse().unwrap();
        let other = "other".parse().unwrap();
        assert!(rules("acme").sees(&other));
        assert!(rules("globex").sees(&grasp) && !rules("globex").sees(&other));
        assert_eq!(config.enrolments, Path::new("/etc/moai-server/robots"));
        assert_eq!((config.audit, config.health), (AuditTarget::Stdout, None));
        let StoreConfig::Directory { path } = config.store else { panic!("another store") };
        assert_eq!(path, Path::new("/var/lib/moai-server"));
    }

    #[test]
    fn every_mistake_is_named() {
        let text = "worker_group = 'a/b'\nthreads = 0\n[tenants.Acme]\n[tenants.acme]\n\
                    max_jobs = 0\n[store]\nkind = 'redis'\n";
        let message = read(text).unwrap_err().to_string();
        for expected in [
            "s.toml:1: `worker_group`",
            "s.toml:2: `threads`",
            "s.toml:3: `tenants.Acme`",
            "s.toml:5: `tenants.acme.max_jobs`",
            "needs either `url` or `url_file`",
            "`models_directory` is missing",
            "`signing_key` is missing",
            "`broker.host` is missing",
        ] {
            assert!(message.contains(expected), "{expected} is not in:\n{message}");
        }
        let message = read(SMALLEST).unwrap_err().to_string();
        assert!(message.contains("no tenant is served"), "{message}");
    }

    #[test]
    fn a_password_stays_in_its_file_and_out_of_every_message() {
        let tenants = "[tenants.acme]\n[store]\nkind = 'redis'\n";
        let url = "rediss://user:secret@host:6379/0";
        let config = read(&format!("{SMALLEST}{tenants}url = '{url}'\n")).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        let message = read(&format!("{SMALLEST}{tenants}url = 'secret\u{20}://'\n")).unwrap_err();
        assert!(!message.to_string().contains("secret"), "{message}");

        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("url");
        std::fs::write(&file, format!("{url}\n")).unwrap();
        let text = format!("{SMALLEST}{tenants}url_file = '{}'\n", file.display());
        let StoreConfig::Redis { url, .. } = read(&text).unwrap().store else {
            panic!("another store")
        };
        assert!(url.is_tls() && url.has_password());
    }
}
