//! Lines of the form `server.N=…` (§12.3) and the addresses in them.
//!
//! Syntax only: whether servers with these lines can work together is decided by `settle`.

use std::fmt;

use super::values::{Expected, Range, whole};

/// One server of an ensemble.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// From 1 to 255, and at most 254 with `extended_types`.
    pub id: u32,
    /// Whether it follows without a vote.
    pub observer: bool,
    /// Where other servers reach it, in the order to try; at least one.
    pub peers: Vec<PeerAddress>,
    /// Where it serves clients, if its line says so: host, unless every address, and port.
    pub client: Option<(Option<String>, u16)>,
    /// The client address that /zookeeper/config tells of; only if one was set for that purpose,
    /// because clients give up the addresses they were started with for it (§15.2).
    pub advertised: Option<(String, u16)>,
}

/// Where a server is reached by others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAddress {
    pub host: String,
    pub quorum_port: u16,
    /// Nobody listens there: votes travel over the quorum port.
    pub election_port: u16,
}

/// Ids that fit the top byte of session ids (§2.3).
pub const ID_RANGE: Range = Range {
    min: 1,
    max: 255,
    unit: "",
};
const PORTS: Range = Range {
    min: 1,
    max: 65_535,
    unit: "",
};

impl Member {
    /// Reads `host:quorumPort:electionPort[:role][|…][;[host:]clientPort]` of `server.<id>`.
    pub fn parse(id: &str, line: &str) -> Result<Self, Expected> {
        let id = member_id(id)
            .map_err(|_| Expected::new("a server number from 1 to 255 after `server.`"))?;
        let mut parts = line.split(';');
        let (peers, observer) = peer_part(parts.next().unwrap_or_default())?;
        let client = parts
            .next()
            .map(|part| client_part(part.trim()))
            .transpose()?;
        if parts.next().is_some() {
            return Err(Expected::new(
                "no secure client address: TLS is not supported yet",
            ));
        }
        Ok(Self {
            id,
            observer,
            peers,
            client,
            advertised: None,
        })
    }

    /// The line as /zookeeper/config has it (§5.5).
    pub fn line(&self) -> String {
        let role = if self.observer {
            "observer"
        } else {
            "participant"
        };
        let peers: Vec<String> = self.peers.iter().map(PeerAddress::to_string).collect();
        let advertised = self
            .advertised
            .as_ref()
            .map_or(String::new(), |(host, port)| {
                format!(";{}:{port}", bracketed(host))
            });
        format!("server.{}={}:{role}{advertised}", self.id, peers.join("|"))
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = bracketed(&self.host);
        write!(f, "{host}:{}:{}", self.quorum_port, self.election_port)
    }
}

/// The number at the end of `server.N`.
pub fn member_id(text: &str) -> Result<u32, Expected> {
    whole(text, ID_RANGE).map(|id| id as u32)
}

/// `host:port` that clients can use from where they are.
pub fn reachable(text: &str) -> Result<(String, u16), Expected> {
    let form = || Expected::new("host:port as clients reach it, not a wildcard address");
    let (host, port) = split_host(text).ok_or_else(form)?;
    if is_wildcard(host) || !is_host(host) {
        return Err(form());
    }
    Ok((host.to_owned(), whole(port, PORTS)? as u16))
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

/// The addresses for peers, and whether the member is an observer.
fn peer_part(text: &str) -> Result<(Vec<PeerAddress>, bool), Expected> {
    let mut peers = Vec::new();
    let mut roles = Vec::new();
    for alternative in text.split('|') {
        let (peer, role) = peer_address(alternative.trim())?;
        peers.push(peer);
        roles.extend(role);
    }
    let observer = roles.first().copied().unwrap_or(false);
    if roles.iter().any(|role| *role != observer) {
        return Err(Expected::new("the same role in all alternatives"));
    }
    Ok((peers, observer))
}

/// `host:quorumPort:electionPort[:role]`: the address, and whether an observer if it says so.
fn peer_address(text: &str) -> Result<(PeerAddress, Option<bool>), Expected> {
    let form = || {
        Expected::new(
            "host:quorumPort:electionPort[:participant|:observer], more such addresses after `|`, \
             then [;[host:]clientPort]",
        )
    };
    let (host, rest) = split_host(text).ok_or_else(form)?;
    let parts: Vec<&str> = rest.split(':').collect();
    let (quorum, election, role) = match parts[..] {
        [quorum, election] => (quorum, election, None),
        [quorum, election, role] => (quorum, election, Some(role)),
        _ => return Err(form()),
    };
    let (quorum, election) = (whole(quorum, PORTS)?, whole(election, PORTS)?);
    if !is_host(host) || quorum == election {
        return Err(Expected::new(
            "a host and two different ports, quorumPort and electionPort",
        ));
    }
    let observer = role.map(is_observer).transpose()?;
    let address = PeerAddress {
        host: host.to_owned(),
        quorum_port: quorum as u16,
        election_port: election as u16,
    };
    Ok((address, observer))
}

/// Reads a role.
pub fn is_observer(role: &str) -> Result<bool, Expected> {
    match role.to_ascii_lowercase().as_str() {
        "participant" => Ok(false),
        "observer" => Ok(true),
        _ => Err(Expected::new("`participant` or `observer` as the role")),
    }
}

/// `[host:]port`. Without a host, and with 0.0.0.0, clients are served on every address.
fn client_part(text: &str) -> Result<(Option<String>, u16), Expected> {
    let (host, port) = split_host(text).unwrap_or(("", text));
    let port = whole(port, PORTS)? as u16;
    if host.is_empty() || host == "0.0.0.0" {
        return Ok((None, port));
    }
    if !is_host(host) {
        return Err(Expected::new("a host name or address before clientPort"));
    }
    Ok((Some(host.to_owned()), port))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn member(line: &str) -> Member {
        Member::parse("1", line).unwrap()
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
        let plain = Member {
            id: 1,
            observer: false,
            peers: vec![peer("zk1", 2888, 3888)],
            client: None,
            advertised: None,
        };
        assert_eq!(member("zk1:2888:3888"), plain);
        assert_eq!(member("zk1:2888:3888:PARTICIPANT"), plain);
        assert!(member("zk1:2888:3888:observer").observer);
        assert_eq!(
            member("localhost:2888:3888;2181").client,
            Some((None, 2181))
        );
        assert_eq!(
            member("[::1]:2888:3888;0.0.0.0:2181").client,
            Some((None, 2181))
        );
        assert_eq!(
            member("zk1:2888:3888:participant;10.0.0.1:2181").client,
            Some((Some("10.0.0.1".into()), 2181))
        );
        assert_eq!(
            member("zk1:2888:3888;[2001:db8::1]:2181").client,
            Some((Some("2001:db8::1".into()), 2181))
        );
    }

    #[test]
    fn a_server_may_have_several_addresses() {
        let member = member("10.0.0.1:2888:3888 | [2001:db8::1]:2889:3889:observer;2181");
        let peers = [
            peer("10.0.0.1", 2888, 3888),
            peer("2001:db8::1", 2889, 3889),
        ];
        assert_eq!(member.peers, peers);
        assert!(member.observer);
        assert_eq!(member.client, Some((None, 2181)));
    }

    #[test]
    fn a_line_is_printed_as_clients_parse_it() {
        let mut member = member("zk1:2888:3888|[2001:db8::1]:2889:3889;2181");
        let line = "server.1=zk1:2888:3888|[2001:db8::1]:2889:3889:participant";
        assert_eq!(member.line(), line);
        member.advertised = Some(reachable("zk.example.com:2181").unwrap());
        assert_eq!(member.line(), format!("{line};zk.example.com:2181"));
        member.advertised = Some(reachable("[2001:db8::9]:2181").unwrap());
        assert_eq!(member.line(), format!("{line};[2001:db8::9]:2181"));
        let again = Member::parse("1", member.line().trim_start_matches("server.1=")).unwrap();
        assert_eq!(again.peers, member.peers);
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in [
            "",
            "zk1",
            "zk1:2888",
            ":2888:3888",
            "zk 1:2888:3888",
            "zk1:2888:2888",
            "zk1:2888:99999",
            "zk1:2888:3888:leader",
            "zk1:2888:3888:observer:x",
            "zk1:2888:3888;",
            "zk1:2888:3888;host:",
            "zk1:2888:3888;a,b:2181",
            "zk1:2888:3888;2181;2281",
            "zk1:2888:3888|",
            "zk1:2888:3888:participant|zk2:2888:3888:observer",
            "[::1:2888:3888",
        ] {
            assert!(Member::parse("1", line).is_err(), "{line:?}");
        }
        for id in ["0", "256", "-1", "one", ""] {
            assert!(Member::parse(id, "zk1:2888:3888").is_err(), "{id:?}");
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
