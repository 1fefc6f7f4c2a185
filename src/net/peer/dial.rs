//! Dialling a peer: its names resolved anew, its addresses tried in order.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::handshake::{self, Failure, FailureKind, Greeted, Party};
use super::{Introduction, Peer, Shared};
use crate::proto::peer::{Lane, Told};

/// An address that does not answer for so long is given up, for now.
const DIAL_PATIENCE: Duration = Duration::from_secs(1);
/// A connection on which nothing is heard is probed after this,
const KEEPALIVE_AFTER: Duration = Duration::from_secs(3);
/// again and again,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
/// so often, and then it is broken;
const KEEPALIVE_PROBES: u32 = 3;
/// as it is when the other side does not confirm for this long what was sent to it. Shorter than
/// what TCP waits before it sends again after a few losses: a new connection is there sooner.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(4);

impl Shared {
    /// Dials a peer: one connection for each of `lanes`, all to the same address.
    pub async fn dial(
        &self,
        peer: &Peer,
        lanes: &[Lane],
    ) -> Result<(SocketAddr, Vec<Greeted>), Failure> {
        let mut failures = Vec::new();
        for address in self.addresses(peer).await? {
            match self.dial_lanes(address, peer.server, lanes).await {
                Ok(greeted) => return Ok((address, greeted)),
                Err(failure) => failures.push((address, failure)),
            }
        }
        Err(summary(&failures))
    }

    /// Whether the systems of all addresses of a peer say that nobody listens there.
    pub async fn is_gone(&self, peer: &Peer) -> bool {
        let Ok(addresses) = self.addresses(peer).await else {
            return false;
        };
        for address in addresses {
            match connect(address).await {
                Err(failure) if failure.kind == FailureKind::NobodyListens => {}
                _ => return false,
            }
        }
        true
    }

    /// Where the peer may be, at least one address.
    async fn addresses(&self, peer: &Peer) -> Result<Vec<SocketAddr>, Failure> {
        let names = peer.addresses.lock().clone();
        let mut found = Vec::new();
        let mut problem = "it has no address".to_owned();
        for name in names {
            let addresses = match peer.names.look_up(&self.resolver, &name).await {
                Ok(addresses) => addresses,
                Err(why) => {
                    problem = format!("{} does not resolve: {why}", name.host);
                    continue;
                }
            };
            for address in addresses {
                if !found.contains(&address) {
                    found.push(address);
                }
            }
        }
        match found.is_empty() {
            true => Err(Failure::new(FailureKind::Other, problem)),
            false => Ok(found),
        }
    }

    async fn dial_lanes(
        &self,
        address: SocketAddr,
        target: u32,
        lanes: &[Lane],
    ) -> Result<Vec<Greeted>, Failure> {
        let mut all: Vec<Greeted> = Vec::new();
        for &lane in lanes {
            let greeted = self.dial_lane(address, target, lane).await?;
            let start = |other: &Introduction| (other.disk, other.boot);
            if all.iter().any(|g| start(&g.other) != start(&greeted.other)) {
                return Err(Failure::new(
                    FailureKind::CutOff,
                    "it was started anew meanwhile",
                ));
            }
            all.push(greeted);
        }
        Ok(all)
    }

    async fn dial_lane(
        &self,
        address: SocketAddr,
        target: u32,
        lane: Lane,
    ) -> Result<Greeted, Failure> {
        let stream = connect(address).await?;
        prepare(&stream);
        let vet = |other: &Introduction, told: &Told| self.vet(other, told);
        let party = Party {
            me: self.introduction_to(target),
            secret: self.secret.as_ref(),
            told: self.host.tell(),
            vet: &vet,
            knows: &|other| self.host.knows(other),
        };
        let handshake = handshake::dial(stream, &party, target, lane);
        let late = || {
            Failure::new(
                FailureKind::Other,
                format!("no answer within {} s", handshake::PATIENCE.as_secs()),
            )
        };
        timeout(handshake::PATIENCE, handshake)
            .await
            .unwrap_or_else(|_| Err(late()))
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let late = || {
        Failure::new(
            FailureKind::Other,
            format!("no answer within {} s", DIAL_PATIENCE.as_secs()),
        )
    };
    match timeout(DIAL_PATIENCE, TcpStream::connect(address)).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(late()),
    }
}

/// Sets what every connection between servers has. Without one of it, a broken connection is
/// noticed later.
pub(super) fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    let socket = SockRef::from(stream);
    let done = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(UNCONFIRMED_MAX)));
    if let Err(error) = done {
        tracing::debug!(%error, "an option of a connection to a peer cannot be set");
    }
}

/// What all attempts together come to.
fn summary(failures: &[(SocketAddr, Failure)]) -> Failure {
    let is_all = |kind| failures.iter().all(|(_, failure)| failure.kind == kind);
    let kinds = [FailureKind::NobodyListens, FailureKind::CutOff];
    let kind = kinds.into_iter().find(|&kind| is_all(kind));
    let texts: Vec<String> = failures
        .iter()
        .map(|(address, failure)| format!("{address}: {failure}"))
        .collect();
    Failure::new(kind.unwrap_or(FailureKind::Other), texts.join("; "))
}
