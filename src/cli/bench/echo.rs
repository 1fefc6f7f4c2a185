//! A server that does nothing: the ceiling of what any server could reach under this load.
//!
//! It answers each frame with one of the size that a real server's reply would have, and looks at
//! nothing else. What the generator takes against it is what the generator takes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use polling::{Event, Events, PollMode, Poller};

use super::frames;
use super::script::LISTED;
use crate::wire::op;

const LISTENER: usize = usize::MAX - 1;
const STAT_BYTES: usize = 68;

/// The server's thread; it ends when this is dropped.
pub struct Echo {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// `data_bytes`: of the znodes that are read.
    pub fn start(data_bytes: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::Builder::new()
            .name("echo".into())
            .spawn(move || {
                if let Err(error) = serve(&listener, data_bytes, &told) {
                    tracing::warn!(%error, "the echo server failed");
                }
            })?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Peer {
    socket: TcpStream,
    rest: Vec<u8>,
    greeted: bool,
    closing: bool,
}

fn serve(listener: &TcpListener, data_bytes: usize, stop: &AtomicBool) -> std::io::Result<()> {
    let poller = Poller::new()?;
    // SAFETY: the listener outlives the poller, which is dropped at the end of this function.
    unsafe { poller.add_with_mode(listener, Event::readable(LISTENER), PollMode::Level)? };
    let mut peers: Vec<Option<Peer>> = Vec::new();
    let mut events = Events::new();
    let mut buffer = vec![0; 256 << 10];
    let mut output = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        events.clear();
        poller.wait(&mut events, Some(Duration::from_millis(50)))?;
        for event in events.iter() {
            if event.key == LISTENER {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true)?;
                    socket.set_nodelay(true)?;
                    let key = peers.iter().position(Option::is_none);
                    let key = key.unwrap_or_else(|| {
                        peers.push(None);
                        peers.len() - 1
                    });
                    // SAFETY: a socket is taken from the poller before it is dropped below, or
                    // dropped after the poller at the end of this function.
                    unsafe {
                        poller.add_with_mode(&socket, Event::readable(key), PollMode::Level)?;
                    }
                    peers[key] = Some(Peer {
                        socket,
                        rest: Vec::new(),
                        greeted: false,
                        closing: false,
                    });
                }
            } else if let Some(peer) = &mut peers[event.key]
                && !answer(peer, &mut buffer, &mut output, data_bytes)
            {
                poller.delete(&peer.socket)?;
                peers[event.key] = None;
            }
        }
    }
    drop(poller);
    Ok(())
}

/// Answers what came. False: the connection has ended.
fn answer(peer: &mut Peer, buffer: &mut Vec<u8>, output: &mut Vec<u8>, data_bytes: usize) -> bool {
    let rest = peer.rest.len();
    if buffer.len() < rest + (128 << 10) {
        buffer.resize(rest + (256 << 10), 0);
    }
    buffer[..rest].copy_from_slice(&peer.rest);
    let count = match peer.socket.read(&mut buffer[rest..]) {
        Ok(count) if count > 0 => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
        _ => return false,
    };
    output.clear();
    let mut input = &buffer[..rest + count];
    while let Some(frame) = frames::next_frame(&mut input) {
        if peer.greeted {
            peer.closing |= frames::int_at(frame, 4) == Some(op::CLOSE_SESSION);
            reply(frame, data_bytes, output);
        } else {
            peer.greeted = true;
            output.extend_from_slice(&37_i32.to_be_bytes());
            output.extend_from_slice(&[0; 4]);
            output.extend_from_slice(&30_000_i32.to_be_bytes());
            output.extend_from_slice(&[1; 8]);
            output.extend_from_slice(&16_i32.to_be_bytes());
            output.extend_from_slice(&[0; 17]);
        }
    }
    peer.rest = input.to_vec();
    let mut sent = 0;
    while sent < output.len() {
        match peer.socket.write(&output[sent..]) {
            Ok(count) => sent += count,
            // The generator reads what it asked for: there is room again at once.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => return false,
        }
    }
    !peer.closing
}

fn reply(frame: &[u8], data_bytes: usize, output: &mut Vec<u8>) {
    let path_bytes = frames::int_at(frame, 8).unwrap_or(0).max(0) as usize;
    let body = match frames::int_at(frame, 4) {
        Some(op::GET_DATA) => 4 + data_bytes + STAT_BYTES,
        Some(op::SET_DATA | op::EXISTS) => STAT_BYTES,
        Some(op::CREATE) => 4 + path_bytes,
        Some(op::GET_CHILDREN) => 4 + LISTED * 14,
        Some(op::MULTI) => 3 * 60,
        _ => 0,
    };
    output.extend_from_slice(&((16 + body) as i32).to_be_bytes());
    output.extend_from_slice(frame.get(..4).unwrap_or(&[0; 4]));
    output.resize(output.len() + 12 + body, 0);
}
