//! What a client is sent: by its own task, or by whoever has the answer.
//!
//! Waking a task on another thread takes longer than most answers take to write. So the thread that
//! applies a write also sends the reply, if the client's task has nothing to do but to wait, and if
//! the socket takes it at once. In all other cases the task is woken and does it.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::{Arc, OnceLock, Weak};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::engine::{Connection, News, Remaining};
use crate::metrics::Metrics;

/// Bytes of an emptied buffer that are kept for the next frames: thousands of clients are idle.
const KEEP_BYTES: usize = 4 << 10;
/// Whoever has an answer does not send more queued bytes than these: the task takes longer ones.
const AT_ONCE_BYTES: usize = 16 << 10;
/// Bytes that the system is given in one call; of more, the task gives it a part at a time.
pub const WRITE_BYTES: usize = 64 << 10;

/// The way out to one client.
pub struct Sender {
    connection: OnceLock<Weak<Connection>>,
    metrics: Arc<Metrics>,
    wake: Notify,
    /// Held from the moment that something is taken out of the connection until it is written, so
    /// that all is sent in its order.
    sending: Mutex<Sending>,
}

struct Sending {
    /// None at the end.
    stream: Option<Arc<TcpStream>>,
    /// Taken and not written.
    buffer: BytesMut,
    /// Frames that were counted as sent.
    frames: u64,
    task: Task,
}

/// What the client's task is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Task {
    /// It is at work: nobody else sends.
    Busy,
    /// It waits, and must be woken to read on when something was answered.
    Waiting,
    /// It waits, and reads.
    Listening,
}

/// What the task has to do after what could be done at once.
#[derive(Debug)]
pub struct Left {
    /// What is still to be written, before anything else.
    pub output: BytesMut,
    pub remaining: Remaining,
}

impl Left {
    pub fn is_nothing(&self) -> bool {
        self.output.is_empty() && matches!(self.remaining, Remaining::Nothing)
    }
}

impl Sender {
    pub fn new(stream: Arc<TcpStream>, metrics: Arc<Metrics>) -> Self {
        Self {
            connection: OnceLock::new(),
            metrics,
            wake: Notify::new(),
            sending: Mutex::new(Sending {
                stream: Some(stream),
                buffer: BytesMut::new(),
                frames: 0,
                task: Task::Busy,
            }),
        }
    }

    /// Says whose frames are sent. Called once.
    pub fn belong_to(&self, connection: &Arc<Connection>) {
        let set = self.connection.set(Arc::downgrade(connection));
        assert!(set.is_ok(), "a socket belongs to one connection");
    }

    /// The connection has output, or something else to do.
    pub fn wake(&self, news: News) {
        if news == News::OfMany || !self.send_for_task() {
            self.wake.notify_one();
        }
    }

    /// Ends when there is something for the task to do.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Says what the task is about to do. It may not take anything out of the connection before
    /// the next [`Self::exchange`].
    pub fn set_task(&self, task: Task) {
        self.sending.lock().task = task;
    }

    /// For the task: takes in, answers, and sends what there is, as far as that goes at once.
    /// `take_in` may put output into the buffer.
    ///
    /// # Errors
    ///
    /// That of `take_in`, or why the socket takes nothing more.
    pub fn exchange<E: From<std::io::Error>>(
        &self,
        connection: &Connection,
        take_in: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<Left, E> {
        let mut sending = self.sending.lock();
        sending.task = Task::Busy;
        // Somebody began to send in place of the task.
        if !sending.buffer.is_empty() {
            return Ok(Left {
                output: std::mem::take(&mut sending.buffer),
                remaining: Remaining::More,
            });
        }
        take_in(&mut sending.buffer)?;
        let remaining = self.flush(&mut sending, connection)?;
        Ok(Left {
            output: std::mem::take(&mut sending.buffer),
            remaining,
        })
    }

    /// Sends what is queued in place of the task. False: the task must be woken.
    fn send_for_task(&self) -> bool {
        let Some(connection) = self.connection.get().and_then(Weak::upgrade) else {
            return false;
        };
        // Whoever holds it is the task itself, or has not seen yet what this is about.
        let Some(mut sending) = self.sending.try_lock() else {
            return false;
        };
        if sending.task == Task::Busy
            || !sending.buffer.is_empty()
            || connection.needs_task()
            || connection.queued() > AT_ONCE_BYTES
        {
            return false;
        }
        let written = self.flush(&mut sending, &connection);
        let is_done = matches!(written, Ok(Remaining::Nothing)) && sending.buffer.is_empty();
        is_done && sending.task == Task::Listening
    }

    /// Writes what is queued, as much as the socket takes at once.
    fn flush(&self, sending: &mut Sending, connection: &Connection) -> std::io::Result<Remaining> {
        let remaining = connection.take_output(&mut sending.buffer);
        let length = sending.buffer.len();
        if length == 0 {
            return Ok(remaining);
        }
        self.count(sending, connection);
        // Large replies take turns.
        if length >= WRITE_BYTES {
            return Ok(remaining);
        }
        let Some(stream) = &sending.stream else {
            return Ok(Remaining::Closed);
        };
        let written = write_some(stream, &sending.buffer)?;
        if written < length {
            sending.buffer.advance(written);
            return Ok(remaining);
        }
        connection.output_sent();
        sending.buffer.clear();
        if sending.buffer.capacity() > KEEP_BYTES {
            sending.buffer = BytesMut::new();
        }
        Ok(remaining)
    }

    /// Counts what is in the buffer, all of which was just taken.
    fn count(&self, sending: &mut Sending, connection: &Connection) {
        let sent = connection.sent();
        let frames = sent - std::mem::replace(&mut sending.frames, sent);
        let bytes = sending.buffer.len() as u64;
        self.metrics.packets_sent.add(frames);
        self.metrics.response_bytes.add(bytes);
        self.metrics
            .client_response_size
            .note(bytes / frames.max(1));
    }

    /// Nothing more is sent: the client sees an orderly end rather than a reset, if it is there.
    pub fn end(&self) {
        let mut sending = self.sending.lock();
        sending.task = Task::Busy;
        sending.buffer = BytesMut::new();
        // Who still knows the connection does not keep its socket.
        if let Some(stream) = sending.stream.take() {
            let _ = SockRef::from(&*stream).shutdown(Shutdown::Write);
        }
    }
}

/// Writes what the system takes now, which may be nothing.
///
/// # Errors
///
/// Why it takes nothing more.
pub fn write_some(stream: &TcpStream, output: &[u8]) -> std::io::Result<usize> {
    match stream.try_write(output) {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::{BufMut as _, Bytes};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::engine::{Append, Engine, Event, Options, Outputs, Setup};
    use crate::wire::request::Create;
    use crate::wire::{Acl, ConnectRequest, FRAME_BYTES_MAX, Request, SessionId, Zxid, op};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A server of one client, without the client's task.
    struct Fixture {
        engine: Engine,
        /// Written, not durable.
        written: Vec<Append>,
        connection: Arc<Connection>,
        sender: Arc<Sender>,
        client: TcpStream,
    }

    impl Fixture {
        async fn new() -> Self {
            let engine = Engine::new(Setup::alone(Options::default()), 0);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let client = TcpStream::connect(address).await.unwrap();
            let (server, peer) = listener.accept().await.unwrap();
            server.writable().await.unwrap();
            let metrics = engine.shared().metrics.clone();
            let sender = Arc::new(Sender::new(Arc::new(server), metrics));
            let woken = sender.clone();
            let connection = engine
                .shared()
                .connect(peer, Box::new(move |news| woken.wake(news)));
            sender.belong_to(&connection);
            let mut fixture = Self {
                engine,
                written: Vec::new(),
                connection,
                sender,
                client,
            };
            fixture.turn();
            let hello = ConnectRequest {
                last_zxid_seen: Zxid(0),
                timeout_ms: 4_000,
                session: SessionId(0),
                password: Bytes::from_static(&[0; 16]),
                read_only: Some(false),
            };
            let mut frame = BytesMut::new();
            hello.encode(&mut frame);
            fixture.take_in(&frame);
            fixture.sender.set_task(Task::Listening);
            fixture.turn();
            fixture.hear(4 + 37).await;
            fixture
        }

        /// What the node does: everything that is written becomes durable.
        fn turn(&mut self) {
            loop {
                let mut out = Outputs::default();
                self.engine.turn(0, 1, &mut out);
                self.written.append(&mut out.append);
                let Some(last) = self.written.pop() else {
                    return;
                };
                self.written.clear();
                self.engine
                    .handle(Event::Persisted(last.number), 0, &mut Outputs::default());
            }
        }

        /// What the task does with a frame that came.
        fn take_in(&self, frame: &[u8]) -> Left {
            let mut input = BytesMut::new();
            input.put_i32(i32::try_from(frame.len()).unwrap());
            input.put_slice(frame);
            let connection = &self.connection;
            let left = self.sender.exchange(connection, |output| {
                let taken = connection.receive(&mut input, FRAME_BYTES_MAX, || 0, output);
                taken
                    .map(drop)
                    .map_err(|refused| std::io::Error::other(refused.0))
            });
            left.unwrap()
        }

        fn create(&self, xid: i32) -> Left {
            let request = Request::Create(Create {
                opcode: op::CREATE,
                path: format!("/{xid}").as_str().into(),
                data: None,
                acl: Some(vec![Acl::open()]),
                flags: 0,
                ttl: None,
            });
            let mut frame = BytesMut::new();
            frame.put_i32(xid);
            frame.put_i32(request.opcode());
            request.encode(&mut frame);
            self.take_in(&frame)
        }

        async fn hear(&mut self, length: usize) -> Vec<u8> {
            let mut heard = vec![0; length];
            timeout(PATIENCE, self.client.read_exact(&mut heard))
                .await
                .expect("the client was sent something")
                .unwrap();
            heard
        }

        /// The xids of as many replies to creates of one-digit znodes.
        async fn replies(&mut self, count: usize) -> Vec<u8> {
            let mut xids = Vec::new();
            for _ in 0..count {
                xids.push(self.hear(4 + 16 + 4 + 2).await[7]);
            }
            xids
        }

        async fn is_task_woken(&self) -> bool {
            timeout(Duration::from_millis(1), self.sender.woken())
                .await
                .is_ok()
        }
    }

    #[tokio::test]
    async fn who_has_the_answer_sends_it_while_the_task_listens() {
        let mut fixture = Fixture::new().await;
        fixture.create(1);
        fixture.sender.set_task(Task::Listening);
        fixture.turn();
        assert_eq!(fixture.replies(1).await, [1]);
        assert!(!fixture.is_task_woken().await);
    }

    #[tokio::test]
    async fn a_task_that_must_read_on_is_woken_as_well() {
        let mut fixture = Fixture::new().await;
        fixture.create(1);
        fixture.sender.set_task(Task::Waiting);
        fixture.turn();
        assert_eq!(fixture.replies(1).await, [1]);
        assert!(fixture.is_task_woken().await);
    }

    #[tokio::test]
    async fn nobody_sends_for_a_task_that_is_at_work() {
        let mut fixture = Fixture::new().await;
        fixture.create(1);
        fixture.turn();
        assert!(fixture.is_task_woken().await);
        assert!(fixture.connection.queued() > 0);
        fixture.create(2);
        fixture.sender.set_task(Task::Listening);
        fixture.turn();
        assert_eq!(fixture.replies(2).await, [1, 2]);
    }

    #[tokio::test]
    async fn what_the_socket_does_not_take_is_left_for_the_task_and_comes_first() {
        let mut fixture = Fixture::new().await;
        // The socket is full.
        let stuffed = {
            let sending = fixture.sender.sending.lock();
            let stream = sending.stream.as_ref().unwrap();
            let mut stuffed = 0;
            while let Ok(count) = stream.try_write(&[0; 1 << 16]) {
                stuffed += count;
            }
            stuffed
        };
        fixture.create(1);
        fixture.sender.set_task(Task::Listening);
        fixture.turn();
        assert!(fixture.is_task_woken().await);
        assert!(!fixture.sender.sending.lock().buffer.is_empty());
        let left = fixture.create(2);
        assert_eq!(left.remaining, Remaining::More);
        assert_eq!(left.output[7], 1);
        let _ = fixture.hear(stuffed).await;
    }

    #[tokio::test]
    async fn at_the_end_the_socket_is_let_go() {
        let mut fixture = Fixture::new().await;
        fixture.sender.end();
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, fixture.client.read_to_end(&mut rest)).await;
        assert_eq!(end.expect("an end").unwrap(), 0);
        // Nobody minds who comes too late.
        fixture.sender.wake(News::OfFew);
        fixture.client.write_all(b"x").await.unwrap();
    }
}
