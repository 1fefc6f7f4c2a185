//! One client for what stands before and after a measurement: making znodes and removing them.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::frames::{self, PERSISTENT, Reply};
use crate::wire::{ErrorCode, xid};

/// Requests sent before the first of them must be answered.
const WINDOW: usize = 256;
const PATIENCE: Duration = Duration::from_secs(120);

/// A client that waits for its answers.
pub struct Hand {
    socket: TcpStream,
    output: Vec<u8>,
    input: Vec<u8>,
    /// Bytes of `input` that were taken.
    taken: usize,
    unanswered: VecDeque<i32>,
    next_xid: i32,
}

impl Hand {
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let context = || format!("cannot reach a server at {address}; is it running there?");
        let socket = TcpStream::connect(address).with_context(context)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut hand = Self {
            socket,
            output: Vec::new(),
            input: Vec::new(),
            taken: 0,
            unanswered: VecDeque::new(),
            next_xid: 1,
        };
        frames::hello(&mut hand.output, 40_000);
        let frame = hand.flush_and_read().with_context(context)?;
        if frames::granted_timeout_ms(&frame).is_none_or(|timeout_ms| timeout_ms <= 0) {
            bail!("the server at {address} refused a session");
        }
        Ok(hand)
    }

    /// Creates a znode with this data; one that is there already will do.
    pub fn create(&mut self, path: &[u8], data: &[u8]) -> anyhow::Result<()> {
        let xid = self.take_xid();
        frames::create(&mut self.output, xid, path, data, PERSISTENT);
        self.wait_for_room(WINDOW)
    }

    /// Waits until the server has what was done at others of its ensemble.
    pub fn catch_up(&mut self) -> anyhow::Result<()> {
        let xid = self.take_xid();
        frames::sync(&mut self.output, xid, b"/");
        self.finish()
    }

    /// Waits until everything is answered.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.wait_for_room(0)
    }

    /// Removes a znode with everything below it. `tell` is told how many went.
    pub fn remove_tree(&mut self, path: &str, tell: &dyn Fn(u64)) -> anyhow::Result<()> {
        let mut removed = 0;
        self.remove_below(path, &mut removed, tell)?;
        self.finish()
    }

    fn remove_below(
        &mut self,
        path: &str,
        removed: &mut u64,
        tell: &dyn Fn(u64),
    ) -> anyhow::Result<()> {
        for name in self.children(path)? {
            let child = format!("{path}/{name}");
            // Most znodes are leaves, so it is tried before anyone asks what is below.
            let xid = self.take_xid();
            frames::delete(&mut self.output, xid, child.as_bytes());
            self.wait_for_room(WINDOW)?;
            *removed += 1;
            if removed.is_multiple_of(1_000) {
                tell(*removed);
            }
        }
        for name in self.children(path)? {
            self.remove_below(&format!("{path}/{name}"), removed, tell)?;
        }
        let frame = self.ask(|out, xid| frames::delete(out, xid, path.as_bytes()))?;
        must_be_gone(path, parse(&frame)?)
    }

    fn children(&mut self, path: &str) -> anyhow::Result<Vec<String>> {
        let frame = self.ask(|out, xid| frames::list(out, xid, path.as_bytes()))?;
        names(path, parse(&frame)?)
    }

    /// Waits until everything is answered, then for the reply to this.
    fn ask(&mut self, write: impl FnOnce(&mut Vec<u8>, i32)) -> anyhow::Result<Vec<u8>> {
        self.finish()?;
        write(&mut self.output, self.next_xid);
        self.next_xid += 1;
        self.flush_and_read()
    }

    fn take_xid(&mut self) -> i32 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.unanswered.push_back(xid);
        xid
    }

    fn wait_for_room(&mut self, window: usize) -> anyhow::Result<()> {
        const FINE: [i32; 4] = [
            0,
            ErrorCode::NodeExists as i32,
            ErrorCode::NoNode as i32,
            ErrorCode::NotEmpty as i32,
        ];
        super::check_interrupted()?;
        while self.unanswered.len() > window {
            let frame = self.flush_and_read()?;
            let reply = parse(&frame)?;
            if matches!(reply.xid, xid::PING | xid::NOTIFICATION) {
                continue;
            }
            self.unanswered.pop_front();
            if !FINE.contains(&reply.error) {
                bail!(
                    "the server refused to prepare the load with error {}",
                    reply.error
                );
            }
        }
        Ok(())
    }

    fn flush_and_read(&mut self) -> anyhow::Result<Vec<u8>> {
        self.socket.write_all(&self.output)?;
        self.output.clear();
        loop {
            let mut rest = &self.input[self.taken..];
            if let Some(frame) = frames::next_frame(&mut rest) {
                let frame = frame.to_vec();
                self.taken = self.input.len() - rest.len();
                return Ok(frame);
            }
            self.input.drain(..self.taken);
            self.taken = 0;
            let start = self.input.len();
            self.input.resize(start + (64 << 10), 0);
            let read = self.socket.read(&mut self.input[start..]);
            self.input
                .truncate(start + read.as_ref().map_or(0, |count| *count));
            match read {
                Ok(0) => bail!("the server closed the connection"),
                Ok(_) => {}
                // Ctrl-C is dealt with where a request ends.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read from the server"),
            }
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        // Out of politeness: the session would end by itself.
        frames::close_session(&mut self.output, self.next_xid);
        let _ = self.socket.write_all(&self.output);
        let mut rest = [0; 1_024];
        let _ = self.socket.set_read_timeout(Some(Duration::from_secs(2)));
        while self.socket.read(&mut rest).is_ok_and(|count| count > 0) {}
    }
}

fn parse(frame: &[u8]) -> anyhow::Result<Reply<'_>> {
    Reply::parse(frame).context("a reply without a header")
}

/// What a list of children says. A znode that is gone has none.
fn names(path: &str, reply: Reply<'_>) -> anyhow::Result<Vec<String>> {
    match reply.error {
        0 => {}
        NO_NODE => return Ok(Vec::new()),
        code => bail!("{path} is left behind: its list of children failed with error {code}"),
    }
    let count = frames::int_at(reply.body, 0).unwrap_or(0).max(0);
    let mut at = 4;
    let mut names = Vec::new();
    for _ in 0..count {
        let length = frames::int_at(reply.body, at).context("a list that ends too soon")?;
        let name = reply.body.get(at + 4..at + 4 + length.max(0) as usize);
        let name = name.context("a name that ends too soon")?;
        names.push(String::from_utf8_lossy(name).into_owned());
        at += 4 + name.len();
    }
    Ok(names)
}

/// The reply to the delete of a znode below which everything was removed.
fn must_be_gone(path: &str, reply: Reply<'_>) -> anyhow::Result<()> {
    match reply.error {
        0 | NO_NODE => Ok(()),
        code => bail!("{path} is left behind: its delete failed with error {code}"),
    }
}

const NO_NODE: i32 = ErrorCode::NoNode as i32;

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(error: i32, body: &[u8]) -> Reply<'_> {
        Reply {
            xid: 1,
            error,
            body,
        }
    }

    #[test]
    fn what_is_left_behind_is_named() {
        let deleted = |error| must_be_gone("/bench", reply(error, &[]));
        assert!(deleted(0).is_ok());
        assert!(deleted(NO_NODE).is_ok());
        let message = deleted(ErrorCode::NotEmpty as i32).unwrap_err().to_string();
        assert_eq!(
            message,
            "/bench is left behind: its delete failed with error -111"
        );
    }

    #[test]
    fn a_list_that_fails_is_not_an_empty_one() {
        let listed = |error, body| names("/bench", reply(error, body));
        let body = [0, 0, 0, 1, 0, 0, 0, 2, b'a', b'b'];
        assert_eq!(listed(0, &body).unwrap(), ["ab"]);
        assert!(listed(0, &body[..9]).is_err());
        assert!(listed(NO_NODE, &[]).unwrap().is_empty());
        let message = listed(ErrorCode::NoAuth as i32, &[]).unwrap_err();
        assert!(message.to_string().contains("/bench is left behind"));
    }
}
