//! Who the servers are: their lines as text, taken apart again each time (§5.5, §12.3, §12.5).

use std::collections::BTreeMap;

use bytes::Bytes;
use zkraft::wire::request::Reconfig;
use zkraft::wire::{Answer, ErrorCode, EventType, Id, Zxid, perms};

use super::rules::check_acl;
use super::{Model, Znode};

/// By number, what stands behind `server.N=` in /zookeeper/config.
pub type Lines = BTreeMap<u32, String>;

const CONFIG: &str = "/zookeeper/config";
const BAD: ErrorCode = ErrorCode::BadArguments;

impl Model {
    /// §3.3 reconfig. A change under way is no error: the leader puts the request off.
    pub(super) fn reconfig(&mut self, request: &Reconfig, ids: &[Id]) -> Result<Answer, ErrorCode> {
        if self.setting("reconfig_enabled") == 0 {
            return Err(ErrorCode::ReconfigDisabled);
        }
        let Some((lines, since)) = self.ensemble.clone() else {
            return Err(ErrorCode::Unimplemented);
        };
        if request.version != -1 && request.version != since.0 {
            return Err(ErrorCode::BadVersion);
        }
        let lines = changed(lines, request)?;
        if self.no_quorum {
            return Err(ErrorCode::NewConfigNoQuorum);
        }
        check_acl(&self.now[CONFIG].acl, perms::WRITE, ids)?;
        self.show(lines);
        let znode = &self.now[CONFIG];
        Ok(Answer::Data(znode.data.clone(), znode.stat()))
    }

    /// The leader's own: only if it knows the present version, and if it makes sense.
    pub(super) fn configure(&mut self, text: &str, expected: Zxid) {
        let present = self.ensemble.as_ref().map_or(Zxid(0), |(_, since)| *since);
        if let Ok(lines) = full(text)
            && present == expected
        {
            self.step();
            self.show(lines);
        }
    }

    /// §3.4 reconfig: the data, mzxid and mtime of the znode; its version is always -1.
    fn show(&mut self, lines: Lines) {
        let mut text = String::new();
        for (id, line) in &lines {
            text += &format!("server.{id}={line}\n");
        }
        text += &format!("version={:x}", self.zxid.0);
        let mut znode = Znode::clone(&self.now[CONFIG]);
        znode.data = Some(Bytes::from(text));
        znode.stat.version = -1;
        znode.stat.mzxid = self.zxid;
        znode.stat.mtime = self.time_ms;
        let acl = znode.acl.clone();
        self.put(CONFIG, znode);
        self.changed(EventType::NodeDataChanged, CONFIG, acl, Vec::new());
        self.ensemble = Some((lines, self.zxid));
    }
}

/// The lines that a request leads to.
fn changed(mut lines: Lines, request: &Reconfig) -> Result<Lines, ErrorCode> {
    let text = |part: &Option<zkraft::wire::Text>| part.as_deref().unwrap_or("").to_owned();
    let (joining, leaving) = (text(&request.joining), text(&request.leaving));
    if let Some(members) = &request.members {
        return match (joining.as_str(), leaving.as_str()) {
            ("", "") => full(members),
            _ => Err(BAD),
        };
    }
    for id in leaving
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
    {
        let id: i64 = id.parse().map_err(|_| BAD)?;
        lines.retain(|there, _| i64::from(*there) != id);
    }
    let mut joined = Vec::new();
    for item in joining
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        if !item.contains(';') {
            return Err(BAD);
        }
        let (id, line) = server(item)?;
        if joined.contains(&id) {
            return Err(BAD);
        }
        joined.push(id);
        lines.insert(id, line);
    }
    possible(lines)
}

/// All lines of a text, between commas or line ends.
fn full(text: &str) -> Result<Lines, ErrorCode> {
    let mut lines = Lines::new();
    for item in text.replace(',', "\n").lines().map(str::trim) {
        if let Some(version) = item.strip_prefix("version=") {
            i64::from_str_radix(version, 16).map_err(|_| BAD)?;
        } else if !item.is_empty() {
            let (id, line) = server(item)?;
            if lines.insert(id, line).is_some() {
                return Err(BAD);
            }
        }
    }
    possible(lines)
}

/// `server.N=host:port:port[:role][|…][;[host:]port]`, and how it is printed: with the role, and
/// with a client address only if that has a host (amendment 17).
fn server(item: &str) -> Result<(u32, String), ErrorCode> {
    let (key, line) = item.split_once('=').ok_or(BAD)?;
    let id = key.strip_prefix("server.").and_then(|id| id.parse().ok());
    let id = id.filter(|id| (1..=255).contains(id)).ok_or(BAD)?;
    let (peers, client) = match line.split_once(';') {
        Some((peers, client)) => (peers, Some(client_address(client)?)),
        None => (line, None),
    };
    let everywhere = client.as_ref().filter(|(host, _)| host.is_empty());
    let mut roles = Vec::new();
    let mut addresses = Vec::new();
    for peer in peers.split('|') {
        let (host, rest) = host_and_rest(peer)?;
        let mut rest: Vec<&str> = rest.split(':').collect();
        if rest.len() == 3 {
            roles.push(rest.pop().expect("three").to_lowercase());
        }
        let [quorum, election] = rest[..] else {
            return Err(BAD);
        };
        let (quorum, election) = (port(quorum)?, port(election)?);
        if quorum == election || everywhere.is_some_and(|(_, port)| *port == quorum) {
            return Err(BAD);
        }
        addresses.push(format!("{host}:{quorum}:{election}"));
    }
    let role = roles.first().map_or("participant", String::as_str);
    if !["participant", "observer"].contains(&role) || roles.iter().any(|other| other != role) {
        return Err(BAD);
    }
    let mut printed = format!("{}:{role}", addresses.join("|"));
    if let Some((host, port)) = client.filter(|(host, _)| !host.is_empty()) {
        printed += &format!(";{host}:{port}");
    }
    Ok((id, printed))
}

/// `[host:]port`; a host that is every address is empty.
fn client_address(text: &str) -> Result<(String, u16), ErrorCode> {
    for everywhere in ["", ":", "0.0.0.0:", "[::]:"] {
        if let Some(Ok(port)) = text.strip_prefix(everywhere).map(port) {
            return Ok((String::new(), port));
        }
    }
    let (host, number) = host_and_rest(text)?;
    Ok((host, port(number)?))
}

/// The host with the brackets it needs, and what follows it.
fn host_and_rest(text: &str) -> Result<(String, &str), ErrorCode> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(text) => text.split_once("]:").ok_or(BAD)?,
        None => text.split_once(':').ok_or(BAD)?,
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
    match host.chars().all(fine) && !host.is_empty() {
        true if host.contains(':') => Ok((format!("[{host}]"), rest)),
        true => Ok((host.to_owned(), rest)),
        false => Err(BAD),
    }
}

fn port(text: &str) -> Result<u16, ErrorCode> {
    text.parse().ok().filter(|port| *port > 0).ok_or(BAD)
}

/// No two servers, and no two ports of one, may have the same address; and somebody must vote.
fn possible(lines: Lines) -> Result<Lines, ErrorCode> {
    let mut taken = Vec::new();
    for line in lines.values() {
        let (peers, client) = line.split_once(';').unwrap_or((line, ""));
        let peers = peers.rsplit_once(':').expect("printed with a role").0;
        for peer in peers.split('|') {
            let (rest, election) = peer.rsplit_once(':').expect("a printed port");
            let (host, quorum) = rest.rsplit_once(':').expect("a printed port");
            taken.extend([quorum, election].map(|port| format!("{host}:{port}").to_lowercase()));
        }
        if !client.is_empty() {
            taken.push(client.to_lowercase());
        }
    }
    let all = taken.len();
    taken.sort();
    taken.dedup();
    let votes = |line: &String| {
        line.split(';')
            .next()
            .expect("one")
            .ends_with("participant")
    };
    match taken.len() == all && lines.values().any(votes) {
        true => Ok(lines),
        false => Err(BAD),
    }
}
