//! What only a directory has: files that can be torn, and one user.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use anyhow::Result;
use moai_server::store::{DirectoryStore, Found, Opened, StoreError, Stored};

use crate::bench::{AMPLE, Bench, Subject, start};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_torn_or_foreign_is_removed_and_never_served() -> Result<()> {
    let (mut bench, now) = (Bench::directory()?, start());
    let subjects: Vec<Subject> =
        (1..=6).map(|id| Subject::new("acme.r1", id, id, now)).collect::<Result<_>>()?;
    for subject in &subjects {
        subject.put_into(bench.store()?, now).await?;
    }
    bench.close();
    let [torn, renamed, lost, flipped, short, sound] = &subjects[..] else { panic!("six") };
    let record = fs::read(bench.file(&torn.key, "record"))?;
    fs::write(bench.file(&torn.key, "record"), &record[..record.len() - 1])?;
    let stranger = Subject::new("globex.r1", 9, 9, now)?;
    for extension in ["record", "keys"] {
        let from = bench.file(&renamed.key, extension);
        fs::rename(from, bench.file(&stranger.key, extension))?;
    }
    fs::remove_file(bench.file(&lost.key, "record"))?;
    let mut keys = fs::read(bench.file(&flipped.key, "keys"))?;
    keys[200_000] ^= 1;
    fs::write(bench.file(&flipped.key, "keys"), keys)?;
    fs::write(bench.file(&short.key, "keys"), &short.bytes[..250_000])?;
    let sessions = bench.path().join("sessions");
    fs::write(sessions.join("notes.txt"), "foreign")?;
    fs::write(bench.file(&stranger.key, "ended"), "torn")?;
    let elsewhere = bench.path().join("elsewhere");
    fs::write(&elsewhere, "stays")?;
    let link = Subject::new("acme.r1", 7, 7, now)?;
    symlink(&elsewhere, bench.file(&link.key, "keys"))?;

    bench.open_again()?;
    let store = bench.store()?;
    for subject in [torn, renamed, lost, &stranger, &link] {
        assert_eq!(store.find(&subject.key, now).await?, Found::Nothing, "{}", subject.key);
    }
    for (subject, held) in [(flipped, vec![0, 2]), (short, vec![0, 1]), (sound, vec![0, 1, 2])] {
        let stored = Stored { record: subject.record.clone(), held: subject.held(held) };
        assert_eq!(store.find(&subject.key, now).await?, Found::Session(stored));
    }
    assert_eq!(bench.dump().await?.len(), 6, "two files for each of three");
    assert_eq!(fs::read(elsewhere)?, b"stays");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_looks_in_and_one_process_uses_it() -> Result<()> {
    let (bench, now) = (Bench::directory()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    subject.put_into(bench.store()?, now).await?;
    let mode = |path| anyhow::Ok(fs::metadata(path)?.permissions().mode() & 0o777);
    assert_eq!(mode(bench.path())?, 0o700);
    assert_eq!(mode(bench.path().join("sessions"))?, 0o700);
    for extension in ["record", "keys"] {
        assert_eq!(mode(bench.file(&subject.key, extension))?, 0o600);
    }
    match DirectoryStore::open(&bench.path()) {
        Err(StoreError::Unusable(message)) => assert!(message.contains("another server")),
        other => panic!("{:?}", other.err()),
    }

    let open = tempfile::tempdir()?;
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755))?;
    match DirectoryStore::open(open.path()) {
        Err(StoreError::Unusable(message)) => assert!(message.contains("0700"), "{message}"),
        other => panic!("{:?}", other.err()),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_loses_nothing() -> Result<()> {
    let (bench, now) = (Bench::directory()?, start());
    let subject = Subject::new("acme.r1", 1, 1, now)?;
    let store = bench.store()?;
    store.open(&subject.key, &subject.record, AMPLE, now).await?;
    // A directory where the file should be, as a disk that refuses to write.
    let keys = bench.file(&subject.key, "keys");
    fs::remove_file(&keys)?;
    fs::create_dir(&keys)?;
    let refused = store.put_chunk(&subject.key, 0, b"lost").await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let found = store.find(&subject.key, now).await?;
    let stored = Stored { record: subject.record.clone(), held: subject.held([]) };
    assert_eq!(found, Found::Session(stored), "the chunk is not held");

    fs::remove_dir(&keys)?;
    fs::write(&keys, "")?;
    for (index, chunk) in subject.chunks() {
        assert!(store.put_chunk(&subject.key, index, chunk).await?);
    }
    let opened = store.open(&subject.key, &subject.numbered(2), AMPLE, now).await?;
    let stored = Stored { record: subject.numbered(2), held: subject.held(0..3) };
    assert_eq!(opened, Opened::Continued(stored));
    Ok(())
}
