//! Sessions and their task, from onboard message to onboard answer, with doubles at both ends.
//!
//! Each test waits for events on a paused clock; `World::check` holds after every step of any of
//! them.

mod engine;
mod model;
mod server;
mod world;

use std::time::Duration;

use self::world::{Setting, World};
use super::lifecycle::{DrainReason, EndReason};
use crate::config::WhenFull;
use crate::spool::Order;

const SECOND: Duration = Duration::from_secs(1);
/// Longer than a lifetime, and what follows.
const LONG: Duration = Duration::from_mins(2);

/// The task is closed and everything comes to its end.
fn finish(world: &World) {
    world.set_onboard(true);
    world.set_uplink(true);
    world.release();
    world.wait(SECOND * 30);
    world.close();
    world.wait(LONG);
    world.check_end();
}

#[test]
fn windows_are_answered_in_order_and_a_closed_task_leaves_nothing() {
    let mut world = World::active(Setting::default());
    for _ in 0..20 {
        world.submit();
    }
    world.check();
    assert_eq!(world.answers(), (0..20).collect::<Vec<_>>());
    finish(&world);
    assert!(world.server.sessions().is_empty(), "the server was not told");
    world.heard(|heard| {
        assert!(heard.states.iter().all(|state| state["model"] == "tiny"), "{:?}", heard.states);
    });
}

#[test]
fn at_four_fifths_of_its_time_a_session_has_a_successor_and_no_window_waits() {
    let mut world = World::active(Setting::default());
    let first = world.active_session();
    world.wait(SECOND * 47);
    assert_eq!(world.active_session(), first);
    for _ in 0..20 {
        world.wait(SECOND / 5);
        world.submit();
        world.check();
    }
    assert_ne!(world.active_session(), first);
    assert_eq!(world.answers().len(), 20);
    assert!(world.heard(|heard| heard.refusals.is_empty()));
    finish(&world);
    assert!(world.errors().is_empty());
}

#[test]
fn a_successor_waits_for_its_turn_and_the_session_before_finishes_its_jobs() {
    let mut world = World::active(Setting::default());
    let first = world.active_session();
    world.server.hold(true);
    world.submit();
    world.rotate();
    world.submit();
    world.check();
    let second = world.active_session();
    let before = world.records().into_iter().find(|record| record.id == first);
    let reason = before.and_then(|record| record.facts.state.draining());
    assert_eq!(reason, Some(DrainReason::Rotated));
    world.release();
    world.check();
    assert_eq!(world.sessions(), [second]);
    assert_eq!(world.answers(), [0, 1]);
    finish(&world);
}

#[test]
fn a_rotation_without_a_server_changes_nothing_until_the_server_is_back() {
    let mut world = World::active(Setting::default());
    let first = world.active_session();
    world.set_uplink(false);
    world.rotate();
    world.wait(SECOND * 5);
    world.submit();
    world.check();
    assert_eq!(world.active_session(), first, "the session that works goes on");
    assert!(world.task().successor.is_some());
    world.set_uplink(true);
    world.wait(SECOND * 10);
    world.check();
    assert_ne!(world.active_session(), first);
    assert_eq!(world.answers(), [0]);
    finish(&world);
}

#[test]
fn a_session_that_ends_before_its_successor_is_ready_leaves_it_the_windows() {
    let mut world = World::active(Setting::default());
    world.set_uplink(false);
    world.submit();
    world.wait(SECOND * 70);
    world.submit();
    world.check();
    assert_eq!(world.errors(), ["expired"]);
    world.set_uplink(true);
    world.wait(SECOND * 10);
    world.check();
    assert_eq!(world.answers(), [1]);
    finish(&world);
}

#[test]
fn after_an_hour_without_the_uplink_all_is_answered_in_order_and_once() {
    let four_hours = Duration::from_hours(4);
    let mut world = World::active(Setting { ttl: four_hours, ..Setting::default() });
    world.set_uplink(false);
    for _ in 0..60 {
        world.submit();
        world.wait(Duration::from_mins(1));
    }
    world.check();
    assert!(world.answers().is_empty());
    world.set_uplink(true);
    world.wait(SECOND * 10);
    world.check();
    assert_eq!(world.answers(), (0..60).collect::<Vec<_>>());
    assert!(world.heard(|heard| heard.refusals.is_empty()));
    finish(&world);
}

#[test]
fn after_an_hour_without_the_uplink_what_is_past_its_sessions_time_is_told() {
    let half_an_hour = Duration::from_mins(30);
    let mut world = World::active(Setting { ttl: half_an_hour, ..Setting::default() });
    world.set_uplink(false);
    for _ in 0..60 {
        world.submit();
        world.wait(Duration::from_mins(1));
    }
    world.check();
    world.set_uplink(true);
    world.wait(SECOND * 10);
    world.check();
    let answers = world.answers();
    let answered = i64::try_from(answers.len()).unwrap();
    assert!(answered >= 5, "{answers:?}");
    assert_eq!(answers, (60 - answered..60).collect::<Vec<_>>(), "the newest, all of them");
    assert_eq!(world.errors(), vec!["expired"; 60 - answers.len()]);
    finish(&world);
}

#[test]
fn a_used_up_budget_changes_the_session_and_no_window_is_refused() {
    let mut world = World::active(Setting { budget: 5, ..Setting::default() });
    world.server.hold(true);
    for _ in 0..12 {
        world.submit();
    }
    world.check();
    world.release();
    world.wait(SECOND * 10);
    world.check();
    assert_eq!(world.answers(), (0..12).collect::<Vec<_>>());
    assert!(world.heard(|heard| heard.refusals.is_empty()));
    finish(&world);
}

#[test]
fn where_nothing_may_be_dropped_windows_wait_for_room_and_keep_their_order() {
    let setting = Setting { when_full: WhenFull::Block, spool_bytes: 400, ..Setting::default() };
    let mut world = World::active(setting);
    world.server.hold(true);
    for _ in 0..40 {
        world.submit();
    }
    world.check();
    world.wait(SECOND * 5);
    let waiting: usize = world.task().sessions.values().map(|session| session.waiting).sum();
    assert!((1..20).contains(&waiting), "{waiting} have room");
    assert!(world.task().queued > 0, "the task is held up");
    world.release();
    world.wait(SECOND * 30);
    world.check();
    assert_eq!(world.answers(), (0..40).collect::<Vec<_>>());
    assert!(world.heard(|heard| heard.refusals.is_empty()));
    finish(&world);
    assert!(world.errors().is_empty());
}

#[test]
fn windows_without_room_go_to_the_next_session_when_theirs_ends() {
    let setting = Setting { when_full: WhenFull::Block, spool_bytes: 400, ..Setting::default() };
    let mut world = World::active(setting);
    let first = world.active_session();
    world.server.hold(true);
    for _ in 0..40 {
        world.submit();
    }
    world.wait(SECOND * 90);
    world.check();
    assert!(!world.sessions().contains(&first), "its time was over");
    let expired = world.errors();
    assert!(!expired.is_empty() && expired.iter().all(|code| code == "expired"), "{expired:?}");
    world.release();
    world.wait(SECOND * 30);
    world.check();
    assert_eq!(world.answers().len() + world.errors().len(), 40);
    finish(&world);
    assert_eq!(world.errors(), expired, "no window was refused for want of room");
}

#[test]
fn a_budget_is_not_longer_for_a_crash() {
    let mut world = World::active(Setting { budget: 5, ..Setting::default() });
    let first = world.active_session();
    for _ in 0..3 {
        world.submit();
    }
    world.check();
    world.kill();
    world.submit();
    world.check();
    let left = world.task().sessions.get(&first.to_string()).map(|it| it.decryptions_left);
    assert!(left.is_none_or(|left| left <= 1), "{left:?}");
    finish(&world);
}

#[test]
fn the_first_result_of_other_keys_ends_the_session_and_the_next_begins() {
    let mut world = World::active(Setting::default());
    let first = world.active_session();
    world.wait(SECOND * 6);
    world.server.hold(true);
    world.submit();
    world.submit();
    world.settle();
    world.spoil();
    world.check();
    let mut errors = world.errors();
    errors.sort_unstable();
    assert_eq!(errors, ["bad_result", "session_ended"]);
    assert!(!world.sessions().contains(&first));
    world.release();
    world.submit();
    world.wait(SECOND);
    world.check();
    assert_eq!(world.answers(), [2]);
    finish(&world);
}

#[test]
fn a_revoked_session_is_gone_at_once_and_its_jobs_say_so() {
    let mut world = World::active(Setting::default());
    let first = world.active_session();
    world.server.hold(true);
    world.submit();
    world.settle();
    world.revoke();
    world.check();
    assert_eq!(world.errors(), ["revoked"]);
    assert!(!world.server.sessions().contains(&first), "the server was not told");
    world.release();
    world.submit();
    world.check();
    assert_eq!(world.answers(), [1]);
    finish(&world);
}

#[test]
fn a_draining_session_goes_on_draining_after_a_crash() {
    let mut world = World::active(Setting::default());
    world.server.hold(true);
    world.submit();
    world.settle();
    world.close();
    world.settle();
    assert_eq!(world.task().state, "draining");
    world.kill();
    world.check();
    let states: Vec<_> = world.records().iter().map(|it| it.facts.state.draining()).collect();
    assert_eq!(states, [Some(DrainReason::Closed)]);
    world.submit();
    world.check();
    assert_eq!(world.heard(|heard| heard.refusals.clone()), ["not_open"]);
    world.release();
    world.wait(SECOND * 10);
    world.check_end();
    assert_eq!(world.answers(), [0]);
}

#[test]
fn a_session_survives_a_reboot_only_if_the_clock_is_known_good() {
    for (is_trusted, survives) in [(true, true), (false, false)] {
        let mut world = World::active(Setting { ttl: LONG * 2, ..Setting::default() });
        let first = world.active_session();
        world.reboot(is_trusted);
        world.wait(SECOND * 2);
        world.check();
        assert_eq!(world.sessions().contains(&first), survives);
        if !survives {
            world.open();
        }
        world.submit();
        world.wait(SECOND * 2);
        world.check();
        assert_eq!(world.answers(), [0]);
        world.close();
        world.wait(LONG);
        world.check_end();
    }
}

#[test]
fn a_wall_clock_that_jumps_ends_no_session() {
    let mut world = World::active(Setting::default());
    let first = world.active_session();
    world.jump(Duration::from_hours(24 * 365));
    world.submit();
    world.wait(SECOND);
    world.check();
    assert_eq!(world.active_session(), first);
    assert_eq!(world.answers(), [0]);
    finish(&world);
}

#[test]
fn keys_made_ahead_are_one_sessions_and_others_follow_them() {
    let mut world = World::new(Setting { warm: 2, ..Setting::default() });
    world.wait(SECOND);
    assert_eq!(world.warm_ready(), 2);
    world.open();
    world.settle();
    let first = world.active_session();
    assert!(world.task().sessions[&first.to_string()].warm);
    world.wait(SECOND);
    assert_eq!(world.warm_ready(), 2);
    world.rotate();
    world.wait(SECOND);
    world.submit();
    world.check();
    let seeds: Vec<[u8; 32]> = world
        .records()
        .iter()
        .map(|record| *record.seed.expose())
        .chain(world.vault.load_warm().unwrap().iter().map(|record| *record.seed.expose()))
        .collect();
    let mut different = seeds.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), seeds.len());
    assert_eq!(world.answers(), [0]);
    finish(&world);
}

#[test]
fn keys_made_ahead_survive_a_crash_and_spoiled_ones_are_not_used() {
    let mut world = World::new(Setting { warm: 1, ..Setting::default() });
    world.wait(SECOND);
    world.kill();
    assert_eq!(world.warm_ready(), 1);
    world.spoil_warm_keys();
    world.open();
    world.wait(SECOND);
    world.submit();
    world.check();
    let session = world.active_session();
    assert!(!world.task().sessions[&session.to_string()].warm);
    assert_eq!(world.answers(), [0]);
    finish(&world);
}

#[test]
fn what_ends_and_is_not_told_is_told_after_the_next_start() {
    let mut world = World::active(Setting::default());
    world.server.hold(true);
    world.submit();
    world.settle();
    world.set_onboard(false);
    world.revoke();
    world.kill();
    assert_eq!(world.vault.load_ended().unwrap()[0].1.reason, EndReason::Revoked);
    assert!(world.errors().is_empty());
    world.set_onboard(true);
    world.check();
    assert_eq!(world.errors(), ["revoked"]);
    assert!(world.vault.load_ended().unwrap().is_empty());
}

#[test]
fn a_task_whose_end_could_not_be_told_is_told_after_a_restart() {
    let mut world = World::active(Setting::default());
    world.set_onboard(false);
    world.reboot(false);
    world.restart();
    world.set_onboard(true);
    world.settle();
    let last = world.heard(|heard| heard.states.last().cloned()).unwrap();
    assert_eq!(last["state"], "ended");
    world.check_end();
}

#[test]
fn where_the_newest_counts_the_oldest_gives_way_and_both_are_told() {
    let setting = Setting { order: Order::NewestFirst, spool_bytes: 400, ..Setting::default() };
    let mut world = World::active(setting);
    world.server.hold(true);
    for _ in 0..20 {
        world.submit();
        world.settle();
    }
    world.check();
    world.release();
    world.wait(SECOND * 10);
    world.check();
    let answers = world.answers();
    assert!(answers.len() > 1 && answers.len() < 10, "{answers:?}");
    assert_eq!(answers, (20 - i64::try_from(answers.len()).unwrap()..20).collect::<Vec<_>>());
    assert_eq!(world.errors(), vec!["dropped"; 20 - answers.len()]);
    finish(&world);
}

#[test]
fn where_every_job_counts_a_full_spool_refuses_the_newest() {
    let mut world = World::active(Setting { spool_bytes: 400, ..Setting::default() });
    world.server.hold(true);
    for _ in 0..20 {
        world.submit();
    }
    world.check();
    world.release();
    world.wait(SECOND * 10);
    let answers = world.answers();
    assert!(answers.len() > 1 && answers.len() < 10, "{answers:?}");
    assert_eq!(answers, (0..i64::try_from(answers.len()).unwrap()).collect::<Vec<_>>());
    let refusals = world.heard(|heard| heard.refusals.clone());
    assert_eq!(refusals, vec!["spool_full"; 20 - answers.len()]);
    finish(&world);
}
