//! Lines of the form `server.N=…` (§12.3): what configuration files, requests to reconfigure and
//! /zookeeper/config say of a server.
//!
//! Syntax only: whether servers with these lines can work together is decided elsewhere.

use std::fmt;

/// Ids that fit the top byte of session ids (§2.3).
const IDS: std::ops::RangeInclusive<i64> = 1..=255;
const PORTS: std::ops::RangeInclusive<i64> = 1..=65_535;

/// One server of an ensemble.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerLine {
    /// From 1 to 255.
    pub id: u32,
    /// Whether it follows without a vote.
    pub observer: bool,
    /// Where other servers reach it, in the order to try; at least one.
    pub peers: Vec<PeerAddress>,
    /// Where it serves clients, if its line says so: host, unless every address, and port.
    pub client: Option<(Option<String>, u16)>,
}

/// Where a server is reached by others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAddress {
    pub host: String,
    pub quorum_port: u16,
    /// Nobody listens there: votes travel over the quorum port.
    pub election_port: u16,
}

/// What of a line is not as it must be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LineError {
    #[error("it does not begin with `server.N=`")]
    Key,
    #[error("the server number is not one from 1 to 255")]
    Id,
    #[error("the addresses do not have the form host:quorumPort:electionPort[:role]")]
    Form,
    #[error("a port is not a number from 1 to 65535")]
    Port,
    #[error("the host is malformed, or quorumPort and electionPort are the same")]
    Peer,
    #[error("the role is neither participant nor observer")]
    Role,
    #[error("the alternatives have different roles")]
    Roles,
    #[error("the host before the client port is malformed")]
    Client,
    #[error("there is a second client address")]
    SecondClient,
}

impl ServerLine {
    /// Reads `server.N=` and what [`Self::parse`] reads.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    pub fn parse_whole(line: &str) -> Result<Self, LineError> {
        let (key, value) = line.split_once('=').ok_or(LineError::Key)?;
        let id = key.trim().strip_prefix("server.").ok_or(LineError::Key)?;
        Self::parse(id, value.trim())
    }

    /// Reads `host:quorumPort:electionPort[:role][|…][;[host:]clientPort]` of `server.<id>`.
    ///
    /// # Errors
    ///
    /// The first thing that is not as it must be.
    pub fn parse(id: &str, line: &str) -> Result<Self, LineError> {
        let id = server_id(id).ok_or(LineError::Id)?;
        let mut parts = line.split(';');
        let (peers, observer) = peer_part(parts.next().unwrap_or_default())?;
        let client = parts
            .next()
            .map(|part| client_part(part.trim()))
            .transpose()?;
        if parts.next().is_some() {
            return Err(LineError::SecondClient);
        }
        Ok(Self {
            id,
            observer,
            peers,
            client,
        })
    }

    /// The client address if it tells clients where to go: not a port of every address.
    pub fn advertised(&self) -> Option<(&str, u16)> {
        match &self.client {
            Some((Some(host), port)) if !is_wildcard(host) => Some((host, *port)),
            _ => None,
        }
    }

    /// Every address that no other server may have, in a form that can be compared.
    pub fn addresses(&self) -> impl Iterator<Item = String> {
        let of_peer = |peer: &PeerAddress| {
            [peer.quorum_port, peer.election_port].map(|port| address(&peer.host, port))
        };
        let client = self.advertised().map(|(host, port)| address(host, port));
        self.peers.iter().flat_map(of_peer).chain(client)
    }
}

/// As /zookeeper/config has it (§5.5): a client address that tells nothing is left out.
impl fmt::Display for ServerLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server.{}=", self.id)?;
        for (number, peer) in self.peers.iter().enumerate() {
            let separator = if number == 0 { "" } else { "|" };
            write!(f, "{separator}{peer}")?;
        }
        f.write_str(match self.observer {
            true => ":observer",
            false => ":participant",
        })?;
        match self.advertised() {
            Some((host, port)) => write!(f, ";{}:{port}", bracketed(host)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = bracketed(&self.host);
        write!(f, "{host}:{}:{}", self.quorum_port, self.election_port)
    }
}

/// The number at the end of `server.N`.
pub fn server_id(text: &str) -> Option<u32> {
    number(text, &IDS).map(|id| id as u32)
}

/// `host:port` that clients can use from where they are.
pub fn reachable(text: &str) -> Result<(String, u16), LineError> {
    let (host, port) = split_host(text).ok_or(LineError::Client)?;
    if is_wildcard(host) || !is_host(host) {
        return Err(LineError::Client);
    }
    Ok((host.to_owned(), self::port(port)?))
}

/// Whether `host` means every address of a machine.
pub fn is_wildcard(host: &str) -> bool {
    ["0.0.0.0", "::"].contains(&host)
}

/// The form in which a port may follow.
pub fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// Reads a role.
pub fn is_observer(role: &str) -> Result<bool, LineError> {
    match role.to_ascii_lowercase().as_str() {
        "participant" => Ok(false),
        "observer" => Ok(true),
        _ => Err(LineError::Role),
    }
}

/// The addresses for peers, and whether the server is an observer.
fn peer_part(text: &str) -> Result<(Vec<PeerAddress>, bool), LineError> {
    let mut peers = Vec::new();
    let mut roles = Vec::new();
    for alternative in text.split('|') {
        let (peer, role) = peer_address(alternative.trim())?;
        peers.push(peer);
        roles.extend(role);
    }
    let observer = roles.first().copied().unwrap_or(false);
    if roles.iter().any(|role| *role != observer) {
        return Err(LineError::Roles);
    }
    Ok((peers, observer))
}

/// `host:quorumPort:electionPort[:role]`: the address, and whether an observer if it says so.
fn peer_address(text: &str) -> Result<(PeerAddress, Option<bool>), LineError> {
    let (host, rest) = split_host(text).ok_or(LineError::Form)?;
    let parts: Vec<&str> = rest.split(':').collect();
    let (quorum, election, role) = match parts[..] {
        [quorum, election] => (quorum, election, None),
        [quorum, election, role] => (quorum, election, Some(role)),
        _ => return Err(LineError::Form),
    };
    let (quorum_port, election_port) = (port(quorum)?, port(election)?);
    if !is_host(host) || quorum_port == election_port {
        return Err(LineError::Peer);
    }
    let observer = role.map(is_observer).transpose()?;
    let address = PeerAddress {
        host: host.to_owned(),
        quorum_port,
        election_port,
    };
    Ok((address, observer))
}

/// `[host:]port`. Without a host, and with 0.0.0.0, clients are served on every address.
fn client_part(text: &str) -> Result<(Option<String>, u16), LineError> {
    let (host, port) = split_host(text).unwrap_or(("", text));
    let port = self::port(port)?;
    if host.is_empty() || host == "0.0.0.0" {
        return Ok((None, port));
    }
    if !is_host(host) {
        return Err(LineError::Client);
    }
    Ok((Some(host.to_owned()), port))
}

fn port(text: &str) -> Result<u16, LineError> {
    number(text, &PORTS)
        .map(|port| port as u16)
        .ok_or(LineError::Port)
}

/// A whole number as Java parses it: decimal, with a sign or without.
fn number(text: &str, range: &std::ops::RangeInclusive<i64>) -> Option<i64> {
    text.parse().ok().filter(|number| range.contains(number))
}

/// Splits `host:rest` or `[IPv6]:rest`.
fn split_host(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once("]:"),
        None => text.split_once(':'),
    }
}

/// Whether this may be a name or an address. It goes into /zookeeper/config, where separators and
/// line ends would make other lines of it.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || "-._:%".contains(c))
}

/// Host names are the same in small and capital letters.
fn address(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(&host.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(line: &str) -> ServerLine {
        ServerLine::parse("1", line).unwrap()
    }

    fn peer(host: &str, quorum_port: u16, election_port: u16) -> PeerAddress {
        PeerAddress {
            host: host.to_owned(),
            quorum_port,
            election_port,
        }
    }

    #[test]
    fn all_forms_of_a_line_are_read() {
        let plain = ServerLine {
            id: 1,
            observer: false,
            peers: vec![peer("zk1", 2888, 3888)],
            client: None,
        };
        assert_eq!(line("zk1:2888:3888"), plain);
        assert_eq!(line("zk1:2888:3888:PARTICIPANT"), plain);
        assert!(line("zk1:2888:3888:observer").observer);
        assert_eq!(line("localhost:2888:3888;2181").client, Some((None, 2181)));
        assert_eq!(
            line("[::1]:2888:3888;0.0.0.0:2181").client,
            Some((None, 2181))
        );
        assert_eq!(
            line("zk1:2888:3888:participant;10.0.0.1:2181").client,
            Some((Some("10.0.0.1".into()), 2181))
        );
        assert_eq!(
            line("zk1:2888:3888;[2001:db8::1]:2181").client,
            Some((Some("2001:db8::1".into()), 2181))
        );
        let whole = ServerLine::parse_whole(" server.1 = zk1:2888:3888 ");
        assert_eq!(whole, Ok(plain));
    }

    #[test]
    fn a_server_may_have_several_addresses() {
        let line = line("10.0.0.1:2888:3888 | [2001:db8::1]:2889:3889:observer;2181");
        let peers = [
            peer("10.0.0.1", 2888, 3888),
            peer("2001:db8::1", 2889, 3889),
        ];
        assert_eq!(line.peers, peers);
        assert!(line.observer);
        assert_eq!(line.client, Some((None, 2181)));
    }

    #[test]
    fn a_line_is_printed_as_clients_parse_it() {
        let mut line = line("zk1:2888:3888|[2001:db8::1]:2889:3889;2181");
        let printed = "server.1=zk1:2888:3888|[2001:db8::1]:2889:3889:participant";
        assert_eq!(line.to_string(), printed);
        for (client, shown) in [
            ("zk.example.com:2181", ";zk.example.com:2181"),
            ("[2001:db8::9]:2181", ";[2001:db8::9]:2181"),
        ] {
            let (host, port) = reachable(client).unwrap();
            line.client = Some((Some(host), port));
            assert_eq!(line.to_string(), format!("{printed}{shown}"));
            assert_eq!(ServerLine::parse_whole(&line.to_string()), Ok(line.clone()));
        }
        line.client = Some((Some("::".into()), 2181));
        assert_eq!(line.to_string(), printed, "which is nowhere in particular");
    }

    #[test]
    fn addresses_are_compared_by_their_meaning() {
        let of = |text: &str| line(text).addresses().collect::<Vec<_>>();
        let expected = ["zk1:2888", "zk1:3888", "[::1]:1", "[::1]:2", "c:2181"];
        assert_eq!(of("ZK1:2888:3888|[::1]:1:2;C:2181"), expected);
        assert_eq!(of("zk1:2888:3888;2181").len(), 2);
        assert_eq!(of("zk1:2888:3888;[::]:2181").len(), 2);
    }

    #[test]
    fn malformed_lines_are_refused() {
        for (line, error) in [
            ("", LineError::Form),
            ("zk1", LineError::Form),
            ("zk1:2888", LineError::Form),
            (":2888:3888", LineError::Peer),
            ("zk 1:2888:3888", LineError::Peer),
            ("zk1\n:2888:3888", LineError::Peer),
            ("zk1:2888:2888", LineError::Peer),
            ("zk1:2888:99999", LineError::Port),
            ("zk1:2888:3888:leader", LineError::Role),
            ("zk1:2888:3888:observer:x", LineError::Form),
            ("zk1:2888:3888;", LineError::Port),
            ("zk1:2888:3888;host:", LineError::Port),
            ("zk1:2888:3888;a,b:2181", LineError::Client),
            ("zk1:2888:3888;2181;2281", LineError::SecondClient),
            ("zk1:2888:3888|", LineError::Form),
            (
                "zk1:2888:3888:participant|zk2:2888:3888:observer",
                LineError::Roles,
            ),
            ("[::1:2888:3888", LineError::Form),
        ] {
            assert_eq!(ServerLine::parse("1", line), Err(error), "{line:?}");
        }
        for id in ["0", "256", "-1", "one", ""] {
            let line = ServerLine::parse(id, "zk1:2888:3888");
            assert_eq!(line, Err(LineError::Id), "{id:?}");
        }
        for line in ["", "server.1", "1=zk1:2888:3888", "group.1=1:2"] {
            assert_eq!(ServerLine::parse_whole(line), Err(LineError::Key));
        }
        for address in [
            "zk1",
            "zk1:0",
            "0.0.0.0:2181",
            "[::]:2181",
            ":2181",
            "a;b:1",
        ] {
            assert!(reachable(address).is_err(), "{address:?}");
        }
    }
}
