//! What every store does.

use std::time::Duration;

use anyhow::Result;
use moai_server::store::{
    Budget, Exceeded, Found, Opened, Record, SessionKey, Stored, UnixMillis, Usage,
};
use moai_transport::ids::{Digest, Tenant};

use crate::bench::{AMPLE, Bench, LIFETIME, OPENS_OUTLIVE, Subject, start};

const SECOND: Duration = Duration::from_secs(1);

async fn find(bench: &Bench, key: &SessionKey, now: UnixMillis) -> Result<Found> {
    Ok(bench.store()?.find(key, now).await?)
}

async fn usage(bench: &Bench, tenant: &str, now: UnixMillis) -> Result<Usage> {
    Ok(bench.store()?.usage(&tenant.parse::<Tenant>()?, now).await?)
}

pub(crate) async fn a_session_arrives_chunk_by_chunk_and_is_there_until_its_time_is_over(
    bench: Bench,
) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    let key = &subject.key;
    assert_eq!(find(&bench, key, now).await?, Found::Nothing);
    assert!(!store.put_chunk(key, 0, b"nobody's").await?);
    assert!(!store.register(key).await?);
    assert_eq!(store.load(key, &subject.record.manifest).await?, None);

    assert_eq!(store.open(key, &subject.record, AMPLE, now).await?, Opened::New);
    let stored = |held| Found::Session(Stored { record: subject.record.clone(), held });
    assert_eq!(find(&bench, key, now).await?, stored(subject.held([])));
    let mut there = Vec::new();
    // The last comes first, and the first comes twice.
    for index in [2, 0, 0] {
        let (_, chunk) = subject.chunks().nth(index).expect("three chunks");
        assert!(store.put_chunk(key, index, chunk).await?);
        there.push(index);
        assert_eq!(find(&bench, key, now).await?, stored(subject.held(there.clone())));
    }
    let part = store.load(key, &subject.record.manifest).await?.expect("it is there");
    assert_ne!(part, subject.bytes);
    let (_, chunk) = subject.chunks().nth(1).expect("three chunks");
    assert!(store.put_chunk(key, 1, chunk).await?);
    let whole = store.load(key, &subject.record.manifest).await?.expect("it is there");
    assert!(whole == subject.bytes, "other bytes came out than went in");

    assert!(store.register(key).await?);
    let registered = Record { registered: true, ..subject.record.clone() };
    let last = subject.record.expires_at;
    let before = UnixMillis(last.0 - 1);
    let expected = Found::Session(Stored { record: registered, held: subject.held(0..3) });
    assert_eq!(find(&bench, key, before).await?, expected);
    assert_eq!(store.alive(std::slice::from_ref(key), before).await?, [true]);
    assert_eq!(find(&bench, key, last).await?, Found::Ended);
    assert_eq!(store.alive(std::slice::from_ref(key), last).await?, [false]);
    Ok(())
}

pub(crate) async fn of_a_deleted_session_nothing_is_left_but_its_name_and_later_not_even_that(
    bench: Bench,
) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    subject.put_into(store, now).await?;
    assert!(bench.holds(&subject).await?, "the search finds nothing where something is");

    assert!(store.end(&subject.key, now).await?);
    assert!(!store.end(&subject.key, now).await?, "it ends once");
    only_the_name_is_left(&bench, &subject, now).await
}

pub(crate) async fn of_an_expired_session_nothing_is_left_but_its_name_and_later_not_even_that(
    bench: Bench,
) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    subject.put_into(store, now).await?;
    assert_eq!(store.sweep(now).await?, []);
    let over = subject.record.expires_at;
    assert_eq!(store.sweep(over).await?, std::slice::from_ref(&subject.key));
    assert_eq!(store.sweep(over).await?, [], "it ends once");
    only_the_name_is_left(&bench, &subject, over).await
}

async fn only_the_name_is_left(bench: &Bench, subject: &Subject, now: UnixMillis) -> Result<()> {
    let (store, key) = (bench.store()?, &subject.key);
    assert!(!bench.holds(subject).await?);
    let dump = bench.dump().await?;
    let name = key.to_string();
    let names = |(file, bytes): &&(String, Vec<u8>)| {
        file.contains(&name) || String::from_utf8_lossy(bytes).contains(&name)
    };
    assert_eq!(dump.iter().filter(names).count(), 1, "{dump:?}");

    assert_eq!(find(bench, key, now).await?, Found::Ended);
    assert_eq!(store.load(key, &subject.record.manifest).await?, None);
    assert!(!store.put_chunk(key, 0, b"late").await?);
    let tombstone = Usage { sessions: 0, bytes: 0, tombstones: 1 };
    assert_eq!(usage(bench, "acme", now).await?, tombstone);
    let again = store.open(key, &subject.numbered(9), AMPLE, now).await?;
    assert_eq!(again, Opened::Ended, "a session came back");

    let forgotten = subject.record.opens_until;
    assert_eq!(find(bench, key, UnixMillis(forgotten.0 - 1)).await?, Found::Ended);
    assert_eq!(store.sweep(forgotten).await?, []);
    assert_eq!(find(bench, key, forgotten).await?, Found::Nothing);
    assert_eq!(bench.dump().await?, []);
    Ok(())
}

pub(crate) async fn a_later_open_goes_on_and_an_older_one_is_refused(bench: Bench) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    let key = &subject.key;
    subject.put_into(store, now).await?;
    assert!(store.register(key).await?);

    let later = now + SECOND;
    let mut newer = subject.numbered(7);
    newer.manifest.nonce = 99;
    newer.expires_at = later + LIFETIME;
    newer.opens_until = later + LIFETIME + OPENS_OUTLIVE;
    newer.attested = Some(Digest([5; 32]));
    let continued = Record {
        // It is never prolonged; its name is kept longer.
        expires_at: subject.record.expires_at,
        registered: true,
        ..newer.clone()
    };
    let expected = Stored { record: continued, held: subject.held(0..3) };
    let opened = store.open(key, &newer, AMPLE, later).await?;
    assert_eq!(opened, Opened::Continued(expected.clone()));
    for number in [0, 1, 6, 7] {
        let replayed = store.open(key, &subject.numbered(number), AMPLE, later).await?;
        assert_eq!(replayed, Opened::Replayed { newest: 7 }, "{number}");
    }
    assert_eq!(find(&bench, key, later).await?, Found::Session(expected));
    let highest = store.open(key, &subject.numbered(u64::MAX), AMPLE, later).await?;
    assert!(matches!(highest, Opened::Continued(_)), "{highest:?}");
    Ok(())
}

pub(crate) async fn other_keys_begin_anew_and_the_old_ones_are_gone(bench: Bench) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let old = Subject::new("acme.r1", 1, 1, now)?;
    old.put_into(store, now).await?;
    assert!(store.register(&old.key).await?);
    let new = Subject::new("acme.r1", 1, 2, now)?;
    let older_number = store.open(&new.key, &new.record, AMPLE, now).await?;
    assert_eq!(older_number, Opened::Replayed { newest: 1 });
    assert_eq!(store.open(&new.key, &new.numbered(2), AMPLE, now).await?, Opened::New);
    assert!(!bench.holds(&old).await?);
    let expected = Stored { record: new.numbered(2), held: new.held([]) };
    assert_eq!(find(&bench, &new.key, now).await?, Found::Session(expected));
    let bytes = new.record.manifest.key_len;
    assert_eq!(usage(&bench, "acme", now).await?, Usage { sessions: 1, bytes, tombstones: 0 });
    Ok(())
}

pub(crate) async fn the_same_name_of_another_robot_is_another_session(bench: Bench) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let robots = ["acme.r1", "acme.r2", "globex.r1"];
    let victim = Subject::new(robots[0], 1, 1, now)?;
    victim.put_into(store, now).await?;
    for (robot, seed) in [(robots[1], 2), (robots[2], 3)] {
        let other = Subject::new(robot, 1, seed, now)?;
        assert_eq!(find(&bench, &other.key, now).await?, Found::Nothing);
        assert!(!store.end(&other.key, now).await?);
        other.put_into(store, now).await?;
        assert!(store.end(&other.key, now).await?);
    }
    let whole = store.load(&victim.key, &victim.record.manifest).await?;
    assert!(whole.as_deref() == Some(&victim.bytes));
    Ok(())
}

pub(crate) async fn a_tenant_gets_no_further_than_its_budget_and_disturbs_no_other(
    bench: Bench,
) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let subjects: Vec<Subject> =
        (1..=3).map(|id| Subject::new("acme.r1", id, id, now)).collect::<Result<_>>()?;
    let len = subjects[0].record.manifest.key_len;
    let two = Budget { sessions: 2, bytes: 100 * len };
    let open = |index: usize, record: Record, budget| {
        let key = subjects[index].key.clone();
        async move { store.open(&key, &record, budget, now).await }
    };
    for (index, subject) in subjects.iter().take(2).enumerate() {
        assert_eq!(open(index, subject.record.clone(), two).await?, Opened::New);
    }
    let third = subjects[2].record.clone();
    let exceeded = |what| Opened::Exceeded(what);
    let refused = open(2, third.clone(), two).await?;
    assert_eq!(refused, exceeded(Exceeded::Sessions(2)));
    let bytes = Budget { sessions: 9, bytes: 3 * len - 1 };
    let refused = open(2, third.clone(), bytes).await?;
    assert_eq!(refused, exceeded(Exceeded::Bytes(3 * len - 1)));
    assert_eq!(find(&bench, &subjects[2].key, now).await?, Found::Nothing);
    // What is there goes on, also under other keys.
    let again = open(0, subjects[0].numbered(2), two).await?;
    assert!(matches!(again, Opened::Continued(_)), "{again:?}");
    let other = Subject::new("acme.r1", 1, 9, now)?;
    assert_eq!(open(0, other.numbered(3), two).await?, Opened::New);
    // Another tenant has a budget of its own.
    let neighbour = Subject::new("globex.r1", 1, 4, now)?;
    let opened = store.open(&neighbour.key, &neighbour.record, two, now).await?;
    assert_eq!(opened, Opened::New);
    let expected = Usage { sessions: 2, bytes: 2 * len, tombstones: 0 };
    assert_eq!(usage(&bench, "acme", now).await?, expected);

    // What ended makes room, and what expired does before anybody swept it.
    assert!(store.end(&subjects[1].key, now).await?);
    assert_eq!(open(2, third, two).await?, Opened::New);
    let over = subjects[0].record.expires_at;
    let late = Subject::new("acme.r1", 4, 4, over)?;
    assert_eq!(store.open(&late.key, &late.record, two, over).await?, Opened::New);

    // Names of ended sessions are bounded, too.
    let one = Budget { sessions: 1, bytes: 100 * len };
    for id in 1..=64 {
        let subject = Subject::new("initech.r1", id, 1, over)?;
        assert_eq!(store.open(&subject.key, &subject.record, one, over).await?, Opened::New);
        assert!(store.end(&subject.key, over).await?);
    }
    let subject = Subject::new("initech.r1", 65, 1, over)?;
    let refused = store.open(&subject.key, &subject.record, one, over).await?;
    assert_eq!(refused, exceeded(Exceeded::Tombstones(64)));
    Ok(())
}

pub(crate) async fn of_opens_at_once_each_number_counts_once_and_no_budget_is_exceeded(
    bench: Bench,
) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    let same = (0..8).map(|_| store.open(&subject.key, &subject.record, AMPLE, now));
    let outcomes = futures(same).await?;
    let new = outcomes.iter().filter(|outcome| **outcome == Opened::New).count();
    let replayed = Opened::Replayed { newest: 1 };
    let replays = outcomes.iter().filter(|outcome| **outcome == replayed).count();
    assert_eq!((new, replays), (1, 7), "{outcomes:?}");

    let three = Budget { sessions: 3, bytes: 1 << 30 };
    let subjects: Vec<Subject> =
        (1..=9).map(|id| Subject::new("globex.r1", id, id, now)).collect::<Result<_>>()?;
    let opens = subjects.iter().map(|it| store.open(&it.key, &it.record, three, now));
    let outcomes = futures(opens).await?;
    let new = outcomes.iter().filter(|outcome| **outcome == Opened::New).count();
    assert_eq!(new, 3, "{outcomes:?}");
    Ok(())
}

/// Runs all at once.
async fn futures<T, E: std::error::Error + Send + Sync + 'static>(
    all: impl Iterator<Item = impl Future<Output = Result<T, E>>>,
) -> Result<Vec<T>> {
    let mut pending: Vec<_> = all.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        pending.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(outcome) => {
                done.push(outcome);
                false
            }
            std::task::Poll::Pending => true,
        });
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    Ok(done.into_iter().collect::<Result<_, E>>()?)
}

pub(crate) async fn the_next_run_goes_on_where_the_last_was_killed(mut bench: Bench) -> Result<()> {
    let now = start();
    let [half, whole, ended] =
        [1, 2, 3].map(|id| Subject::new("acme.r1", id, id, now).expect("a subject"));
    let store = bench.store()?;
    store.open(&half.key, &half.record, AMPLE, now).await?;
    let (_, chunk) = half.chunks().nth(1).expect("three chunks");
    assert!(store.put_chunk(&half.key, 1, chunk).await?);
    whole.put_into(store, now).await?;
    assert!(store.register(&whole.key).await?);
    ended.put_into(store, now).await?;
    assert!(store.end(&ended.key, now).await?);

    bench.open_again()?;
    let store = bench.store()?;
    let replayed = store.open(&half.key, &half.record, AMPLE, now).await?;
    assert_eq!(replayed, Opened::Replayed { newest: 1 });
    let expected = Stored { record: half.numbered(2), held: half.held([1]) };
    let opened = store.open(&half.key, &half.numbered(2), AMPLE, now).await?;
    assert_eq!(opened, Opened::Continued(expected));
    for (index, chunk) in half.chunks() {
        assert!(store.put_chunk(&half.key, index, chunk).await?);
    }
    for subject in [&half, &whole] {
        let bytes = store.load(&subject.key, &subject.record.manifest).await?;
        assert!(bytes.as_deref() == Some(&subject.bytes));
    }
    let record = Record { registered: true, ..whole.record.clone() };
    let expected = Found::Session(Stored { record, held: whole.held(0..3) });
    assert_eq!(find(&bench, &whole.key, now).await?, expected);
    assert_eq!(find(&bench, &ended.key, now).await?, Found::Ended);
    let opened = store.open(&ended.key, &ended.numbered(2), AMPLE, now).await?;
    assert_eq!(opened, Opened::Ended);
    let over = half.record.expires_at;
    let mut swept = store.sweep(over).await?;
    swept.sort();
    assert_eq!(swept, [half.key, whole.key]);
    Ok(())
}

pub(crate) async fn chunks_that_turned_out_wrong_are_forgotten_and_the_session_stays(
    bench: Bench,
) -> Result<()> {
    let (store, now) = (bench.store()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    let key = &subject.key;
    subject.put_into(store, now).await?;
    assert!(store.register(key).await?);
    store.discard_chunks(key).await?;
    let stored = Stored { record: subject.record.clone(), held: subject.held([]) };
    assert_eq!(find(&bench, key, now).await?, Found::Session(stored));
    let bytes = store.load(key, &subject.record.manifest).await?.expect("it is there");
    assert!(bytes.len() == subject.bytes.len() && bytes.iter().all(|byte| *byte == 0));
    let other = Subject::new("acme.r1", 2, 2, now)?;
    store.discard_chunks(&other.key).await?;
    assert_eq!(find(&bench, &other.key, now).await?, Found::Nothing);
    Ok(())
}
