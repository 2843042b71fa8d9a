//! A kilohertz of samples, which is more windows than any scheme evaluates: what is lost, what is
//! dropped, and whether the books say so.

use std::time::Duration;

use anyhow::{Result, ensure};
use moai_tests::stream::{self, Encoding, Stream};

use crate::stage::start;

/// A task that may lose nothing, beside those that messages open.
const DECLARED: &str = "[[tasks]]\nname = \"held\"\nmodel = \"count\"\nscores = true\n\
                        when_full = \"block\"\n";
/// The session is followed by the next in the middle of a stream.
const SHORT: &str = "[sessions]\ndecryption_budget = 500\n";
const OPEN: &str = r#"{"model": "count", "scores": true}"#;
/// Ten seconds of a kilohertz.
const WINDOWS: u64 = 667;
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_kilohertz_loses_nothing() -> Result<()> {
    let builder = stream::builder().agent_toml(SHORT).agent_toml(DECLARED);
    let mut stage = start(builder).await?;
    let _inside = stream::serve(&mut stage).await?;
    let onboard = &stage.robot.onboard;
    onboard.client.publish("moai/task/open/open", OPEN).await?;
    onboard.state("open", "active").await?;
    let streams = [
        Stream::kilohertz("open", 1, Encoding::Json, WINDOWS),
        Stream::kilohertz("held", 10, Encoding::F32, WINDOWS),
    ];
    for stream in streams {
        let account = stream::run(&stage, &stream, PATIENCE).await?;
        ensure!(account.is_complete(), "{}: {}", stream.task, account.summary());
        let status = stream::status(&stage, &stream.task).await?;
        let counted = [&status["answered"], &status["refused"], &status["dropped_samples"]];
        assert_eq!(counted, [WINDOWS, 0, 0], "{status}");
    }
    Ok(())
}
