//! Everything that reads bytes of others, as functions of any bytes.
//!
//! A target runs the code under test on an input and asserts what must hold for every input: no
//! panic, the properties that its module names, and a bound on memory that depends on the input's
//! length alone. Where a format is sealed by checksums or digests, the target puts the right ones,
//! or what is behind them would never be reached.
//!
//! | target | what reads the bytes | what they come from |
//! |---|---|---|
//! | `frame` | `wire::frame_length` | a socket |
//! | `connect` | `ConnectRequest`, and the handshake | a client |
//! | `request` | `Request::decode`, all opcodes | a client |
//! | `multi` | multi and multiRead, down to the tree | a client |
//! | `connection` | whole conversations of several clients | clients |
//! | `peer` | frames, handshakes, messages, transfers | other servers, and strangers |
//! | `words` | the four-letter words | operators |
//! | `config` | `zoo.cfg` | operators |
//! | `log` | segments of the log | the disk |
//! | `snapshot` | snapshot files | the disk |
//! | `image` | the chunks in them, to a machine | the disk |
//!
//! To add one: a module with `run` and `seeds`, a line in [`ALL`], a program in `bin`, and its
//! entry in `Cargo.toml`.

mod config;
mod connect;
mod connection;
mod disk;
mod frame;
mod image;
mod input;
mod log;
mod memory;
mod multi;
mod peer;
mod request;
mod server;
mod snapshot;
mod words;

/// Something to be fuzzed.
pub struct Target {
    pub name: &'static str,
    run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The heap an input may take: so many bytes, and so many for each of its own.
    memory: (usize, usize),
}

pub const ALL: &[Target] = &[
    Target {
        name: "frame",
        run: frame::run,
        seeds: frame::seeds,
        memory: (16 << 10, 16),
    },
    Target {
        name: "connect",
        run: connect::run,
        seeds: connect::seeds,
        memory: (256 << 10, 16),
    },
    Target {
        name: "request",
        run: request::run,
        seeds: request::seeds,
        memory: (4 << 10, 64),
    },
    Target {
        name: "multi",
        run: multi::run,
        seeds: multi::seeds,
        memory: (256 << 10, 128),
    },
    Target {
        name: "connection",
        run: connection::run,
        seeds: connection::seeds,
        memory: (2 << 20, 512),
    },
    Target {
        name: "peer",
        run: peer::run,
        seeds: peer::seeds,
        // An entry of the log takes two bytes at least, and some hundred in memory.
        memory: (64 << 10, 512),
    },
    Target {
        name: "words",
        run: words::run,
        seeds: words::seeds,
        memory: (256 << 10, 16),
    },
    Target {
        name: "config",
        run: config::run,
        seeds: config::seeds,
        memory: (64 << 10, 64),
    },
    Target {
        name: "log",
        run: log::run,
        seeds: log::seeds,
        memory: (1 << 20, 4096),
    },
    Target {
        name: "snapshot",
        run: snapshot::run,
        seeds: snapshot::seeds,
        memory: (1 << 20, 33 << 10),
    },
    Target {
        name: "image",
        run: image::run,
        seeds: image::seeds,
        memory: (2 << 20, 128),
    },
];

impl Target {
    /// # Panics
    /// If the name is not that of a target.
    pub fn named(name: &str) -> &'static Self {
        let found = ALL.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("there is no target {name}"))
    }

    /// Runs the target on an input.
    ///
    /// # Panics
    /// If the input is a finding.
    pub fn check(&self, data: &[u8]) {
        let peak = memory::peak_of(|| (self.run)(data));
        let (base, per_byte) = self.memory;
        let bound = base + per_byte * data.len();
        assert!(
            peak <= bound,
            "{peak} bytes of heap for an input of {}; the bound is {bound}",
            data.len()
        );
    }
}
