//! A process dies without warning; the work goes on.

use anyhow::Result;
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_transport::frame::FrameKind;

use crate::stage::{ARM, frames, numbers, opens, start, trials};

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
    stage.robot.onboard.open(ARM, crate::stage::QUICK).await?;
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
