//! What a process has used so far, as the kernel tells it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::param::{clock_ticks_per_second, page_size};

use super::plan::Used;
use crate::process::program;

/// What a process has used so far.
///
/// # Errors
/// It has ended, or is somebody else's.
pub fn used(process: u32) -> Result<Used> {
    let directory = PathBuf::from(format!("/proc/{process}"));
    let read = |file: &str| {
        std::fs::read_to_string(directory.join(file))
            .with_context(|| format!("the process {process} has ended"))
    };
    let stat = read("stat")?;
    // The name before may have blanks and parentheses; what follows begins with the state.
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let field = |index: usize| -> Result<u64> {
        let field = fields.split_ascii_whitespace().nth(index);
        Ok(field.context("a short stat")?.parse()?)
    };
    // proc_pid_stat(5): utime and stime are fields 14 and 15 of which the state is the third.
    let ticks = field(11)? + field(12)?;
    let statm = read("statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("a short statm")?.parse()?;
    Ok(Used {
        cpu: u32::try_from(ticks).map(f64::from)?
            / f64::from(u32::try_from(clock_ticks_per_second())?),
        resident: pages * u64::try_from(page_size())?,
        files: u64::try_from(std::fs::read_dir(directory.join("fd"))?.count())?,
    })
}

/// Bytes that this process's connections to a loopback port have sent and received, TLS and MQTT
/// included, IP and TCP headers not.
///
/// # Errors
/// `ss` (package iproute2) is not there or says something else.
pub fn carried(port: u16) -> Result<(u64, u64)> {
    let filter = format!("dport = :{port}");
    let output = Command::new(program("ss")?).args(["-tinpH", &filter]).output()?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(sums(&String::from_utf8_lossy(&output.stdout), std::process::id()))
}

/// The sums over the sockets of a process: two lines each, of which the first names the process.
fn sums(text: &str, process: u32) -> (u64, u64) {
    let owner = format!("pid={process},");
    let mut is_own = false;
    let mut sums = (0, 0);
    for line in text.lines() {
        if line.contains("users:") {
            is_own = line.contains(&owner);
            continue;
        }
        let count = |key: &str| -> u64 {
            let word = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key));
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        if is_own {
            sums.0 += count("bytes_sent:");
            sums.1 += count("bytes_received:");
            is_own = false;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let used = used(std::process::id()).unwrap();
        assert!(used.resident > 1_000_000 && used.files >= 3, "{used:?}");
        assert!(super::used(u32::MAX).is_err());
    }

    #[test]
    fn sockets_of_others_do_not_count() {
        let text = "ESTAB 0 0 127.0.0.1:1 127.0.0.1:8883 users:((\"a\",pid=7,fd=9))\n\
             \t cubic wscale:7,7 bytes_sent:10 bytes_acked:10 bytes_received:3 segs_out:4\n\
             ESTAB 0 0 127.0.0.1:2 127.0.0.1:8883 users:((\"b\",pid=77,fd=9))\n\
             \t cubic bytes_sent:1000 bytes_received:1000\n\
             ESTAB 0 0 127.0.0.1:3 127.0.0.1:8883 users:((\"a\",pid=7,fd=10))\n\
             \t cubic bytes_sent:5\n";
        assert_eq!(sums(text, 7), (15, 3));
        assert_eq!(sums(text, 8), (0, 0));
    }
}
