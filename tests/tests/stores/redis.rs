//! What only Redis has: it can be away, full, or used by somebody else, and it has a clock.

use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_server::store::{Found, Opened, Record, StoreError};
use moai_tests::process::STEP;
use moai_tests::redis::PASSWORD;
use redis::AsyncCommands as _;

use crate::bench::{AMPLE, Bench, Subject, start};

/// Asks until the store answers.
async fn when_back(bench: &Bench, subject: &Subject) -> Result<Found> {
    let asked = async {
        loop {
            match bench.store()?.find(&subject.key, start()).await {
                Err(StoreError::Unavailable(_)) => {
                    // Nothing announces that a pause is over, so it has to be tried.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                found => return Ok(found?),
            }
        }
    };
    tokio::time::timeout(STEP, asked).await.context("Redis is back, and the store is not")?
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_away_the_store_says_so_at_once_and_later_goes_on() -> Result<()> {
    let (mut bench, now) = (Bench::redis().await?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    subject.put_into(bench.store()?, now).await?;

    // It hangs: what it holds it still holds.
    bench.redis.as_ref().context("Redis")?.process()?.freeze()?;
    let hangs = bench.store()?.put_chunk(&subject.key, 0, b"lost").await;
    assert!(matches!(hangs, Err(StoreError::Unavailable(_))), "{hangs:?}");
    let begin = std::time::Instant::now();
    let at_once = bench.store()?.find(&subject.key, now).await;
    assert!(matches!(at_once, Err(StoreError::Unavailable(_))), "{at_once:?}");
    assert!(begin.elapsed() < Duration::from_secs(1), "a worker would stand still");
    bench.redis.as_ref().context("Redis")?.process()?.thaw()?;
    let found = when_back(&bench, &subject).await?;
    assert!(matches!(found, Found::Session(_)), "{found:?}");

    // It is gone, and comes back with nothing.
    let redis = bench.redis.as_mut().context("Redis")?;
    redis.stop().await?;
    let gone = bench.store()?.find(&subject.key, now).await;
    let Err(error @ StoreError::Unavailable(_)) = gone else { panic!("{gone:?}") };
    assert!(!error.to_string().contains(PASSWORD), "{error}");
    bench.redis.as_mut().context("Redis")?.start_again().await?;
    assert_eq!(when_back(&bench, &subject).await?, Found::Nothing);
    let opened = bench.store()?.open(&subject.key, &subject.record, AMPLE, now).await?;
    assert_eq!(opened, Opened::New);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_server_sweeps_it_forgets_by_itself() -> Result<()> {
    let (bench, now) = (Bench::redis().await?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    let short = Record {
        expires_at: now + Duration::from_millis(300),
        opens_until: now + Duration::from_millis(600),
        ..subject.record.clone()
    };
    bench.store()?.open(&subject.key, &short, AMPLE, now).await?;
    let (_, chunk) = subject.chunks().next().context("a chunk")?;
    bench.store()?.put_chunk(&subject.key, 0, chunk).await?;
    let empty = async {
        while !bench.dump().await?.is_empty() {
            // Redis says nothing when it forgets.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(STEP, empty).await.context("it forgets nothing")?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_refuses_and_keeps_what_it_has() -> Result<()> {
    let (bench, now) = (Bench::redis().await?, start());
    let [first, second] = [1, 2].map(|id| Subject::new("acme.r1", id, id, now).expect("one"));
    first.put_into(bench.store()?, now).await?;
    let mut connection = bench.redis.as_ref().context("Redis")?.connect().await?;
    let mut limit = redis::cmd("CONFIG");
    limit.arg("SET").arg("maxmemory").arg(1);
    let () = limit.query_async(&mut connection).await?;
    let refused = bench.store()?.open(&second.key, &second.record, AMPLE, now).await;
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    let whole = bench.store()?.load(&first.key, &first.record.manifest).await?;
    assert!(whole.as_deref() == Some(&first.bytes));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_left_under_our_names_is_not_served() -> Result<()> {
    let (bench, now) = (Bench::redis().await?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    subject.put_into(bench.store()?, now).await?;
    let mut connection = bench.redis.as_ref().context("Redis")?.connect().await?;
    let dump = bench.dump().await?;
    let (name, _) = dump.iter().find(|(name, _)| name.contains(":session:")).context("a hash")?;
    let () = connection.hset(name, "manifest", "no manifest").await?;
    let found = bench.store()?.find(&subject.key, now).await?;
    assert!(matches!(found, Found::Nothing | Found::Ended), "{found:?}");
    assert!(!bench.holds(&subject).await?, "its chunks are still there");

    let other = Subject::new("acme.r1", 2, 2, now)?;
    let foreign = name.replace(&subject.key.to_string(), &other.key.to_string());
    let () = connection.set(&foreign, "a string").await?;
    let found = bench.store()?.find(&other.key, now).await;
    assert!(matches!(found, Err(StoreError::Unusable(_))), "{found:?}");
    Ok(())
}
