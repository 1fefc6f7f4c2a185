//! Where servers listen: names, resolved each time anew, and the port of this one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::notice::Notice;

/// A slower answer is as good as none.
const PATIENCE: Duration = Duration::from_secs(5);
/// For what a name meant before, this is enough: while nobody answers for names, servers are found
/// where they were, without losing the time in which others would be elected. A slower answer
/// counts the next time.
const HASTE: Duration = Duration::from_millis(200);
/// A name with more addresses is not one server's.
const ADDRESSES_MAX: usize = 16;

/// Where a server listens for its peers.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PeerAddress {
    /// A name, or a literal address; IPv6 with or without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Turns names into addresses.
#[derive(Clone)]
pub struct Resolver(Arc<dyn Fn(String, u16) -> Lookup + Send + Sync>);

impl Resolver {
    /// The system's.
    pub fn system() -> Self {
        Self::new(|host, port| async move {
            let found = tokio::net::lookup_host((host, port)).await?;
            Ok(found.collect())
        })
    }

    pub fn new<F>(lookup: impl Fn(String, u16) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |host, port| Box::pin(lookup(host, port))))
    }

    /// The addresses of a name now, at least one.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn resolve(&self, address: &PeerAddress) -> io::Result<Vec<SocketAddr>> {
        let host = address.host.trim_start_matches('[').trim_end_matches(']');
        let lookup = (self.0)(host.to_owned(), address.port);
        let mut found = timeout(PATIENCE, lookup)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        found.truncate(ADDRESSES_MAX);
        match found.is_empty() {
            true => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            )),
            false => Ok(found),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

type Answer = Result<Vec<SocketAddr>, String>;

/// What names mean. A name that does not resolve now is taken for what it was last: names are not
/// as reliable as servers, and who is there says who it is.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<BTreeMap<PeerAddress, Name>>);

#[derive(Debug, Default)]
struct Name {
    known: Vec<SocketAddr>,
    /// A lookup that is under way: there is no use in another one.
    lookup: Option<watch::Receiver<Option<Answer>>>,
}

impl Names {
    /// Where a server may be that has this name, at least one address.
    ///
    /// # Errors
    /// Why none is known.
    pub async fn look_up(self: &Arc<Self>, resolver: &Resolver, address: &PeerAddress) -> Answer {
        let (mut lookup, is_known) = self.begin(resolver, address);
        let patience = if is_known { HASTE } else { PATIENCE };
        let answer = match timeout(patience, lookup.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone(),
            // It ended without a word, as when the server stops.
            Ok(Err(_)) | Err(_) => None,
        };
        let why = match answer {
            Some(Ok(found)) => return Ok(found),
            Some(Err(why)) => why,
            None => "nobody answers".to_owned(),
        };
        let known = self.known(address);
        match known.is_empty() {
            true => Err(why),
            false => Ok(known),
        }
    }

    fn known(&self, address: &PeerAddress) -> Vec<SocketAddr> {
        let names = self.0.lock();
        let name = names.get(address);
        name.map_or_else(Vec::new, |name| name.known.clone())
    }

    /// Begins a lookup, unless there is one; and whether something is known without it.
    fn begin(
        self: &Arc<Self>,
        resolver: &Resolver,
        address: &PeerAddress,
    ) -> (watch::Receiver<Option<Answer>>, bool) {
        let mut names = self.0.lock();
        let name = names.entry(address.clone()).or_default();
        let is_known = !name.known.is_empty();
        if let Some(lookup) = &name.lookup {
            return (lookup.clone(), is_known);
        }
        let (answered, lookup) = watch::channel(None);
        name.lookup = Some(lookup.clone());
        let (names, resolver, address) = (self.clone(), resolver.clone(), address.clone());
        // Nobody waits for it when this server stops.
        tokio::spawn(async move {
            let found = resolver.resolve(&address).await;
            let answer = found.map_err(|error| error.to_string());
            let mut names = names.0.lock();
            let name = names.entry(address).or_default();
            name.lookup = None;
            if let Ok(found) = &answer {
                name.known.clone_from(found);
            }
            answered.send_replace(Some(answer));
        });
        (lookup, is_known)
    }
}

/// Binds the port for peers. While this server's own name does not resolve, or to an address that
/// this machine does not have (yet), it waits and says so: in many places a name exists only some
/// time after its server has started.
///
/// # Errors
/// What waiting does not mend: the port is in use, or not allowed.
pub async fn listen(own: &PeerAddress, resolver: &Resolver) -> io::Result<TcpListener> {
    const PAUSES: [u64; 4] = [50, 100, 250, 500];
    let mut notice = Notice::default();
    let mut pauses = PAUSES.into_iter();
    loop {
        let problem = match resolver.resolve(own).await {
            Err(error) => format!("its name does not resolve: {error}"),
            Ok(addresses) => match bind(addresses, |address| crate::net::listen(address, None))? {
                Ok(listener) => return Ok(listener),
                Err(address) => format!("{} is not an address of this machine", address.ip()),
            },
        };
        if notice.is_news(&problem) {
            tracing::warn!(
                address = %own,
                problem,
                "waiting for this server's own address; check its server.N line if this goes on"
            );
        }
        sleep(Duration::from_millis(pauses.next().unwrap_or(1_000))).await;
    }
}

/// Binds the first that can be; else the last address that this machine does not have.
fn bind<L>(
    mut addresses: Vec<SocketAddr>,
    listen: impl Fn(SocketAddr) -> io::Result<L>,
) -> io::Result<Result<L, SocketAddr>> {
    // The IPv6 socket serves IPv4 too; the other is for machines without IPv6.
    if let [SocketAddr::V6(every)] = addresses[..]
        && every.ip().is_unspecified()
    {
        addresses.push((Ipv4Addr::UNSPECIFIED, every.port()).into());
    }
    let mut absent = None;
    let mut unsupported = None;
    for address in addresses {
        match listen(address) {
            Ok(listener) => return Ok(Ok(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                absent = Some(address);
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                unsupported = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (absent, unsupported) {
        (None, Some(error)) => Err(error),
        (absent, _) => Ok(Err(absent.expect("a resolved name has an address"))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_machine_without_ipv6_listens_by_ipv4() {
        let without_ipv6 = |address: SocketAddr| match address {
            SocketAddr::V4(_) => Ok(address),
            SocketAddr::V6(_) => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        };
        let every = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7));
        let one = SocketAddr::from((Ipv6Addr::LOCALHOST, 7));
        let other = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
        let bound = |addresses: &[SocketAddr]| bind(addresses.to_vec(), without_ipv6);
        let all_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7));
        assert_eq!(bound(&[every]).unwrap(), Ok(all_ipv4));
        assert_eq!(bound(&[one, other]).unwrap(), Ok(other));
        let error = bound(&[one]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT));
    }

    #[tokio::test]
    async fn a_server_waits_for_its_own_name() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let resolver = Resolver::new(move |host, port| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            async move {
                assert_eq!(host, "zk1.example");
                match number {
                    0 => Err(io::Error::other("no such name")),
                    // An address for documentation: nobody has it.
                    1 => Ok(vec![SocketAddr::from(([192, 0, 2, 1], port))]),
                    _ => Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
                }
            }
        });
        let own = PeerAddress {
            host: "zk1.example".to_owned(),
            port: 0,
        };
        let listener = listen(&own, &resolver).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        let taken = PeerAddress {
            port: listener.local_addr().unwrap().port(),
            ..own
        };
        let error = listen(&taken, &resolver).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_server_is_looked_for_where_it_was_while_nobody_answers_for_its_name() {
        let at = |host: u8| SocketAddr::from(([127, 0, 0, host], 7));
        // The first question is answered at once, the second one when that is asked for.
        let asked = Arc::new(AtomicU32::new(0));
        let release = Arc::new(tokio::sync::Notify::new());
        let (count, released) = (asked.clone(), release.clone());
        let resolver = Resolver::new(move |_, _| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            let released = released.clone();
            async move {
                if number == 1 {
                    released.notified().await;
                }
                match number {
                    0 => Ok(vec![at(1)]),
                    1 => Ok(vec![at(2)]),
                    _ => Err(io::Error::other("no such name")),
                }
            }
        });
        let names = Arc::new(Names::default());
        let name = PeerAddress {
            host: "zk1.example".to_owned(),
            port: 7,
        };
        assert_eq!(names.look_up(&resolver, &name).await, Ok(vec![at(1)]));
        for _ in 0..3 {
            assert_eq!(names.look_up(&resolver, &name).await, Ok(vec![at(1)]));
            assert_eq!(asked.load(Ordering::Relaxed), 2, "one question at a time");
        }
        // A late answer is not lost.
        release.notify_one();
        assert_eq!(names.look_up(&resolver, &name).await, Ok(vec![at(2)]));
        // The name is gone: the server is where it was, until another answer comes.
        assert_eq!(names.look_up(&resolver, &name).await, Ok(vec![at(2)]));
        let other = PeerAddress {
            host: "zk2.example".to_owned(),
            port: 7,
        };
        let unknown = names.look_up(&resolver, &other).await;
        assert_eq!(unknown, Err("no such name".to_owned()));
    }

    #[tokio::test]
    async fn literal_addresses_need_no_name() {
        for (host, expected) in [("127.0.0.1", "127.0.0.1:7"), ("[::1]", "[::1]:7")] {
            let address = PeerAddress {
                host: host.to_owned(),
                port: 7,
            };
            let found = Resolver::system().resolve(&address).await.unwrap();
            assert_eq!(found, [expected.parse().unwrap()]);
        }
    }
}
