//! What the programs of libFuzzer run: see [`targets`].

pub mod targets;
