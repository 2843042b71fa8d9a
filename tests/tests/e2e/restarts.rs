//! A process dies without warning; the work goes on.

use anyhow::Result;
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_transport::frame::FrameKind;

use crate::stage::{ARM, QUICK, Stage, frames, numbers, opens, start, trials};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_mid_job_resumes_its_session_and_the_job_is_answered_once() -> Result<()>
{
    let mut stage = start(World::builder()).await?;
    stage.watch_uplink().await?;
    let session = stage.open_arm().await?;
    let uploaded = frames(&stage.operator, FrameKind::Chunk).len();
    assert!(uploaded > 100, "{uploaded} chunks are not the keys");
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    stage.robot.agent.kill().await?;
    stage.robot.start_agent().await?;
    stage.compute.process()?.thaw()?;

    assert_eq!(stage.active_session().await?, session);
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    stage.submit(&trials()?[1]).await?;
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 2);
    assert_eq!(numbers(&stage.close_arm().await?), [1, 2]);
    assert_eq!(frames(&stage.operator, FrameKind::Chunk).len(), uploaded, "keys went up again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_its_keys_go_up_finishes_the_upload_after_its_restart() -> Result<()>
{
    const HALF: usize = 10_000_000;
    let mut stage = start(World::builder().proxied()).await?;
    stage.watch_uplink().await?;
    let Some(proxy) = stage.proxy.clone() else { unreachable!("a proxy was asked for") };
    proxy.hold_after(moai_tests::proxy::Direction::Up, HALF);
    stage.robot.onboard.open(ARM, QUICK).await?;
    proxy.wait_until_held(moai_tests::proxy::Direction::Up, SLOW).await?;

    stage.robot.agent.kill().await?;
    proxy.release(moai_tests::proxy::Direction::Up);
    stage.robot.start_agent().await?;

    stage.active_session().await?;
    let opens = opens(&stage)?;
    assert!(opens.iter().all(|open| open.claims.session == opens[0].claims.session));
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_has_the_keys_and_the_outstanding_job_is_answered() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    stage.watch_uplink().await?;
    let session = stage.open_arm().await?;
    let uploaded = frames(&stage.operator, FrameKind::Chunk).len();
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    stage.compute.kill().await?;
    let world = &mut *stage;
    world.compute.start(&world.operator).await?;

    assert_eq!(stage.active_session().await?, session);
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    assert_eq!(numbers(&stage.close_arm().await?), [1]);
    assert_eq!(frames(&stage.operator, FrameKind::Chunk).len(), uploaded, "keys went up again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_its_store_gets_the_keys_again_and_the_job_is_answered() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    stage.watch_uplink().await?;
    let session = stage.open_arm().await?;
    let uploaded = frames(&stage.operator, FrameKind::Chunk).len();
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    stage.compute.kill().await?;
    std::fs::remove_dir_all(stage.compute.store())?;
    let world = &mut *stage;
    world.compute.start(&world.operator).await?;

    assert_eq!(stage.active_session().await?, session);
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    assert_eq!(numbers(&stage.close_arm().await?), [1]);
    assert_eq!(frames(&stage.operator, FrameKind::Chunk).len(), 2 * uploaded);
    Ok(())
}

/// How many outcomes of jobs onboard software has heard, and whose.
fn outcomes(stage: &Stage) -> Vec<u64> {
    let history = stage.robot.onboard.client.history();
    let own = ["moai/task/arm/result", "moai/task/arm/error"];
    let outcomes = history.iter().filter(|message| own.contains(&message.topic.as_str()));
    outcomes.filter_map(|message| message.json().ok()?["job"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_around_a_publication_publishes_it_once() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    for (job, step) in [(1, "published"), (2, "decided"), (3, "published")] {
        let world = &mut *stage;
        world.robot.agent.stop().await?;
        world.robot.agent.use_double(&[("MOAI_TEST_KILL_AT", step)]);
        world.robot.start_agent().await?;
        if job == 1 {
            stage.robot.onboard.open(ARM, QUICK).await?;
        }
        stage.active_session().await?;
        stage.submit(&trials()?[0]).await?;
        stage.robot.agent.process()?.wait(SLOW).await?;
        if step == "published" {
            assert_eq!(stage.robot.onboard.result(ARM).await?["job"], job);
        } else {
            assert_eq!(outcomes(&stage), [1], "nothing is out yet");
        }

        stage.robot.agent.use_real();
        stage.robot.start_agent().await?;
        stage.active_session().await?;
        if step == "decided" {
            assert_eq!(stage.robot.onboard.result(ARM).await?["job"], job);
        }
    }
    // Whatever was to be published again has been by the time the next one is out.
    stage.submit(&trials()?[0]).await?;
    stage.close_arm().await?;
    assert_eq!(outcomes(&stage), [1, 2, 3, 4]);
    Ok(())
}
