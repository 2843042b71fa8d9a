//! Workers share their sessions: whichever dies, another goes on, and no key goes up again.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use moai_tests::World;
use moai_tests::compute::Compute;
use moai_tests::onboard::SLOW;
use moai_tests::process::STEP;
use moai_tests::proxy::Direction;
use moai_tests::reference::{Reference, Scheme};
use moai_tests::settings::quoted;
use moai_transport::chunk::{CHUNK_LEN, MAX_WINDOW};
use moai_transport::frame::FrameKind;
use moai_transport::message::{Have, Manifest};

use crate::stage::{ARM, QUICK, Stage, frames, numbers, opens, start, trials};

/// The worker that the last frame of this kind went to.
fn serving(stage: &Stage, leaf: &str) -> Result<String> {
    let history = stage.operator.history();
    let mut frames = history.iter().rev().filter(|message| message.topic.ends_with(leaf));
    let worker = frames.next().and_then(|message| message.topic.split('/').nth(5));
    Ok(worker.with_context(|| format!("the operator saw no {leaf}"))?.to_owned())
}

/// Kills a worker.
async fn kill(stage: &mut Stage, worker: &str) -> Result<()> {
    let World { compute, others, .. } = &mut **stage;
    let mut all = std::iter::once(compute).chain(others);
    let is_it = |compute: &&mut Compute| compute.worker().is_ok_and(|id| id == worker);
    all.find(is_it).context("an unknown worker")?.kill().await
}

/// What workers said they hold, in order.
fn haves(stage: &Stage) -> Result<Vec<Have>> {
    let frames = frames(&stage.operator, FrameKind::Have);
    frames.iter().map(|frame| Ok(Have::decode(&frame.body)?)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_in_mid_load_lose_and_double_no_job_and_cost_no_upload() -> Result<()> {
    const JOBS: usize = 16;
    let mut stage = start(World::builder().workers(3)).await?;
    stage.watch_uplink().await?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    let session = stage.open_arm().await?;
    let uploaded = frames(&stage.operator, FrameKind::Chunk).len();
    let trials: Vec<_> = trials()?.into_iter().cycle().take(JOBS).collect();
    for trial in &trials {
        stage.submit(trial).await?;
    }
    let mut killed = BTreeSet::new();
    for _ in 0..2 {
        stage.robot.onboard.result(ARM).await?;
        let worker = serving(&stage, "/job")?;
        kill(&mut stage, &worker).await?;
        killed.insert(worker);
        // The next one has taken over when it says what it holds.
        stage.active_session().await?;
    }
    assert_eq!(killed.len(), 2, "the dead worker served again");

    let results = stage.close_arm().await?;
    assert_eq!(numbers(&results), (1..=JOBS as u64).collect::<Vec<_>>());
    let model = Reference::load(Scheme::Tfhe, QUICK)?;
    for result in &results {
        let job = usize::try_from(result["job"].as_u64().context("a number")?)?;
        let expected = model.label(&trials[job - 1])?;
        assert_eq!(result["label"].as_str(), Some(expected.as_str()), "{result}");
    }
    assert_eq!(frames(&stage.operator, FrameKind::Chunk).len(), uploaded, "keys went up again");
    let haves = haves(&stage)?;
    let first = haves.iter().position(|have| have.registered).context("nobody had the keys")?;
    let workers: BTreeSet<&str> = haves[first..].iter().map(|have| have.worker.as_str()).collect();
    assert!(haves[first..].iter().all(|have| have.registered), "keys were looked for: {haves:?}");
    assert_eq!(workers.len(), 3, "three workers served");

    // The robot had its session deleted: nothing of it is left but its name.
    let deleted = async {
        let redis = stage.redis.as_ref().context("workers share a Redis")?;
        loop {
            let dump = redis.dump().await?;
            if !dump.iter().any(|(name, _)| name.contains(":session:")) {
                return Ok(dump);
            }
            // Redis says nothing when somebody deletes.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let dump: Result<_> = tokio::time::timeout(STEP, deleted).await.context("not deleted")?;
    let dump = dump?;
    assert_eq!(dump.len(), 1, "{dump:?}");
    let (name, bytes) = &dump[0];
    assert!(name.ends_with(":ended"), "{name}");
    assert_eq!(String::from_utf8_lossy(bytes).trim(), format!("acme.robot-1.{session}"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_mid_upload_costs_only_the_chunks_under_way() -> Result<()> {
    const HALF: usize = 11_000_000;
    let mut stage = start(World::builder().workers(2).proxied()).await?;
    stage.watch_uplink().await?;
    stage.operator.subscribe("moai/v1/down/#").await?;
    let proxy = stage.proxy.clone().context("a proxy was asked for")?;
    proxy.hold_after(Direction::Up, HALF);
    stage.robot.onboard.open(ARM, QUICK).await?;
    proxy.wait_until_held(Direction::Up, SLOW).await?;
    let worker = serving(&stage, "/chunk")?;
    kill(&mut stage, &worker).await?;
    let before = frames(&stage.operator, FrameKind::Chunk).len();
    proxy.release(Direction::Up);
    stage.active_session().await?;

    let open = opens(&stage)?.into_iter().next().context("the operator saw the session open")?;
    let chunks = Manifest::decode(&open.body, u64::MAX)?.chunk_digests.len();
    let sent = frames(&stage.operator, FrameKind::Chunk).len();
    // What the dead worker had not kept goes up again, and what was under way to it; the rest once.
    let haves = frames(&stage.operator, FrameKind::Have);
    let haves = haves.iter().filter_map(|frame| Have::decode(&frame.body).ok());
    let first = haves.into_iter().find(|have| have.worker.as_str() != worker);
    let first = first.context("the other worker took the session")?;
    let kept: u32 = first.bitmap.iter().map(|byte| byte.count_ones()).sum();
    let kept = usize::try_from(kept)?;
    assert!(kept > 0, "the other worker found nothing of {before} chunks");
    let most = before + chunks - kept + 2 * MAX_WINDOW / CHUNK_LEN;
    assert!((chunks..most).contains(&sent), "{sent} chunks went up for {chunks}, {kept} were kept");
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_hangs_work_goes_on_and_new_sessions_wait() -> Result<()> {
    const LEG: &str = "leg";
    let mut stage = start(World::builder().workers(2)).await?;
    stage.open_arm().await?;
    stage.redis.as_ref().context("a Redis")?.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);

    stage.robot.onboard.open(LEG, QUICK).await?;
    let logs: Vec<_> = std::iter::once(&stage.compute)
        .chain(&stage.others)
        .map(|compute| Ok(compute.process()?.log().clone()))
        .collect::<Result<_>>()?;
    let refused = "the key store is out of reach; try again later";
    tokio::select! {
        line = logs[0].wait_for(refused, SLOW) => line?,
        line = logs[1].wait_for(refused, SLOW) => line?,
    };
    stage.redis.as_ref().context("a Redis")?.process()?.thaw()?;
    stage.robot.onboard.state(LEG, "active").await?;

    // It comes back with nothing: the keys go up again, and the job is answered.
    let redis = stage.redis.as_mut().context("a Redis")?;
    redis.stop().await?;
    redis.start_again().await?;
    stage.submit(&trials()?[1]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 2);
    assert_eq!(numbers(&stage.close_arm().await?), [1, 2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_whether_it_moves_and_whether_its_broker_has_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let toml = format!("[health]\npath = {}\n", quoted(&directory.path().join("health")));
    let mut stage = start(World::builder().agent_stopped().server_toml(&toml)).await?;
    stage.compute.command(&["health"]).await?.success()?;
    stage.broker.kill().await?;
    stage.compute.process()?.wait_for_line("broker link is down", STEP).await?;
    let refused = stage.compute.command(&["health"]).await?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.log.contains("no connection to its broker"), "{}", refused.log.text());
    stage.compute.command(&["health", "--alive"]).await?.success().map(drop)
}
