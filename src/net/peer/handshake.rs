//! How two servers get to know each other at the beginning of a connection.
//!
//! ```text
//! dialler                                             acceptor
//!   magic, version, hello (who, to whom, lane, nonce) ──►
//!                 ◄── magic, version, challenge (who, nonce)
//!   proof of the cluster secret ──►
//!                                          ◄── welcome, with a proof too
//!   ready ──►
//! ```
//!
//! Either side may refuse instead of its next step, with a text for the operators of the other one.
//! Instead of a welcome there is the proof with it, so that who is refused knows by whom.
//! What a server says of itself is believed only after its proof: a stranger is told which server
//! this is, but cannot stir anything.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::Introduction;
use super::frame::{self, FrameError, FrameReader};
use super::notice::printable;
use super::secret::{Role, Secret, Transcript};
use crate::proto::peer::handshake::Step;
use crate::proto::peer::{Challenge, Handshake, Hello, Lane, Proof, Ready, Refusal, Told};

/// The whole of it takes no longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

const MAGIC: [u8; 8] = *b"zkraftPR";
const VERSION: u32 = 1;
const PREAMBLE: usize = MAGIC.len() + 4;
/// No step is longer: one has the lines of all servers.
const STEP_BYTES_MAX: usize = 64 << 10;
const NONCE_BYTES: usize = 16;
/// How long a refused side may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Why two servers are not connected. The text is for operators.
#[derive(Clone, Debug)]
pub(in crate::net) struct Failure {
    pub kind: FailureKind,
    pub text: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::net) enum FailureKind {
    /// Nobody listens there: the system of the other side said so.
    NobodyListens,
    /// The connection ended before it was one, as it does when a process ends.
    CutOff,
    /// The other side said no.
    Refused,
    /// Anything else.
    Other,
}

impl Failure {
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    fn other(text: impl Into<String>) -> Self {
        Self::new(FailureKind::Other, text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => error.into(),
            FrameError::Torn => Self::new(FailureKind::CutOff, error.to_string()),
            _ => Self::other(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => FailureKind::NobodyListens,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected => FailureKind::CutOff,
            _ => FailureKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

/// This side of a handshake.
pub(in crate::net) struct Party<'a> {
    pub me: Introduction,
    pub secret: Option<&'a Secret>,
    /// What the other side is told of the ensemble.
    pub told: Told,
    /// Whether the other side, which has proved itself and tells this, may be connected to; if not,
    /// why.
    pub vet: &'a (dyn Fn(&Introduction, &Told) -> Result<(), String> + Sync),
    /// The disk that is held to be that of a server.
    pub knows: &'a (dyn Fn(u32) -> u64 + Sync),
}

/// A connection to another server, after the handshake.
pub(in crate::net) struct Greeted {
    pub socket: Socket,
    /// What was said of this server.
    pub me: Introduction,
    pub other: Introduction,
    pub lane: Lane,
}

/// Both directions of a connection in frames.
#[derive(Debug)]
pub(in crate::net) struct Socket {
    pub read: FrameReader<OwnedReadHalf>,
    pub write: OwnedWriteHalf,
}

/// Opens a connection as the side that dialled. `target`: who should be there.
pub(in crate::net) async fn dial(
    stream: TcpStream,
    party: &Party<'_>,
    target: u32,
    lane: Lane,
) -> Result<Greeted, Failure> {
    let mut socket = Socket::new(stream);
    let hello = encode(Step::Hello(Hello {
        me: Some(party.me),
        target,
        lane: lane.into(),
        nonce: nonce()?,
        secret: party.secret.is_some(),
    }));
    socket.begin(&hello).await?;

    let version = socket.read_preamble().await?;
    // A refusal reads the same in all versions.
    let heard = socket.hear().await;
    let (challenge, step) = match heard {
        Err(failure) if failure.kind == FailureKind::Refused => return Err(failure),
        _ if version != VERSION => return Err(Failure::other(other_version(version))),
        heard => heard?,
    };
    let Step::Challenge(Challenge { me, nonce: _ }) = step else {
        return Err(out_of_turn(&step));
    };
    let other = introduced(me)?;
    let said = Transcript {
        hello: &hello,
        challenge: &challenge,
    };
    socket
        .say(Step::Proof(party.proof(Role::Dialler, said)))
        .await?;

    let (proof, refused) = match socket.hear_any().await?.1 {
        Step::Welcome(proof) => (proof, None),
        Step::Refusal(Refusal { text, proof }) => (proof.unwrap_or_default(), Some(refusal(&text))),
        step => return Err(out_of_turn(&step)),
    };
    let checked = party.check(Role::Acceptor, said, &proof).and_then(|told| {
        if other.server != target {
            return Err(wrong_target(other.server, target));
        }
        (party.vet)(&other, &told)
    });
    if let Some(refused) = refused {
        return Err(refused);
    }
    if let Err(text) = checked {
        return Err(socket.refuse(text).await);
    }
    socket.say(Step::Ready(Ready {})).await?;
    Ok(socket.greeted(party.me, other, lane))
}

/// Opens a connection as the side that was dialled.
pub(in crate::net) async fn accept(
    stream: TcpStream,
    party: &Party<'_>,
) -> Result<Greeted, Failure> {
    let mut socket = Socket::new(stream);
    let version = socket.read_preamble().await?;
    if version != VERSION {
        socket.write.write_all(&preamble()).await?;
        return Err(socket.refuse(other_version(version)).await);
    }
    let (hello_body, step) = socket.hear().await?;
    let Step::Hello(hello) = step else {
        return Err(out_of_turn(&step));
    };
    let other = introduced(hello.me)?;
    if let Err(text) = compare_secrets(party, hello.secret) {
        socket.write.write_all(&preamble()).await?;
        return Err(socket.refuse(text).await);
    }
    let me = Introduction {
        knows: (party.knows)(other.server),
        ..party.me
    };
    let challenge = encode(Step::Challenge(Challenge {
        me: Some(me),
        nonce: nonce()?,
    }));
    socket.begin(&challenge).await?;

    let (_, step) = socket.hear().await?;
    let Step::Proof(proof) = step else {
        return Err(out_of_turn(&step));
    };
    let said = Transcript {
        hello: &hello_body,
        challenge: &challenge,
    };
    let lane = Lane::try_from(hello.lane).unwrap_or(Lane::Unspecified);
    let told = match party.check(Role::Dialler, said, &proof) {
        Ok(told) => told,
        Err(text) => return Err(socket.refuse(text).await),
    };
    let vetted = match lane {
        _ if hello.target != party.me.server => Err(wrong_target(party.me.server, hello.target)),
        Lane::Unspecified => Err(format!(
            "server {} knows no lane {}",
            party.me.server, hello.lane
        )),
        _ => (party.vet)(&other, &told),
    };
    let proof = party.proof(Role::Acceptor, said);
    if let Err(text) = vetted {
        return Err(socket.refuse_with(text, Some(proof)).await);
    }
    socket.say(Step::Welcome(proof)).await?;
    match socket.hear().await? {
        (_, Step::Ready(Ready {})) => Ok(socket.greeted(me, other, lane)),
        (_, step) => Err(out_of_turn(&step)),
    }
}

impl Socket {
    fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read: FrameReader::new(read, STEP_BYTES_MAX),
            write,
        }
    }

    fn greeted(mut self, me: Introduction, other: Introduction, lane: Lane) -> Greeted {
        self.read.set_limit(frame::BODY_BYTES_MAX);
        Greeted {
            socket: self,
            me,
            other,
            lane,
        }
    }

    /// Tells the other side why not, and returns what happened here.
    pub async fn refuse(&mut self, text: String) -> Failure {
        self.refuse_with(text, None).await
    }

    async fn refuse_with(&mut self, text: String, proof: Option<Proof>) -> Failure {
        let refusal = Step::Refusal(Refusal {
            text: text.clone(),
            proof,
        });
        if self.say(refusal).await.is_ok() && self.write.shutdown().await.is_ok() {
            // Closed with something unread, the connection would be reset, and the refusal lost.
            let _ = timeout(LINGER, async {
                while let Ok(Some(_)) = self.read.next().await {}
            })
            .await;
        }
        Failure::other(text)
    }

    async fn begin(&mut self, step: &[u8]) -> io::Result<()> {
        let mut out = BytesMut::from(&preamble()[..]);
        frame::put(step, &mut out);
        self.write.write_all(&out).await
    }

    async fn say(&mut self, step: Step) -> io::Result<()> {
        let mut out = BytesMut::new();
        frame::put(&encode(step), &mut out);
        self.write.write_all(&out).await
    }

    /// The next step of the other side, and its bytes. A refusal is a failure.
    async fn hear(&mut self) -> Result<(Bytes, Step), Failure> {
        match self.hear_any().await? {
            (_, Step::Refusal(Refusal { text, .. })) => Err(refusal(&text)),
            heard => Ok(heard),
        }
    }

    /// The same, with refusals.
    async fn hear_any(&mut self) -> Result<(Bytes, Step), Failure> {
        let Some(body) = self.read.next().await? else {
            return Err(cut_off());
        };
        let step = decode(body.clone())?;
        Ok((body, step))
    }

    /// Reads the first bytes and returns the version that they name.
    async fn read_preamble(&mut self) -> Result<u32, Failure> {
        let mut seen = 0;
        loop {
            let input = self.read.more(seen).await?;
            if let Some(version) = version_of(input).map_err(Failure::other)? {
                input.advance(PREAMBLE);
                return Ok(version);
            }
            if input.len() == seen {
                return Err(cut_off());
            }
            seen = input.len();
        }
    }
}

/// The version of the protocol that a connection begins with; `None` if that is still to come.
///
/// # Errors
/// It is no server of ours: who it may be, and how to go on.
pub fn version_of(start: &[u8]) -> Result<Option<u32>, String> {
    let common = start.len().min(MAGIC.len());
    if start[..common] != MAGIC[..common] {
        return Err(format!(
            "no zkraft server is at the other end, but {}; this port is for the servers of a \
             cluster only: check the ports of the server.N lines",
            who(start)
        ));
    }
    let version = start.get(MAGIC.len()..PREAMBLE);
    Ok(version.map(|mut version| version.get_u32_le()))
}

/// Reads a step of a handshake.
///
/// # Errors
/// It is none.
pub(super) fn decode(body: Bytes) -> Result<Step, Failure> {
    let handshake = Handshake::decode(body)
        .map_err(|error| Failure::other(format!("a handshake that cannot be read: {error}")))?;
    match handshake.step {
        Some(step) => Ok(step),
        None => Err(Failure::other("a handshake of no known kind")),
    }
}

pub(super) fn refusal(text: &str) -> Failure {
    Failure::new(FailureKind::Refused, printable(text))
}

fn encode(step: Step) -> Bytes {
    Handshake { step: Some(step) }.encode_to_vec().into()
}

fn preamble() -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    let mut out = &mut bytes[..];
    out.put_slice(&MAGIC);
    out.put_u32_le(VERSION);
    bytes
}

fn nonce() -> Result<Bytes, Failure> {
    let mut nonce = vec![0; NONCE_BYTES];
    getrandom::fill(&mut nonce)
        .map_err(|error| Failure::other(format!("the system gives no random bytes: {error}")))?;
    Ok(nonce.into())
}

impl Party<'_> {
    /// That this side, in this role, knows the secret, and what it tells.
    fn proof(&self, role: Role, said: Transcript<'_>) -> Proof {
        let told = Bytes::from(self.told.encode_to_vec());
        let Some(secret) = self.secret else {
            return Proof {
                told,
                ..Proof::default()
            };
        };
        Proof {
            mac: secret.prove(role, said).into(),
            told_mac: secret.prove_told(role, said, &told).into(),
            told,
        }
    }

    /// What the other side, in its role, tells.
    fn check(&self, role: Role, said: Transcript<'_>, proof: &Proof) -> Result<Told, String> {
        if let Some(secret) = self.secret {
            if !secret.verify(role, said, &proof.mac) {
                return Err(
                    "the cluster secrets differ: clusterSecretFile must hold the same on all \
                     servers"
                        .to_owned(),
                );
            }
            // The first builds tell nothing.
            let told = &proof.told;
            if !told.is_empty() && !secret.verify_told(role, said, told, &proof.told_mac) {
                return Err("what the other side tells was changed on its way".to_owned());
            }
        }
        Told::decode(proof.told.clone()).map_err(|error| error.to_string())
    }
}

/// Whether both sides have a secret, or neither.
fn compare_secrets(party: &Party<'_>, theirs: bool) -> Result<(), String> {
    let me = party.me.server;
    match (party.secret.is_some(), theirs) {
        (true, false) => Err(format!(
            "server {me} asks for the cluster secret, and the server that dials has none: set \
             clusterSecretFile there, with the same content as on all others"
        )),
        (false, true) => Err(format!(
            "server {me} has no cluster secret, and the server that dials has one: set \
             clusterSecretFile on server {me} too, with the same content as on all others"
        )),
        _ => Ok(()),
    }
}

fn introduced(me: Option<Introduction>) -> Result<Introduction, Failure> {
    me.filter(|other| other.server != 0)
        .ok_or_else(|| Failure::other("the other side does not say which server it is"))
}

fn wrong_target(found: u32, expected: u32) -> String {
    format!("this is server {found}, not {expected}; check the server.N lines")
}

fn other_version(found: u32) -> String {
    format!(
        "one side speaks version {found} of the protocol between servers, the other version \
         {VERSION}: bring both to versions of zkraft that may run together"
    )
}

fn out_of_turn(step: &Step) -> Failure {
    let name = match step {
        Step::Hello(_) => "hello",
        Step::Challenge(_) => "challenge",
        Step::Proof(_) => "proof",
        Step::Welcome(_) => "welcome",
        Step::Ready(_) => "ready",
        Step::Refusal(_) => "refusal",
    };
    Failure::other(format!("the other side says {name} out of turn"))
}

fn cut_off() -> Failure {
    Failure::new(
        FailureKind::CutOff,
        "the other side closed the connection in the handshake",
    )
}

/// A guess at who begins like this.
fn who(start: &[u8]) -> String {
    let known: [(&[u8], &str); 7] = [
        (b"GET ", "an HTTP client"),
        (b"HEAD ", "an HTTP client"),
        (b"POST ", "an HTTP client"),
        (b"HTTP/", "an HTTP server"),
        (b"\x16\x03", "someone who speaks TLS"),
        (
            b"\xff\xff\xff\xff\xff\xff",
            "an election of ZooKeeper servers",
        ),
        (
            b"\0\0\0\x0b",
            "a ZooKeeper server that looks for its leader",
        ),
    ];
    let found = known.iter().find(|(bytes, _)| start.starts_with(bytes));
    match found {
        Some((_, name)) => (*name).to_owned(),
        None if start.starts_with(&[0, 0]) => "a ZooKeeper client".to_owned(),
        None => {
            let shown = start[..start.len().min(16)].escape_ascii();
            format!("someone who begins with \"{shown}\"")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format is a promise to later versions.
    #[test]
    fn golden_bytes_of_a_beginning() {
        let me = Introduction {
            server: 2,
            disk: 3,
            boot: 4,
            level: 1,
            cluster: 5,
            formed: true,
            ..Introduction::default()
        };
        let hello = encode(Step::Hello(Hello {
            me: Some(me),
            target: 1,
            lane: Lane::Bulk.into(),
            nonce: Bytes::from_static(&[7; NONCE_BYTES]),
            secret: true,
        }));
        let mut out = BytesMut::from(&preamble()[..]);
        frame::put(&hello, &mut out);
        let hex: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "7a6b7261667450520100000036000000241b5b790a340a1a0802110300000000000000180420\
             012905000000000000003001100118022210070707070707070707070707070707072801"
        );
        assert_eq!(version_of(&out), Ok(Some(VERSION)));
        assert_eq!(version_of(&out[..11]), Ok(None));
    }

    #[test]
    fn strangers_are_recognized() {
        let cases: [(&[u8], &str); 5] = [
            (b"HTTP/1.1 200 OK", "but an HTTP server;"),
            (b"\0\0\0\x2d\0\0\0\0", "but a ZooKeeper client;"),
            (
                b"\0\0\0\x0b",
                "but a ZooKeeper server that looks for its leader;",
            ),
            (
                b"\xff\xff\xff\xff\xff\xff\0\0",
                "but an election of ZooKeeper servers;",
            ),
            (b"ruok\n", "but someone who begins with \"ruok\\n\";"),
        ];
        for (start, expected) in cases {
            let text = version_of(start).unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
    }
}
