//! The server under attack: the release binary in a process of its own, and what is seen of it from
//! outside.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// Kills the server and removes its directory as soon as the pipe on its standard input breaks:
/// that happens at the end of this process, however it ends.
const WATCHDOG: &str = r#"trap : INT TERM HUP; read -r line; kill -9 "$1"; rm -rf -- "$2""#;

/// Whether the server keeps its data on a disk.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Data {
    InMemory,
    OnDisk,
}

pub struct Server {
    address: SocketAddr,
    directory: PathBuf,
    child: Child,
    watchdog: Child,
    pipe: Option<ChildStdin>,
}

impl Server {
    /// Starts a server with these keys of zoo.cfg, which may have `open_files` files open.
    pub fn start(data: Data, settings: &[(&str, &str)], open_files: Option<u64>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("zkraft-hostile-")
            .tempdir()
            .expect("a temporary directory")
            .keep();
        let mut command = Command::new(env!("CARGO_BIN_EXE_zkraft"));
        command
            .args(["--client-port", "0", "--set", "maxClientCnxns=0"])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(directory.join("log")).expect("a log file"));
        match data {
            Data::InMemory => command.arg("--in-memory"),
            Data::OnDisk => command.arg("--data-dir").arg(directory.join("data")),
        };
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        if let Some(files) = open_files {
            let limit = libc::rlimit {
                rlim_cur: files,
                rlim_max: files,
            };
            let lower = move || {
                // SAFETY: setrlimit reads one initialised `rlimit` through a pointer that is valid
                // for the call. It is on the list of functions that are safe after fork.
                match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            };
            // SAFETY: the closure makes one system call, allocates nothing and takes no lock.
            unsafe { command.pre_exec(lower) };
        }
        let mut child = command.spawn().expect("the zkraft binary");
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &child.id().to_string()])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let pipe = watchdog.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
                panic!("the server does not start:\n{log}");
            };
            let listening = line.split_once("listening on ");
            if let Some((address, _)) = listening.and_then(|(_, rest)| rest.split_once(',')) {
                break address.parse().expect("an address");
            }
        };
        // The rest of the greeting is read, so that the server is never kept by a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self {
            address,
            directory,
            child,
            watchdog,
            pipe,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    /// Memory in use, in KiB.
    pub fn rss_kib(&self) -> u64 {
        rss_kib(self.pid())
    }

    pub fn open_files(&self) -> usize {
        let list = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        list.map_or(0, Iterator::count)
    }

    /// Seconds of processor time so far.
    pub fn cpu_s(&self) -> f64 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields: Vec<&str> = match stat.rsplit_once(')') {
            Some((_, rest)) => rest.split_whitespace().collect(),
            None => return 0.0,
        };
        let ticks = |at: usize| {
            fields
                .get(at)
                .and_then(|f| f.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        (ticks(11) + ticks(12)) / 100.0
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The answer to a four-letter word; empty if there is none in five seconds.
    pub fn word(&self, word: &str) -> String {
        let patience = Duration::from_secs(5);
        let until = Instant::now() + patience;
        let mut answer = String::new();
        while answer.is_empty() && Instant::now() < until {
            let Ok(mut stream) = TcpStream::connect_timeout(&self.address, patience) else {
                continue;
            };
            let _ = stream.set_read_timeout(Some(patience));
            let _ = stream.write_all(word.as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    /// A value of `mntr`.
    pub fn metric(&self, name: &str) -> f64 {
        let report = self.word("mntr");
        let value = report.lines().find_map(|line| {
            let (key, value) = line.split_once('\t')?;
            (key == format!("zk_{name}")).then(|| value.parse().ok())?
        });
        value.unwrap_or_else(|| panic!("no zk_{name} in:\n{report}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The watchdog goes first, so that it never sees a stale pid.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        drop(self.pipe.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Memory of a process that is resident, in KiB; 0 if it is gone.
pub fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
