//! The program: everything is in the library.

use std::process::ExitCode;

use zkraft::cli::{self, RunningServer};
use zkraft::server::Server;
use zkraft::storage::Progress;

// Znodes are many small allocations of a few sizes, made by one thread and freed by another: the
// case in which the system's allocator fragments most and mimalloc hardly at all.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// The system calls what stands here before the allocator takes its first page.
#[used]
// SAFETY: the section holds functions of this type, and this one needs nothing set up before it.
#[unsafe(link_section = ".init_array.00001")]
static BEFORE_MAIN: extern "C" fn() = cli::use_small_pages;

fn main() -> ExitCode {
    cli::main(Box::new(|config| {
        let running = Server::start(&config, Some(Progress::new(cli::log_progress())))
            // Its text has the cause already.
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Box::new(running) as Box<dyn RunningServer>)
    }))
}
