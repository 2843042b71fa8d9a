//! The memory of a running process, as a core file has it.
//!
//! Invariants:
//! - the process goes on afterwards;
//! - what is found is said to be where a person can look for it: a file, the heap, a thread's stack.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Launch, Process, program};
use crate::scan::{Finding, Scanner};

/// gdb reads the symbols of a process before it does anything else.
const PATIENCE: Duration = Duration::from_mins(2);

/// What of a process's memory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What the process and the kernel agree to have in a core file.
    Granted,
    /// Every page that can be read.
    Everything,
}

/// A core file with what is known of its regions.
pub struct Dump {
    content: Vec<u8>,
    segments: Vec<Segment>,
    registers: Vec<Registers>,
    mappings: Vec<Mapping>,
    threads: Vec<Thread>,
}

/// Memory in the file.
struct Segment {
    file: Range<usize>,
    address: usize,
}

/// A note with registers of a thread.
struct Registers {
    file: Range<usize>,
    thread: usize,
}

/// A line of `/proc/PID/maps`.
struct Mapping {
    range: Range<usize>,
    name: String,
}

struct Thread {
    id: usize,
    name: String,
    /// Unknown while it runs.
    stack_pointer: Option<usize>,
}

impl Dump {
    /// Has gdb write the process's memory to a file in `directory`.
    ///
    /// # Errors
    /// gdb is not installed, or may not trace the process.
    pub async fn take(process: &Process, scope: Scope, directory: &Path) -> Result<Self> {
        let gdb = program("gdb")?;
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root can read the memory of an agent, which is not dumpable: run this test as root"
        );
        let (mappings, threads) = (mappings(process.id())?, threads(process.id())?);
        let file = directory.join(match scope {
            Scope::Granted => "granted.core",
            Scope::Everything => "everything.core",
        });
        let settings: &[&str] = match scope {
            Scope::Granted => &[],
            Scope::Everything => {
                &["-ex", "set use-coredump-filter off", "-ex", "set dump-excluded-mappings on"]
            }
        };
        let log = Launch::new("gdb", &gdb, directory)
            .env("DEBUGINFOD_URLS", "")
            .args(["-nx", "-batch", "-readnever", "-p", &process.id().to_string()])
            .args(settings)
            .args(["-ex", &format!("gcore {}", file.display())])
            .run(PATIENCE)
            .await?
            .success()?;
        ensure!(log.text().contains("Saved corefile"), "gdb wrote no core\n{}", log.tail());
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        // Cores are as large as everything that is mapped.
        fs::remove_file(&file)?;
        let parts = core_parts(&content).context("gdb's core file is not one")?;
        let (segments, registers) = parts;
        Ok(Self { content, segments, registers, mappings, threads })
    }

    /// Bytes of memory in the dump.
    #[must_use]
    pub fn memory_len(&self) -> usize {
        self.segments.iter().map(|segment| segment.file.len()).sum()
    }

    /// Searches memory and registers.
    #[must_use]
    pub fn search(&self, scanner: &Scanner) -> Vec<Finding> {
        let mut findings = scanner.bytes("", &self.content);
        for finding in &mut findings {
            finding.place = self.place(finding.offset);
        }
        findings
    }

    fn place(&self, offset: usize) -> String {
        let segment = self.segments.iter().find(|segment| segment.file.contains(&offset));
        let Some(segment) = segment else { return self.registers(offset) };
        let address = segment.address + (offset - segment.file.start);
        let mapping = self.mappings.iter().find(|mapping| mapping.range.contains(&address));
        let Some(mapping) = mapping else { return format!("new memory ({address:#x})") };
        for Thread { name, stack_pointer, .. } in &self.threads {
            match stack_pointer.filter(|pointer| mapping.range.contains(pointer)) {
                Some(pointer) if address < pointer => {
                    return format!("{name}'s stack, {} bytes below its end", pointer - address);
                }
                Some(pointer) => return format!("{name}'s stack, {} bytes up", address - pointer),
                None => {}
            }
        }
        format!("{} ({address:#x})", mapping.name)
    }

    fn registers(&self, offset: usize) -> String {
        let note = self.registers.iter().find(|registers| registers.file.contains(&offset));
        let thread =
            self.threads.iter().find(|thread| note.is_some_and(|it| it.thread == thread.id));
        thread
            .map_or_else(|| "a note".to_owned(), |thread| format!("a register of {}", thread.name))
    }
}

fn mappings(id: u32) -> Result<Vec<Mapping>> {
    let text = fs::read_to_string(format!("/proc/{id}/maps"))?;
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let name = fields.nth(4).unwrap_or("anonymous memory").to_owned();
        Some(Mapping { range: address(start)?..address(end)?, name })
    };
    Ok(text.lines().filter_map(parse).collect())
}

fn threads(id: u32) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for thread in fs::read_dir(format!("/proc/{id}/task"))? {
        let thread = thread?;
        let id = thread.file_name().to_string_lossy().parse().context("a thread has a number")?;
        // A thread may end meanwhile.
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let call = read("syscall");
        let stack_pointer = call
            .split_whitespace()
            .rev()
            .nth(1)
            .and_then(|text| usize::from_str_radix(text.strip_prefix("0x")?, 16).ok());
        threads.push(Thread { id, name: read("comm").trim().to_owned(), stack_pointer });
    }
    Ok(threads)
}

/// Memory and registers in a 64-bit little-endian core file (gABI, chapter 5).
fn core_parts(core: &[u8]) -> Option<(Vec<Segment>, Vec<Registers>)> {
    const LOADABLE: usize = 1;
    const NOTES: usize = 4;
    let number = |at: usize, length: usize| number(core, at, length);
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let (mut segments, mut registers) = (Vec::new(), Vec::new());
    for header in (0..count).map(|index| table + index * size) {
        let start = number(header + 0x08, 8)?;
        let file = start..start.checked_add(number(header + 0x20, 8)?)?;
        match number(header, 4)? {
            LOADABLE => segments.push(Segment { file, address: number(header + 0x10, 8)? }),
            NOTES => registers.extend(register_notes(core, file)?),
            _ => {}
        }
    }
    core.starts_with(b"\x7fELF\x02\x01").then_some((segments, registers))
}

/// Each thread's notes begin with the one that names it (elf.h, `NT_PRSTATUS`).
fn register_notes(core: &[u8], notes: Range<usize>) -> Option<Vec<Registers>> {
    const STATUS: usize = 1;
    const THREAD_ID: usize = 32;
    let (mut registers, mut thread, mut at) = (Vec::new(), None, notes.start);
    while at < notes.end {
        let (name, length) = (number(core, at, 4)?, number(core, at + 4, 4)?);
        let start = at + 12 + name.next_multiple_of(4);
        if number(core, at + 8, 4)? == STATUS {
            thread = Some(number(core, start + THREAD_ID, 4)?);
        }
        let file = start..start + length;
        at = start + length.next_multiple_of(4);
        registers.extend(thread.map(|thread| Registers { file, thread }));
    }
    Some(registers)
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::STEP;
    use crate::scan::Needles;

    #[tokio::test]
    async fn what_a_process_holds_is_found_and_placed() {
        const SECRET: &[u8] = b"a secret of 32 bytes, never told";
        let scratch = tempfile::tempdir().unwrap();
        let shell = Launch::new("shell", Path::new("/bin/sh"), scratch.path())
            .args(["-c", "echo up; kill -STOP $$"])
            .env("SECRET", String::from_utf8(SECRET.to_vec()).unwrap());
        let process = shell.spawn().unwrap();
        process.wait_for_line("up", STEP).await.unwrap();
        let mut needles = Needles::default();
        needles.parts("secret", SECRET).unwrap();
        let scanner = needles.build().unwrap();
        let dump = Dump::take(&process, Scope::Everything, scratch.path()).await.unwrap();
        let findings = dump.search(&scanner);
        // Whose stack it is can be told if the thread was caught in a system call, which is chance.
        let stacks = ["sh's stack", "[stack]"];
        let on_stack = |finding: &Finding| stacks.iter().any(|it| finding.place.starts_with(it));
        assert!(findings.iter().filter(|finding| on_stack(finding)).count() >= 4, "{findings:?}");
        fs::write(format!("/proc/{}/coredump_filter", process.id()), "0").unwrap();
        let dump = Dump::take(&process, Scope::Granted, scratch.path()).await.unwrap();
        assert!(dump.search(&scanner).is_empty());
    }
}
