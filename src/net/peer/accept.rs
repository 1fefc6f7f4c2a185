//! What peers dialled: handshakes with anyone, then the messages of those who are welcome.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::dial::prepare;
use super::frame::{FrameError, FrameReader};
use super::handshake::{self, Failure, FailureKind, Greeted, Party};
use super::presence::{Gate, Place};
use super::{Introduction, Shared, is_of_other_cluster, stopped};
use crate::engine::PeerMessage;
use crate::engine::peer::PeerError;
use crate::logging::Seldom;
use crate::proto::peer::{Lane, Told};
use raft::eraftpb::MessageType;

/// Handshakes at a time. One more, and the oldest is broken off: an honest one takes milliseconds.
const HANDSHAKES_MAX: usize = 64;
/// Two lines about connections that cannot be accepted are this far apart at least.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Accepts connections until told to stop.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let failures = Seldom::every(LOG_PAUSE);
    let begun = Arc::new(Begun::default());
    let mut stop = shared.stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => begin(&shared, &begun, stream, address),
                Err(error) => {
                    if let Some(left_out) = failures.ask() {
                        tracing::warn!(%error, left_out, "cannot accept a connection of a peer");
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            },
            () = stopped(&mut stop) => return,
        }
    }
}

/// Handshakes that have begun and not ended, by age.
#[derive(Debug, Default)]
struct Begun(Mutex<(u64, BTreeMap<u64, AbortHandle>)>);

fn begin(shared: &Arc<Shared>, begun: &Arc<Begun>, stream: TcpStream, address: SocketAddr) {
    let mut handshakes = begun.0.lock();
    let (number, handles) = &mut *handshakes;
    *number += 1;
    let number = *number;
    let (task_shared, task_begun) = (shared.clone(), begun.clone());
    let alive = shared.alive.subscribe();
    let task = shared.runtime.spawn(async move {
        let greeted = greet(&task_shared, stream).await;
        task_begun.0.lock().1.remove(&number);
        match greeted {
            Ok(greeted) => welcome(&task_shared, greeted).await,
            Err(failure) => note(&task_shared, address, &failure),
        }
        drop(alive);
    });
    handles.insert(number, task.abort_handle());
    if handles.len() > HANDSHAKES_MAX
        && let Some((_, oldest)) = handles.pop_first()
    {
        oldest.abort();
    }
}

async fn greet(shared: &Shared, stream: TcpStream) -> Result<Greeted, Failure> {
    prepare(&stream);
    let vet = |other: &Introduction, told: &Told| shared.vet(other, told);
    let party = Party {
        me: shared.introduction_to(0),
        secret: shared.secret.as_ref(),
        told: shared.host.tell(),
        vet: &vet,
        knows: &|other| shared.host.knows(other),
    };
    let mut stop = shared.stop.clone();
    tokio::select! {
        greeted = timeout(handshake::PATIENCE, handshake::accept(stream, &party)) => {
            let late = || Failure::new(
                FailureKind::Other,
                format!("no handshake within {} s", handshake::PATIENCE.as_secs()),
            );
            greeted.unwrap_or_else(|_| Err(late()))
        }
        () = stopped(&mut stop) => Err(Failure::new(FailureKind::CutOff, "this server stops")),
    }
}

/// One line for those who see only this server's log; the other side has its own.
fn note(shared: &Shared, address: SocketAddr, failure: &Failure) {
    let reason = &failure.text;
    match failure.kind {
        // Such as a peer that only looked whether somebody listens.
        FailureKind::CutOff => tracing::debug!(%address, reason, "no handshake"),
        _ if !shared.notices.is_news(address.ip(), reason) => {}
        FailureKind::Refused => tracing::warn!(%address, reason, "a server refuses this one"),
        _ => tracing::warn!(%address, reason, "a connection to the port for servers is refused"),
    }
}

async fn welcome(shared: &Arc<Shared>, mut greeted: Greeted) {
    let other = greeted.other;
    let gate = match shared.presence.enter(&other, Place::of(greeted.lane)) {
        Ok(gate) => gate,
        Err(text) => {
            let server = other.server;
            tracing::warn!(server, reason = text, "a connection of a peer is refused");
            greeted.socket.refuse(text).await;
            return;
        }
    };
    // Nothing that a newer start has said may come before it.
    gate.pass(|| shared.host.introduced(&other));
    let peer = shared.peer(other.server.into());
    if let Some(peer) = &peer {
        peer.call.now();
    }
    let mut stop = shared.stop.clone();
    let reason = tokio::select! {
        reason = serve_lane(shared, greeted, &gate) => reason,
        () = gate.closed() => "it is replaced, or its server was removed".to_owned(),
        () = stopped(&mut stop) => "this server stops".to_owned(),
    };
    tracing::debug!(
        server = other.server,
        reason,
        "a connection of a peer ended"
    );
    if shared.presence.leave(&gate)
        && let Some(peer) = peer
    {
        peer.call.in_doubt();
    }
}

/// Returns why the connection has ended.
async fn serve_lane(shared: &Arc<Shared>, greeted: Greeted, gate: &Gate) -> String {
    let Greeted {
        socket,
        other,
        lane,
        ..
    } = greeted;
    match lane {
        Lane::Urgent | Lane::Bulk => {
            // The other direction is kept open for as long as there is something to read.
            let _write = socket.write;
            let reason = receive(shared, socket.read, other, gate).await;
            if let Err(reason) = &reason {
                tracing::warn!(server = other.server, reason, "a peer is not understood");
            }
            reason.map_or_else(|reason| reason, ToOwned::to_owned)
        }
        Lane::Snapshot => crate::net::transfer::receive(shared, socket, other).await,
        Lane::Unspecified => unreachable!("such a handshake is refused"),
    }
}

async fn receive<R: tokio::io::AsyncRead + Unpin>(
    shared: &Shared,
    mut read: FrameReader<R>,
    other: Introduction,
    gate: &Gate,
) -> Result<&'static str, String> {
    let from = u64::from(other.server);
    loop {
        let first = match read.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok("the peer closed it"),
            Err(FrameError::Io(error)) => {
                tracing::debug!(server = from, %error, "a connection of a peer broke");
                return Ok("it broke");
            }
            Err(error) => return Err(error.to_string()),
        };
        if is_of_other_cluster(&shared.introduction_to(0), &other) {
            return Err("it is of another cluster".to_owned());
        }
        // What came together is dealt with together.
        let mut messages = Vec::new();
        let refused = take_all(first, &mut read, |frame| {
            gate.received.add(1, frame.len());
            let message = match PeerMessage::decode(frame) {
                Ok(message) => message,
                Err(PeerError::Unknown) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            };
            if !is_of(&message, from, shared.me.server.into()) {
                return Err("it speaks for another server, or to another one".to_owned());
            }
            messages.push(message);
            Ok(())
        });
        if !gate.pass(|| shared.host.heard(from, messages)) {
            return Ok("a newer connection replaced it");
        }
        refused?;
    }
}

/// Does this with a frame and with those that came with it.
fn take_all<R: tokio::io::AsyncRead + Unpin>(
    first: Bytes,
    read: &mut FrameReader<R>,
    mut take: impl FnMut(Bytes) -> Result<(), String>,
) -> Result<(), String> {
    let mut frame = Some(first);
    while let Some(next) = frame {
        take(next)?;
        frame = read.ready().map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Whether a message may come from this server to this one.
fn is_of(message: &PeerMessage, from: u64, to: u64) -> bool {
    match message {
        PeerMessage::Raft(raft) => {
            // Passed on by a follower, it names the server that is to lead.
            let passed_on = raft.get_msg_type() == MessageType::MsgTransferLeader;
            (raft.from == from || passed_on) && raft.to == to
        }
        _ => true,
    }
}
