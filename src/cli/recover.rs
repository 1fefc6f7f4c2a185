//! `recover`: makes a survivor of a lost majority a cluster of its own, once its operator has said
//! that what only the others had may be lost.

use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::admin::four_letter::java_date;
use crate::config::{Config, Invalid, Loaded};
use crate::engine::SurvivorFacts;
use crate::server::Stopped;
use crate::storage::Progress;

use super::args::{LogFlags, Target};
use super::{log_progress, logging, say};

/// How long a server that runs may take to let others connect.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// What must be typed.
const WORDS: &str = "lose what only the others have";

#[derive(Args, Debug)]
pub struct RecoverArguments {
    #[command(flatten)]
    pub target: Target,
    /// Only tell how far this server is, to compare survivors; nothing is changed
    #[arg(long, conflicts_with = "confirm")]
    pub show: bool,
    /// For scripts: the words that would have to be typed
    #[arg(long, value_name = "WORDS")]
    pub confirm: Option<String>,
    /// Go on though something answers where a server is said to be lost
    #[arg(long)]
    pub although_others_answer: bool,
}

/// Asks for a line; `None`: nobody can be asked.
type Ask<'a> = &'a mut dyn FnMut() -> Option<String>;

/// Runs the command; returns the exit code.
pub fn run(
    arguments: &RecoverArguments,
    log: &LogFlags,
    loaded: Result<Loaded, Invalid>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let config = match loaded {
        Ok(loaded) => loaded.config,
        Err(invalid) => {
            say(err, &format!("zkraft recover:\n{invalid}\n"));
            return 2;
        }
    };
    let done = logging::start(log.log_format, log.log_level.as_deref())
        .map_err(anyhow::Error::msg)
        .and_then(|()| recover(arguments, &config, out, &mut ask_at_terminal));
    let Err(error) = done else {
        return 0;
    };
    logging::end();
    say(err, &format!("zkraft recover: {error:#}\n"));
    1
}

/// Tells how far the server is, asks, and does it.
///
/// # Errors
/// It cannot be done, or its operator does not want it.
fn recover(
    arguments: &RecoverArguments,
    config: &Config,
    out: &mut dyn Write,
    ask: Ask<'_>,
) -> anyhow::Result<()> {
    let stopped = Stopped::open(config, Some(Progress::new(log_progress())))?;
    let facts = stopped.facts().clone();
    say(out, &shown(&facts, config));
    if arguments.show {
        return Ok(stopped.leave()?);
    }
    let asked = match arguments.although_others_answer {
        true => Asked::default(),
        false => ask_others(&facts, config),
    };
    if let Some((id, address)) = asked.answering {
        stopped.leave()?;
        bail!(
            "server {id} answers at {address}, so it is not lost, and may make up a majority with \
             another one. Stop it, and compare `zkraft recover --show` there: it may have more \
             than this one. If what answers there is something else, add \
             --although-others-answer. Nothing was changed"
        );
    }
    say(out, &warning(&facts));
    for (id, why) in asked.unasked {
        say(
            out,
            &format!("Server {id} could not be asked whether it runs: {why}.\n"),
        );
    }
    let typed = match &arguments.confirm {
        Some(words) => Some(words.clone()),
        None => {
            say(out, &format!("Type `{WORDS}` to go on: "));
            ask()
        }
    };
    if typed.as_deref().map(str::trim) != Some(WORDS) {
        stopped.leave()?;
        match typed {
            Some(_) => bail!("those were not the words: nothing was changed"),
            None => bail!(
                "nobody is there to type the words, and --confirm '{WORDS}' was not given: \
                 nothing was changed"
            ),
        }
    }
    stopped.recover()?;
    say(out, &done(&facts, config));
    Ok(())
}

/// Asks whoever is at the terminal.
fn ask_at_terminal() -> Option<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line).ok()?;
    Some(line)
}

fn shown(facts: &SurvivorFacts, config: &Config) -> String {
    let SurvivorFacts {
        server,
        last,
        committed,
        zxid,
        time_ms,
        znodes,
        sessions,
        membership,
        ..
    } = facts;
    let directory = config.data_dir.display();
    let written = match time_ms {
        0 => "nothing was ever written".to_owned(),
        time_ms => java_date(*time_ms),
    };
    let members = [&membership.voters[..], &membership.voters_outgoing].concat();
    let learners = [&membership.learners[..], &membership.learners_next].concat();
    let vote = match members.contains(server) {
        true => "has a vote",
        false => "has no vote",
    };
    let mut lines = vec![
        (
            "last entry",
            format!("term {}, index {}", last.term, last.index),
        ),
        ("last write", written),
        ("last zxid", format!("0x{:x}", zxid.0)),
        (
            "known committed",
            format!("up to index {committed}; what follows may have been acknowledged or not"),
        ),
        ("state", format!("{znodes} znodes, {sessions} sessions")),
        (
            "voters",
            format!("{}; this server {vote}", listed(&members)),
        ),
    ];
    if !learners.is_empty() {
        lines.push(("learners", listed(&learners)));
    }
    let mut text = format!("server {server} in {directory}\n");
    for (name, value) in lines {
        text += &format!("  {name:<16} {value}\n");
    }
    text += "\
Compare `zkraft recover --show` of all survivors. The one to recover is the one whose last entry has
the highest term and, where the terms are equal, the highest index: whatever a majority had and any
survivor still has, that one has. Do not go by the time, and not by the zxid.
";
    text
}

fn warning(facts: &SurvivorFacts) -> String {
    let server = facts.server;
    let others = listed(&others(facts));
    format!(
        "
This makes server {server} a cluster of its own. Only do it if so many of servers {others}
are gone for good that there will never be a majority again.
  - Whatever was acknowledged without reaching this server is LOST, and nobody can say how much
    that is. A server that had a majority behind it may have acknowledged writes after
    the last one here.
  - Whatever is in the log of this server counts from now on, also what was never acknowledged.
  - Servers {others} are refused from now on, whatever they have. Never start them with their old
    data: a majority of them would be the old cluster again, beside this one, and clients would
    read and write in both. Empty their data and log directories first.
  - Sessions go on: each has its full timeout once this server serves. The epoch of zxids jumps, so
    that clients which have seen lost zxids can connect.
Copy the data and log directories of this server before, if there is room for that.

"
    )
}

fn done(facts: &SurvivorFacts, config: &Config) -> String {
    let server = facts.server;
    let example = others(facts)
        .iter()
        .find_map(|id| {
            let told = facts.lines.iter().find(|line| u64::from(line.id) == *id);
            let line = told.map(ToString::to_string)?;
            Some(if line.contains(';') {
                line
            } else {
                format!("{line};2181")
            })
        })
        .unwrap_or_else(|| "server.2=host:2888:3888;2181".to_owned());
    let enabled = match config.reconfig_enabled {
        true => "",
        false => ", with reconfigEnabled=true in its configuration",
    };
    format!(
        "server {server} is a cluster of its own now. Go on like this:
  1. start it{enabled}; its server lines may stay as they are
  2. empty the data and log directories of each other server (leave its myid), and start it
  3. add each: reconfig -add \"{example}\" in zkCli.sh. It follows, and votes once it has caught up
"
    )
}

/// All members but this server.
fn others(facts: &SurvivorFacts) -> Vec<u64> {
    let membership = &facts.membership;
    let all = [
        &membership.voters[..],
        &membership.voters_outgoing,
        &membership.learners,
        &membership.learners_next,
    ];
    let mut others = all.concat();
    others.retain(|id| *id != facts.server);
    others.sort_unstable();
    others.dedup();
    others
}

/// What the others were found to do.
#[derive(Debug, Default)]
struct Asked {
    /// One that runs, and where it answers.
    answering: Option<(u64, String)>,
    /// Those of which no address is known, and why.
    unasked: Vec<(u64, String)>,
}

/// Looks whether one of the others runs, all at the same time: wherever the log has it, which a
/// reconfig may have changed, and wherever it is configured.
fn ask_others(facts: &SurvivorFacts, config: &Config) -> Asked {
    let places = |id: u64| {
        let told = facts.lines.iter().filter(|line| u64::from(line.id) == id);
        let configured = config.members.iter().filter(|m| u64::from(m.id) == id);
        let told = told.flat_map(|line| &line.peers);
        let mut places: Vec<(&str, u16)> = told
            .chain(configured.flat_map(|member| &member.peers))
            .map(|peer| (&*peer.host, peer.quorum_port))
            .collect();
        places.sort_unstable();
        places.dedup();
        places
    };
    let answers = |id: u64| {
        let mut why = "nothing tells where it is".to_owned();
        let mut is_asked = false;
        for (host, port) in places(id) {
            let addresses = match (host, port).to_socket_addrs() {
                Ok(addresses) => addresses,
                Err(error) => {
                    why = format!("{host} does not resolve: {error}");
                    continue;
                }
            };
            for address in addresses {
                is_asked = true;
                if TcpStream::connect_timeout(&address, ANSWERS_WITHIN).is_ok() {
                    return Ok(Some(format!("{host} port {port}")));
                }
            }
        }
        if is_asked { Ok(None) } else { Err(why) }
    };
    let mut asked = Asked::default();
    thread::scope(|scope| {
        let tried: Vec<_> = others(facts)
            .into_iter()
            .map(|id| (id, scope.spawn(move || answers(id))))
            .collect();
        for (id, tried) in tried {
            match tried.join().expect("nothing there panics") {
                Ok(Some(address)) => asked.answering = Some((id, address)),
                Ok(None) => {}
                Err(why) => asked.unasked.push((id, why)),
            }
        }
    });
    asked
}

fn listed(ids: &[u64]) -> String {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
    ids.join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message as _;

    use super::*;
    use crate::machine::{Machine, op};
    use crate::proto::log;
    use crate::storage::{Storage, StorageConfig};

    // Nobody listens there.
    const LINES: &str = "server.1=a:1:2\nserver.2=127.0.0.1:1:2\nserver.3=127.0.0.1:3:4\n";

    fn config(dir: &Path) -> Config {
        configured(dir, LINES)
    }

    fn configured(dir: &Path, lines: &str) -> Config {
        std::fs::write(dir.join("myid"), "1\n").unwrap();
        let dir = dir.display();
        let text = format!("dataDir={dir}\nclientPort=2181\nclusterSecretFile=/secret\n{lines}");
        let loaded = Loaded::text("zoo.cfg", text.as_bytes(), &[], false);
        loaded.unwrap().config
    }

    /// One of three servers ran here, and stopped.
    fn write_log(dir: &Path) {
        write_log_of(dir, LINES);
    }

    fn write_log_of(dir: &Path, lines: &str) {
        let opened = Storage::open(StorageConfig::new(dir, 1), |_| Ok(Machine::new()));
        let configure = log::Configure {
            text: lines.to_owned(),
            expected: 0,
        };
        let naming = log::Entry {
            time_ms: 1_000,
            internal: vec![log::Command {
                op: op::CONFIGURE,
                body: configure.encode_to_vec().into(),
                ..log::Command::default()
            }],
            ..log::Entry::default()
        };
        let entry = |index, data: Vec<u8>| log::LogEntry {
            term: 3,
            index,
            data: data.into(),
            ..log::LogEntry::default()
        };
        let record = log::Record {
            entries: vec![entry(1, Vec::new()), entry(2, naming.encode_to_vec())],
            hard_state: Some(log::HardState {
                term: 3,
                vote: 2,
                commit: 1,
            }),
            mark: Some(log::SnapshotMark {
                membership: Some(log::Membership {
                    voters: vec![1, 2, 3],
                    ..log::Membership::default()
                }),
                ..log::SnapshotMark::default()
            }),
        };
        let mut storage = opened.unwrap().1;
        storage.write(record).unwrap();
        storage.close().unwrap();
    }

    /// What is said, and how it ends.
    fn run(config: &Config, arguments: &[&str], typed: Option<&str>) -> (String, Option<String>) {
        let words: Vec<&str> = arguments
            .iter()
            .filter(|a| !a.starts_with("--"))
            .copied()
            .collect();
        let arguments = RecoverArguments {
            target: Target {
                words: vec!["zoo.cfg".to_owned()],
                pod: super::super::args::PodFlags {
                    replicas: None,
                    service: None,
                    pod: None,
                },
            },
            show: arguments.contains(&"--show"),
            confirm: words.first().map(|words| (*words).to_owned()),
            although_others_answer: arguments.contains(&"--although-others-answer"),
        };
        let mut out = Vec::new();
        let mut ask = || typed.map(str::to_owned);
        let done = recover(&arguments, config, &mut out, &mut ask);
        let error = done.err().map(|error| format!("{error:#}"));
        (String::from_utf8(out).unwrap(), error)
    }

    #[test]
    fn a_survivor_is_shown_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (_, error) = run(&config, &["--show"], None);
        assert!(error.unwrap().starts_with("there is no data of zkraft in "));
        assert!(!dir.path().join("log").exists(), "nothing is made");
        write_log(dir.path());
        for _ in 0..2 {
            let (shown, error) = run(&config, &["--show"], None);
            assert_eq!(error, None);
            for line in [
                "  last entry       term 3, index 2\n",
                "  last write       Thu Jan 01 00:00:01 UTC 1970\n",
                "  last zxid        0x300000001\n",
                "  known committed  up to index 1;",
                "  voters           1, 2, 3; this server has a vote\n",
            ] {
                assert!(shown.contains(line), "{line}: {shown}");
            }
        }
    }

    #[test]
    fn nothing_is_done_without_the_words() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        write_log(dir.path());
        let wrong = "those were not the words: nothing was changed";
        assert_eq!(run(&config, &["yes"], None).1.unwrap(), wrong);
        let (said, error) = run(&config, &[], Some("yes\n"));
        assert_eq!(error.unwrap(), wrong);
        assert!(said.contains("is LOST") && said.ends_with(&format!("Type `{WORDS}` to go on: ")));
        let (_, error) = run(&config, &[], None);
        assert!(
            error
                .unwrap()
                .starts_with("nobody is there to type the words")
        );
        let (shown, _) = run(&config, &["--show"], None);
        assert!(shown.contains("term 3, index 2\n"), "{shown}");
    }

    #[test]
    fn nothing_is_done_while_another_server_answers() {
        let dir = tempfile::tempdir().unwrap();
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let lines = LINES.replace("127.0.0.1:3:4", &format!("127.0.0.1:{port}:4"));
        let config = configured(dir.path(), &lines);
        write_log(dir.path());
        let error = run(&config, &[WORDS], None).1.unwrap();
        let expected = format!("server 3 answers at 127.0.0.1 port {port}, so it is not lost");
        assert!(error.starts_with(&expected), "{error}");
        // Who only asks is told.
        let (shown, error) = run(&config, &["--show"], None);
        assert_eq!(error, None);
        assert!(shown.contains("term 3, index 2\n"), "{shown}");
        let (_, error) = run(&config, &[WORDS, "--although-others-answer"], None);
        assert_eq!(error, None);
    }

    #[test]
    fn a_server_is_asked_where_the_log_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        // As after a reconfig, of which the file tells nothing.
        let lines = LINES.replace("127.0.0.1:3:4", &format!("127.0.0.1:{port}:4"));
        let lines = lines.replace("server.2=127.0.0.1", "server.2=nowhere.invalid");
        write_log_of(dir.path(), &lines);
        let config = configured(dir.path(), "server.1=a:1:2\nserver.7=b:1:2\n");
        let error = run(&config, &[WORDS], None).1.unwrap();
        let expected = format!("server 3 answers at 127.0.0.1 port {port}, so it is not lost");
        assert!(error.starts_with(&expected), "{error}");
        drop(other);
        let (said, error) = run(&config, &[], Some("no"));
        assert!(error.unwrap().starts_with("those were not the words"));
        let unasked = "Server 2 could not be asked whether it runs: nowhere.invalid does not";
        assert!(said.contains(unasked), "{said}");
    }

    #[test]
    fn with_the_words_it_is_done_once() {
        for (arguments, typed) in [(&[WORDS][..], None), (&[], Some(WORDS))] {
            let dir = tempfile::tempdir().unwrap();
            let config = config(dir.path());
            write_log(dir.path());
            let (said, error) = run(&config, arguments, typed);
            assert_eq!(error, None);
            let next = "reconfig -add \"server.2=127.0.0.1:1:2:participant;2181\"";
            assert!(said.contains(next), "{said}");
            let (shown, _) = run(&config, &["--show"], None);
            for line in [
                "  voters           1; this server has a vote\n",
                // Two are removed, after the new naming.
                "  last entry       term 16777219, index 5\n",
                "  last zxid        0x100000300000001\n",
                "  known committed  up to index 5;",
            ] {
                assert!(shown.contains(line), "{line}: {shown}");
            }
            let (_, error) = run(&config, arguments, typed);
            let error = error.unwrap();
            assert!(error.contains("it is the only member already"), "{error}");
        }
    }

    #[test]
    fn a_server_that_runs_is_let_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        write_log(dir.path());
        let running = Storage::open(StorageConfig::new(dir.path(), 1), |_| Ok(())).unwrap();
        let (_, error) = run(&config, &["--show"], None);
        assert!(error.unwrap().contains("is in use by another zkraft"));
        drop(running);
    }
}
