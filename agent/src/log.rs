//! The agent's log: systemd's journal if that is where standard error goes, else lines on standard
//! error.

mod journal;

use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::reload::{Handle, Layer as Reloadable};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

use self::journal::Journal;
use crate::config::{LogConfig, LogFormat};

/// What of the log can change while the agent runs.
#[derive(Clone)]
pub struct LogLevel(Handle<Targets, Registry>);

/// Why the log is not as it was asked to be.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is no filter.
    #[error("the log's level is not usable: {0}")]
    Level(#[from] ParseError),
    /// There is a log already.
    #[error("the log cannot be started: {0}")]
    Start(#[from] TryInitError),
    /// The log has ended.
    #[error("the log's level cannot be changed: {0}")]
    Change(#[from] tracing_subscriber::reload::Error),
}

/// Starts logging.
///
/// # Errors
/// The level is no filter, or there is a log already.
pub fn start(log: &LogConfig) -> Result<LogLevel, LogError> {
    let (filter, handle) = Reloadable::new(filter(&log.level)?);
    tracing_subscriber::registry().with(filter).with(lines(log.format)).try_init()?;
    Ok(LogLevel(handle))
}

type Filtered = Layered<Reloadable<Targets, Registry>, Registry>;

fn lines(format: LogFormat) -> Box<dyn Layer<Filtered> + Send + Sync> {
    let lines = fmt::layer().with_writer(std::io::stderr);
    match format {
        // Whoever asks for JSON has something that reads it.
        LogFormat::Json => lines.json().boxed(),
        LogFormat::Text if journal::has_stderr() => match Journal::open() {
            Ok(journal) => journal.boxed(),
            Err(_) => lines.with_ansi(false).boxed(),
        },
        LogFormat::Text => lines.with_ansi(false).boxed(),
    }
}

impl LogLevel {
    /// Logs by another level from now on.
    ///
    /// # Errors
    /// It is no filter.
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        Ok(self.0.reload(filter(level)?)?)
    }
}

fn filter(level: &str) -> Result<Targets, ParseError> {
    let filter: Targets = level.parse()?;
    // The wrapper logs refusals that we expect as errors; what they mean is in our own errors.
    if level.contains("tss_esapi") {
        return Ok(filter);
    }
    Ok(filter.with_target("tss_esapi", LevelFilter::OFF))
}
