//! The socket of one client: bytes ↔ frames of its [`Connection`].

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::engine::{Connection, Remaining};
use crate::metrics::Metrics;
use crate::wire::{FrameLength, frame_length};

use super::room::{Place, Room};
use super::sender::{Left, Sender, Task, WRITE_BYTES, write_some};
use super::{Admitted, Context, PROBE_PATIENCE};

/// Bytes read at once when nothing is known about what comes.
const READ_BYTES: usize = 8 << 10;
/// Bytes read at once when the last read filled its buffer.
const READ_BYTES_MORE: usize = 64 << 10;
/// Bytes that are taken in while something is written: room for many pings.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// A handshake has some 50 bytes, and who has no session yet is trusted with little more.
const HANDSHAKE_BYTES: usize = 4 << 10;
/// Bytes of a frame under way that need no room among the large ones.
const SMALL_FRAME_BYTES: usize = 64 << 10;
/// How long a client may take to read what it is sent at a time.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
/// How long an answer to an operator's word may take that needs the disk.
const WORD_PATIENCE: Duration = Duration::from_secs(10);
/// While memory for replies is short, a client must read in this time ...
const WRITE_GLANCE: Duration = Duration::from_secs(5);
/// ... at least this many bytes.
const WRITE_GLANCE_BYTES: usize = 64 << 10;

/// Why a connection ended.
#[derive(Debug)]
enum End {
    /// By the client, or by the protocol.
    Orderly,
    /// Worth a line for those who look for it.
    Because(String),
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        Self::Because(error.to_string())
    }
}

/// Serves one client until its connection ends.
pub(super) fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    admitted: Admitted,
    mut stop: watch::Receiver<bool>,
) -> impl Future<Output = ()> {
    let context = &admitted.context;
    let stream = Arc::new(stream);
    let metrics = context.shared.metrics.clone();
    let sender = Arc::new(Sender::new(stream.clone(), metrics));
    let woken = sender.clone();
    let connection = context
        .shared
        .connect(peer, Box::new(move |news| woken.wake(news)));
    sender.belong_to(&connection);
    connection
        .stats
        .established_ms
        .store(context.clock.wall_ms(), Ordering::Relaxed);
    connection.heard(context.clock.now_ms());
    async move {
        let context = &admitted.context;
        let mut client = Client {
            stream: &stream,
            connection: &connection,
            context,
            sender: &sender,
            read_bytes: READ_BYTES,
            greeted: false,
            only_words: admitted.only_words,
            frame_room: None,
            reply_room: None,
            turn: None,
        };
        let end = client.run(&mut stop).await;
        drop(client);
        while connection.lost_step() {
            tokio::task::yield_now().await;
        }
        context.shared.metrics.connection_drop_count.add(1);
        sender.end();
        match end {
            End::Orderly => tracing::debug!(client = %peer, "connection closed"),
            End::Because(reason) => tracing::debug!(client = %peer, reason, "connection closed"),
        }
    }
}

struct Client<'a> {
    stream: &'a TcpStream,
    connection: &'a Arc<Connection>,
    context: &'a Context,
    sender: &'a Sender,
    /// Bytes for the next read.
    read_bytes: usize,
    /// A handshake was received.
    greeted: bool,
    /// It was let in for a four-letter word.
    only_words: bool,
    /// The room of a large frame under way.
    frame_room: Option<Room<'a>>,
    /// The room of a large reply that is not sent yet.
    reply_room: Option<Room<'a>>,
    /// Its turn among the large replies, until the first part of it is encoded.
    turn: Option<SemaphorePermit<'a>>,
}

impl Client<'_> {
    /// What seldom happens is a future of its own: thousands of clients are idle, and each takes
    /// the room of all that it could be waiting for.
    async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> End {
        let patience = match self.only_words {
            true => PROBE_PATIENCE,
            false => self.context.limits.handshake,
        };
        let handshake_until = Instant::now() + patience;
        let mut input = BytesMut::new();
        let mut first = true;
        let (mut frame_place, mut reply_place) = (Place::default(), Place::default());
        loop {
            if first && input.len() >= 4 {
                first = false;
                let word = [input[0], input[1], input[2], input[3]];
                if let Some(answer) = self.answer_word(word, &input[4..]).await {
                    let written = timeout(WRITE_PATIENCE, write_all(self.stream, &answer));
                    let _ = Box::pin(written).await;
                    return End::Orderly;
                }
                if self.only_words {
                    let reason = "there are as many connections as there may be";
                    self.context.refused(self.connection.peer(), reason);
                    return End::Because(reason.into());
                }
            }
            let sender = self.sender;
            let left = sender.exchange(self.connection, |output| {
                self.take_frames(&mut input, output)
            });
            let left = match left {
                Ok(left) => left,
                Err(end) => return end,
            };
            self.turn = None;
            if !left.is_nothing()
                && let Err(end) = Box::pin(self.send(left, &mut input)).await
            {
                return end;
            }
            self.reply_room = None;
            let large = self.connection.large();
            let wants_input = self.connection.wants_input(self.context.clock.now_ms());
            if wants_input && self.holds_frame(&input) {
                tokio::task::yield_now().await;
                continue;
            }
            // A connection that asks for no session may not stay for ever (§2.7).
            let sessionless = self.connection.awaits_handshake();
            let lacking = self.lacking_room(&input);
            // Its silence is not its own while others have the room.
            self.connection.hold_back(lacking.is_some());
            sender.set_task(match large {
                Some(_) => Task::Busy,
                None if wants_input && lacking.is_none() => Task::Listening,
                None => Task::Waiting,
            });
            let context = self.context;
            frame_place.want(&context.large_frames, lacking);
            reply_place.want(&context.large_replies, large.map(|large| large.bytes));
            let too_late = sessionless.then(|| sleep_until(handshake_until));
            tokio::select! {
                // No buffer while there is nothing to read: thousands of clients are idle.
                ready = self.stream.readable(), if wants_input && lacking.is_none() => {
                    let read = ready.and_then(|()| self.read(&mut input));
                    match read {
                        Ok(true) => {}
                        Ok(false) => return End::Orderly,
                        Err(error) => return End::Because(error.to_string()),
                    }
                }
                room = frame_place.room() => {
                    self.frame_room = Some(room);
                    self.connection.heard(context.clock.now_ms());
                }
                room = reply_place.room() => {
                    self.reply_room = Some(room);
                    let is_long = large.is_some_and(|large| large.is_long);
                    Box::pin(self.answer_large(is_long)).await;
                }
                () = sender.woken() => {}
                () = rare(too_late) => {
                    self.metrics().sessionless_connections_expired.add(1);
                    return End::Because("no session was asked for in time".into());
                }
                () = super::told_to_stop(stop) => {
                    return Box::pin(self.say_goodbye(&mut input)).await;
                }
            }
        }
    }

    /// The answer to a four-letter word, `None` if these bytes are not one.
    async fn answer_word(&self, word: [u8; 4], argument: &[u8]) -> Option<Vec<u8>> {
        let words = &self.context.words;
        if !words.may_block(word) {
            return words.answer(word, argument);
        }
        let (words, argument) = (words.clone(), argument.to_vec());
        let answer = tokio::task::spawn_blocking(move || words.answer(word, &argument));
        let answer = match Box::pin(timeout(WORD_PATIENCE, answer)).await {
            Ok(answer) => answer.ok().flatten().unwrap_or_default(),
            Err(_) => {
                let seconds = WORD_PATIENCE.as_secs();
                format!("The disk has not answered for {seconds} s.\n").into_bytes()
            }
        };
        Some(answer)
    }

    /// Reads what is there. False: the client has ended the connection.
    fn read(&mut self, input: &mut BytesMut) -> std::io::Result<bool> {
        if input.capacity() == input.len() {
            input.reserve(self.read_bytes);
        }
        let room = input.capacity() - input.len();
        match read_now(self.stream, input) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.metrics().bytes_received_count.add(count as u64);
                self.read_bytes = if count == room {
                    READ_BYTES_MORE
                } else {
                    READ_BYTES
                };
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Hands whole frames to the connection, as many as it wants.
    fn take_frames(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), End> {
        if !input.is_empty() {
            let limit = self.frame_bytes();
            let clock = || self.context.clock.now_ms();
            let taken = self.connection.receive(input, limit, clock, output);
            let frames = taken.map_err(|refused| End::Because(refused.0.into()))?;
            self.metrics().packets_received.add(frames as u64);
            if frames > 0 {
                self.greeted = true;
                self.frame_room = None;
            }
            if let FrameLength::Refused(length) = frame_length(input, self.frame_bytes()) {
                self.metrics().large_requests_rejected.add(1);
                return Err(End::Because(format!(
                    "frame length {length} (0x{length:x}) is not allowed; jute.maxbuffer is {}, \
                     and a handshake may have {HANDSHAKE_BYTES} bytes",
                    self.context.limits.frame_bytes
                )));
            }
        }
        if input.is_empty() {
            *input = BytesMut::new();
        }
        Ok(())
    }

    /// Answers the large read that has its turn, in steps, between which other connections have
    /// theirs. One of a kind at a time, so that however many there are, others are not slowed down
    /// by more than a step.
    async fn answer_large(&mut self, is_long: bool) {
        let turns = match is_long {
            true => &self.context.long_reads,
            false => &self.context.large_reads,
        };
        self.turn = turns.acquire().await.ok();
        let Some(mut large) = self.connection.begin_large() else {
            return;
        };
        while !self
            .connection
            .step_large(&mut large, self.context.clock.now_ms())
        {
            tokio::task::yield_now().await;
        }
    }

    fn metrics(&self) -> &Metrics {
        &self.context.shared.metrics
    }

    /// The longest frame that may come now.
    fn frame_bytes(&self) -> usize {
        let most = self.context.limits.frame_bytes;
        if self.greeted {
            most
        } else {
            most.min(HANDSHAKE_BYTES)
        }
    }

    /// Bytes of the frame under way if it is large, has begun in earnest, and has no room yet.
    fn lacking_room(&self, input: &BytesMut) -> Option<usize> {
        if self.frame_room.is_some() || input.len() < SMALL_FRAME_BYTES {
            return None;
        }
        match frame_length(input, self.frame_bytes()) {
            FrameLength::Body(body) if input.len() < 4 + body => Some(body),
            _ => None,
        }
    }

    fn holds_frame(&self, input: &BytesMut) -> bool {
        match frame_length(input, self.frame_bytes()) {
            FrameLength::Incomplete => false,
            FrameLength::Refused(_) => true,
            FrameLength::Body(body) => input.len() >= 4 + body,
        }
    }

    /// Sends what is left, and what is queued behind it. An error: nothing can or will follow.
    async fn send(&mut self, mut left: Left, input: &mut BytesMut) -> Result<(), End> {
        loop {
            if !left.output.is_empty() {
                self.write(&left.output, input).await?;
            }
            match left.remaining {
                Remaining::Nothing => return Ok(()),
                Remaining::Closed => return Err(End::Orderly),
                _ => {
                    left = self
                        .sender
                        .exchange(self.connection, |_| Ok::<_, End>(()))?;
                    self.turn = None;
                }
            }
        }
    }

    /// Writes all of `output`.
    async fn write(&mut self, output: &[u8], input: &mut BytesMut) -> Result<(), End> {
        let (connection, context) = (self.connection, self.context);
        let heard = |count: usize| {
            let metrics = &context.shared.metrics;
            metrics.bytes_received_count.add(count as u64);
            connection.heard(context.clock.now_ms());
        };
        let progress = AtomicUsize::new(0);
        let written = write_and_hear(
            self.stream,
            output,
            input,
            &context.writes,
            &progress,
            heard,
        );
        let is_tight = || context.large_replies.is_tight() || context.shared.unsent.is_tight();
        match patiently(written, &progress, is_tight).await {
            Some(written) => {
                written?;
                self.connection.output_sent();
                Ok(())
            }
            None => {
                context.shared.unsent.give_up();
                Err(End::Because("the client does not read".into()))
            }
        }
    }

    /// The server stops: replies that are under way are still sent, then the socket closes. The
    /// session lives on.
    async fn say_goodbye(&mut self, input: &mut BytesMut) -> End {
        const PATIENCE: Duration = Duration::from_secs(1);
        let until = Instant::now() + PATIENCE;
        loop {
            let unanswered = self.connection.unanswered();
            let left = self.sender.exchange(self.connection, |_| Ok::<_, End>(()));
            let sent = match left {
                Ok(left) => self.send(left, input).await,
                Err(end) => Err(end),
            };
            if let Err(end) = sent {
                return end;
            }
            if unanswered == 0 || Instant::now() >= until {
                return End::Orderly;
            }
            tokio::select! {
                () = self.sender.woken() => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

/// Waits for what there mostly is not. It takes no room then.
fn rare<F: Future>(future: Option<F>) -> impl Future<Output = F::Output> {
    let future = future.map(Box::pin);
    async {
        match future {
            Some(future) => future.await,
            None => std::future::pending().await,
        }
    }
}

/// Waits for a write, but not for ever, and not long for a client that does not read while memory
/// is tight. `progress`: bytes written so far.
async fn patiently<T>(
    written: impl Future<Output = T>,
    progress: &AtomicUsize,
    is_tight: impl Fn() -> bool,
) -> Option<T> {
    let mut written = pin!(written);
    let until = Instant::now() + WRITE_PATIENCE;
    loop {
        let before = progress.load(Ordering::Relaxed);
        if let Ok(result) = timeout(WRITE_GLANCE, &mut written).await {
            return Some(result);
        }
        let is_stuck = progress.load(Ordering::Relaxed) - before < WRITE_GLANCE_BYTES;
        if Instant::now() >= until || (is_stuck && is_tight()) {
            return None;
        }
    }
}

/// Writes `output`, and meanwhile takes in what the client sends, up to a bound. `heard` is told
/// how many bytes came: a client that needs long for what it asked for still lives, as its pings
/// show. `progress`: how many bytes of a large output were written.
async fn write_and_hear(
    stream: &TcpStream,
    output: &[u8],
    input: &mut BytesMut,
    turns: &Semaphore,
    progress: &AtomicUsize,
    heard: impl Fn(usize),
) -> std::io::Result<()> {
    let write = async {
        if output.len() < WRITE_BYTES {
            return write_all(stream, output).await;
        }
        let mut left = output;
        while !left.is_empty() {
            stream.writable().await?;
            // One after the other: a thousand large replies must not stand before a small one.
            let turn = turns.acquire().await;
            left = &left[write_some(stream, &left[..left.len().min(WRITE_BYTES)])?..];
            drop(turn);
            progress.store(output.len() - left.len(), Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    let mut written = pin!(write);
    let mut is_readable = true;
    loop {
        let has_room = input.len() < READ_AHEAD_BYTES;
        tokio::select! {
            biased;
            result = &mut written => return result,
            read = read_some(stream, input), if is_readable && has_room => match read {
                Ok(count) if count > 0 => heard(count),
                // The end is met again by who reads next; until then the client may still listen.
                _ => is_readable = false,
            }
        }
    }
}

async fn write_all(stream: &TcpStream, mut output: &[u8]) -> std::io::Result<()> {
    while !output.is_empty() {
        stream.writable().await?;
        output = &output[write_some(stream, output)?..];
    }
    Ok(())
}

/// Reads what is there into the room that `input` has, of which there must be some. If it is not
/// filled, there was no more, and the stream is readable when something comes, which the system
/// tells of each time: nobody has to ask and be told so. (What stands behind urgent data, which no
/// client sends, is read with what comes next.)
fn read_now(stream: &TcpStream, input: &mut BytesMut) -> std::io::Result<usize> {
    let mut count = None;
    let tried = stream.try_io(Interest::READABLE, || {
        let room = input.spare_capacity_mut();
        debug_assert!(!room.is_empty(), "zero bytes are the end");
        let read = SockRef::from(stream).recv(room)?;
        count = Some(read);
        // Zero is the end, of which nobody is told again.
        match (1..room.len()).contains(&read) {
            true => Err(ErrorKind::WouldBlock.into()),
            false => Ok(()),
        }
    });
    match count {
        Some(count) => {
            // SAFETY: recv has filled so many bytes of the spare capacity.
            unsafe { input.set_len(input.len() + count) };
            Ok(count)
        }
        None => tried.map(|()| 0),
    }
}

async fn read_some(stream: &TcpStream, input: &mut BytesMut) -> std::io::Result<usize> {
    loop {
        stream.readable().await?;
        if input.capacity() == input.len() {
            // Twice what has come, so that a large frame is not moved often.
            input.reserve(READ_BYTES.max(input.len()));
        }
        match stream.try_read_buf(input) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_client_that_reads_slowly_is_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();

        // More than the system takes without a reader.
        let output = vec![7; 32 << 20];
        let length = output.len();
        let heard = Arc::new(AtomicUsize::new(0));
        let told = heard.clone();
        let task = tokio::spawn(async move {
            let mut input = BytesMut::new();
            let heard = |count| {
                told.fetch_add(count, Ordering::Relaxed);
            };
            write_and_hear(
                &server,
                &output,
                &mut input,
                &Semaphore::new(1),
                &AtomicUsize::new(0),
                heard,
            )
            .await
            .unwrap();
            input
        });
        client.write_all(b"ping").await.unwrap();
        let wait = async {
            while heard.load(Ordering::Relaxed) < 4 {
                tokio::task::yield_now().await;
            }
        };
        timeout(WRITE_PATIENCE, wait).await.unwrap();
        assert!(!task.is_finished());

        let mut received = vec![0; length];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(task.await.unwrap().as_ref(), b"ping");
    }

    #[tokio::test]
    async fn what_came_whole_is_not_asked_for_again() {
        const NOW: Duration = Duration::ZERO;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let mut input = BytesMut::with_capacity(8);
        for _ in 0..3 {
            client.write_all(b"ping").await.unwrap();
            server.readable().await.unwrap();
            assert_eq!(read_now(&server, &mut input).unwrap(), 4);
            assert_eq!(input.as_ref(), b"ping");
            assert!(timeout(NOW, server.readable()).await.is_err());
            let again = read_now(&server, &mut input).unwrap_err();
            assert_eq!(again.kind(), ErrorKind::WouldBlock);
            input = BytesMut::with_capacity(8);
        }
        // What fills the room may not be all, and the end is there however much came with it.
        client.write_all(b"more than eight").await.unwrap();
        drop(client);
        let mut all = Vec::new();
        loop {
            server.readable().await.unwrap();
            let mut input = BytesMut::with_capacity(8);
            match read_now(&server, &mut input).unwrap() {
                0 => break,
                count => assert_eq!(count, input.len()),
            }
            all.extend_from_slice(&input);
        }
        assert_eq!(all, b"more than eight");
        server.readable().await.unwrap();
        assert_eq!(
            read_now(&server, &mut BytesMut::with_capacity(8)).unwrap(),
            0
        );
    }

    /// Its end comes when nobody asks any more.
    #[tokio::test]
    async fn an_end_is_told_after_all_was_read() {
        for is_reset in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(address).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            client.write_all(b"ping").await.unwrap();
            server.readable().await.unwrap();
            let mut input = BytesMut::with_capacity(8);
            assert_eq!(read_now(&server, &mut input).unwrap(), 4);
            assert!(timeout(Duration::ZERO, server.readable()).await.is_err());
            if is_reset {
                SockRef::from(&client)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            drop(client);
            server.readable().await.unwrap();
            match read_now(&server, &mut input) {
                Ok(count) => assert_eq!((count, is_reset), (0, false)),
                Err(error) => {
                    assert_eq!((error.kind(), is_reset), (ErrorKind::ConnectionReset, true))
                }
            }
        }
    }
}
