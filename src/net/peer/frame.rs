//! Frames between servers, cut from and put into streams of bytes.
//!
//! ```text
//! length of the body u32 | crc32c of the body u32 | body          (numbers are little-endian)
//! ```
//!
//! Rule: memory is taken for what has been received, never for what a length claims.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// No frame between servers has a longer body: far above an append with one entry of the largest
/// request that can be configured.
pub const BODY_BYTES_MAX: usize = 256 << 20;

const HEAD: usize = 8;
/// Read at once at least, if there is anything.
const READ_BYTES: usize = 16 << 10;
/// Bodies from this size on are not copied to be written.
const LARGE_BYTES: usize = 16 << 10;

/// Why a stream of frames cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes, where at most {limit} are allowed")]
    TooLong { length: usize, limit: usize },
    #[error("a frame was damaged on its way")]
    Damaged,
    #[error("the connection was closed in the middle of a frame")]
    Torn,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the beginning of a stream holds.
#[derive(Debug)]
pub enum Cut {
    /// The body of a whole frame, taken off.
    Body(Bytes),
    /// Part of a frame: as far as is known, so many bytes are missing.
    Missing(usize),
}

/// Takes a frame off what has been received.
///
/// # Errors
/// Its length is above `limit`, or its checksum is wrong.
pub fn cut(input: &mut BytesMut, limit: usize) -> Result<Cut, FrameError> {
    let Some(head) = input.first_chunk::<HEAD>() else {
        return Ok(Cut::Missing(HEAD - input.len()));
    };
    let mut head = &head[..];
    let length = head.get_u32_le() as usize;
    let checksum = head.get_u32_le();
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    if input.len() - HEAD < length {
        return Ok(Cut::Missing(HEAD + length - input.len()));
    }
    input.advance(HEAD);
    let body = input.split_to(length).freeze();
    if crc32c::crc32c(&body) != checksum {
        return Err(FrameError::Damaged);
    }
    Ok(Cut::Body(body))
}

/// Puts a frame with this body behind what is there.
pub fn put(body: &[u8], out: &mut BytesMut) {
    out.put_slice(&head(body));
    out.put_slice(body);
}

fn head(body: &[u8]) -> [u8; HEAD] {
    let length = u32::try_from(body.len()).expect("frames are far below 4 GiB");
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    head
}

/// Reads frames from a stream. Dropping a future of it loses nothing.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    input: BytesMut,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(stream: R, limit: usize) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            limit,
        }
    }

    /// From now on, bodies may have so many bytes.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The body of the next frame; `None` where the stream ends between two.
    ///
    /// # Errors
    /// The stream cannot be read any further.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            let missing = match cut(&mut self.input, self.limit)? {
                Cut::Body(body) => return Ok(Some(body)),
                Cut::Missing(missing) => missing,
            };
            if self.read(missing).await? == 0 {
                return match self.input.is_empty() {
                    true => Ok(None),
                    false => Err(FrameError::Torn),
                };
            }
        }
    }

    /// The body of the next frame, if all of it has been received.
    ///
    /// # Errors
    /// As for [`Self::next`].
    pub fn ready(&mut self) -> Result<Option<Bytes>, FrameError> {
        match cut(&mut self.input, self.limit)? {
            Cut::Body(body) => Ok(Some(body)),
            Cut::Missing(_) => Ok(None),
        }
    }

    /// What has been received and not taken, once it is more than `than` bytes. Fewer: the stream
    /// has ended.
    ///
    /// # Errors
    /// The stream cannot be read.
    pub async fn more(&mut self, than: usize) -> io::Result<&mut BytesMut> {
        while self.input.len() <= than && self.read(1).await? > 0 {}
        Ok(&mut self.input)
    }

    /// Reads once. `missing`: bytes that are needed to go on.
    async fn read(&mut self, missing: usize) -> io::Result<usize> {
        if self.input.capacity() - self.input.len() < missing.min(READ_BYTES) {
            // At most doubles what is there.
            let at_most = self.input.len().max(READ_BYTES);
            self.input.reserve(missing.clamp(READ_BYTES, at_most));
        }
        self.stream.read_buf(&mut self.input).await
    }
}

/// Frames that are written together, large bodies without copying them.
#[derive(Debug, Default)]
pub struct Batch {
    parts: VecDeque<Bytes>,
    /// Behind all parts: heads and small bodies.
    small: BytesMut,
}

impl Batch {
    pub fn push(&mut self, body: Vec<u8>) {
        if body.len() < LARGE_BYTES {
            put(&body, &mut self.small);
            return;
        }
        self.small.put_slice(&head(&body));
        self.parts.push_back(self.small.split().freeze());
        self.parts.push_back(body.into());
    }

    /// Nothing is added after this.
    pub fn sealed(mut self) -> Self {
        if !self.small.is_empty() {
            self.parts.push_back(self.small.split().freeze());
        }
        self
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let count = slices.len().min(self.parts.len());
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part);
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let part = self
                .parts
                .front_mut()
                .expect("no more is written than is there");
            let step = count.min(part.len());
            part.advance(step);
            count -= step;
            if part.is_empty() {
                self.parts.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn frames_of_all_sizes_go_through() {
        let sizes = [0, 1, LARGE_BYTES - 1, LARGE_BYTES, 1 << 20, 3, 10 << 20];
        let bodies: Vec<Vec<u8>> = sizes.iter().map(|&size| vec![size as u8; size]).collect();
        let (mut near, far) = tokio::io::duplex(100_000);
        let mut batch = Batch::default();
        bodies.iter().for_each(|body| batch.push(body.clone()));
        let mut batch = batch.sealed();
        let writing = tokio::spawn(async move {
            near.write_all_buf(&mut batch).await.unwrap();
        });
        let mut reader = FrameReader::new(far, BODY_BYTES_MAX);
        for body in bodies {
            assert_eq!(reader.next().await.unwrap().unwrap(), body);
        }
        assert!(reader.next().await.unwrap().is_none());
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_length_alone_takes_no_memory() {
        let mut bytes = BytesMut::new();
        bytes.put_u32_le(BODY_BYTES_MAX as u32);
        bytes.put_u32_le(0);
        let mut reader = FrameReader::new(&bytes[..], BODY_BYTES_MAX);
        assert!(matches!(reader.next().await, Err(FrameError::Torn)));
        assert!(reader.input.capacity() <= 2 * READ_BYTES);
        let mut reader = FrameReader::new(&bytes[..], BODY_BYTES_MAX - 1);
        let refused = reader.next().await.unwrap_err().to_string();
        assert_eq!(
            refused,
            "a frame of 268435456 bytes, where at most 268435455 are allowed"
        );
    }

    #[test]
    fn damage_is_noticed() {
        let mut whole = BytesMut::new();
        put(b"some body", &mut whole);
        for position in 4..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 4;
            let cut = cut(&mut damaged, 100);
            assert!(matches!(cut, Err(FrameError::Damaged)), "byte {position}");
        }
    }
}
