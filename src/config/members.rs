//! Lines of the form `server.N=…` (§12.3).
//!
//! Syntax only: whether a server may have these members is decided by `settle`.

use super::values::{Expected, Range, whole};

/// One member, as far as a single server needs to know it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    pub id: u32,
    pub observer: bool,
    /// Host, if the line names one, and port for clients.
    pub client: Option<(Option<String>, u16)>,
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
    /// Reads `host:quorumPort:electionPort[:role][;[host:]clientPort]` of `server.<id>`.
    pub fn parse(id: &str, line: &str) -> Result<Self, Expected> {
        let id = whole(id, ID_RANGE)
            .map_err(|_| Expected::new("a server number from 1 to 255 after `server.`"))?;
        if line.contains('|') {
            return Err(Expected::new(
                "one address: `|` alternatives are not supported",
            ));
        }
        let mut parts = line.split(';');
        let observer = peer_part(parts.next().unwrap_or_default().trim())?;
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
            id: id as u32,
            observer,
            client,
        })
    }
}

/// Checks the addresses for peers; says whether the member is an observer.
fn peer_part(text: &str) -> Result<bool, Expected> {
    let form = || {
        Expected::new("host:quorumPort:electionPort[:participant|:observer][;[host:]clientPort]")
    };
    let (host, rest) = split_host(text).ok_or_else(form)?;
    let parts: Vec<&str> = rest.split(':').collect();
    let (quorum, election, role) = match parts[..] {
        [quorum, election] => (quorum, election, "participant"),
        [quorum, election, role] => (quorum, election, role),
        _ => return Err(form()),
    };
    let (quorum, election) = (whole(quorum, PORTS)?, whole(election, PORTS)?);
    if host.is_empty() || quorum == election {
        return Err(Expected::new(
            "a host and two different ports, quorumPort and electionPort",
        ));
    }
    match role.to_ascii_lowercase().as_str() {
        "participant" => Ok(false),
        "observer" => Ok(true),
        _ => Err(Expected::new("`participant` or `observer` after the ports")),
    }
}

/// `[host:]port`. Without a host, and with 0.0.0.0, clients are served on every address.
fn client_part(text: &str) -> Result<(Option<String>, u16), Expected> {
    let (host, port) = split_host(text).unwrap_or(("", text));
    let port = whole(port, PORTS)? as u16;
    let any = host.is_empty() || host == "0.0.0.0";
    Ok(((!any).then(|| host.to_owned()), port))
}

/// Splits `host:rest` or `[IPv6]:rest`.
fn split_host(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once("]:"),
        None => text.split_once(':'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(line: &str) -> Member {
        Member::parse("1", line).unwrap()
    }

    #[test]
    fn all_forms_of_a_line_are_read() {
        let plain = Member {
            id: 1,
            observer: false,
            client: None,
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
    fn malformed_lines_are_refused() {
        for line in [
            "",
            "zk1",
            "zk1:2888",
            ":2888:3888",
            "zk1:2888:2888",
            "zk1:2888:99999",
            "zk1:2888:3888:leader",
            "zk1:2888:3888:observer:x",
            "zk1:2888:3888;",
            "zk1:2888:3888;host:",
            "zk1:2888:3888;2181;2281",
            "zk1:2888:3888|zk2:2888:3888",
            "[::1:2888:3888",
        ] {
            assert!(Member::parse("1", line).is_err(), "{line:?}");
        }
        for id in ["0", "256", "-1", "one", ""] {
            assert!(Member::parse(id, "zk1:2888:3888").is_err(), "{id:?}");
        }
    }
}
