//! Both stores give the same answers to whatever they are asked.

use std::time::Duration;

use anyhow::Result;
use moai_server::store::{Budget, Record, Store, UnixMillis};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::bench::{Bench, Subject, start};

const BUDGET: Budget = Budget { sessions: 2, bytes: 700_000 };

/// What is asked of which of a few sessions.
#[derive(Debug, Clone)]
enum Question {
    Open { session: u8, seed: u8, number: u64 },
    Find { session: u8 },
    Put { session: u8, index: usize },
    Load { session: u8 },
    Register { session: u8 },
    Discard { session: u8 },
    End { session: u8 },
    Usage,
    Sweep,
    Wait { seconds: u64 },
}

fn questions() -> impl Strategy<Value = Vec<Question>> {
    let session = || 1_u8..4;
    let question = prop_oneof![
        4 => (session(), 1_u8..3, 1_u64..6)
            .prop_map(|(session, seed, number)| Question::Open { session, seed, number }),
        3 => session().prop_map(|session| Question::Find { session }),
        3 => (session(), 0_usize..3).prop_map(|(session, index)| Question::Put { session, index }),
        1 => session().prop_map(|session| Question::Load { session }),
        1 => session().prop_map(|session| Question::Register { session }),
        1 => session().prop_map(|session| Question::Discard { session }),
        1 => session().prop_map(|session| Question::End { session }),
        1 => Just(Question::Usage),
        1 => Just(Question::Sweep),
        1 => (1_u64..900).prop_map(|seconds| Question::Wait { seconds }),
    ];
    prop::collection::vec(question, 1..40)
}

/// What a store says to it, as text.
async fn answer(store: &dyn Store, question: &Question, now: UnixMillis) -> Result<String> {
    let subject = |session, seed| Subject::new("acme.r1", session, seed, now);
    Ok(match question {
        Question::Open { session, seed, number } => {
            let subject = subject(*session, *seed)?;
            let record = Record { open_number: *number, ..subject.record };
            format!("{:?}", store.open(&subject.key, &record, BUDGET, now).await?)
        }
        Question::Find { session } => {
            format!("{:?}", store.find(&subject(*session, 1)?.key, now).await?)
        }
        Question::Put { session, index } => {
            let subject = subject(*session, 1)?;
            let (_, chunk) = subject.chunks().nth(*index).expect("three chunks");
            format!("{:?}", store.put_chunk(&subject.key, *index, chunk).await?)
        }
        Question::Load { session } => {
            let subject = subject(*session, 1)?;
            let bytes = store.load(&subject.key, &subject.record.manifest).await?;
            format!("{:?}", bytes.map(|bytes| moai_transport::ids::Digest::of(&bytes)))
        }
        Question::Register { session } => {
            format!("{:?}", store.register(&subject(*session, 1)?.key).await?)
        }
        Question::Discard { session } => {
            format!("{:?}", store.discard_chunks(&subject(*session, 1)?.key).await?)
        }
        Question::End { session } => {
            format!("{:?}", store.end(&subject(*session, 1)?.key, now).await?)
        }
        Question::Usage => format!("{:?}", store.usage(&"acme".parse()?, now).await?),
        Question::Sweep => {
            let mut swept = store.sweep(now).await?;
            swept.sort();
            format!("{swept:?}")
        }
        Question::Wait { .. } => String::new(),
    })
}

#[test]
fn both_stores_say_the_same() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let redis = runtime.block_on(Bench::redis())?;
    let mut runner = TestRunner::new(ProptestConfig::with_cases(48));
    let outcome = runner.run(&questions(), |questions| {
        let outcome: Result<()> = runtime.block_on(async {
            let directory = Bench::directory()?;
            let mut connection = redis.redis.as_ref().expect("Redis").connect().await?;
            let () = redis::cmd("FLUSHALL").query_async(&mut connection).await?;
            let mut now = start();
            for question in &questions {
                if let Question::Wait { seconds } = question {
                    now = now + Duration::from_secs(*seconds);
                }
                let expected = answer(directory.store()?, question, now).await?;
                let found = answer(redis.store()?, question, now).await?;
                anyhow::ensure!(found == expected, "{question:?}:\n{found}\nnot\n{expected}");
            }
            Ok(())
        });
        outcome.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    outcome.map_err(|error| anyhow::anyhow!("{error}"))
}
