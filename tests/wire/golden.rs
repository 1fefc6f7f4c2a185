//! One conversation, byte for byte (spec §18).
//!
//! Frames are written as in the specification, with these words for what differs from run to run:
//! `zN` is the zxid N places after the one before the conversation, `session` and `password` are
//! those of the ConnectResponse, and `time` is any eight bytes.

use crate::client::Connection;
use crate::server::Server;

struct Conversation {
    connection: Connection,
    /// The server's zxid before the conversation.
    base: i64,
}

impl Conversation {
    fn send(&mut self, text: &str) {
        let bytes: Vec<u8> = text
            .split_whitespace()
            .map(|word| hex(word).expect("a byte"))
            .collect();
        self.connection.send(&bytes);
    }

    /// Receives a frame and compares it, its length included.
    fn expect(&mut self, text: &str) {
        let body = self.connection.frame();
        let mut frame = (body.len() as i32).to_be_bytes().to_vec();
        frame.extend(body);
        let mut rest = &frame[..];
        for word in text.split_whitespace() {
            let length = match word {
                "session" | "time" => 8,
                "password" => 16,
                word if word.starts_with('z') => 8,
                _ => 1,
            };
            assert!(rest.len() >= length, "{word} is missing in {frame:02x?}");
            let (bytes, tail) = rest.split_at(length);
            if let Some(distance) = word.strip_prefix('z') {
                let zxid = self.base + distance.parse::<i64>().expect("a distance");
                assert_eq!(bytes, zxid.to_be_bytes(), "{word} in {frame:02x?}");
            } else if let Some(byte) = hex(word) {
                assert_eq!(
                    bytes,
                    [byte],
                    "{text}\n{frame:02x?} differs {} bytes before its end",
                    rest.len()
                );
            } else {
                assert_ne!(bytes, vec![0; length], "{word} in {frame:02x?}");
            }
            rest = tail;
        }
        assert!(rest.is_empty(), "{frame:02x?} is longer than {text}");
    }
}

fn hex(word: &str) -> Option<u8> {
    (word.len() == 2)
        .then(|| u8::from_str_radix(word, 16).ok())
        .flatten()
}

/// The server's last zxid, asked for without a session.
fn zxid(server: &Server) -> i64 {
    let report = server.word("srvr");
    let line = report
        .lines()
        .find_map(|line| line.strip_prefix("Zxid: 0x"))
        .expect("a zxid");
    i64::from_str_radix(line, 16).expect("hexadecimal digits")
}

#[test]
fn the_conversation_of_section_18() {
    let (server, _turn) = Server::alone();
    let base = zxid(server);
    let mut talk = Conversation {
        connection: server.connect(),
        base,
    };

    // Connect: a new session, timeout 10000, with the readOnly byte. It consumes the zxid z1.
    talk.send(
        "00 00 00 2d  00 00 00 00  00 00 00 00 00 00 00 00  00 00 27 10  00 00 00 00 00 00 00 00
         00 00 00 10  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  00",
    );
    talk.expect("00 00 00 25  00 00 00 00  00 00 27 10  session  00 00 00 10  password  00");

    // create /a with "hi".
    talk.send(
        "00 00 00 33  00 00 00 01  00 00 00 01  00 00 00 02 2f 61  00 00 00 02 68 69
         00 00 00 01  00 00 00 1f  00 00 00 05 77 6f 72 6c 64  00 00 00 06 61 6e 79 6f 6e 65
         00 00 00 00",
    );
    talk.expect("00 00 00 16  00 00 00 01  z2  00 00 00 00  00 00 00 02 2f 61");

    // getData /a, watching.
    talk.send("00 00 00 0f  00 00 00 02  00 00 00 04  00 00 00 02 2f 61  01");
    talk.expect(
        "00 00 00 5a  00 00 00 02  z2  00 00 00 00  00 00 00 02 68 69
         z2 z2 time time  00 00 00 00  00 00 00 00  00 00 00 00  00 00 00 00 00 00 00 00
         00 00 00 02  00 00 00 00  z2",
    );

    // setData /a to "yo", version 0: the own event, then the reply.
    talk.send(
        "00 00 00 18  00 00 00 03  00 00 00 05  00 00 00 02 2f 61  00 00 00 02 79 6f  00 00 00 00",
    );
    if server.is_zookeeper_38() {
        talk.expect(
            "00 00 00 1e  ff ff ff ff  ff ff ff ff ff ff ff ff  00 00 00 00
             00 00 00 03  00 00 00 03  00 00 00 02 2f 61",
        );
    } else {
        talk.expect(
            "00 00 00 1e  ff ff ff ff  z3  00 00 00 00
             00 00 00 03  00 00 00 03  00 00 00 02 2f 61",
        );
    }
    talk.expect(
        "00 00 00 54  00 00 00 03  z3  00 00 00 00
         z2 z3 time time  00 00 00 01  00 00 00 00  00 00 00 00  00 00 00 00 00 00 00 00
         00 00 00 02  00 00 00 00  z2",
    );

    // exists /no: -101 without a body.
    talk.send("00 00 00 10  00 00 00 04  00 00 00 03  00 00 00 03 2f 6e 6f  00");
    talk.expect("00 00 00 10  00 00 00 04  z3  ff ff ff 9b");

    // ping
    talk.send("00 00 00 08  ff ff ff fe  00 00 00 0b");
    talk.expect("00 00 00 10  ff ff ff fe  z3  00 00 00 00");

    // multi: create /m, check /a version 9. It fails and consumes z4.
    talk.send(
        "00 00 00 56  00 00 00 05  00 00 00 0e
         00 00 00 01 00 ff ff ff ff  00 00 00 02 2f 6d  00 00 00 00
         00 00 00 01 00 00 00 1f 00 00 00 05 77 6f 72 6c 64 00 00 00 06 61 6e 79 6f 6e 65
         00 00 00 00
         00 00 00 0d 00 ff ff ff ff  00 00 00 02 2f 61  00 00 00 09
         ff ff ff ff 01 ff ff ff ff",
    );
    talk.expect(
        "00 00 00 33  00 00 00 05  z4  00 00 00 00
         ff ff ff ff 00 00 00 00 00  00 00 00 00
         ff ff ff ff 00 ff ff ff 99  ff ff ff 99
         ff ff ff ff 01 ff ff ff ff",
    );

    // closeSession, after which the server closes TCP.
    talk.send("00 00 00 08  00 00 00 06  ff ff ff f5");
    talk.expect("00 00 00 10  00 00 00 06  z5  00 00 00 00");
    talk.connection.closes();
    assert_eq!(zxid(server), base + 5);
}
