//! From 1 to 1,000 robots on one broker and one server: how cost grows, and where it breaks.
//!
//! Everything but the scheme is real, see [`crate::fleet`]. Each case has a broker, a server and
//! robots of its own, each a process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Run;
use super::measure::percentile;
use super::report::Figure;
use crate::broker::{Acl, Broker, SERVER};
use crate::fleet::plan::identity;
use crate::fleet::plan::{
    self, CredentialFiles, RobotsPlan, RobotsReport, ServerPlan, Stage, Used,
};
use crate::pki::Pki;
use crate::process::{Launch, Process, STEP, binary};

const SECTION: &str = "fleet";
const LIMITS: &str = "fleet, where it breaks";
/// mosquitto writes a line for each packet otherwise, which would be most of its work.
const QUIET: &str = "log_type none\nlog_type error\nlog_type warning\n";
/// mosquitto drops what exceeds 1,000 messages for one client, and the server is one client.
const QUEUE: &str = "max_queued_messages 20000\n";
/// Files and sockets that a broker needs beside those of its clients, generously.
const SPARE_FILES: u64 = 200;
const PATIENCE: Duration = Duration::from_mins(2);
const IDLE: Duration = Duration::from_secs(10);
const PERIOD: Duration = Duration::from_secs(5);
const TIME: Duration = Duration::from_mins(1);
const SIZES: [usize; 5] = [1, 10, 100, 300, 1000];
/// Files of a robot in the robots' process.
const FILES_OF_A_ROBOT: u64 = 5;

/// What to measure instead of everything.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Sizes of fleets.
    pub robots: Vec<usize>,
    /// Time from a robot's window to its next.
    pub period: Option<Duration>,
    /// How long windows come.
    pub time: Option<Duration>,
}

/// A fleet, and what is asked of it.
struct Case {
    name: String,
    robots: usize,
    windows: u16,
    period: Duration,
    broker: String,
    /// Files that the broker may open, if fewer than everybody else.
    files: Option<u64>,
    patience: Duration,
}

impl Case {
    /// So many robots, each with a window every `period` for `time`.
    fn new(robots: usize, period: Duration, time: Duration) -> Result<Self> {
        let windows = u16::try_from(time.as_millis() / period.as_millis().max(1))?;
        let noun = if robots == 1 { "robot" } else { "robots" };
        Ok(Self {
            name: format!("{robots} {noun}"),
            robots,
            windows,
            period,
            broker: format!("{QUIET}{QUEUE}"),
            files: None,
            patience: PATIENCE,
        })
    }

    fn named(self, more: &str) -> Self {
        Self { name: format!("{}, {more}", self.name), ..self }
    }
}

/// Measures the section.
///
/// # Errors
/// A process does not come up, or robots do not get their sessions.
pub async fn run(run: &mut Run, selection: &Selection) -> Result<()> {
    let files = raise_file_limit()?;
    let Selection { robots, period, time } = selection;
    let is_all = robots.is_empty() && period.is_none() && time.is_none() && !run.quick;
    let period = period.unwrap_or(PERIOD);
    let time = time.unwrap_or(if run.quick { TIME / 6 } else { TIME });
    let sizes = match (robots.as_slice(), run.quick) {
        ([], true) => SIZES.get(..3).unwrap_or_default(),
        ([], false) => &SIZES,
        (chosen, _) => chosen,
    };
    for robots in sizes {
        let case = Case::new(*robots, period, time)?;
        if FILES_OF_A_ROBOT * u64::try_from(*robots)? + SPARE_FILES > files {
            run.note(SECTION, format!("{}: skipped, at most {files} files may be open", case.name));
            continue;
        }
        run.step(&case.name);
        let report = observe(&case).await.with_context(|| case.name.clone())?;
        for figure in figures(SECTION, &case, &report)? {
            run.add(figure.of(case.name.clone()));
        }
    }
    run.note(
        SECTION,
        format!(
            "each robot has a window every {} s for {} s; all connect, open and close at once; keys \
             of 1 KiB and an evaluation that costs nothing: what is measured is everything but the \
             scheme, robots without TPM and onboard broker",
            period.as_secs_f64(),
            time.as_secs()
        ),
    );
    run.note(SECTION, "bytes: those of TCP, TLS and MQTT included; CPU: all threads of a process");
    if is_all { limits(run).await } else { Ok(()) }
}

/// Where it breaks.
async fn limits(run: &mut Run) -> Result<()> {
    let time = TIME / 2;
    let hurry = |milliseconds| Case::new(1000, Duration::from_millis(milliseconds), time);
    let installed = Case { broker: QUIET.to_owned(), ..hurry(1000)? };
    let few = Case::new(300, PERIOD, time)?;
    let few = Case { files: Some(256), patience: Duration::from_secs(20), ..few };
    for case in [
        hurry(2000)?.named("2 s"),
        hurry(1000)?.named("1 s"),
        hurry(500)?.named("0.5 s"),
        installed.named("1 s, broker as installed"),
        few.named("broker of 256 files"),
    ] {
        run.step(&case.name);
        match observe(&case).await {
            Ok(report) => {
                for figure in figures(LIMITS, &case, &report)? {
                    run.add(figure.of(case.name.clone()));
                }
            }
            Err(error) => run.note(LIMITS, format!("{}: {}", case.name, last_words(&error))),
        }
    }
    Ok(())
}

/// The line in which a process says why it gave up, rather than all that it had said.
fn last_words(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let line = text.lines().find(|line| line.contains("Error: ")).unwrap_or(&text);
    line.trim().to_owned()
}

/// Lets this process and its children open as many files as they may.
fn raise_file_limit() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

async fn observe(case: &Case) -> Result<RobotsReport> {
    let scratch = tempfile::tempdir()?;
    let directory = scratch.path().canonicalize()?;
    // A thousand robots have a thousand disks; one disk would be measured instead of them.
    let memory = Path::new("/dev/shm");
    let disks = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let pki = Pki::new(&directory.join("pki"))?;
    let identities: Vec<String> = (0..case.robots).map(identity).collect();
    let credentials = identities.iter().map(|identity| Ok(pki.client(identity)?.into()));
    let credentials: Vec<CredentialFiles> = credentials.collect::<Result<_>>()?;
    let acl = Acl { robots: identities, ..Acl::default() };
    let usual = getrlimit(Resource::Nofile);
    if case.files.is_some() {
        setrlimit(Resource::Nofile, Rlimit { current: case.files, ..usual })?;
    }
    let broker = Broker::uplink_with(&directory.join("broker"), &pki, &acl, &case.broker).await;
    setrlimit(Resource::Nofile, usual)?;
    let mut broker = broker?;
    let server = start_server(case, &pki, &broker, &directory).await?;
    let plan = RobotsPlan {
        port: broker.port(),
        credentials,
        server_key: pki.server_key(),
        directory: disks.path().to_owned(),
        broker: broker.process()?.id(),
        server: server.id(),
        store: directory.join("server/store/sessions"),
        idle: IDLE,
        windows: case.windows,
        period: case.period,
        patience: case.patience,
    };
    let file = directory.join("robots.json");
    plan::write(&file, &plan)?;
    let limit = case.period * u32::from(case.windows) + IDLE + 5 * case.patience;
    let robots = launch("robots", &file, &directory)?.run(limit).await?.success()?;
    let text = robots.text();
    let line = text.lines().find(|line| line.starts_with('{')).context("no report")?;
    let report = serde_json::from_str(line)?;
    server.kill().await?;
    broker.stop().await?;
    Ok(report)
}

async fn start_server(
    case: &Case,
    pki: &Pki,
    broker: &Broker,
    directory: &Path,
) -> Result<Process> {
    let own = directory.join("server");
    std::fs::create_dir_all(&own)?;
    let plan = ServerPlan {
        port: broker.port(),
        credentials: pki.client(SERVER)?.into(),
        signing_key: pki.signing_key(),
        directory: own,
        sessions: 2 * u64::try_from(case.robots)? + 8,
    };
    let file = directory.join("server.json");
    plan::write(&file, &plan)?;
    let process = launch("server", &file, directory)?.spawn()?;
    process.wait_for_line(crate::fleet::server::UP, STEP).await?;
    Ok(process)
}

fn launch(what: &str, plan: &Path, directory: &Path) -> Result<Launch> {
    let arguments: [PathBuf; 2] = [what.into(), plan.to_owned()];
    Ok(Launch::new(what, &binary("moai-fleet")?, &directory.join("logs")).args(arguments))
}

#[expect(clippy::cast_precision_loss, reason = "figures have three digits")]
fn figures(section: &'static str, case: &Case, report: &RobotsReport) -> Result<Vec<Figure>> {
    let RobotsReport { connect, open, idle, jobs, close, ends, disconnected, left } = report;
    let robots = f64::from(u32::try_from(case.robots)?);
    let figure = |name: &str, value: f64, unit| Figure::new(section, name, value, unit);
    let took = |stage: &Stage, percent| percentile(&stage.took, percent);
    let count = |value: u64| value as f64;
    let megabytes = |bytes: u64| count(bytes) / 1e6;
    let done = count(ends.answered).max(1.0);
    let mut figures = vec![
        figure("connect, all at once, p50", took(connect, 50), "s"),
        figure("connect, last", took(connect, 100), "s"),
        figure("open to active, all at once, p50", took(open, 50), "s"),
        figure("open to active, p99", took(open, 99), "s"),
        figure("open to active, last", took(open, 100), "s"),
        figure("jobs a second", done / jobs.seconds, ""),
        figure("job, p50", took(jobs, 50) * 1e3, "ms"),
        figure("job, p99", took(jobs, 99) * 1e3, "ms"),
        figure("jobs answered", count(ends.answered), ""),
        figure("jobs refused", count(ends.refused), ""),
        figure("jobs lost", count(ends.lost), ""),
        figure("jobs doubled", count(ends.doubled), ""),
        figure("jobs wrong", count(ends.wrong), ""),
        figure("uplinks that broke", count(*disconnected), ""),
        figure("sessions left when all were closed", count(*left), ""),
    ];
    let part = |name: &str, of: fn(&Stage) -> Used| {
        [
            (format!("{name}: CPU to connect a robot"), of(connect).cpu / robots * 1e3, "ms"),
            (format!("{name}: CPU to open a session"), of(open).cpu / robots * 1e3, "ms"),
            (format!("{name}: CPU of a job"), of(jobs).cpu / done * 1e3, "ms"),
            (format!("{name}: CPU while nobody asks"), of(idle).cpu / idle.seconds * 100.0, "%"),
            (format!("{name}: CPU while jobs come"), of(jobs).cpu / jobs.seconds * 100.0, "%"),
            (format!("{name}: memory"), megabytes(of(jobs).resident), "MB"),
            (format!("{name}: files"), count(of(jobs).files), ""),
        ]
    };
    let parts = [
        part("broker", |stage| stage.broker),
        part("server", |stage| stage.server),
        part("robots", |stage| stage.robots),
    ];
    let parts = parts.into_iter().flatten();
    figures.extend(parts.map(|(name, value, unit)| figure(&name, value, unit)));
    for (what, stage, divisor) in [
        ("to connect", connect, robots),
        ("to open a session", open, robots),
        ("of a job", jobs, done),
        ("to close", close, robots),
    ] {
        let up = count(stage.bytes_up) / divisor;
        let down = count(stage.bytes_down) / divisor;
        figures.push(figure(&format!("bytes up {what}"), up, "B"));
        figures.push(figure(&format!("bytes down {what}"), down, "B"));
    }
    Ok(figures)
}
