//! The main job: samples in, decision out, nothing readable in between.

use moai_tests::World;
use moai_tests::recordings;

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_samples_becomes_a_label() -> anyhow::Result<()> {
    let world = World::start().await?;
    let onboard = &world.robot.onboard;
    onboard.open("arm", "grasp").await?;
    onboard.state("arm", "active").await?;
    let trials = recordings::distinct(recordings::load(&recordings::directory())?);
    for sample in &trials[0].samples {
        onboard.input("arm", sample).await?;
    }
    let result = onboard.result("arm").await?;
    println!("{result:#}");
    world.stop().await
}
