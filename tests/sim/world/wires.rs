//! Connections: the network between clients and server, and the tasks at both ends.
//!
//! A connection is a stream in each direction, with a delay of its own per frame and no change of
//! order. It can be closed by either side, or be cut so that neither is told.

use std::sync::atomic::Ordering;
use std::sync::{OnceLock, Weak};

use bytes::{BufMut as _, Bytes, BytesMut};
use zkraft::engine::{Connection, Remaining};
use zkraft::wire::{ConnectRequest, Request};

use super::*;
use crate::check::Arrival;
use crate::check::local::{Going, Place};
use crate::client::Action;
use crate::reply;

/// What a client that is not served is told of, the latter two by servers that only let read.
const REFUSALS: [&str; 3] = [
    "not serving",
    "the client has seen more than there is here",
    "sessions of the ensemble need a majority",
];

impl World {
    pub(super) fn up(&mut self, conn: ConnId, frame: Bytes) -> Verdict {
        let Some(link) = self.links.get_mut(&conn) else {
            return Ok(());
        };
        if link.cut {
            return Ok(());
        }
        if link.server.is_none() {
            if std::mem::replace(&mut link.accepted, true) {
                // The process that had this connection is gone: the answer is a reset.
                self.close_down(conn);
                return Ok(());
            }
            let Some(process) = &self.hosts[link.to].process else {
                self.close_down(conn);
                return Ok(());
            };
            let outputs = process.wakes.outputs.clone();
            let place = Arc::new(OnceLock::<Weak<Connection>>::new());
            let looked_up = place.clone();
            let wake = Box::new(move |_| {
                // As who sends at once: it waits for ever if the waker holds the connection.
                if let Some(connection) = looked_up.get().and_then(Weak::upgrade) {
                    connection.needs_task();
                }
                outputs.lock().expect("nobody panics with it").push(conn);
            });
            let peer = (conn.address(), 40_000).into();
            let connection = process.shared.connect(peer, wake);
            place.get_or_init(|| Arc::downgrade(&connection));
            let link = self.links.get_mut(&conn).expect("it is there");
            link.server = Some(connection);
        }
        let link = self.links.get_mut(&conn).expect("it is there");
        link.input.push_back(frame);
        self.read_input(conn)
    }

    /// The connection's task reads what its pipeline has room for.
    pub(super) fn read_input(&mut self, conn: ConnId) -> Verdict {
        let Some(server) = self.links.get(&conn).map(|link| link.to) else {
            return Ok(());
        };
        let now_ms = self.clock_ms(server);
        let ran_ms = self.ran_ms(server);
        while let Some(link) = self.links.get_mut(&conn)
            && let Some(connection) = link.server.clone()
            && connection.wants_input(now_ms)
            && !link.input.is_empty()
        {
            // The task reads whatever has come, and leaves what is not wanted yet.
            let frames = std::mem::take(&mut link.input);
            let mut input = BytesMut::new();
            for frame in &frames {
                let frame = self.sabotage.request(frame);
                input.put_u32(frame.len() as u32);
                input.put_slice(&frame);
            }
            let timeout_ms = connection.stats.timeout_ms.load(Ordering::Relaxed);
            let local = self.checks.local_going(conn);
            let is_read_only = self.checks.is_read_only(conn);
            let boot = self.hosts[server].boot;
            let process = self.hosts[server].process.as_ref();
            let served_ms = process.map_or(0, |process| process.served_ms);
            let arrival = Arrival {
                at: Place { server, boot },
                ran_ms,
                now_ms: self.now_us / 1000,
                lonely_ms: now_ms.saturating_sub(served_ms),
            };
            let taken = connection.receive(&mut input, usize::MAX, || now_ms, &mut link.output);
            let count = *taken.as_ref().unwrap_or(&frames.len());
            link.input.extend(frames.iter().skip(count).cloned());
            for frame in frames.iter().take(count) {
                note!(self, "{conn:?} > {server}: {}", short(frame));
                self.checks.received(conn, frame, arrival)?;
            }
            let confirmed_ms = self.process(server).shared.confirmed_ms();
            let (own_ms, in_log_ms) = (self.params.sync_limit_ms, timeout_ms as u64 / 3);
            let answered_ms = match local {
                None => in_log_ms,
                Some(Going::Stays) => own_ms,
                Some(Going::Goes) => own_ms.max(in_log_ms),
            };
            let lease_ms = confirmed_ms.saturating_add(answered_ms);
            if timeout_ms > 0 && count > 0 && now_ms > lease_ms && !is_read_only {
                let what = format!("24: {server} answers {conn:?} without a lease");
                return broken(Group::Sessions, what);
            }
            let serving = self.process(server).serving;
            if let Err(refused) = taken {
                note!(self, "{conn:?} refused: {}", refused.0);
                let host = &self.hosts[server];
                let heard_ms = self.checks.levels.heard_last(server);
                // Who leads has a majority, and only waits for the disk.
                let process = host.process.as_ref();
                let process =
                    process.filter(|process| process.engine.leader() != u64::from(host.id));
                if let Some(process) = process {
                    let since_ms = served_ms.max(heard_ms).max(host.awoke_ms);
                    let since_ms = since_ms.max(process.outside_ms);
                    self.checks
                        .turned_away(conn, now_ms.saturating_sub(since_ms))?;
                }
                let is_known = match self.params.read_only_after_ms {
                    Some(_) => REFUSALS.contains(&refused.0),
                    None => refused.0 == REFUSALS[0],
                };
                if serving || !is_known {
                    return broken(Group::Replies, format!("{conn:?} refused: {}", refused.0));
                }
                // A large state takes its time.
                let is_due = self.is_calm() && !self.is_being_sent(server);
                if is_due && self.members().contains(&server) {
                    return broken(Group::Liveness, format!("25: {server} does not serve"));
                }
                self.close_server_side(conn);
                return Ok(());
            }
            self.output_soon(conn);
            if count == 0 {
                // It was answered so much that this has to be sent first.
                break;
            }
        }
        if let Some(link) = self.links.get(&conn)
            && let Some(connection) = &link.server
            && !link.input.is_empty()
            && connection.unanswered() > 0
        {
            self.stats.floods += 1;
        }
        self.look_at_wakes(server);
        Ok(())
    }

    pub(super) fn output(&mut self, conn: ConnId) -> Verdict {
        loop {
            let now_us = self.now_us;
            let Some(link) = self.links.get_mut(&conn) else {
                return Ok(());
            };
            let server = link.to;
            let now_ms = self.sabotage.clock_ms(self.hosts[server].clock_ms(now_us));
            let Some(connection) = link.server.clone() else {
                return Ok(());
            };
            connection.answer_large(now_ms);
            let remaining = connection.take_output(&mut link.output);
            let mut frames = Vec::new();
            while let Some(frame) = reply::next_frame(&mut link.output) {
                frames.push(frame);
            }
            self.sabotage.frames(&mut frames, &mut self.rng);
            let ran_ms = self.ran_ms(server);
            for frame in frames {
                note!(self, "{conn:?} < {server}: {}", short(&frame));
                self.stats.frames += 1;
                self.checks.frame(conn, frame.clone(), ran_ms)?;
                self.send_down(conn, frame);
            }
            match remaining {
                Remaining::More => {}
                Remaining::Nothing => break,
                Remaining::Closed => {
                    note!(self, "{conn:?} closed by {server}");
                    let Process {
                        silent_us,
                        installed_us,
                        ..
                    } = *self.process(server);
                    let opened_us = self.links.get(&conn).map(|link| link.opened_us);
                    let is_outside = !self.members().contains(&server);
                    let silent = silent_us >= opened_us && (is_outside || !self.is_calm());
                    let lets_go = silent || installed_us >= opened_us;
                    let ran_ms = self.ran_ms(server);
                    let served_ms = self.process(server).not_read_only_ms;
                    self.checks
                        .closed_by_server(conn, lets_go, ran_ms, served_ms)?;
                    self.close_server_side(conn);
                    return Ok(());
                }
            }
        }
        self.read_input(conn)
    }

    /// The server's task ends: its socket is closed.
    pub(super) fn close_server_side(&mut self, conn: ConnId) {
        if let Some(link) = self.links.get_mut(&conn) {
            if let Some(connection) = link.server.take() {
                connection.lost();
            }
            link.input.clear();
        }
        self.checks.gone(conn);
        self.close_down(conn);
    }

    pub(super) fn up_closed(&mut self, conn: ConnId) -> Verdict {
        let Some(link) = self.links.get_mut(&conn) else {
            return Ok(());
        };
        if link.cut {
            return Ok(());
        }
        if let Some(connection) = link.server.take() {
            connection.lost();
        }
        self.checks.gone(conn);
        self.links.remove(&conn);
        Ok(())
    }

    pub(super) fn look_at_wakes(&mut self, server: usize) {
        let Some(process) = &mut self.hosts[server].process else {
            return;
        };
        let conns = std::mem::take(&mut *process.wakes.outputs.lock().expect("nobody panics"));
        let node = process.wakes.node.swap(false, Ordering::Relaxed);
        for conn in conns {
            self.output_soon(conn);
        }
        if node {
            self.turn_soon(server);
        }
    }

    pub(super) fn output_soon(&mut self, conn: ConnId) {
        let after_us = self.rng.between(0, self.params.handover_us);
        self.at(self.now_us + after_us, What::Output { conn });
    }

    pub(super) fn turn_soon(&mut self, server: usize) {
        let Some(process) = &mut self.hosts[server].process else {
            return;
        };
        if !std::mem::replace(&mut process.turn_due, true) {
            let after_us = self.rng.between(0, self.params.handover_us);
            self.step_at(self.now_us + after_us, server, Step::Turn);
        }
    }

    /// The connections to this server.
    pub(super) fn conns_to(&self, server: usize) -> Vec<ConnId> {
        let links = self.links.iter().filter(|(_, link)| link.to == server);
        links.map(|(conn, _)| *conn).collect()
    }

    pub(super) fn send_up(&mut self, conn: ConnId, frame: Bytes) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.up_us = link.up_us.max(self.now_us + latency_us);
        let at = link.up_us;
        self.at(at, What::Up { conn, frame });
    }

    pub(super) fn send_down(&mut self, conn: ConnId, frame: Bytes) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.down_us = link.down_us.max(self.now_us + latency_us);
        let at = link.down_us;
        self.at(at, What::Down { conn, frame });
    }

    /// The server's side is closed: the client learns of it, unless the link is cut.
    pub(super) fn close_down(&mut self, conn: ConnId) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.down_us = link.down_us.max(self.now_us + latency_us);
        let at = link.down_us;
        self.at(at, What::DownClosed { conn });
    }

    pub(super) fn down(&mut self, conn: ConnId, frame: Bytes) -> Verdict {
        let Some(link) = self.links.get(&conn) else {
            return Ok(());
        };
        let client = link.client;
        if link.cut || !link.client_open || self.present[client] != Some(conn) {
            return Ok(());
        }
        let mut actions = Vec::new();
        let now_us = self.now_us;
        self.clients[client].holds_still = self.holds_still();
        self.clients[client].frame(now_us, frame, &mut actions);
        self.act(client, actions)?;
        self.checks.recipes.look(&mut self.clients, now_us)
    }

    pub(super) fn down_closed(&mut self, conn: ConnId) -> Verdict {
        let Some(link) = self.links.get_mut(&conn) else {
            return Ok(());
        };
        if link.cut {
            return Ok(());
        }
        let client = link.client;
        self.links.remove(&conn);
        if self.present[client] != Some(conn) {
            return Ok(());
        }
        self.present[client] = None;
        let mut actions = Vec::new();
        let now_us = self.now_us;
        self.clients[client].lost(now_us, &mut actions);
        self.act(client, actions)
    }

    pub(super) fn wake(&mut self, client: usize) -> Verdict {
        let other = self.rng.below(self.clients.len() as u64) as usize;
        let other = self.clients[other].session;
        let mut actions = Vec::new();
        let now_us = self.now_us;
        self.clients[client].holds_still = self.holds_still();
        self.clients[client].wake(now_us, other, &mut actions);
        self.act(client, actions)
    }

    pub(super) fn act(&mut self, client: usize, actions: Vec<Action>) -> Verdict {
        for action in actions {
            match action {
                Action::Wake(at) => self.at(at, What::Wake { client }),
                Action::Connect(handshake) => self.connect(client, handshake),
                Action::Send(sent) => {
                    let Some(conn) = self.present[client] else {
                        continue;
                    };
                    note!(
                        self,
                        "client {client} on {conn:?} sends {} {:?}",
                        sent.xid,
                        sent.request
                    );
                    if matches!(sent.request, Some(Request::Reconfig(_))) {
                        self.reconfigured_us = self.now_us;
                    }
                    let frame = sent.frame();
                    self.checks.sent(conn, sent);
                    self.send_up(conn, frame);
                }
                Action::Drop { silent } => {
                    let Some(conn) = self.present[client].take() else {
                        continue;
                    };
                    note!(self, "client {client} drops {conn:?}, silent: {silent}");
                    self.close_client_side(conn, silent);
                }
            }
        }
        Ok(())
    }

    pub(super) fn connect(&mut self, client: usize, handshake: ConnectRequest) {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let seat = self.seats[client];
        let to = match self.rng.percent(30) {
            true => seat,
            false => self.rng.below(self.hosts.len() as u64) as usize,
        };
        note!(
            self,
            "client {client} opens {conn:?} to {to}: {handshake:?}"
        );
        self.stats.moves += u64::from(to != seat && handshake.session.0 != 0);
        self.seats[client] = to;
        self.links.insert(
            conn,
            Link {
                client,
                to,
                opened_us: self.now_us,
                server: None,
                input: VecDeque::new(),
                output: BytesMut::new(),
                client_open: true,
                accepted: false,
                cut: self.now_us < self.hosts[to].unreachable_until_us,
                up_us: self.now_us,
                down_us: self.now_us,
            },
        );
        // An earlier connection stays as it is: what it still carries finds no one here, and its
        // close comes when the server gives it up.
        self.present[client] = Some(conn);
        let mut frame = BytesMut::new();
        handshake.encode(&mut frame);
        self.checks.opened(conn, to, handshake);
        self.send_up(conn, frame.freeze());
    }

    pub(super) fn close_client_side(&mut self, conn: ConnId, silent: bool) {
        let latency_us = self.rng.between(1, self.params.latency_us);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.client_open = false;
        if silent {
            link.cut = true;
            return;
        }
        link.up_us = link.up_us.max(self.now_us + latency_us);
        let at = link.up_us;
        self.at(at, What::UpClosed { conn });
    }
}

/// The first bytes of a frame, to tell frames apart.
fn short(frame: &[u8]) -> String {
    let shown = &frame[..frame.len().min(24)];
    let hex: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes {hex}", frame.len())
}
