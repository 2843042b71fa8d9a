//! moai-agent: lets a robot use a cloud model without ever showing it a sensor reading.

use std::process::ExitCode;

use moai_agent::cli::{self, Hooks};

/// Wipes every allocation when it is freed; the FHE library wipes nothing itself.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    cli::main(&Hooks::default())
}
