//! The servers of the ensemble, as the replicated state knows them (§5.5, §12.5).
//!
//! The machine keeps them beside the znodes: /zookeeper/config shows their text and is written with
//! every change of theirs, but it is not where they are read from. A super user may write what they
//! like into that znode (s79), as in ZooKeeper, and change by it what clients are shown, until the
//! next change of the ensemble, but never who its members are.
//!
//! Whether a change can come into force (servers that are in sync, another change under way) is for
//! the leader to say, before it is in the log.

use std::collections::BTreeSet;
use std::fmt;

use super::digest::{Part, Term};
use crate::wire::request::Reconfig;
use crate::wire::{ErrorCode, ServerLine, Zxid};

/// The servers of an ensemble, and since when they are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ensemble {
    /// By id. Clients' addresses only where they tell clients where to go.
    members: Vec<ServerLine>,
    version: Zxid,
    /// The term of the state's digest: asked for with every entry, and changed with few.
    digest: u64,
}

impl Ensemble {
    /// Reads what `Display` writes, or the lines in any order and form that servers may
    /// be configured with; commas separate them too. Without a version it is 0.
    ///
    /// # Errors
    ///
    /// `BadArguments` if the text is malformed, if two servers share a number or an address, if one
    /// has clients and servers at one port, or if nobody votes.
    pub fn parse(text: &str) -> Result<Self, ErrorCode> {
        let mut lines = Vec::new();
        let mut version = Zxid(0);
        for line in items(text, &[',', '\n']) {
            if let Some(hex) = line.strip_prefix("version=") {
                let number = i64::from_str_radix(hex.trim(), 16);
                version = Zxid(number.map_err(|_| ErrorCode::BadArguments)?);
            } else {
                lines.push(server_line(line)?);
            }
        }
        Self::new(lines, version)
    }

    /// The ensemble that a request asks for. It has the version of this one, as it gets its own,
    /// the zxid, when it comes into force.
    ///
    /// # Errors
    ///
    /// `BadVersion` if another version is expected; `BadArguments` as [`Self::parse`], if servers
    /// are both joining or leaving and listed in full, or if nobody is left that votes. (ZooKeeper
    /// refuses to leave one alone, unless `standaloneEnabled` is false.)
    pub fn after(&self, request: &Reconfig) -> Result<Self, ErrorCode> {
        if ![-1, self.version.0].contains(&request.version) {
            return Err(ErrorCode::BadVersion);
        }
        let joining = request.joining.as_deref().unwrap_or_default();
        let leaving = request.leaving.as_deref().unwrap_or_default();
        match &request.members {
            None => self.step(joining, leaving),
            Some(_) if !joining.is_empty() || !leaving.is_empty() => Err(ErrorCode::BadArguments),
            Some(text) => Ok(Self::parse(text)?.since(self.version)),
        }
    }

    /// By id.
    pub fn members(&self) -> &[ServerLine] {
        &self.members
    }

    /// The zxid of the transaction that it came into force with.
    pub fn version(&self) -> Zxid {
        self.version
    }

    /// The same servers from this transaction on.
    pub(super) fn since(self, version: Zxid) -> Self {
        Self::of(self.members, version)
    }

    /// The term of the state's digest.
    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    /// [`Self::digest`] from scratch.
    pub(super) fn recompute(&self) -> u64 {
        Term::new(Part::Ensemble)
            .bytes(self.to_string().as_bytes())
            .finish()
    }

    fn of(members: Vec<ServerLine>, version: Zxid) -> Self {
        let mut ensemble = Self {
            members,
            version,
            digest: 0,
        };
        ensemble.digest = ensemble.recompute();
        ensemble
    }

    fn new(mut members: Vec<ServerLine>, version: Zxid) -> Result<Self, ErrorCode> {
        members.sort_unstable_by_key(|member| member.id);
        let mut ids = members.windows(2);
        if ids.any(|pair| pair[0].id == pair[1].id) {
            return Err(ErrorCode::BadArguments);
        }
        let mut taken = BTreeSet::new();
        for member in &mut members {
            if !member.addresses().all(|address| taken.insert(address)) {
                return Err(ErrorCode::BadArguments);
            }
            if member.advertised().is_none()
                && let Some((_, client_port)) = member.client.take()
                && member
                    .peers
                    .iter()
                    .any(|peer| peer.quorum_port == client_port)
            {
                return Err(ErrorCode::BadArguments);
            }
        }
        let ensemble = Self::of(members, version);
        match ensemble.voters() {
            0 => Err(ErrorCode::BadArguments),
            _ => Ok(ensemble),
        }
    }

    /// First some leave, then others join or, under a number that exists, change. Who is not there
    /// need not leave.
    fn step(&self, joining: &str, leaving: &str) -> Result<Self, ErrorCode> {
        let mut gone = BTreeSet::new();
        for id in items(leaving, &[',']) {
            gone.insert(id.parse::<i64>().map_err(|_| ErrorCode::BadArguments)?);
        }
        let joining = items(joining, &[',']).map(|line| match server_line(line) {
            // Each server must say where clients find it (§12.5).
            Ok(line) if line.client.is_none() => Err(ErrorCode::BadArguments),
            other => other,
        });
        let joining = joining.collect::<Result<Vec<_>, _>>()?;
        gone.extend(joining.iter().map(|line| i64::from(line.id)));
        let staying = self.members.iter();
        let staying = staying.filter(|member| !gone.contains(&i64::from(member.id)));
        Self::new(staying.cloned().chain(joining).collect(), self.version)
    }

    fn voters(&self) -> usize {
        let voters = self.members.iter().filter(|member| !member.observer);
        voters.count()
    }
}

/// As /zookeeper/config has it: without a line end after the version.
impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for member in &self.members {
            writeln!(f, "{member}")?;
        }
        write!(f, "version={:x}", self.version.0)
    }
}

fn items<'a>(text: &'a str, separators: &'a [char]) -> impl Iterator<Item = &'a str> {
    let items = text.split(separators).map(str::trim);
    items.filter(|item| !item.is_empty())
}

fn server_line(line: &str) -> Result<ServerLine, ErrorCode> {
    ServerLine::parse_whole(line).map_err(|_| ErrorCode::BadArguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "server.1=a:1:2:participant;a:3\n\
                        server.2=b:1:2:participant\n\
                        server.3=c:1:2|[::1]:1:2:observer\n\
                        version=10000000a";

    fn three() -> Ensemble {
        Ensemble::parse(TEXT).unwrap()
    }

    fn request(joining: &str, leaving: &str) -> Reconfig {
        let text = |text: &str| (!text.is_empty()).then(|| text.into());
        Reconfig {
            joining: text(joining),
            leaving: text(leaving),
            members: None,
            version: -1,
        }
    }

    fn full(members: &str) -> Reconfig {
        Reconfig {
            members: Some(members.into()),
            ..request("", "")
        }
    }

    /// The lines without the version, or the error.
    fn after(request: &Reconfig) -> Result<String, ErrorCode> {
        let after = three().after(request)?;
        assert_eq!(after.version(), three().version());
        assert_eq!(after.digest(), after.recompute());
        assert_eq!(Ensemble::parse(&after.to_string()), Ok(after.clone()));
        let lines = after.members().iter().map(ServerLine::to_string);
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn the_text_is_read_and_printed() {
        let three = three();
        assert_eq!(three.version(), Zxid::new(1, 10));
        assert_eq!(three.to_string(), TEXT);
        let other_form = "server.3 = c:1:2|[::1]:1:2:OBSERVER, server.1=a:1:2;a:3\n\n\
                          version=10000000a\r\n server.2=b:1:2;2181";
        assert_eq!(Ensemble::parse(other_form), Ok(three));
    }

    #[test]
    fn what_cannot_work_together_is_no_ensemble() {
        for text in [
            "",
            "version=1",
            "server.1=a:1:2:observer",
            "server.1=a:1:2\nserver.1=b:1:2",
            "server.1=a:1:2\nserver.2=a:1:3",
            "server.1=a:1:2\nserver.2=A:3:1",
            "server.1=a:1:2;b:1\nserver.2=b:1:2",
            "server.1=a:1:2;1",
            "server.1=a:1:2;[::]:1",
            "server.1=a:1:2\nversion=x",
            "server.1=a:1:2\nversion=",
            "server.1=a:1:2\ngroup.1=1",
            "server.1=a:1:2\nx",
        ] {
            assert_eq!(
                Ensemble::parse(text),
                Err(ErrorCode::BadArguments),
                "{text:?}"
            );
        }
        assert!(Ensemble::parse("server.1=a:1:2;[::]:3\nserver.2=b:1:2;[::]:3").is_ok());
    }

    #[test]
    fn servers_join_change_and_leave() {
        let [one, two, three] = [0, 1, 2].map(|line| TEXT.lines().nth(line).unwrap());
        assert_eq!(
            after(&request("server.4=d:1:2;5,server.9=e:1:2;e:3", "3,200")),
            Ok(format!(
                "{one}\n{two}\nserver.4=d:1:2:participant\nserver.9=e:1:2:participant;e:3"
            ))
        );
        let changed = "server.2=x:1:2:participant";
        assert_eq!(
            after(&request("server.2=x:1:2;9", "")),
            Ok(format!("{one}\n{changed}\n{three}"))
        );
        let taken_over = request("server.4=b:1:2;9", "2");
        assert_eq!(
            after(&taken_over),
            Ok(format!("{one}\n{three}\nserver.4=b:1:2:participant"))
        );
        assert_eq!(
            after(&request("server.2=b:1:2;9", "2")),
            after(&request("", ""))
        );
        let promoted = request("server.3=c:1:2:participant;9", "1");
        assert_eq!(
            after(&promoted),
            Ok(format!("{two}\nserver.3=c:1:2:participant"))
        );
        assert_eq!(after(&request("", "2")), Ok(format!("{one}\n{three}")));
        let all = "server.8=h:1:2,server.7=g:1:2;g:3\nversion=77";
        assert_eq!(
            after(&full(all)),
            Ok("server.7=g:1:2:participant;g:3\nserver.8=h:1:2:participant".to_owned())
        );
    }

    #[test]
    fn a_bad_request_changes_nothing() {
        for bad in [
            request("", "1,2"),
            request("", "1,2,3"),
            request("", "x"),
            request("", "1;2"),
            request("server.2=b:1:2:observer;9", "1"),
            request("server.4=d:1:2", ""),
            request("server.4=d:1:2;5,server.4=e:1:2;5", ""),
            request("server.4=b:1:9;5", ""),
            request("server.256=d:1:2;5", ""),
            request("4=d:1:2;5", ""),
            full(""),
            full("server.1=a:1:2:observer"),
            Reconfig {
                members: Some(TEXT.into()),
                ..request("", "3")
            },
        ] {
            assert_eq!(after(&bad), Err(ErrorCode::BadArguments), "{bad:?}");
        }
    }

    #[test]
    fn the_version_is_looked_at_first() {
        let at = |version| {
            after(&Reconfig {
                version,
                ..request("x", "")
            })
        };
        let own = three().version().0;
        assert_eq!(at(-1), Err(ErrorCode::BadArguments));
        assert_eq!(at(own), Err(ErrorCode::BadArguments));
        for other in [0, -2, own - 1, own + 1] {
            assert_eq!(at(other), Err(ErrorCode::BadVersion));
        }
    }
}
