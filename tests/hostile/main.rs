//! Hostile sockets: what clients can do to a server that does not expect well of them.
//!
//!     cargo test --release --test hostile              # the size for CI: under four minutes
//!     cargo test --release --test hostile -- churn     # only cases whose name has this in it
//!     ZKRAFT_HOSTILE=long cargo test --release --test hostile
//!
//! Each case starts a server of its own on loopback and lets attackers of one kind loose on it, for
//! some rounds. A case passes if
//!
//! - an honest client is served meanwhile: in at most twice the time that it takes without the
//!   attack, measured in turn (`arena.rs` has the rule and its small print). The size for CI prints
//!   the times and judges only that there were answers,
//! - the server's memory stays below a bound that follows from its limits, and comes back,
//! - afterwards the server answers `ruok`, and the honest session and its ephemeral still stand.
//!
//! The last line counts the cases. Attackers are paced: a flood that only takes the processor from
//! the honest client shows nothing but the scheduler. It is what they make the *server* do that
//! counts, and its processor time is printed.

mod arena;
mod cases;
mod client;
mod frames;
mod server;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use arena::Effort;

fn main() -> ExitCode {
    let effort = match std::env::var("ZKRAFT_HOSTILE").as_deref() {
        Ok("long") => Effort {
            rounds: 7,
            alone: Duration::from_secs(2),
            attacked: Duration::from_secs(4),
            scale: 5,
            timed: true,
        },
        Ok(other) if other != "ci" => panic!("ZKRAFT_HOSTILE={other}: expected ci or long"),
        _ => Effort {
            rounds: 3,
            alone: Duration::from_millis(800),
            attacked: Duration::from_millis(1_500),
            scale: 1,
            timed: false,
        },
    };
    // What cargo and its callers pass to every test is not meant for this one.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, case) in cases::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        println!("{name}");
        let start = Instant::now();
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| case(effort)));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(Ok(cases::End::Passed)) => {
                passed += 1;
                println!("  ok: {name} ({seconds:.1} s)");
            }
            Ok(Ok(cases::End::Skipped(why))) => {
                skipped += 1;
                println!("  SKIPPED: {name}: {why}");
            }
            Ok(Err(why)) => {
                failed += 1;
                println!("  FAILED: {name} ({seconds:.1} s): {why}");
            }
            Err(_) => {
                failed += 1;
                println!("  FAILED: {name} ({seconds:.1} s): a panic, see above");
            }
        }
    }
    match skipped {
        0 => println!("{passed} passed, {failed} failed"),
        _ => println!("{passed} passed, {failed} failed, {skipped} skipped"),
    }
    ExitCode::from(u8::from(failed > 0))
}
