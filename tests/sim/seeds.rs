//! The seeds that are always run, and what runs found.
//!
//! | seed | bug it found | fixed by |
//! |---|---|---|
//! | 41 | a session ended early: what was heard just before a connection broke was lost | engine |
//! | 1795645406468 | none: at the end, tasks slept on in a pause that was cut | world |
//! | 1795427258038 | none: the model forgot that last writes of a dying client may count | model |
//!
//! The differential test of machine and model (`differential.rs`) found that a delete of `//a`
//! removed `/a`; its test is in `tests/scripts/delete.txt`.

/// Run in every build, beside fresh ones. 206 has a connection with more requests than are read at
/// once, which few seeds have.
pub const FIXED: &[u64] = &[
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    41,
    206,
    1795427258038,
    1795645406468,
];
