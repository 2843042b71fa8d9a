use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;

use super::record::max_payload_len;
use super::*;
use crate::disk::memory::{Failing, MemoryDisk};

const BIG: SpoolLimits =
    SpoolLimits { max_bytes: 64 * 1024 * 1024, max_age: Duration::from_hours(4) };

fn session(n: u8) -> SessionId {
    SessionId::new(1_700_000_000_000, [n; 10])
}

fn path() -> PathBuf {
    PathBuf::from("/state").join(SPOOL_FILE)
}

/// A spool without a thread.
struct Bench {
    keeper: Keeper,
    damage: Option<SpoolDamage>,
    trouble: watch::Receiver<Option<String>>,
}

impl Bench {
    /// `fresh` has to be another one each time.
    fn open(disk: &MemoryDisk, boot: &str, fresh: u64, limits: SpoolLimits) -> Self {
        let (sender, trouble) = watch::channel(None);
        let disk = Arc::new(disk.clone());
        let (keeper, damage) =
            keeper(disk, &path(), limits, boot.to_owned(), Era(fresh), 7, sender).unwrap();
        Self { keeper, damage, trouble }
    }

    fn ask<T>(&mut self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, SpoolError> {
        let (reply, mut answer) = oneshot::channel();
        self.keeper.turn(vec![request(reply)]);
        answer.try_recv().unwrap()
    }

    fn job(&self, session: &SessionId, body: &[u8]) -> NewJob {
        NewJob {
            session: session.clone(),
            era: self.keeper.era(),
            task: "arm".parse().unwrap(),
            accepted: BootInstant(5),
            body: body.to_vec(),
            plain_len: 720,
        }
    }

    fn append(&mut self, session: &SessionId, body: &[u8]) -> Result<JobNumber, SpoolError> {
        let job = self.job(session, body);
        self.append_all(vec![job]).pop().unwrap()
    }

    fn append_all(&mut self, jobs: Vec<NewJob>) -> Vec<Result<JobNumber, SpoolError>> {
        self.ask(|reply| Request::Append { jobs, reply }).unwrap()
    }

    fn remove(&mut self, session: &SessionId, number: JobNumber) -> Result<(), SpoolError> {
        let session = session.clone();
        self.ask(|reply| Request::Remove { session, number, reply })
    }

    fn forget(&mut self, session: &SessionId) -> Result<(), SpoolError> {
        let session = session.clone();
        self.ask(|reply| Request::Forget { session, reply })
    }

    fn outstanding(&mut self, number: u8) -> Outstanding {
        let session = session(number);
        self.ask(|reply| Request::Ask(Question::Outstanding { session, reply })).unwrap()
    }

    fn lost(&mut self) -> Vec<(SessionId, JobNumber)> {
        let mut lost = Vec::new();
        for number in 0..=u8::MAX {
            lost.extend(
                self.outstanding(number).lost.into_iter().map(|job| (session(number), job)),
            );
        }
        lost
    }

    fn waiting(&mut self) -> Jobs {
        let mut all = Jobs::new();
        for number in 0..=u8::MAX {
            for job in self.outstanding(number).jobs {
                assert_eq!((job.plain_len, job.accepted), (720, BootInstant(5)));
                all.insert((session(number), job.number), job.body);
            }
        }
        all
    }
}

type Jobs = BTreeMap<(SessionId, JobNumber), Vec<u8>>;

/// A small file, and what waits after each of its records: its length then, and the jobs.
fn small() -> (Vec<u8>, Vec<(usize, Jobs)>) {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk, "one", 1, BIG);
    let (a, b) = (session(1), session(2));
    let mut steps = vec![(0, Jobs::new())];
    let mut note = |bench: &mut Bench| {
        let length = disk.read(&path()).len();
        steps.push((length, bench.waiting()));
    };
    note(&mut bench);
    for (session, body) in [(&a, "first"), (&b, "second"), (&a, "third"), (&a, ""), (&b, "MSP\x01")]
    {
        bench.append(session, body.as_bytes()).unwrap();
        note(&mut bench);
    }
    bench.remove(&a, JobNumber(2)).unwrap();
    note(&mut bench);
    bench.forget(&b).unwrap();
    note(&mut bench);
    bench.append(&a, b"last").unwrap();
    note(&mut bench);
    (disk.read(&path()), steps)
}

#[test]
fn cut_off_at_any_byte_it_has_what_was_whole_before_and_no_number_comes_twice() {
    let (bytes, steps) = small();
    for cut in 0..=bytes.len() {
        let disk = MemoryDisk::default();
        disk.write(&path(), &bytes[..cut]);
        let mut bench = Bench::open(&disk, "two", 2, BIG);
        let (_, before) = steps.iter().rev().find(|(length, _)| *length <= cut).unwrap();
        assert_eq!(bench.waiting(), *before, "cut at {cut}");
        assert_eq!(bench.lost(), [], "cut at {cut}");
        assert_eq!(bench.damage, None, "cut at {cut}");
        let old = NewJob { era: Era(1), ..bench.job(&session(1), b"old") };
        let refused = bench.append_all(vec![old]);
        assert!(matches!(refused[..], [Err(SpoolError::NumbersLost)]), "cut at {cut}");
        assert_eq!(bench.append(&session(3), b"new").unwrap(), JobNumber(1));
        let mut after = before.clone();
        after.insert((session(3), JobNumber(1)), b"new".to_vec());
        drop(bench);
        let mut again = Bench::open(&disk, "two", 3, BIG);
        assert_eq!(again.waiting(), after, "cut at {cut}, opened again");
        assert_eq!(again.append(&session(3), b"newer").unwrap(), JobNumber(2));
    }
}

#[test]
fn a_flipped_bit_costs_the_record_it_is_in_and_changes_no_other() {
    let (bytes, steps) = small();
    let (_, end) = steps.last().unwrap();
    let all: Jobs = steps.iter().flat_map(|(_, jobs)| jobs.clone()).collect();
    for bit in 0..bytes.len() * 8 {
        let at = bit / 8;
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (bit % 8);
        let disk = MemoryDisk::default();
        disk.write(&path(), &flipped);
        let mut bench = Bench::open(&disk, "one", 2, BIG);
        let waiting = bench.waiting();
        for (key, body) in &waiting {
            assert_eq!(body, &all[key], "bit {bit}");
        }
        // The jobs that the record at this place brought.
        let index = steps.iter().position(|(length, _)| *length > at).unwrap();
        let brought =
            |key| steps[index].1.contains_key(key) && !steps[index - 1].1.contains_key(key);
        for key in end.keys().filter(|key| !brought(key)) {
            assert!(waiting.contains_key(key), "bit {bit} costs {key:?}");
        }
        let is_last = index == steps.len() - 1;
        // Of a session's first record nothing tells that it was there, nor of the last.
        let mut gone: Vec<_> =
            end.keys().filter(|key| !waiting.contains_key(key)).cloned().collect();
        gone.retain(|(_, number)| number.0 > 1 && !is_last);
        assert_eq!(bench.lost(), gone, "bit {bit}");
        assert_eq!(bench.damage.is_some(), !is_last, "bit {bit}");
        let old = NewJob { era: Era(1), ..bench.job(&session(1), b"old") };
        let refused = bench.append_all(vec![old]);
        assert!(matches!(refused[..], [Err(SpoolError::NumbersLost)]), "bit {bit}");
        drop(bench);
        let mut again = Bench::open(&disk, "one", 3, BIG);
        assert_eq!((again.damage.take(), again.waiting()), (None, waiting), "bit {bit}");
    }
}

#[test]
fn a_lost_job_is_known_by_its_number_until_somebody_was_told() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk, "one", 1, BIG);
    let (a, b) = (session(1), session(2));
    let mut places = Vec::new();
    for n in 0..12_u8 {
        places.push(disk.read(&path()).len());
        bench.append(if n % 2 == 0 { &a } else { &b }, &[n; 50]).unwrap();
    }
    bench.remove(&a, JobNumber(2)).unwrap();
    drop(bench);
    let mut bytes = disk.read(&path());
    // Jobs 2, 3 and 5 of the one, the first of which had ended, and 3 of the other.
    for n in [2, 4, 5, 8] {
        bytes[places[n] + 40] ^= 0x10;
    }
    disk.write(&path(), &bytes);
    let mut bench = Bench::open(&disk, "one", 2, BIG);
    let lost = [(a.clone(), JobNumber(3)), (a.clone(), JobNumber(5)), (b, JobNumber(3))];
    assert_eq!(bench.lost(), lost);
    bench.remove(&a, JobNumber(3)).unwrap();
    assert_eq!(bench.lost(), lost[1..]);
    bench.forget(&a).unwrap();
    assert_eq!(bench.lost(), lost[2..]);
}

#[test]
fn a_file_that_is_no_spool_is_kept_aside() {
    let disk = MemoryDisk::default();
    disk.write(&path(), b"something else");
    let mut bench = Bench::open(&disk, "one", 1, BIG);
    let damage = bench.damage.take().unwrap();
    let copy = path().with_file_name(damage.copy.unwrap());
    assert_eq!(copy, PathBuf::from("/state/spool.log.damaged-7"));
    assert_eq!(disk.read(&copy), b"something else");
    assert_eq!(bench.append(&session(1), b"job").unwrap(), JobNumber(1));
    // A second one would fill the disk.
    disk.write(&path(), b"something else again");
    assert_eq!(Bench::open(&disk, "one", 2, BIG).damage.unwrap().copy, None);
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_loses_nothing() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk, "one", 1, BIG);
    let a = session(1);
    disk.limit(Some(1000));
    let mut accepted = Jobs::new();
    let mut refused = 0;
    for n in 0..20_u8 {
        match bench.append(&a, &[n; 100]) {
            Ok(number) => drop(accepted.insert((a.clone(), number), vec![n; 100])),
            Err(SpoolError::Disk(why)) => {
                assert!(why.contains("No space left"), "{why}");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(accepted.len() > 3 && refused > 3);
    assert!(bench.trouble.borrow().is_some());
    assert_eq!(bench.waiting(), accepted);
    assert_eq!(Bench::open(&disk.cut_power(usize::MAX), "one", 2, BIG).waiting(), accepted);
    // An end is short enough for a disk that has no room for a job.
    disk.limit(Some(disk.used() + 60));
    assert!(bench.append(&a, &[0; 100]).is_err());
    let (first, _) = accepted.pop_first().unwrap();
    bench.remove(&a, first.1).unwrap();
    assert_eq!(Bench::open(&disk.cut_power(0), "one", 2, BIG).waiting(), accepted);
    disk.limit(None);
    let number = bench.append(&a, b"room again").unwrap();
    accepted.insert((a, number), b"room again".to_vec());
    assert_eq!(*bench.trouble.borrow(), None);
    assert_eq!(Bench::open(&disk, "one", 2, BIG).waiting(), accepted);
}

#[test]
fn after_a_flush_that_failed_nothing_is_believed_that_was_not_durable_before() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk, "one", 1, BIG);
    let a = session(1);
    let first = bench.append(&a, b"first").unwrap();
    disk.fail(Some(Failing::Sync));
    assert!(bench.append(&a, b"refused").is_err());
    assert!(bench.append(&a, b"refused too").is_err());
    assert!(bench.remove(&a, first).is_err());
    disk.fail(None);
    let next = bench.append(&a, b"next").unwrap();
    let expected = Jobs::from([((a, next), b"next".to_vec())]);
    assert_eq!(bench.waiting(), expected);
    assert_eq!(Bench::open(&disk.cut_power(0), "one", 2, BIG).waiting(), expected);
}

#[test]
fn what_waits_is_bounded_and_an_end_makes_room() {
    let disk = MemoryDisk::default();
    let limits = SpoolLimits { max_bytes: 1000, ..BIG };
    let mut bench = Bench::open(&disk, "one", 1, limits);
    let a = session(1);
    let mut accepted = 0;
    let refused = loop {
        match bench.append(&a, &[0; 100]) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code(), Code::SpoolFull);
    assert!((5..10).contains(&accepted));
    bench.remove(&a, JobNumber(1)).unwrap();
    bench.append(&a, &[0; 100]).unwrap();
    assert!(bench.append(&a, &[0; 100]).is_err());
    let too_large = vec![0; max_payload_len() + 1];
    let mut bench = Bench::open(&MemoryDisk::default(), "one", 1, BIG);
    assert!(matches!(bench.append(&a, &too_large), Err(SpoolError::TooLarge)));
}

#[test]
fn the_file_stays_short_and_numbers_go_on() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk, "one", 1, BIG);
    let a = session(1);
    let kept = bench.append(&session(2), b"kept").unwrap();
    let mut longest = 0;
    for n in 1..=500 {
        let number = bench.append(&a, &[0; 10_000]).unwrap();
        assert_eq!(number, JobNumber(n));
        bench.remove(&a, number).unwrap();
        longest = longest.max(disk.used());
    }
    assert!(longest < 1_200_000, "{longest} bytes");
    let expected = Jobs::from([((session(2), kept), b"kept".to_vec())]);
    assert_eq!(bench.waiting(), expected);
    drop(bench);
    let disk = disk.cut_power(0);
    let mut again = Bench::open(&disk, "one", 2, BIG);
    assert_eq!(again.waiting(), expected);
    assert_eq!(again.append(&a, b"next").unwrap(), JobNumber(501));
}

#[test]
fn of_jobs_that_come_together_those_that_have_room_are_taken_and_none_behind() {
    let disk = MemoryDisk::default();
    let mut bench = Bench::open(&disk, "one", 1, SpoolLimits { max_bytes: 700, ..BIG });
    let a = session(1);
    let jobs = [100, 100, 500, 1].map(|len| bench.job(&a, &vec![7; len]));
    let taken = bench.append_all(jobs.to_vec());
    let is_full =
        |taken: &Result<JobNumber, SpoolError>| matches!(taken, Err(SpoolError::Full { .. }));
    assert_eq!(taken[0].as_ref().unwrap(), &JobNumber(1));
    assert_eq!(taken[1].as_ref().unwrap(), &JobNumber(2));
    assert!(is_full(&taken[2]) && is_full(&taken[3]), "{taken:?}");
    assert_eq!(bench.append(&a, b"small").unwrap(), JobNumber(3));
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8, Vec<usize>),
    Remove(prop::sample::Index),
    Forget(u8),
    Reopen,
    /// As much of what was not durable stays.
    PowerCut(usize),
    Room(Option<u64>),
    FlushesFail(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_u8, prop::collection::vec(0..300_usize, 1..4))
            .prop_map(|(session, lens)| Step::Append(session, lens)),
        4 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => (0..3_u8).prop_map(Step::Forget),
        1 => Just(Step::Reopen),
        1 => (0..400_usize).prop_map(Step::PowerCut),
        1 => prop::option::of(0..3000_u64).prop_map(Step::Room),
        1 => any::<bool>().prop_map(Step::FlushesFail),
    ]
}

/// What has to be there, and what may be.
#[derive(Default)]
struct Model {
    accepted: Jobs,
    /// Ends that the disk has refused.
    ended: Jobs,
    given: BTreeSet<(SessionId, JobNumber)>,
    /// Sessions that took jobs, and their eras.
    eras: BTreeMap<u8, (SessionId, Era)>,
    sessions: u8,
}

impl Model {
    fn check(&mut self, waiting: Jobs) {
        for (key, body) in &self.accepted {
            assert_eq!(waiting.get(key), Some(body), "{key:?} is lost");
        }
        for (key, body) in waiting {
            let known = self.accepted.get(&key).or_else(|| self.ended.get(&key));
            assert_eq!(known, Some(&body), "{key:?} was not accepted");
            self.accepted.insert(key, body);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_accepted_jobs_wait_until_they_end(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        let mut disk = MemoryDisk::default();
        let mut opened = 1;
        let mut boot = "boot 1".to_owned();
        let mut bench = Bench::open(&disk, &boot, opened, BIG);
        let mut model = Model::default();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(slot, lens) => {
                    let era = bench.keeper.era();
                    let (session, era) = model.eras.entry(slot).or_insert_with(|| {
                        model.sessions += 1;
                        (session(model.sessions), era)
                    }).clone();
                    let bodies = lens.into_iter().map(|len| vec![u8::try_from(n).unwrap(); len]);
                    let job = |body: Vec<u8>| NewJob { era, ..bench.job(&session, &body) };
                    let jobs: Vec<NewJob> = bodies.map(job).collect();
                    let taken = bench.append_all(jobs.clone());
                    prop_assert_eq!(taken.len(), jobs.len());
                    for (job, taken) in jobs.into_iter().zip(taken) {
                        match taken {
                            Ok(number) => {
                                prop_assert!(model.given.insert((session.clone(), number)));
                                model.accepted.insert((session.clone(), number), job.body);
                            }
                            Err(SpoolError::NumbersLost) => {
                                prop_assert!(era != bench.keeper.era());
                                model.eras.remove(&slot);
                            }
                            Err(_) => {}
                        }
                    }
                }
                Step::Remove(index) if !model.accepted.is_empty() => {
                    let key = index.get(&model.accepted.keys().collect::<Vec<_>>()).to_owned().clone();
                    let body = model.accepted.remove(&key).unwrap();
                    if bench.remove(&key.0, key.1).is_err() {
                        model.ended.insert(key, body);
                    }
                }
                Step::Remove(_) => {}
                Step::Forget(slot) => {
                    if let Some((session, _)) = model.eras.remove(&slot) {
                        let forgotten = bench.forget(&session);
                        let all: Vec<_> = model.accepted.extract_if(.., |(of, _), _| *of == session).collect();
                        if forgotten.is_err() {
                            model.ended.extend(all);
                        }
                    }
                }
                Step::Reopen | Step::PowerCut(_) => {
                    disk.limit(None);
                    disk.fail(None);
                    drop(bench);
                    if let Step::PowerCut(kept) = step {
                        disk = disk.cut_power(kept);
                        boot = format!("boot {}", opened + 1);
                    }
                    opened += 1;
                    bench = Bench::open(&disk, &boot, opened, BIG);
                    model.check(bench.waiting());
                    model.ended.clear();
                }
                Step::Room(room) => disk.limit(room.map(|room| disk.used() + room)),
                Step::FlushesFail(fail) => disk.fail(fail.then_some(Failing::Sync)),
            }
            prop_assert_eq!(&bench.waiting(), &model.accepted);
            prop_assert_eq!(bench.lost(), []);
        }
    }
}

#[tokio::test]
async fn jobs_survive_a_restart_and_orphans_have_names() {
    let directory = tempfile::tempdir().unwrap();
    let boot = BootId::of("boot");
    let open = || Spool::open(directory.path(), BIG, &boot, 0).unwrap();
    let job = |spool: &Spool, n: u8, body: &[u8]| NewJob {
        session: session(n),
        era: spool.era(),
        task: "arm".parse().unwrap(),
        accepted: BootInstant(1),
        body: body.to_vec(),
        plain_len: 10,
    };
    let (spool, damage) = open();
    assert_eq!(damage, None);
    assert_eq!(spool.append(job(&spool, 1, b"1")).await.unwrap(), JobNumber(1));
    assert_eq!(spool.append(job(&spool, 1, b"2")).await.unwrap(), JobNumber(2));
    assert_eq!(spool.append(job(&spool, 2, b"3")).await.unwrap(), JobNumber(1));
    spool.remove(&session(1), JobNumber(2)).await.unwrap();
    let era = spool.era();
    drop(spool);

    let (spool, damage) = open();
    assert_eq!((spool.era(), damage), (era, None));
    let waiting = job(&spool, 1, b"1").numbered(JobNumber(1));
    let outstanding = spool.outstanding(&session(1)).await.unwrap();
    assert_eq!(outstanding, Outstanding { jobs: vec![waiting], lost: vec![] });
    assert_eq!(spool.append(job(&spool, 1, b"4")).await.unwrap(), JobNumber(3));
    let orphan = Orphan { session: session(2), number: JobNumber(1), task: "arm".parse().unwrap() };
    assert_eq!(spool.orphans(&[session(1)]).await.unwrap(), [orphan]);
    spool.forget(&session(1)).await.unwrap();
    assert_eq!(spool.outstanding(&session(1)).await.unwrap(), Outstanding::default());
    assert_eq!(*spool.trouble().borrow(), None);
}

#[tokio::test]
async fn appends_that_wait_together_get_consecutive_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(directory.path(), BIG, &BootId::of("boot"), 0).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..100_u8 {
        let spool = spool.clone();
        waiting.spawn(async move {
            let job = NewJob {
                session: session(1),
                era: spool.era(),
                task: "arm".parse().unwrap(),
                accepted: BootInstant(1),
                body: vec![n],
                plain_len: 1,
            };
            spool.append(job).await.unwrap().0
        });
    }
    let mut numbers = waiting.join_all().await;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=100).collect::<Vec<u64>>());
}
