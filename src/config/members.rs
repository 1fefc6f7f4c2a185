//! The servers as zoo.cfg tells of them: their lines (§12.3), in the words of the configuration.
//!
//! Syntax only: whether servers with these lines can work together is decided by `settle`.

use super::values::{Expected, Range};
use crate::wire::server_line::{self, LineError, ServerLine};

pub use crate::wire::server_line::{PeerAddress, bracketed, is_wildcard};

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

/// Ids that fit the top byte of session ids (§2.3).
pub const ID_RANGE: Range = Range {
    min: 1,
    max: 255,
    unit: "",
};

impl Member {
    /// Reads `host:quorumPort:electionPort[:role][|…][;[host:]clientPort]` of `server.<id>`.
    pub fn parse(id: &str, line: &str) -> Result<Self, Expected> {
        let line = ServerLine::parse(id, line)?;
        Ok(Self {
            id: line.id,
            observer: line.observer,
            peers: line.peers,
            client: line.client,
            advertised: None,
        })
    }

    /// The line as /zookeeper/config has it (§5.5).
    pub fn line(&self) -> String {
        let advertised = self.advertised.clone();
        self.with_client(advertised.map(|(host, port)| (Some(host), port)))
            .to_string()
    }

    /// Every address that no other server may have.
    pub fn addresses(&self) -> Vec<String> {
        self.with_client(self.client.clone()).addresses().collect()
    }

    fn with_client(&self, client: Option<(Option<String>, u16)>) -> ServerLine {
        ServerLine {
            id: self.id,
            observer: self.observer,
            peers: self.peers.clone(),
            client,
        }
    }
}

/// The number at the end of `server.N`.
pub fn member_id(text: &str) -> Result<u32, Expected> {
    server_line::server_id(text).ok_or_else(|| LineError::Id.into())
}

/// `host:port` that clients can use from where they are.
pub fn reachable(text: &str) -> Result<(String, u16), Expected> {
    server_line::reachable(text).map_err(|error| match error {
        LineError::Client => Expected::new("host:port as clients reach it, not a wildcard address"),
        other => other.into(),
    })
}

/// Reads a role.
pub fn is_observer(role: &str) -> Result<bool, Expected> {
    Ok(server_line::is_observer(role)?)
}

impl From<LineError> for Expected {
    fn from(error: LineError) -> Self {
        Self::new(match error {
            LineError::Key | LineError::Id => "a server number from 1 to 255 after `server.`",
            LineError::Form => {
                "host:quorumPort:electionPort[:participant|:observer], more such addresses after \
                 `|`, then [;[host:]clientPort]"
            }
            LineError::Port => "a whole number from 1 to 65535",
            LineError::Peer => "a host and two different ports, quorumPort and electionPort",
            LineError::Role => "`participant` or `observer` as the role",
            LineError::Roles => "the same role in all alternatives",
            LineError::Client => "a host name or address before clientPort",
            LineError::SecondClient => "no secure client address: TLS is not supported yet",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_clients_of_the_advertised_address_alone() {
        let mut member = Member::parse("1", "zk1:2888:3888;10.0.0.1:2181").unwrap();
        assert_eq!(member.line(), "server.1=zk1:2888:3888:participant");
        assert_eq!(
            member.addresses(),
            ["zk1:2888", "zk1:3888", "10.0.0.1:2181"]
        );
        member.advertised = Some(reachable("zk.example.com:2181").unwrap());
        let line = "server.1=zk1:2888:3888:participant;zk.example.com:2181";
        assert_eq!(member.line(), line);
    }

    #[test]
    fn refusals_say_what_would_be_accepted() {
        let of_line = |line| Member::parse("1", line).unwrap_err().0;
        assert!(of_line("zk1").starts_with("host:quorumPort:electionPort"));
        assert_eq!(of_line("zk1:1:0"), "a whole number from 1 to 65535");
        assert!(of_line("zk1:1:2;3;4").contains("TLS"));
        let of_address = |address| reachable(address).unwrap_err().0;
        assert!(of_address("0.0.0.0:1").contains("wildcard"));
        assert_eq!(of_address("zk1:0"), "a whole number from 1 to 65535");
    }
}
