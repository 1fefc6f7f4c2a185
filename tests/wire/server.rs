//! Starts the servers under test, one per configuration, shared by all tests of the run.
//!
//! The server is the zkraft binary, or a real ZooKeeper when `ZKRAFT_WIRE_AGAINST=zookeeper`
//! is set: the tests then check themselves against the original. Tests must not depend on each
//! other, so each works under a path of its own; what needs a server without other traffic takes
//! [`Server::alone`]. No server and no file outlives the run, however it ends.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::client::{Client, Connection, Hello};

/// The password of the super user in every configuration is `secret` (spec §7.6).
pub const SUPER: &[u8] = b"super:secret";

/// Lines of zoo.cfg that every configuration has.
const COMMON: &str = "\
clientPortAddress=127.0.0.1
admin.enableServer=false
DigestAuthenticationProvider.superDigest=super:lK75jTNcA+U9vtVEw5vB51mj/w4=
";

/// The defaults that clients meet in the field, with every four-letter word on.
const PLAIN: &str = "\
tickTime=2000
maxClientCnxns=0
4lw.commands.whitelist=*
";

/// Short ticks, TTL znodes, enforced quotas and a cleaner that runs often.
const BRISK: &str = "\
tickTime=100
maxSessionTimeout=60000
maxClientCnxns=0
4lw.commands.whitelist=*
extendedTypesEnabled=true
enforceQuota=true
znode.container.checkIntervalMs=100
";

/// Nothing but what the format requires: the whitelist and the limit of 60 connections are
/// ZooKeeper's.
const BARE: &str = "\
tickTime=2000
";

/// The default limit of 60 connections, and every four-letter word on.
const ALONE: &str = "\
tickTime=2000
4lw.commands.whitelist=*
";

/// Settings that clients notice, all at other than their defaults.
const TUNED: &str = "\
tickTime=2000
minSessionTimeout=1000
maxSessionTimeout=90000
maxClientCnxns=0
nio.sessionlessCnxnTimeout=3000
jute.maxbuffer=10485760
skipACL=yes
DigestAuthenticationProvider.enabled=false
reconfigEnabled=true
4lw.commands.whitelist=mntr, ruok
";

/// Sessions that a server keeps to itself.
const LOCAL: &str = "\
tickTime=2000
maxClientCnxns=0
4lw.commands.whitelist=*
localSessionsEnabled=true
";

/// How long a server may take to serve after its start.
const START: Duration = Duration::from_secs(30);

/// Kills the server and removes its directory as soon as the pipe on its standard input breaks:
/// that happens at the end of this process, whether it returns, panics or is killed. An `atexit`
/// hook or a destructor would miss two of the three.
const WATCHDOG: &str = r#"trap : INT TERM HUP; read -r line; kill -9 "$1"; rm -rf -- "$2""#;

/// Which program is started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Program {
    /// The zkraft binary of this build, or the one that `ZKRAFT_BIN` names.
    Zkraft,
    /// ZooKeeper from the jars in the directory `ZKRAFT_WIRE_JARS`, or from those of Debian that
    /// `tests/compat/lab.py` unpacks.
    Zookeeper,
}

/// A running server.
pub struct Server {
    program: Program,
    address: SocketAddr,
    directory: PathBuf,
    /// What it answered to `srvr` when it was ready.
    report: String,
    // Held for its pipe, see WATCHDOG; never waited for, except by [`Server::stop`].
    watchdog: Child,
    process: Child,
}

impl Server {
    pub fn plain() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(program(), "plain", PLAIN))
    }

    pub fn brisk() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(program(), "brisk", BRISK))
    }

    pub fn tuned() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(program(), "tuned", TUNED))
    }

    /// A server with local sessions, which become global when they need to; against ZooKeeper there
    /// is none: alone it has global sessions only.
    pub fn upgrading() -> Option<&'static Self> {
        static SERVER: OnceLock<Option<Server>> = OnceLock::new();
        let server = SERVER.get_or_init(|| {
            let config = format!("{LOCAL}localSessionsUpgradingEnabled=true\n");
            let program = program();
            let start = || Self::start(program, "upgrading", &config);
            (program == Program::Zkraft).then(start)
        });
        server.as_ref()
    }

    /// The same, but they do not.
    pub fn local() -> Option<&'static Self> {
        static SERVER: OnceLock<Option<Server>> = OnceLock::new();
        let server = SERVER.get_or_init(|| {
            let program = program();
            let start = || Self::start(program, "local", LOCAL);
            (program == Program::Zkraft).then(start)
        });
        server.as_ref()
    }

    /// Three servers that belong together, all serving, with these lines in each zoo.cfg.
    pub fn ensemble(name: &str, config: &str) -> Vec<Self> {
        let lines: Vec<String> = (1..=3)
            .map(|id| {
                let ports = [free_address().port(), free_address().port()];
                format!("server.{id}=127.0.0.1:{}:{}\n", ports[0], ports[1])
            })
            .collect();
        let config = format!("{config}{}", lines.concat());
        std::thread::scope(|scope| {
            let start = |id| {
                let (name, config) = (format!("{name}-{id}"), &config);
                scope.spawn(move || {
                    let server = Self::try_start(program(), &name, config, Some(id));
                    server.unwrap_or_else(|log| panic!("server {id} does not start:\n{log}"))
                })
            };
            // All at once: none serves without the others.
            let servers: Vec<_> = (1..=3).map(start).collect();
            let servers = servers.into_iter().map(|server| server.join());
            servers.map(|server| server.expect("it starts")).collect()
        })
    }

    /// A server in which no test may create or change a znode.
    pub fn pristine() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(program(), "pristine", BARE))
    }

    /// A server that belongs to one test at a time, so that zxids can be counted. Sessions that a
    /// test leaves behind would spoil the count of the next one: each is closed, or has a timeout
    /// that outlasts the run. Every four-letter word is on, and `maxClientCnxns` is 60.
    pub fn alone() -> (&'static Self, MutexGuard<'static, ()>) {
        static SERVER: OnceLock<Server> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        // A failed test poisons the lock; the next one is not concerned.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let server = SERVER.get_or_init(|| Self::start(program(), "alone", ALONE));
        (server, turn)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new TCP connection.
    pub fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    /// A client with a new session.
    pub fn client(&self) -> Client {
        self.client_with(&Hello::default())
    }

    pub fn client_with(&self, hello: &Hello) -> Client {
        Client::open(self.address, hello)
    }

    /// A client that is the super user.
    pub fn super_client(&self) -> Client {
        let mut client = self.client();
        assert_eq!(client.auth("digest", SUPER), 0);
        client
    }

    /// The answer to a four-letter word.
    pub fn word(&self, word: &str) -> String {
        let mut connection = self.connect();
        connection.send(word.as_bytes());
        String::from_utf8(connection.rest()).expect("text")
    }

    /// Whether the server is a real ZooKeeper: it does not have zkraft's deliberate differences.
    pub fn is_zookeeper(&self) -> bool {
        self.program == Program::Zookeeper
    }

    /// Whether the server is ZooKeeper 3.8, which differs from the baseline, 3.9.5, in the places
    /// that the specification marks with `[V]`.
    pub fn is_zookeeper_38(&self) -> bool {
        self.is_zookeeper() && self.report.starts_with("Zookeeper version: 3.8.")
    }

    /// Starts a server with these lines of zoo.cfg. Another process may take the port between the
    /// choice and the server's bind; the server then exits, and the next try has another port.
    pub fn start(program: Program, name: &str, config: &str) -> Self {
        let mut output = String::new();
        for _ in 0..3 {
            match Self::try_start(program, name, config, None) {
                Ok(server) => return server,
                Err(log) => output = log,
            }
        }
        panic!("the {name} server does not start:\n{output}");
    }

    /// One try. `id`: of a server that is one of several. The error is what the server printed.
    fn try_start(
        program: Program,
        name: &str,
        config: &str,
        id: Option<u32>,
    ) -> Result<Self, String> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("zkraft-wire-{name}-"))
            .tempdir()
            .expect("a temporary directory")
            .keep();
        let address = free_address();
        let settings = directory.join("zoo.cfg");
        let data = directory.join("data");
        let log = directory.join("log");
        std::fs::create_dir(&data).expect("a data directory");
        if let Some(id) = id {
            std::fs::write(data.join("myid"), format!("{id}\n")).expect("myid");
        }
        let text = format!(
            "clientPort={}\ndataDir={}\n{COMMON}{config}",
            address.port(),
            data.display()
        );
        std::fs::write(&settings, text).expect("zoo.cfg");

        let mut command = match program {
            Program::Zookeeper => java(config),
            Program::Zkraft => zkraft(),
        };
        let output = File::create(&log).expect("a log file");
        let mut process = command
            .arg(&settings)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &process.id().to_string()])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");

        let ready = await_ready(address, &mut process);
        let server = Self {
            program,
            address,
            directory,
            report: ready.clone().unwrap_or_default(),
            watchdog,
            process,
        };
        if ready.is_some() {
            return Ok(server);
        }
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        server.stop();
        Err(log)
    }

    /// Kills the server and removes its directory before the run ends.
    pub fn stop(mut self) {
        // Neither may be left to the watchdog, which would outlive this server with a stale pid.
        self.watchdog.kill().expect("the watchdog is our child");
        self.watchdog.wait().expect("the watchdog is our child");
        self.process.kill().expect("the server is our child");
        self.process.wait().expect("the server is our child");
        std::fs::remove_dir_all(&self.directory).expect("our directory");
    }

    /// The data directory named in zoo.cfg.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }
}

/// The program that the tests of the protocol run against.
fn program() -> Program {
    match std::env::var("ZKRAFT_WIRE_AGAINST").as_deref() {
        Err(_) | Ok("zkraft") => Program::Zkraft,
        Ok("zookeeper") => Program::Zookeeper,
        Ok(other) => panic!("ZKRAFT_WIRE_AGAINST={other}: expected zkraft or zookeeper"),
    }
}

fn zkraft() -> Command {
    let binary = std::env::var_os("ZKRAFT_BIN");
    let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_zkraft").into());
    let mut command = Command::new(binary);
    command.arg("serve");
    command
}

/// See [`Program::Zookeeper`].
fn java(config: &str) -> Command {
    let class_path = match std::env::var_os("ZKRAFT_WIRE_JARS") {
        Some(directory) => Path::new(&directory).join("*").display().to_string(),
        None => debian_class_path(),
    };
    let mut command = Command::new("java");
    command
        .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .args(["-cp", &class_path]);
    // ZooKeeper reads these as system properties only, without its prefix (spec §12.2).
    for line in config.lines().filter(|line| {
        let families = ["znode.container.", "jute.", "readonlymode."];
        families.iter().any(|family| line.starts_with(family))
    }) {
        command.arg(format!("-D{line}"));
    }
    command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain");
    command
}

/// The jars of ZooKeeper 3.8.0 among the many of Debian's directory.
fn debian_class_path() -> String {
    let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/deb/root/usr/share/java");
    assert!(
        jars.join("zookeeper.jar").exists(),
        "no zookeeper.jar in {}: tests/compat/lab.py fetches it",
        jars.display()
    );
    let names = "zookeeper zookeeper-jute slf4j-api slf4j-simple netty-all metrics-core \
        snappy-java commons-io commons-cli";
    let paths: Vec<String> = names
        .split_whitespace()
        .map(|name| jars.join(format!("{name}.jar")).display().to_string())
        .collect();
    paths.join(":")
}

/// An address whose port was free a moment ago.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("an address")
}

/// Polls until the server says that it serves, and returns what it says. It is asked with `srvr`,
/// which leaves no session behind. None if the server exits or the time is over.
fn await_ready(address: SocketAddr, server: &mut Child) -> Option<String> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        if server.try_wait().expect("our child").is_some() {
            return None;
        }
        match ask(address, "srvr") {
            Ok(report) if report.starts_with("Zookeeper version: ") => return Some(report),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    None
}

fn ask(address: SocketAddr, word: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    // A server that is just starting may accept and never answer; the next connection is better
    // off.
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(word.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
