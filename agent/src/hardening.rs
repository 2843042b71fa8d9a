//! Keeps the process's memory to itself.
//!
//! The program starts itself anew once, because two things are decided by the environment a
//! process starts with, and changing the environment of a running process is not safe:
//! - glibc overwrites what is freed, C libraries' buffers included, which the zeroizing allocator
//!   does not see. `perturb` alone leaves what goes to the per-thread cache (all but 16 bytes of a
//!   chunk) and the last 8 bytes of what goes to a fast bin, hence `tcache_count` and `mxfast`;
//!   the stack of a thread that has ended would stay mapped, hence `stack_cache_size`. And threads
//!   share few arenas: with one for each, what every thread once needed stays resident, 3 MB of 20;
//! - libtss2 writes no log lines of its own.
//!
//! Invariants:
//! - all of it happens before any secret is in memory and before there is a second thread;
//! - what is in force is asked of the kernel, not remembered;
//! - what the kernel does not grant is said at every start, with the remedy.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use moai_tpm::TSS_LOG_ENVIRONMENT;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, set_dumpable_behavior,
    setrlimit,
};

/// glibc's tunables, read when a process starts; see the GNU C Library manual, "Tunables".
/// Allocated memory is filled with the complement of `perturb`: zeros.
const TUNABLES: &str = "glibc.malloc.perturb=255:glibc.malloc.tcache_count=0:\
                        glibc.malloc.mxfast=0:glibc.pthread.stack_cache_size=0";
/// Keys of TFHE are made by several threads at once, which one arena makes half as slow again.
const ARENAS: &str =
    if cfg!(feature = "tfhe") { "glibc.malloc.arena_max=2" } else { "glibc.malloc.arena_max=1" };
const TUNABLES_VARIABLE: &str = "GLIBC_TUNABLES";
/// Tells the program that it has started itself, even where the tunables were taken from it.
const STARTED_VARIABLE: &str = "MOAI_AGENT_STARTED_ANEW";
/// Bit of `CAP_IPC_LOCK` in a capability set (linux/capability.h).
const CAP_IPC_LOCK: u64 = 1 << 14;

/// One thing that keeps memory from others.
struct Measure {
    in_force: fn() -> bool,
    name: &'static str,
    /// Its name where it is not in force.
    without: &'static str,
    /// What it means that it is not in force, and the remedy.
    gap: &'static str,
}

const MEASURES: [Measure; 4] = [
    Measure {
        in_force: is_locked,
        name: "locked",
        without: "not locked",
        gap: "memory can be swapped to disk: set LimitMEMLOCK=infinity in the unit, or turn swap \
              off",
    },
    Measure {
        in_force: is_not_dumpable,
        name: "not dumpable",
        without: "dumpable",
        gap: "processes of the same user can read the agent's memory: let it use prctl(2)",
    },
    Measure {
        in_force: has_no_core,
        name: "no core",
        without: "core possible",
        gap: "a crash can write memory to a core file: make /proc writable to the agent, or set \
              LimitCORE=0 in the unit",
    },
    Measure {
        in_force: overwrites_freed,
        name: "overwritten when freed",
        without: "not overwritten when freed",
        gap: "C libraries leave secrets in memory they free: start the agent without file \
              capabilities, and build it for glibc",
    },
];

/// Protects the process's memory, as far as the kernel lets it. Starts the program anew where the
/// environment has to change, and does not return then.
///
/// # Errors
/// The program cannot start itself, or the kernel refuses what it never refuses.
pub fn apply() -> io::Result<()> {
    start_anew_once()?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // For dumps that a privileged process takes by force; its file is root's once the process is
    // not dumpable. Without it, `no core` is not in force.
    let _ = std::fs::write("/proc/self/coredump_filter", "0");
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if may_lock_everything() {
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    }
    Ok(())
}

/// What is in force now, for people.
#[must_use]
pub fn describe() -> String {
    let name = |measure: &Measure| {
        if (measure.in_force)() { measure.name } else { measure.without }
    };
    MEASURES.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What is not in force: what that means, and the remedy.
#[must_use]
pub fn gaps() -> Vec<&'static str> {
    let missing = MEASURES.iter().filter(|measure| !(measure.in_force)());
    missing.map(|measure| measure.gap).collect()
}

fn start_anew_once() -> io::Result<()> {
    let name = std::env::current_exe()?;
    if std::env::var_os(STARTED_VARIABLE).is_some() {
        // The kernel named the process after the link it was started by; only people read that.
        let _ = std::fs::write("/proc/self/comm", name.file_name().unwrap_or_default().as_bytes());
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    // The link leads to this very program, even while an update replaces its file.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_else(|| name.into_os_string()));
    command.args(arguments).env(STARTED_VARIABLE, "1");
    command.env(TUNABLES_VARIABLE, tunables(std::env::var_os(TUNABLES_VARIABLE).as_deref()));
    let (variable, silent) = TSS_LOG_ENVIRONMENT;
    if std::env::var_os(variable).is_none() {
        command.env(variable, silent);
    }
    Err(command.exec())
}

/// glibc takes the last value of each: the user's count of arenas, and our secrecy.
fn tunables(users: Option<&OsStr>) -> OsString {
    let mut tunables = OsString::from(ARENAS);
    for part in [users.unwrap_or_default(), OsStr::new(TUNABLES)] {
        if !part.is_empty() {
            tunables.push(":");
            tunables.push(part);
        }
    }
    tunables
}

/// With a limit, locking the future makes later allocations fail. The capability lifts the limit
/// only if it counts outside of a user namespace.
fn may_lock_everything() -> bool {
    let has_capability = || {
        let effective = status_field("CapEff:");
        let effective = effective.and_then(|text| u64::from_str_radix(&text, 16).ok());
        effective.is_some_and(|set| set & CAP_IPC_LOCK != 0)
    };
    let sees_every_user = || {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"])
    };
    getrlimit(Resource::Memlock).current.is_none() || (has_capability() && sees_every_user())
}

fn is_locked() -> bool {
    status_field("VmLck:").is_some_and(|locked| !locked.starts_with("0 "))
}

fn is_not_dumpable() -> bool {
    dumpable_behavior() == Ok(DumpableBehavior::NotDumpable)
}

fn has_no_core() -> bool {
    let filter = Path::new("/proc/self/coredump_filter");
    // A kernel that writes no cores has no filter for them.
    let excludes_all = std::fs::read_to_string(filter).map_or_else(
        |_| !filter.exists(),
        |filter| filter.trim().bytes().all(|digit| digit == b'0'),
    );
    getrlimit(Resource::Core).current == Some(0) && excludes_all
}

fn overwrites_freed() -> bool {
    let set = std::env::var_os(TUNABLES_VARIABLE).unwrap_or_default();
    cfg!(target_env = "gnu") && set.as_bytes().ends_with(TUNABLES.as_bytes())
}

/// A field of `/proc/self/status`.
fn status_field(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_tunables_count_but_for_secrecy() {
        for none in [None, Some(OsStr::new(""))] {
            assert_eq!(tunables(none).to_str().unwrap(), format!("{ARENAS}:{TUNABLES}"));
        }
        let both = tunables(Some(OsStr::new("glibc.malloc.arena_max=8")));
        let expected = format!("{ARENAS}:glibc.malloc.arena_max=8:{TUNABLES}");
        assert_eq!(both.to_str().unwrap(), expected);
    }

    #[test]
    fn what_is_not_in_force_is_named_with_a_remedy() {
        assert!(!overwrites_freed(), "nobody starts tests with these tunables");
        assert!(describe().ends_with("not overwritten when freed"), "{}", describe());
        assert!(gaps().iter().any(|gap| gap.contains("file capabilities")));
    }
}
