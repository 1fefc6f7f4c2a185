//! `status`: how a server is, for people and for probes.
//!
//! Asks over the client port, by the four-letter words that monitoring uses: `srvr`, which is
//! always answered, and `mntr` if the server allows it. So it needs no rights and no port of its
//! own, and it works for ZooKeeper too.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::say;

/// How long a server may take to accept, and then for each answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// What a server that does not serve says.
const NOT_SERVING: &str = "not currently serving";
/// What one says that does not answer a word.
const NOT_ALLOWED: &str = "not in the whitelist";
/// What one says that serves without a majority.
const READ_ONLY: &str = "\nMode: read-only\n";

#[derive(Args, Debug)]
pub struct StatusArguments {
    /// The server's address for clients
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2181")]
    pub server: String,
    /// Print nothing but what is wrong; exit code 0 if the server runs, whether it serves or not
    #[arg(long, conflicts_with = "ready")]
    pub live: bool,
    /// Print nothing but what is wrong; exit code 0 if the server serves clients: it knows a leader
    /// and has caught up, and, as far as `mntr` is allowed there, votes if it is to
    #[arg(long)]
    pub ready: bool,
}

/// The line of `mntr` that says that a server does not vote yet, though it is to.
const JOINING: &str = "zk_raft_joining\t1";

/// What `mntr` may tell besides, as it is called there and here.
const DETAILS: [(&str, &str); 11] = [
    ("zk_raft_leader", "leader"),
    ("zk_raft_term", "term"),
    ("zk_raft_lag", "entries behind"),
    ("zk_raft_joining", "joining"),
    ("zk_pending_writes", "pending writes"),
    ("zk_pending_syncs", "pending syncs"),
    ("zk_quorum_size", "voters"),
    ("zk_learners", "followers linked"),
    ("zk_synced_followers", "followers in sync"),
    ("zk_feature_level", "feature level"),
    ("zk_feature_level_known", "level known here"),
];

/// Tells how the server is.
///
/// # Errors
/// It does not answer; or it does not serve, and that was asked for.
pub fn run(arguments: &StatusArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let StatusArguments {
        server,
        live,
        ready,
    } = arguments;
    let answer = ask(server, "srvr")
        .with_context(|| format!("{server} does not answer; does a server run there?"))?;
    if *live {
        return Ok(());
    }
    let serves = !answer.contains(NOT_SERVING);
    if *ready {
        if !serves || answer.contains(READ_ONLY) {
            bail!("{server} runs, but does not serve clients: it knows no leader");
        }
        // Not everyone may ask for more, and is told so; but who is silent is not ready.
        let more = ask(server, "mntr")
            .with_context(|| format!("{server} does not say whether it has caught up"))?;
        if more.contains(NOT_SERVING) {
            bail!("{server} runs, but does not serve clients any more");
        }
        if more.lines().any(|line| line == JOINING) {
            bail!(
                "{server} serves clients, but does not vote yet: until it has caught up, a \
                 majority must be had without it"
            );
        }
        return Ok(());
    }
    if !serves {
        say(
            out,
            &format!(
                "{server} runs, but does not serve clients: it knows no leader, has not \
                 caught up yet, or was removed. Its log says which other servers it cannot reach\n"
            ),
        );
        return Ok(());
    }
    let mut text = String::new();
    for line in answer.lines() {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        text += &format!("{name:<20} {value}\n");
    }
    let more = ask(server, "mntr").unwrap_or_default();
    if more.contains(NOT_ALLOWED) {
        text += "\nFor more, allow `mntr` in the server's 4lw.commands.whitelist.\n";
    }
    let values: BTreeMap<&str, &str> = more
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    for (metric, name) in DETAILS {
        if let Some(value) = values.get(metric) {
            text += &format!("{name:<20} {value}\n");
        }
    }
    let peers = values.iter().filter_map(|(metric, value)| {
        let id: u32 = metric.strip_prefix("zk_peer_linked_")?.parse().ok()?;
        Some((id, *value == "1"))
    });
    // By number: 10 comes after 2.
    for (id, is_linked) in peers.collect::<BTreeMap<_, _>>() {
        let word = if is_linked { "linked" } else { "not linked" };
        text += &format!("{:<20} {word}\n", format!("server {id}"));
    }
    say(out, &text);
    Ok(())
}

/// The answer to a four-letter word.
fn ask(server: &str, word: &str) -> io::Result<String> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in server.to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => stream,
            Err(error) => {
                last = error;
                continue;
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(word.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        return match answer.is_empty() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(answer),
        };
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::admin::four_letter::tests::Server;
    use crate::admin::{EnsembleView, Heard};
    use crate::machine::FEATURE_LEVEL;

    /// A server that answers so many words with this, and its address.
    fn server(words: usize, answer: &'static str) -> String {
        answering(words, move |_| answer.to_owned())
    }

    /// The same with an answer to each word.
    fn answering(words: usize, answer: impl Fn(&str) -> String + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for _ in 0..words {
                let (mut stream, _) = listener.accept().unwrap();
                let mut word = [0; 4];
                stream.read_exact(&mut word).unwrap();
                let answer = answer(std::str::from_utf8(&word).unwrap());
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    /// A server of an ensemble, which leads it.
    fn leader(joining: bool) -> Server {
        let mut server = Server::new();
        server.ensemble = Some(EnsembleView {
            leader: 1,
            term: 42,
            lag: 17,
            writes: 5,
            syncs: 6,
            voters: 3,
            joining,
            config: String::new(),
            leading_ms: 7,
            followers: Heard {
                active: 2,
                synced: 1,
            },
            observers: Heard {
                active: 7,
                synced: 0,
            },
            links: vec![(2, true), (3, false), (10, true)],
        });
        server
    }

    fn status(server: String, live: bool, ready: bool) -> Result<String, String> {
        let arguments = StatusArguments {
            server,
            live,
            ready,
        };
        let mut out = Vec::new();
        match run(&arguments, &mut out) {
            Ok(()) => Ok(String::from_utf8(out).unwrap()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    #[test]
    fn a_server_that_serves_is_live_and_ready_and_shown() {
        let answer = "Zookeeper version: 3.9.5\nMode: leader\n";
        assert_eq!(status(server(1, answer), true, false), Ok(String::new()));
        assert_eq!(status(server(2, answer), false, true), Ok(String::new()));
        let shown = status(server(2, answer), false, false).unwrap();
        assert!(shown.contains("Mode                 leader\n"), "{shown}");
    }

    /// Said by the server itself, so that nothing is looked for that none says.
    #[test]
    fn a_server_of_an_ensemble_is_shown_with_its_part_and_its_links() {
        let shown = status(answering(2, |word| leader(true).say(word)), false, false).unwrap();
        let (srvr, more) = shown.split_at(shown.find("leader               ").unwrap());
        let line = |line: &str| srvr.lines().any(|found| found == line);
        assert!(line("Mode                 leader"), "{shown}");
        assert!(line("Zxid                 0x200000001"), "{shown}");
        let expected = format!(
            "leader               1\n\
             term                 42\n\
             entries behind       17\n\
             joining              1\n\
             pending writes       5\n\
             pending syncs        6\n\
             voters               3\n\
             followers linked     9\n\
             followers in sync    1\n\
             feature level        7\n\
             level known here     {FEATURE_LEVEL}\n\
             server 2             linked\n\
             server 3             not linked\n\
             server 10            linked\n"
        );
        assert_eq!(more, expected);
        // Probes read the same words.
        let ready = |joining| answering(2, move |word| leader(joining).say(word));
        assert_eq!(status(ready(false), false, true), Ok(String::new()));
        let message = status(ready(true), false, true).unwrap_err();
        assert!(message.contains("does not vote yet"), "{message}");
    }

    #[test]
    fn what_a_server_does_not_say_is_not_shown() {
        let address = answering(2, |word| Server::new().say(word));
        let shown = status(address, false, false).unwrap();
        let names = shown.lines().map(|line| line[..20].trim_end());
        let details: Vec<_> = DETAILS.iter().map(|(_, name)| *name).collect();
        let found: Vec<_> = names.filter(|name| details.contains(name)).collect();
        assert_eq!(found, ["feature level", "level known here"]);
        // Nor does it fail where more may not be asked.
        let refusing = |word: &str| match word {
            "srvr" => "Mode: leader\n".to_owned(),
            word => format!("{word} is not executed because it is not in the whitelist.\n"),
        };
        let shown = status(answering(2, refusing), false, false).unwrap();
        let mode = "Mode                 leader\n";
        assert!(
            shown.starts_with(mode) && shown.contains("allow `mntr`"),
            "{shown}"
        );
        let silent = server(1, "Mode: leader\n");
        assert_eq!(status(silent, false, false), Ok(mode.to_owned()));
    }

    #[test]
    fn a_server_without_a_leader_is_live_and_not_ready() {
        let answer = "This ZooKeeper instance is not currently serving requests\n";
        assert_eq!(status(server(1, answer), true, false), Ok(String::new()));
        assert!(status(server(1, answer), false, true).is_err());
        let shown = status(server(1, answer), false, false).unwrap();
        assert!(shown.contains("does not serve clients"), "{shown}");
    }

    #[test]
    fn a_server_that_does_not_say_whether_it_votes_is_not_ready() {
        let message = status(server(1, "Mode: follower\n"), false, true).unwrap_err();
        assert!(message.contains("whether it has caught up"), "{message}");
        let allowed = "mntr is not executed because it is not in the whitelist.\n";
        assert_eq!(status(server(2, allowed), false, true), Ok(String::new()));
    }

    #[test]
    fn a_server_that_does_not_vote_yet_is_live_and_not_ready() {
        let answer = "Mode: observer\nzk_raft_joining\t1\n";
        assert_eq!(status(server(1, answer), true, false), Ok(String::new()));
        let message = status(server(2, answer), false, true).unwrap_err();
        assert!(message.contains("does not vote yet"), "{message}");
    }

    #[test]
    fn a_server_that_only_lets_read_is_not_ready() {
        let answer = "Zookeeper version: 3.9.5\nREAD-ONLY mode\nMode: read-only\nNode count: 5\n";
        assert!(status(server(1, answer), false, true).is_err());
        let shown = status(server(2, answer), false, false).unwrap();
        assert!(
            shown.contains("Mode                 read-only\n"),
            "{shown}"
        );
    }

    #[test]
    fn where_no_server_is_that_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let message = status(address, true, false).unwrap_err();
        assert!(message.contains("does a server run there?"), "{message}");
    }
}
