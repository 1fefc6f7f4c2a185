//! Whole conversations: several clients of one server in memory, any bytes in any pieces, time,
//! stalls of the disk and broken sockets. What every client sees is held against what it sent.

use bytes::BytesMut;
use zkraft::wire::{ConnectRequest, Request, SessionId, Zxid};

use super::input::{Input, run_of};
use super::request::{encoded, opcode, samples};
use super::server::{Client, PASSWORD, Server};

const CLIENTS: usize = 4;
/// Steps of one input, so that none takes long.
const STEPS: usize = 2_000;

/// What a step is, by the remainder of its byte.
mod step {
    pub const CLIENT: u8 = 0;
    pub const CONNECT: u8 = 1;
    pub const ATTACH: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const BYTES: u8 = 4;
    pub const TIME: u8 = 5;
    pub const STALL: u8 = 6;
    pub const BREAK: u8 = 7;
    pub const KINDS: u8 = 8;
}

struct World {
    server: Server,
    clients: Vec<Client>,
    /// Who does the next step.
    present: usize,
    next_xid: i32,
}

/// Input: settings of the server, then steps.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let server = Server::new(input.byte());
    let mut world = World {
        clients: vec![server.client()],
        server,
        present: 0,
        next_xid: 1,
    };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        world.settle();
    }
    world.end();
}

impl World {
    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        match choice % step::KINDS {
            step::CLIENT => {
                self.present = usize::from(choice / step::KINDS) % CLIENTS;
                while self.clients.len() <= self.present {
                    self.clients.push(self.server.client());
                }
            }
            step::CONNECT => self.connect(SessionId(0), b"", input.byte()),
            step::ATTACH => {
                let whose = usize::from(choice / step::KINDS) % self.clients.len();
                let held = self.clients[whose].session.clone();
                let session = held.map_or(SessionId(7), |held| held.session);
                let how = input.byte();
                let password = if how & 1 == 0 {
                    &PASSWORD[..]
                } else {
                    b"wrong"
                };
                self.connect(session, password, how);
            }
            step::REQUEST => {
                let xid = self.next_xid;
                self.next_xid += 1;
                let opcode = opcode(input);
                let body = input.run();
                let mut frame = BytesMut::new();
                frame.extend_from_slice(&(body.len() as u32 + 8).to_be_bytes());
                frame.extend_from_slice(&xid.to_be_bytes());
                frame.extend_from_slice(&opcode.to_be_bytes());
                frame.extend_from_slice(body);
                self.send(&frame);
            }
            step::BYTES => self.send(input.run()),
            step::TIME => self.server.pass(u64::from(input.byte())),
            step::STALL => self.server.stalled = !self.server.stalled,
            _ => {
                self.clients[self.present].lose();
                self.clients[self.present] = self.server.client();
            }
        }
    }

    fn connect(&mut self, session: SessionId, password: &[u8], how: u8) {
        let request = ConnectRequest {
            last_zxid_seen: Zxid(i64::from(how / 64) << 32),
            timeout_ms: i32::from(how) * 100,
            session,
            password: password.to_vec().into(),
            read_only: (how & 2 == 0).then_some(how & 4 == 0),
        };
        let mut body = BytesMut::new();
        request.encode(&mut body);
        let length = (body.len() as u32).to_be_bytes();
        self.send(&[&length[..], &body].concat());
    }

    fn send(&mut self, bytes: &[u8]) {
        self.clients[self.present].input.extend_from_slice(bytes);
    }

    fn settle(&mut self) {
        self.server.settle(&mut self.clients);
    }

    fn end(&mut self) {
        self.server.stalled = false;
        self.settle();
        // Longer than a handshake may wait.
        self.server.pass(12);
        self.settle();
        self.clients.iter().for_each(Client::check_end);
        assert_eq!(self.server.shared.outstanding(), 0);
        self.server.audit();
    }
}

fn request(request: &Request) -> Vec<u8> {
    let (opcode, body) = {
        let bytes = encoded(request);
        let split = if bytes[0] == 255 { 5 } else { 1 };
        (bytes[..split].to_vec(), bytes[split..].to_vec())
    };
    [vec![step::REQUEST], opcode, run_of(&body)].concat()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let client = |number: u8| vec![step::CLIENT + step::KINDS * number];
    let connect = || vec![step::CONNECT, 40];
    let attach = |whose: u8, how: u8| vec![step::ATTACH + step::KINDS * whose, how];
    let all: Vec<u8> = samples().iter().flat_map(request).collect();
    let choices = |parts: &[Vec<u8>]| [vec![0x0f], parts.concat()].concat();
    let mut seeds = vec![
        choices(&[connect(), all.clone()]),
        // The same with every write unanswered for a while, then time for expiry.
        choices(&[
            connect(),
            vec![step::STALL],
            all.clone(),
            vec![step::TIME, 20, step::STALL, step::TIME, 255],
        ]),
        // Two clients, one of whom moves and breaks.
        choices(&[
            connect(),
            all[..all.len() / 2].to_vec(),
            client(1),
            attach(0, 40),
            all,
            client(2),
            attach(1, 41),
            client(1),
            vec![step::BREAK],
            attach(0, 44),
            vec![step::TIME, 100],
        ]),
        choices(&[
            connect(),
            vec![step::BYTES],
            run_of(b"\0\0\0\x08\0\0\0\x01\0\0\0\x0b\0\0"),
        ]),
        choices(&[vec![step::BYTES], run_of(b"\x7f\xff\xff\xff")]),
        choices(&[vec![step::CONNECT, 255, step::TIME, 30]]),
    ];
    for sample in samples() {
        seeds.push(choices(&[
            connect(),
            request(&samples()[0]),
            request(&sample),
        ]));
    }
    seeds
}
