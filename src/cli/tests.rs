//! Commands from arguments to exit code, with a server that only pretends.

use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::mpsc;

use super::*;

/// What a run said, and what the server it started was told.
struct Ran {
    code: u8,
    out: String,
    err: String,
    config: Option<Config>,
    stopped: bool,
}

/// How the pretended server behaves.
#[derive(Clone, Copy)]
enum Script {
    Runs,
    Fails,
    Breaks,
    BreaksAtTheEnd,
    Hangs,
}

struct Pretended {
    script: Script,
    stopped: std_mpsc::Sender<()>,
}

impl RunningServer for Pretended {
    fn address(&self) -> SocketAddr {
        "127.0.0.1:12345".parse().unwrap()
    }

    fn fault(&self) -> Pin<Box<dyn Future<Output = anyhow::Error> + Send>> {
        match self.script {
            Script::Breaks => Box::pin(async { anyhow!("disk gone").context("fsync failed") }),
            _ => Box::pin(std::future::pending()),
        }
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        if matches!(self.script, Script::Hangs) {
            // Longer than any test: only a second signal ends it. The thread dies with the tests.
            std::thread::sleep(Duration::from_secs(3_600));
        }
        self.stopped.send(()).unwrap();
        match self.script {
            Script::BreaksAtTheEnd => Err(anyhow!("fsync failed")),
            _ => Ok(()),
        }
    }
}

impl Drop for Pretended {
    fn drop(&mut self) {
        let broke = matches!(self.script, Script::Breaks);
        assert!(!broke, "whoever drops a server waits for its threads");
    }
}

fn signals(count: usize) -> std::io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        for _ in 0..count {
            // The server is given the time to be ready, as a person would.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let _ = sender.send(()).await;
        }
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

fn run_script(arguments: &[&str], script: Script, signals: Signals) -> Ran {
    run_in(&[], arguments, script, signals)
}

fn run_in(
    environment: &[(&str, &str)],
    arguments: &[&str],
    script: Script,
    signals: Signals,
) -> Ran {
    let environment = |name: &str| {
        let found = environment.iter().find(|(known, _)| *known == name)?;
        Some(found.1.to_owned())
    };
    let (config_sender, configs) = std_mpsc::channel();
    let (stopped, stops) = std_mpsc::channel();
    let start: Start = Box::new(move |config| {
        config_sender.send(config)?;
        match script {
            Script::Fails => Err(anyhow!("the port is taken").context("cannot start")),
            _ => Ok(Box::new(Pretended { script, stopped })),
        }
    });
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let arguments = ["zkraft"].iter().chain(arguments).map(OsString::from);
    let code = run(arguments, &environment, &mut out, &mut err, signals, start);
    Ran {
        code,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
        config: configs.try_recv().ok(),
        stopped: stops.try_recv().is_ok(),
    }
}

fn zkraft(arguments: &[&str]) -> Ran {
    run_script(arguments, Script::Runs, || signals(1))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn alone_it_is_a_development_server_that_a_signal_stops() {
    let ran = zkraft(&[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.stopped);
    assert_eq!(ran.config, Some(Config::dev()));
    assert!(
        ran.out
            .contains("listening on 127.0.0.1:12345, data in ./zkraft-data\n")
    );
    for hint in [
        "zkCli.sh -server 127.0.0.1:12345",
        "KazooClient(",
        "zookeeper.quorum:",
        "Ctrl-C",
    ] {
        assert!(ran.out.contains(hint), "{hint}");
    }
}

#[test]
fn flags_change_the_development_server() {
    let ran = zkraft(&[
        "--client-port",
        "0",
        "--client-address",
        "::1",
        "--in-memory",
        "--tick-time",
        "500",
        "--set",
        "snapCount=10",
        "--log-format",
        "json",
        "--log-level",
        "error",
    ]);
    let config = ran.config.unwrap();
    assert_eq!(config.client.to_string(), "[::1]:0");
    assert!(config.in_memory);
    assert_eq!((config.tick_ms, config.snap_count), (500, 10));
    assert!(
        ran.out
            .contains("listening on 127.0.0.1:12345, data in memory only\n")
    );
}

#[test]
fn serve_runs_on_a_file_that_flags_override() {
    let zoo_cfg = file("dataDir=/nonexistent\nclientPort=2181\ntickTime=2000\n");
    let path = zoo_cfg.path().to_str().unwrap();
    let ran = zkraft(&["serve", path, "--client-port", "2182"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let config = ran.config.unwrap();
    assert_eq!((config.client.port, config.tick_ms), (2182, 2000));
    assert_eq!(config.data_dir, Path::new("/nonexistent"));
    assert_eq!(ran.out.lines().count(), 1, "{}", ran.out);
    assert!(
        ran.out
            .contains("listening on 127.0.0.1:12345, data in /nonexistent")
    );
}

#[test]
fn founding_with_a_majority_is_asked_for_by_a_flag_and_warned_of() {
    let three = "server.1=a:1:2\nserver.2=b:1:2\nserver.3=c:1:2\nclusterSecretFile=/secret\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("myid"), "2\n").unwrap();
    let zoo_cfg = file(&format!(
        "dataDir={}\nclientPort=2181\n{three}",
        dir.path().display()
    ));
    let path = zoo_cfg.path().to_str().unwrap();
    let config = zkraft(&["serve", path]).config.unwrap();
    assert!(!config.found_with_majority);
    let config = zkraft(&["serve", path, "--found-with-majority"]).config;
    assert!(config.unwrap().found_with_majority);
    let checked = zkraft(&["check-config", path, "--set", "foundWithMajority=true"]);
    let warning = "--set: foundWithMajority: if these servers are empty, 2 of 3 found an ensemble";
    assert!(checked.out.contains(warning), "{}", checked.out);
    let help = zkraft(&["serve", "--help"]).out;
    assert!(help.contains("DANGER"), "{help}");
}

#[test]
fn serve_understands_zookeepers_own_arguments() {
    let ran = zkraft(&["serve", "2181", "/nonexistent", "1000", "7"]);
    let config = ran.config.unwrap();
    assert_eq!((config.client.port, config.tick_ms), (2181, 1000));
    assert_eq!(config.max_client_cnxns, 7);
    let ran = zkraft(&["serve", "port", "/nonexistent"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .contains("PORT: clientPort=port: expected a whole number"),
        "{}",
        ran.err
    );
}

#[test]
fn what_is_wrong_with_a_file_is_said_and_nothing_starts() {
    let zoo_cfg = file("clientPort=2181\nsecureClientPort=2281\n");
    let ran = zkraft(&["serve", zoo_cfg.path().to_str().unwrap()]);
    assert_eq!((ran.code, ran.config), (2, None));
    assert!(ran.err.starts_with("zkraft cannot start:\n"), "{}", ran.err);
    assert!(
        ran.err.contains(":2: secureClientPort=2281: not supported"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("dataDir is not set"), "{}", ran.err);
}

#[test]
fn wrong_arguments_end_with_2() {
    for arguments in [
        &["--no-such-flag"][..],
        &["serve"],
        &["serve", "1", "2", "3", "4", "5"],
        &["--in-memory", "--data-dir", "/d"],
        &["--log-format", "xml"],
        &["--set", "novalue"],
        &["--log-level", "a=b=c"],
        &["--client-port", "99999"],
        &["serve", "/nonexistent/zoo.cfg"],
        // Flags that would be of no effect.
        &["status", "--client-port", "2182"],
        &["bench", "get", "--data-dir", "/d"],
        &["check-config", "zoo.cfg", "--log-format", "json"],
        &["--client-port", "2182", "serve", "zoo.cfg"],
    ] {
        let ran = zkraft(arguments);
        assert_eq!(
            (ran.code, ran.config),
            (2, None),
            "{arguments:?}: {}",
            ran.err
        );
        assert!(!ran.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_and_version_are_not_errors() {
    let help = zkraft(&["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for word in [
        "serve",
        "check-config",
        "--in-memory",
        "Flink",
        "kazoo",
        "Exit codes",
    ] {
        assert!(help.out.contains(word), "{word}");
    }
    assert!(
        help.out.lines().all(|line| line.chars().count() <= 100),
        "{}",
        help.out
    );
    let serve = zkraft(&["serve", "--help"]);
    for word in [
        "--replicas",
        "ZKRAFT_REPLICAS",
        "ZKRAFT_SERVICE",
        "POD_NAME",
    ] {
        assert!(serve.out.contains(word), "{word}");
    }
    assert!(
        serve.out.lines().all(|line| line.chars().count() <= 100),
        "{}",
        serve.out
    );
    let version = zkraft(&["--version"]);
    assert_eq!(
        version.out,
        format!("zkraft {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_server_that_cannot_start_ends_with_1_and_its_reason() {
    let ran = run_script(&[], Script::Fails, || signals(1));
    assert_eq!(ran.code, 1);
    assert_eq!(ran.err, "zkraft stopped: cannot start: the port is taken\n");
}

#[test]
fn a_fault_ends_with_1_and_its_reason() {
    let ran = run_script(&[], Script::Breaks, || signals(0));
    assert_eq!(ran.code, 1);
    assert_eq!(ran.err, "zkraft stopped: fsync failed: disk gone\n");
    assert!(!ran.stopped);
}

#[test]
fn a_fault_while_it_stops_is_told_too() {
    let ran = run_script(&[], Script::BreaksAtTheEnd, || signals(1));
    assert_eq!(ran.code, 1);
    assert!(ran.stopped);
    assert_eq!(ran.err, "zkraft stopped: fsync failed\n");
}

#[test]
fn a_second_signal_does_not_wait() {
    let ran = run_script(&[], Script::Hangs, || signals(2));
    assert_eq!(ran.code, 130);
    assert!(!ran.stopped);
}

#[test]
fn check_config_tells_what_each_key_means() {
    let zoo_cfg = file(
        "dataDir=/data\nserver.1=h:2888:3888;2181\ncnxTimeout=5\naudit.enable=false\n\
         flushDelay=1\nmaxClientCnxn=5\nzookeeper.skipACL=no\n",
    );
    let path = zoo_cfg.path().to_str().unwrap();
    let ran = zkraft(&["check-config", path, "--tick-time", "500"]);
    assert_eq!((ran.code, ran.err.as_str(), ran.config), (0, "", None));
    let squeezed: Vec<String> = ran
        .out
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for line in [
        format!("{path}: valid"),
        format!("dataDir /data {path}:1"),
        "tickTime 500 --tick-time".to_owned(),
        "maxSessionTimeout 10000 default".to_owned(),
        format!("skipACL no {path}:7"),
        "server number 1, clients at *:2181".to_owned(),
        format!("cnxTimeout=5 ({path}:3)"),
        "initLimit 10 default".to_owned(),
        format!("audit.enable=false ({path}:4)"),
        format!("flushDelay=1 ({path}:5)"),
        format!("maxClientCnxn=5 ({path}:6)"),
        "unknown keys, ignored: maxClientCnxn (did you mean maxClientCnxns?)".to_owned(),
    ] {
        assert!(squeezed.contains(&line), "{line:?} in\n{}", ran.out);
    }
}

#[test]
fn check_config_explains_keys_if_it_is_asked_to() {
    let zoo_cfg = file("dataDir=/data\nclientPort=2181\nzookeeper.cnxTimeout=5\nnobody.knows=5\n");
    let path = zoo_cfg.path().to_str().unwrap();
    let explained = zkraft(&["check-config", "--explain", path]).out;
    let plain = zkraft(&["check-config", path]).out;
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (explained, plain) = (lines(&explained), lines(&plain));
    for name in ["snapCount", "cnxTimeout"] {
        let meaning = format!("      {}.", crate::config::keys::find(name).unwrap().doc);
        let at = explained.iter().position(|line| *line == meaning).unwrap();
        assert!(explained[at - 1].contains(name), "{}", explained[at - 1]);
        assert!(!plain.contains(&meaning));
    }
    // Nothing else is different.
    let rest: Vec<_> = explained
        .into_iter()
        .filter(|line| !line.starts_with("      "))
        .collect();
    assert_eq!(rest, plain);
}

#[test]
fn check_config_warns_of_a_secret_that_cannot_be_read() {
    let short = file("secret");
    for path in [short.path().to_str().unwrap(), "/nonexistent"] {
        let zoo_cfg = file(&format!(
            "dataDir=/data\nclientPort=2181\nclusterSecretFile={path}\n"
        ));
        let ran = zkraft(&["check-config", zoo_cfg.path().to_str().unwrap()]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        let warning = "clusterSecretFile: a server would not start: ";
        assert!(ran.out.contains(warning), "{}", ran.out);
    }
}

#[test]
fn check_config_names_the_members() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("myid"), "2").unwrap();
    let zoo_cfg = file(&format!(
        "dataDir={}\nserver.1=a:2888:3888;2181\nserver.2=b:2888:3888;2181\n\
         server.3=c:2888:3888:observer;2181\nadvertisedClientAddress.1=a.example.com:2181\n",
        directory.path().display()
    ));
    let ran = zkraft(&["check-config", zoo_cfg.path().to_str().unwrap()]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let members = "
  server number 2, clients at *:2181, other servers at b:2888

Members:
  server.1=a:2888:3888:participant;a.example.com:2181
  server.2=b:2888:3888:participant  (this server)
  server.3=c:2888:3888:observer
";
    assert!(ran.out.contains(members), "{}", ran.out);
    assert!(
        ran.out.contains("nothing listens on the electionPort"),
        "{}",
        ran.out
    );
}

/// What `check-config` says in a pod with this environment.
fn check_in(environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let secret = file("0123456789abcdef");
    let zoo_cfg = file(&format!(
        "dataDir=/nonexistent\nclusterSecretFile={}\n",
        secret.path().display()
    ));
    let path = zoo_cfg.path().to_str().unwrap();
    let arguments = [&["check-config", path], arguments].concat();
    run_in(environment, &arguments, Script::Runs, || signals(1))
}

#[test]
fn a_pod_knows_from_its_name_who_it_is() {
    let flags = [
        "--replicas",
        "3",
        "--service",
        "zk-headless",
        "--pod",
        "zk-2",
    ];
    let variables = [
        ("ZKRAFT_REPLICAS", "3"),
        ("ZKRAFT_SERVICE", "zk-headless"),
        ("HOSTNAME", "zk-2"),
    ];
    let expected = "
  server number 3, clients at *:2181, other servers at *:2888

Members:
  server.1=zk-0.zk-headless:2888:3888:participant
  server.2=zk-1.zk-headless:2888:3888:participant
  server.3=zk-2.zk-headless:2888:3888:participant  (this server)
";
    for ran in [check_in(&[], &flags), check_in(&variables, &[])] {
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        assert!(ran.out.contains(expected), "{}", ran.out);
        assert!(!ran.out.contains("Warnings"), "{}", ran.out);
    }
    let named = [
        &variables[..],
        &[("POD_NAME", "zk-0"), ("POD_NAMESPACE", "prod")],
    ]
    .concat();
    let out = check_in(&named, &["--replicas", "1"]).out;
    assert!(
        out.contains("server number 1, clients at *:2181\n"),
        "{out}"
    );
    let out = check_in(&named, &["--client-port", "2281"]).out;
    let line = "server.1=zk-0.zk-headless.prod.svc.cluster.local:2888:3888:participant  (this";
    assert!(out.contains(line), "{out}");
    assert!(out.contains("clients at *:2281"), "{out}");
}

#[test]
fn what_a_pod_lacks_is_said() {
    let refused = |environment: &[(&str, &str)], arguments: &[&str]| {
        let ran = check_in(environment, arguments);
        assert_eq!(ran.code, 1, "{}", ran.out);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        ran.err
    };
    let host = [("HOSTNAME", "laptop"), ("ZKRAFT_SERVICE", "zk")];
    let message = refused(&host, &["--replicas", "3"]);
    assert!(
        message.starts_with("environment variable HOSTNAME: statefulSet.pod=laptop: expected the"),
        "{message}"
    );
    let message = refused(&host, &["--replicas", "3", "--pod", "zk-3"]);
    assert!(
        message.starts_with("--replicas: statefulSet.replicas=3: zk-3 is pod number 4 of 3"),
        "{message}"
    );
    let message = refused(&[], &["--replicas", "3", "--service", "zk"]);
    assert!(message.contains("needs the name of this pod"), "{message}");
    let message = refused(&[], &["--replicas", "3", "--pod", "zk-0"]);
    assert!(
        message.contains("needs the name of the headless service"),
        "{message}"
    );
    let message = refused(&host[1..], &[]);
    assert!(
        message.contains("ZKRAFT_SERVICE: statefulSet.service=zk: needs"),
        "{message}"
    );
    let message = refused(&host, &["--replicas", "0"]);
    assert!(
        message.contains("expected a whole number from 1 to 255"),
        "{message}"
    );
}

#[test]
fn the_environment_of_a_pod_alone_changes_nothing() {
    let zoo_cfg = file("dataDir=/nonexistent\nclientPort=2181\n");
    let path = zoo_cfg.path().to_str().unwrap();
    let environment = [
        ("HOSTNAME", "laptop"),
        ("POD_NAMESPACE", "prod"),
        ("ZKRAFT_REPLICAS", ""),
    ];
    let ran = run_in(&environment, &["serve", path], Script::Runs, || signals(1));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.config.unwrap().members, []);
}

#[test]
fn check_config_ends_with_1_if_a_server_would_not_start() {
    let zoo_cfg = file("dataDir=/data\nclientPort=2181\nssl.keyStore.password=x\n");
    let ran = zkraft(&["check-config", zoo_cfg.path().to_str().unwrap()]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains(": refused\n"), "{}", ran.out);
    assert!(
        ran.err
            .contains(":3: ssl.keyStore.password=***: not supported"),
        "{}",
        ran.err
    );
    assert_eq!(zkraft(&["check-config", "/nonexistent"]).code, 1);
}
