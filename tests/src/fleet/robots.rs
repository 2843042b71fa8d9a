//! The robots' process: all of them, stage by stage, and what each stage took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use moai_transport::keys::ServerKeys;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::engine::NUMBERS;
use super::onboard::Progress;
use super::plan::{Ends, RobotsPlan, RobotsReport, Stage, Used, identity};
use super::process::{carried, used};
use super::robot::Robot;

/// Runs them and reports.
///
/// # Errors
/// A robot does not start, or a stage is not over in time.
pub async fn run(plan: &RobotsPlan) -> Result<RobotsReport> {
    if plan.windows > NUMBERS {
        bail!("windows have {NUMBERS} numbers at most");
    }
    let mut report = RobotsReport::default();
    let meter = Meter::start(plan)?;
    let begin = Instant::now();
    let robots = start(plan).await?;
    let all = robots.len();
    let mut took = each(&robots, plan.patience, |robot| async move {
        robot.connected().await?;
        Ok(Instant::now())
    })
    .await
    .with_context(|| format!("not all of {all} robots connect"))?;
    report.connect = meter.stage(seconds(&mut took, begin))?;

    let meter = Meter::start(plan)?;
    let begin = Instant::now();
    let mut took = each(&robots, plan.patience, |robot| async move {
        robot.software.open().await?;
        reached(&robot, |progress| progress.active).await
    })
    .await
    .with_context(|| format!("not all of {all} sessions become active"))?;
    report.open = meter.stage(seconds(&mut took, begin))?;

    let meter = Meter::start(plan)?;
    sleep(plan.idle).await;
    report.idle = meter.stage(Vec::new())?;

    let meter = Meter::start(plan)?;
    let limit = plan.period * u32::from(plan.windows) + plan.patience;
    let (windows, period) = (plan.windows, plan.period);
    let wave = robots.iter().enumerate().map(|(number, robot)| {
        // All of a period is filled, whatever the number of robots.
        let share = u32::try_from(number).unwrap_or(0);
        let offset = period * share / u32::try_from(all).unwrap_or(1).max(1);
        work(Arc::clone(robot), windows, period, offset, limit)
    });
    wave.collect::<JoinSet<_>>().join_all().await.into_iter().collect::<Result<Vec<()>>>()?;
    let mut took = Vec::new();
    for robot in &robots {
        let (ends, answers) = robot.software.account();
        took.extend(answers);
        report.ends += ends;
    }
    took.sort_by(f64::total_cmp);
    report.jobs = meter.stage(took)?;

    let meter = Meter::start(plan)?;
    let begin = Instant::now();
    let mut took = each(&robots, plan.patience, |robot| async move {
        robot.software.close().await?;
        reached(&robot, |progress| progress.ended).await
    })
    .await
    .with_context(|| format!("not all of {all} sessions end"))?;
    report.left = left(plan).await?;
    report.close = meter.stage(seconds(&mut took, begin))?;
    report.disconnected = robots.iter().map(|robot| robot.disconnected()).sum();
    Ok(report)
}

/// How many sessions the server keeps although their robots have closed them: looked at until there
/// is none, or patience is over.
async fn left(plan: &RobotsPlan) -> Result<u64> {
    const PAUSE: Duration = Duration::from_millis(50);
    let begin = Instant::now();
    loop {
        let mut left = 0;
        for entry in std::fs::read_dir(&plan.store)? {
            // What is left of a session that has ended is its tombstone.
            left += u64::from(entry?.path().extension().is_some_and(|it| it == "record"));
        }
        if left == 0 || begin.elapsed() > plan.patience {
            return Ok(left);
        }
        sleep(PAUSE).await;
    }
}

async fn start(plan: &RobotsPlan) -> Result<Vec<Arc<Robot>>> {
    let servers = ServerKeys::from_pem(&std::fs::read(&plan.server_key)?)?;
    let mut robots = Vec::new();
    for (number, credentials) in plan.credentials.iter().enumerate() {
        let identity = identity(number);
        let credentials = credentials.clone().into();
        let directory = plan.directory.join(&identity);
        let robot = Robot::start(&identity, &credentials, servers.clone(), plan.port, &directory);
        robots.push(Arc::new(robot.await.with_context(|| format!("{identity} does not start"))?));
    }
    Ok(robots)
}

/// Does something with each robot, all at once.
async fn each<F: Future<Output = Result<Instant>> + Send + 'static>(
    robots: &[Arc<Robot>],
    patience: Duration,
    work: impl Fn(Arc<Robot>) -> F,
) -> Result<Vec<Instant>> {
    let wave: JoinSet<_> = robots
        .iter()
        .map(|robot| {
            let work = work(Arc::clone(robot));
            async move { timeout(patience, work).await.context("too late")? }
        })
        .collect();
    let ends = wave.join_all().await;
    let late = ends.iter().filter(|end| end.is_err()).count();
    let ends: Result<Vec<_>> = ends.into_iter().collect();
    ends.with_context(|| format!("{late} do not"))
}

async fn reached(robot: &Robot, moment: impl Fn(&Progress) -> Option<Instant>) -> Result<Instant> {
    let mut progress = robot.software.progress();
    let reached = progress.wait_for(|progress| moment(progress).is_some()).await;
    reached.ok().and_then(|progress| moment(&progress)).context("its agent has gone")
}

/// One robot's windows, and the wait for what becomes of them.
async fn work(
    robot: Arc<Robot>,
    windows: u16,
    period: Duration,
    offset: Duration,
    limit: Duration,
) -> Result<()> {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + offset, period);
    let work = async {
        for number in 0..windows {
            ticks.tick().await;
            robot.software.submit(number).await?;
        }
        let mut progress = robot.software.progress();
        let all = progress.wait_for(|progress| progress.outcomes >= u64::from(windows)).await;
        all.map(drop).context("its agent has gone")
    };
    // What has not come by then is counted as lost, not waited for.
    timeout(limit, work).await.unwrap_or(Ok(()))
}

fn seconds(moments: &mut [Instant], begin: Instant) -> Vec<f64> {
    moments.sort_unstable();
    moments.iter().map(|at| at.saturating_duration_since(begin).as_secs_f64()).collect()
}

impl std::ops::AddAssign for Ends {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.refused += other.refused;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.wrong += other.wrong;
    }
}

/// What the processes have used, between two moments.
struct Meter {
    begin: Instant,
    port: u16,
    processes: [u32; 3],
    before: [Used; 3],
    carried: (u64, u64),
}

impl Meter {
    fn start(plan: &RobotsPlan) -> Result<Self> {
        let processes = [plan.broker, plan.server, std::process::id()];
        let before = all_used(processes)?;
        let carried = carried(plan.port)?;
        Ok(Self { begin: Instant::now(), port: plan.port, processes, before, carried })
    }

    fn stage(self, took: Vec<f64>) -> Result<Stage> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let mut after = all_used(self.processes)?;
        for (after, before) in after.iter_mut().zip(self.before) {
            after.cpu -= before.cpu;
        }
        let (up, down) = carried(self.port)?;
        let [broker, server, robots] = after;
        // A connection that broke meanwhile takes what it had carried with it.
        let bytes_up = up.saturating_sub(self.carried.0);
        let bytes_down = down.saturating_sub(self.carried.1);
        Ok(Stage { seconds, broker, server, robots, bytes_up, bytes_down, took })
    }
}

fn all_used([broker, server, robots]: [u32; 3]) -> Result<[Used; 3]> {
    Ok([used(broker)?, used(server)?, used(robots)?])
}
