//! A server of one voter in memory, driven by hand: time passes and the disk answers when it is
//! told to.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use zkraft::engine::large::Large;
use zkraft::engine::{
    Append, AuthOptions, CleanerOptions, Connection, Engine, Event, Options, Outputs, Remaining,
    Setup, Shared,
};
use zkraft::machine::{Machine, OriginId};
use zkraft::proto::log;
use zkraft::wire::{ConnectResponse, FrameLength, Reader, Zxid, frame_length, op, xid};

/// `jute.maxbuffer` here.
pub const FRAME_BYTES: usize = 64 << 10;
/// What every session gets: chance has no place in a target.
pub const PASSWORD: [u8; 16] = [9; 16];
pub const TIMEOUTS_MS: (i32, i32) = (1_000, 10_000);
const TICK_MS: u64 = 50;
const SETTINGS: [&str; 3] = ["enforce_quota", "extended_types", "reconfig_enabled"];

pub struct Server {
    engine: Engine,
    pub shared: Arc<Shared>,
    pub now_ms: u64,
    /// Written, not durable.
    written: Vec<Append>,
    /// Whether the disk answers nothing.
    pub stalled: bool,
}

impl Server {
    /// `choices`: one bit for each setting, and for the digest scheme.
    pub fn new(choices: u8) -> Self {
        let chosen = |bit: usize| choices & (1 << bit) != 0;
        let settings = (0..).zip(SETTINGS);
        let settings = settings.map(|(bit, name)| (name, i64::from(chosen(bit))));
        let (min_session_timeout_ms, max_session_timeout_ms) = TIMEOUTS_MS;
        let options = Options {
            tick_ms: TICK_MS,
            session_tick_ms: 500,
            min_session_timeout_ms,
            max_session_timeout_ms,
            snap_count: 50,
            cleaner: CleanerOptions {
                interval_ms: 1_000,
                never_used_ms: 2_000,
                ..CleanerOptions::default()
            },
            auth: AuthOptions {
                digest_enabled: chosen(SETTINGS.len()),
                ..AuthOptions::default()
            },
            settings: settings.collect(),
            ..Options::default()
        };
        let setup = Setup {
            origin: OriginId {
                server: 1,
                disk: 7,
                incarnation: 1,
            },
            options,
            random: Box::new(|| PASSWORD),
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            machine: Machine::new(),
            hard_state: log::HardState::default(),
            membership: log::Membership {
                voters: vec![1],
                ..log::Membership::default()
            },
            entries: Vec::new(),
            snapshot_due: false,
            admitted: true,
        };
        let engine = Engine::new(setup, 0);
        let shared = engine.shared();
        let mut server = Self {
            engine,
            shared,
            now_ms: 0,
            written: Vec::new(),
            stalled: false,
        };
        server.turn();
        assert!(server.shared.is_serving(), "a sole voter serves at once");
        server
    }

    /// Does what there is to do.
    pub fn turn(&mut self) {
        loop {
            let mut out = Outputs::default();
            let wall_ms = 1_700_000_000_000 + self.now_ms as i64;
            self.engine.turn(self.now_ms, wall_ms, &mut out);
            self.written.append(&mut out.append);
            if let Some((meta, image)) = out.take_snapshot {
                let chunks: Vec<Bytes> = image.chunks().collect();
                let bytes = chunks.iter().map(Bytes::len).sum::<usize>() as u64;
                let index = meta.index;
                let restored = Machine::restore(chunks.into_iter().map(Ok::<_, ()>));
                let restored = restored.expect("an image is restored");
                assert_eq!(restored.digest(), meta.digest);
                self.event(Event::SnapshotTaken { index, bytes });
            }
            let Some(last) = self.written.pop_if(|_| !self.stalled) else {
                return;
            };
            self.written.clear();
            self.event(Event::Persisted(last.number));
        }
    }

    pub fn pass(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.now_ms += TICK_MS;
            self.event(Event::Tick);
            self.turn();
        }
    }

    fn event(&mut self, event: Event) {
        let mut out = Outputs::default();
        self.engine.handle(event, self.now_ms, &mut out);
        self.written.append(&mut out.append);
        assert!(out.take_snapshot.is_none(), "that is for a turn");
    }

    /// Checks the whole state.
    pub fn audit(&self) {
        self.shared.state.read().machine.audit();
    }

    pub fn client(&self) -> Client {
        let peer = "127.0.0.1:1234".parse().expect("an address");
        Client {
            connection: self.shared.connect(peer, Box::new(|_| {})),
            input: BytesMut::new(),
            output: BytesMut::new(),
            expected: VecDeque::new(),
            session: None,
            large: None,
            is_closed: false,
            is_ambiguous: false,
            seen: Zxid(0),
        }
    }

    /// Goes on until neither the server nor any of its clients has anything left to do.
    pub fn settle(&mut self, clients: &mut [Client]) {
        loop {
            let mut worked = false;
            for client in &mut *clients {
                worked |= client.pump(self.now_ms);
            }
            self.turn();
            for client in &mut *clients {
                worked |= client.read(self.now_ms);
            }
            if !worked {
                return;
            }
        }
    }
}

/// A socket, and what its client must see on it.
pub struct Client {
    connection: Arc<Connection>,
    /// Sent, but not taken by the server yet.
    pub input: BytesMut,
    output: BytesMut,
    /// What is to be answered, in order.
    expected: VecDeque<Expected>,
    /// A large read that is being answered, step by step.
    large: Option<Large>,
    /// Once there is one.
    pub session: Option<ConnectResponse>,
    pub is_closed: bool,
    /// It has sent a request under the xid of events, so that replies cannot be told from those.
    is_ambiguous: bool,
    /// The highest zxid in a header.
    seen: Zxid,
}

#[derive(Debug, Eq, PartialEq)]
enum Expected {
    Connect,
    Reply(i32),
}

impl Client {
    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        let length = (frame.len() as u32).to_be_bytes();
        self.input.extend_from_slice(&length);
        self.input.extend_from_slice(frame);
    }

    /// Lets the server take frames, as many as it wants, the way `net::client` does.
    ///
    /// Returns whether it took any.
    fn pump(&mut self, now_ms: u64) -> bool {
        if self.is_closed || self.input.is_empty() {
            return false;
        }
        let mut sent = self.input.clone();
        let is_first = self.connection.awaits_handshake();
        let (input, output) = (&mut self.input, &mut self.output);
        let Ok(frames) = self
            .connection
            .receive(input, FRAME_BYTES, || now_ms, output)
        else {
            self.lose();
            return true;
        };
        for number in 0..frames {
            let FrameLength::Body(body) = frame_length(&sent, FRAME_BYTES) else {
                panic!("a frame was taken where there is none");
            };
            assert!(sent.len() >= 4 + body, "half a frame was taken");
            sent.advance(4);
            let frame = sent.split_to(body).freeze();
            self.expect(is_first && number == 0, frame);
        }
        assert_eq!(self.input, sent, "what was not taken stays");
        if let FrameLength::Refused(_) = frame_length(&self.input, FRAME_BYTES) {
            self.lose();
            return true;
        }
        frames > 0
    }

    /// The socket breaks.
    pub fn lose(&mut self) {
        self.is_closed = true;
        self.connection.lost();
    }

    fn expect(&mut self, is_handshake: bool, frame: Bytes) {
        if is_handshake {
            self.expected.push_back(Expected::Connect);
            return;
        }
        let mut reader = Reader::new(frame);
        let (Ok(xid), Ok(opcode)) = (reader.int(), reader.int()) else {
            panic!("a frame without a header was taken");
        };
        let xid = if opcode == op::PING { xid::PING } else { xid };
        self.is_ambiguous |= xid == xid::NOTIFICATION;
        self.expected.push_back(Expected::Reply(xid));
    }

    /// Reads what the server has sent and holds it against what was asked, then lets the server go
    /// one step further with a large read. Returns whether there was one.
    fn read(&mut self, now_ms: u64) -> bool {
        while !self.is_closed {
            let remaining = self.connection.take_output(&mut self.output);
            while let Some(length) = self.output.first_chunk::<4>() {
                let length = i32::from_be_bytes(*length) as usize;
                assert!(self.output.len() >= 4 + length, "whole frames are sent");
                self.output.advance(4);
                let frame = self.output.split_to(length).freeze();
                self.check(frame);
            }
            assert!(self.output.is_empty(), "whole frames are sent");
            self.connection.output_sent();
            match remaining {
                Remaining::More => {}
                Remaining::Nothing => break,
                Remaining::Closed => self.lose(),
            }
        }
        if self.is_closed {
            return false;
        }
        match &mut self.large {
            None => {
                self.large = self.connection.begin_large();
                self.large.is_some()
            }
            Some(large) => {
                if self.connection.step_large(large, now_ms) {
                    self.large = None;
                }
                true
            }
        }
    }

    fn check(&mut self, frame: Bytes) {
        if self.expected.front() == Some(&Expected::Connect) {
            self.expected.pop_front();
            let response = ConnectResponse::decode(frame).expect("a ConnectResponse");
            if response.timeout_ms != 0 {
                let (min, max) = TIMEOUTS_MS;
                assert!((min..=max).contains(&response.timeout_ms));
                assert_ne!(response.session.0, 0);
                self.session = Some(response);
            }
            return;
        }
        assert!(self.session.is_some(), "nothing is sent without a session");
        let mut reader = Reader::new(frame);
        let header = (reader.int(), reader.long(), reader.int());
        let (Ok(xid), Ok(zxid), Ok(error)) = header else {
            panic!("a frame shorter than a header");
        };
        if zxid > 0 {
            assert!(Zxid(zxid) >= self.seen, "{zxid:x} after {}", self.seen);
            self.seen = Zxid(zxid);
        }
        if self.is_ambiguous {
            return;
        }
        if xid == xid::NOTIFICATION {
            assert_eq!(error, 0, "of an event");
            return;
        }
        let expected = self.expected.pop_front();
        assert_eq!(expected, Some(Expected::Reply(xid)), "replies are in order");
        assert!(
            error == 0 || reader.remaining() == 0,
            "an error has no body"
        );
    }

    /// At the end, when nothing holds the server back any more.
    pub fn check_end(&self) {
        if !self.is_closed && !self.is_ambiguous {
            assert!(self.expected.is_empty(), "unanswered: {:?}", self.expected);
        }
    }
}
