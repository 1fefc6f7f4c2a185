//! The lengths of frames: a stream cut into pieces gives the frames that the whole gives, none
//! longer than the limit, and an impossible length ends it.

use zkraft::wire::{FRAME_BYTES_MAX, FrameLength, frame_length};

use super::input::Input;

/// What a stream holds.
#[derive(Debug, Default, Eq, PartialEq)]
struct Frames {
    bodies: Vec<Vec<u8>>,
    refused: Option<i32>,
}

impl Frames {
    /// Takes whole frames off `buffer`.
    fn take(&mut self, buffer: &mut Vec<u8>, limit: usize) {
        while self.refused.is_none() {
            match frame_length(buffer, limit) {
                FrameLength::Incomplete => {
                    assert!(buffer.len() < 4, "four bytes tell the length");
                    return;
                }
                FrameLength::Refused(length) => self.refused = Some(length),
                FrameLength::Body(body) => {
                    assert!(body <= limit);
                    if buffer.len() < 4 + body {
                        return;
                    }
                    self.bodies.push(buffer[4..4 + body].to_vec());
                    buffer.drain(..4 + body);
                }
            }
        }
    }
}

/// The same by hand.
fn expected(mut stream: &[u8], limit: usize) -> Frames {
    let mut frames = Frames::default();
    while let Some((length, rest)) = stream.split_first_chunk::<4>() {
        let length = i64::from(i32::from_be_bytes(*length));
        if !(0..=limit as i64).contains(&length) {
            frames.refused = Some(length as i32);
            break;
        }
        let Some((body, rest)) = rest.split_at_checked(length as usize) else {
            break;
        };
        frames.bodies.push(body.to_vec());
        stream = rest;
    }
    frames
}

/// Input: which limit, then runs of bytes as they come from the socket.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let limit = match input.byte() {
        0 => FRAME_BYTES_MAX,
        1 => i32::MAX as usize,
        small => usize::from(small),
    };
    let mut stream = Vec::new();
    let mut buffer = Vec::new();
    let mut frames = Frames::default();
    while !input.is_empty() {
        let piece = input.run();
        stream.extend_from_slice(piece);
        buffer.extend_from_slice(piece);
        frames.take(&mut buffer, limit);
    }
    assert_eq!(frames, expected(&stream, limit));
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        b"\0\x06\0\0\0\x02ab".to_vec(),
        b"\0\x03\0\0\0\x05\x02abc\x03\0\0\0".to_vec(),
        b"\x20\x05\0\0\0\x21a".to_vec(),
        b"\x01\x04\x7f\xff\xff\xff\x02ab".to_vec(),
        b"\0\x04\xff\xff\xff\xff".to_vec(),
    ]
}
