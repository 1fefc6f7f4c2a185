//! Feature levels: how servers of different builds stay one ensemble.
//!
//! Replicas execute requests, so two builds that would execute one differently part from each
//! other. The state therefore says at which *feature level* the log is to be executed, a number
//! that all members know the meaning of. [`FEATURE_LEVEL`] is the highest that this build knows.
//!
//! The rule for whoever changes something:
//!
//! * What follows from an entry of the log, down to the digest, and whatever is written or sent so
//!   that a build without the change would misread it, depends on [`Machine::level`] alone: never
//!   on what this build could do, nor on a configuration. Frames and fields that an older build
//!   ignores without harm need no level.
//! * A change of that kind raises [`FEATURE_LEVEL`] by one, and what it changes happens from that
//!   level on. What the levels below do stays as it is until a major version gives it up. The files
//!   in `tests/golden` hold each level to what it did.
//! * An entry that raises the level is itself executed at the level before; the next one is the
//!   first at the new level. So a server that does not know the new level stops right behind that
//!   entry, and has done nothing wrong.
//! * The level never goes down.
//!
//! When it is raised, and what becomes of servers that are too old: `engine::level`.
//!
//! | level | since |
//! |---|---|
//! | 1 | the first ensembles |
//! | 2 | writes of sessions that are not in the state ([`LOCAL_SESSIONS`]) |

use super::Machine;

/// The highest feature level that this build knows.
pub const FEATURE_LEVEL: u32 = 2;

/// From this level on, a command may come from a session that only its server knows. Before, it is
/// one of a session that is over.
pub const LOCAL_SESSIONS: u32 = 2;

/// Setting with the feature level. 1 until it is raised for the first time.
pub const LEVEL_SETTING: &str = "feature_level";

impl Machine {
    /// The feature level at which the next entry is executed.
    pub fn level(&self) -> u32 {
        u32::try_from(self.settings.get(LEVEL_SETTING)).unwrap_or(u32::MAX)
    }
}
