//! Whatever happens in whatever order, a session and its task keep what they promise.
//!
//! The model is as simple as this: a window that was submitted has ended, or its job is in the
//! spool, or it became no job and was refused; see `World::check`.

use std::time::Duration;

use proptest::prelude::*;

use super::world::{Setting, World};
use super::{LONG, finish};
use crate::config::WhenFull;
use crate::spool::{Order, SpoolLimits};

#[derive(Debug, Clone)]
enum Event {
    Submit(u8),
    Wait(u16),
    Uplink(bool),
    Onboard(bool),
    Open,
    Close,
    Rotate,
    Revoke,
    /// The server holds its answers back.
    Hold,
    /// The server answers what it held.
    Release,
    /// The server has lost its memory.
    Forget,
    /// The server says again what it said.
    Repeat,
    /// The server answers with other keys.
    Spoil,
    /// The server refuses a job.
    Refuse,
    Restart,
    /// A crash, so many turns of the agent's tasks after a window.
    Kill(u8),
    Reboot(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1..4_u8).prop_map(Event::Submit),
        5 => (1..200_u16).prop_map(Event::Wait),
        3 => any::<bool>().prop_map(Event::Uplink),
        2 => any::<bool>().prop_map(Event::Onboard),
        3 => Just(Event::Open),
        1 => Just(Event::Close),
        2 => Just(Event::Rotate),
        1 => Just(Event::Revoke),
        3 => Just(Event::Hold),
        3 => Just(Event::Release),
        1 => Just(Event::Forget),
        1 => Just(Event::Repeat),
        1 => Just(Event::Spoil),
        1 => Just(Event::Refuse),
        1 => Just(Event::Restart),
        2 => any::<u8>().prop_map(Event::Kill),
        1 => any::<bool>().prop_map(Event::Reboot),
    ]
}

fn setting() -> impl Strategy<Value = Setting> {
    let budgets = prop_oneof![Just(4_u64), Just(1000)];
    let orders = prop_oneof![Just(Order::OldestFirst), Just(Order::NewestFirst)];
    let sizes = prop_oneof![Just(250_u64), Just(SpoolLimits::default().max_bytes)];
    let policies = prop_oneof![Just(WhenFull::DropOldest), Just(WhenFull::Block)];
    let parts = (budgets, 0..2_usize, orders, policies, sizes);
    parts.prop_map(|(budget, warm, order, when_full, spool_bytes)| Setting {
        budget,
        warm,
        order,
        when_full,
        spool_bytes,
        ..Setting::default()
    })
}

fn apply(world: &mut World, event: &Event) {
    match event {
        Event::Submit(count) => (0..*count).for_each(|_| world.submit()),
        Event::Wait(tenths) => world.wait(Duration::from_millis(100) * u32::from(*tenths)),
        Event::Uplink(up) => world.set_uplink(*up),
        Event::Onboard(up) => world.set_onboard(*up),
        Event::Open => world.open(),
        Event::Close => world.close(),
        Event::Rotate => world.rotate(),
        Event::Revoke => world.revoke(),
        Event::Hold => world.server.hold(true),
        Event::Release => world.release(),
        Event::Forget => world.server.forget(),
        Event::Repeat => world.repeat(),
        Event::Spoil => world.spoil(),
        Event::Refuse => world.refuse(),
        Event::Restart => world.restart(),
        Event::Kill(turns) => {
            world.submit();
            world.turns(*turns);
            world.kill();
        }
        Event::Reboot(is_trusted) => world.reboot(*is_trusted),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_accepted_job_ends_once_and_the_vault_is_what_the_sessions_are(
        setting in setting(),
        events in proptest::collection::vec(event(), 1..40),
    ) {
        let mut world = World::new(setting);
        world.open();
        world.check();
        for event in &events {
            apply(&mut world, event);
            world.check();
        }
        world.wait(LONG);
        finish(&world);
    }
}
