//! The chunks of an image, to a machine. The digest keeps out what the writer did not write, so
//! what is accepted is sound, and gives the same image again.

use bytes::{Bytes, BytesMut};
use zkraft::machine::{Machine, RestoreError};
use zkraft::wire::{ConnectRequest, Request, SessionId, Zxid};

use super::input::{Input, run_of};
use super::request::samples;
use super::server::Server;

/// Input: the chunks.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut chunks = Vec::new();
    while !input.is_empty() {
        chunks.push(Bytes::copy_from_slice(input.run()));
    }
    match Machine::restore(chunks.iter().cloned().map(Ok::<_, ()>)) {
        Ok(machine) => {
            machine.audit();
            let again = Machine::restore(machine.image().chunks().map(Ok::<_, ()>));
            let again = again.expect("an image of a sound machine is accepted");
            assert_eq!(again.digest(), machine.digest());
        }
        Err(RestoreError::Source(())) => unreachable!("every chunk is there"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Of a server that was used.
pub fn real() -> Vec<Bytes> {
    let mut server = Server::new(0xff);
    let mut clients = [server.client()];
    let handshake = ConnectRequest {
        last_zxid_seen: Zxid(0),
        timeout_ms: 4_000,
        session: SessionId(0),
        password: Bytes::new(),
        read_only: None,
    };
    let mut body = BytesMut::new();
    handshake.encode(&mut body);
    let mut frames = vec![body.split()];
    let goes_on = |request: &&Request| !matches!(request, Request::CloseSession);
    for request in samples().iter().filter(goes_on) {
        body.extend_from_slice(&1i32.to_be_bytes());
        body.extend_from_slice(&request.opcode().to_be_bytes());
        request.encode(&mut body);
        frames.push(body.split());
    }
    for frame in frames {
        clients[0].send(&frame);
        server.settle(&mut clients);
    }
    let image = server.shared.state.read().machine.image();
    image.chunks().collect()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let chunks = |chunks: &mut dyn Iterator<Item = Bytes>| -> Vec<u8> {
        chunks.flat_map(|chunk| run_of(&chunk)).collect()
    };
    vec![
        chunks(&mut real().into_iter()),
        chunks(&mut real().into_iter().take(2)),
        chunks(&mut Machine::new().image().chunks()),
    ]
}
