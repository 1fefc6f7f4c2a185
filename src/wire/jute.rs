//! Jute, the encoding of the client protocol: big-endian, untagged, unpadded (§1.1).

use std::fmt;
use std::ops::Deref;

use bytes::{BufMut, Bytes, BytesMut};

/// Why bytes are not the record that was expected. Answered as `MarshallingError` (§1.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    #[error("the record ends after {available} bytes where {needed} were needed")]
    Short { needed: usize, available: usize },
    #[error("length {0} is not possible")]
    Length(i32),
    #[error("null where a value is needed")]
    Null,
    #[error("opcode {0} is not allowed here")]
    Opcode(i32),
    #[error("value {0} is not allowed here")]
    Value(i32),
}

/// A string of the protocol: shared bytes that are valid UTF-8.
#[derive(Clone, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Text(Bytes);

impl Text {
    /// Takes bytes from the wire. Invalid UTF-8 is replaced by U+FFFD as ZooKeeper does, which no
    /// path may contain (§1.1).
    pub fn from_wire(bytes: Bytes) -> Self {
        // Text is nearly always valid, and finding out is much cheaper than to repair it.
        if std::str::from_utf8(&bytes).is_ok() {
            return Self(bytes);
        }
        Self(String::from_utf8_lossy(&bytes).into_owned().into())
    }

    pub fn as_str(&self) -> &str {
        // SAFETY: every constructor takes a `str` or checks the bytes, and `Bytes` are immutable.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }

    /// The shared bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

/// Takes a record apart. Values share the memory of the frame.
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Everything not read yet.
    pub fn rest(self) -> Bytes {
        self.bytes.slice(self.at..)
    }

    pub fn boolean(&mut self) -> Result<bool, DecodeError> {
        Ok(self.array::<1>()?[0] != 0)
    }

    pub fn int(&mut self) -> Result<i32, DecodeError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub fn long(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A buffer; `None` is null, which differs from empty.
    pub fn buffer(&mut self) -> Result<Option<Bytes>, DecodeError> {
        let length = self.int()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| DecodeError::Length(length))?;
        self.take(length).map(Some)
    }

    /// A string; `None` is null.
    pub fn text(&mut self) -> Result<Option<Text>, DecodeError> {
        Ok(self.buffer()?.map(Text::from_wire))
    }

    /// A string that must not be null.
    pub fn required_text(&mut self) -> Result<Text, DecodeError> {
        self.text()?.ok_or(DecodeError::Null)
    }

    /// A vector; `None` is null. Counts below -1 stand for no elements, as ZooKeeper reads them.
    pub fn vector<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<Vec<T>>, DecodeError> {
        let count = self.int()?;
        if count == -1 {
            return Ok(None);
        }
        // The count is only a claim: what is allocated for it is never more than what is there to
        // be read. Every element takes bytes, so what is added beyond is bounded by them, too.
        let room = self.remaining() / size_of::<T>().max(4);
        let mut elements = Vec::with_capacity((count.max(0) as usize).min(room));
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(Some(elements))
    }

    fn take(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        let available = self.remaining();
        if length > available {
            return Err(DecodeError::Short {
                needed: length,
                available,
            });
        }
        let taken = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = &self.bytes[self.at..];
        let short = DecodeError::Short {
            needed: N,
            available: rest.len(),
        };
        let array = *rest.first_chunk::<N>().ok_or(short)?;
        self.at += N;
        Ok(array)
    }
}

/// Puts a record together.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut BytesMut,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut BytesMut) -> Self {
        Self { out }
    }

    /// Bytes that are encoded already.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    pub fn boolean(&mut self, value: bool) {
        self.out.put_u8(u8::from(value));
    }

    pub fn int(&mut self, value: i32) {
        self.out.put_i32(value);
    }

    pub fn long(&mut self, value: i64) {
        self.out.put_i64(value);
    }

    pub fn buffer(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.int(-1),
            Some(bytes) => {
                self.count(bytes.len());
                self.out.put_slice(bytes);
            }
        }
    }

    pub fn text(&mut self, value: &str) {
        self.buffer(Some(value.as_bytes()));
    }

    /// The length of a string, buffer or vector that follows.
    pub fn count(&mut self, count: usize) {
        // Nothing we hold comes near 2 GiB: frames and replies are bounded long before.
        self.int(i32::try_from(count).expect("a length below 2^31"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_string_with_invalid_utf8_gets_replacement_characters() {
        let mut reader = Reader::new(Bytes::from_static(&[0, 0, 0, 3, b'/', 0xff, b'a']));
        assert_eq!(reader.required_text().unwrap(), "/\u{fffd}a");
    }

    #[test]
    fn null_and_empty_are_distinct() {
        let mut reader = Reader::new(Bytes::from_static(&[255, 255, 255, 255, 0, 0, 0, 0]));
        assert_eq!(reader.buffer(), Ok(None));
        assert_eq!(reader.buffer(), Ok(Some(Bytes::new())));
    }

    #[test]
    fn a_negative_length_other_than_null_is_refused() {
        let mut reader = Reader::new(Bytes::from_static(&[255, 255, 255, 254]));
        assert_eq!(reader.buffer(), Err(DecodeError::Length(-2)));
    }

    #[test]
    fn a_huge_vector_count_fails_without_allocating() {
        let mut reader = Reader::new(Bytes::from_static(&[0x7f, 255, 255, 255, 0]));
        assert!(reader.vector(Reader::int).is_err());
    }

    #[test]
    fn a_vector_is_not_given_more_memory_than_the_record_has() {
        let mut record = vec![0, 0, 0, 1];
        record.resize(4 + 1_000, 0);
        for count in [1, i32::MAX] {
            record[..4].copy_from_slice(&count.to_be_bytes());
            let mut seen = 0;
            let wide = |reader: &mut Reader| {
                seen += 1;
                reader.int().map(|number| [number; 16])
            };
            let read = Reader::new(record.clone().into()).vector(wide);
            if let Ok(Some(elements)) = read {
                assert!(elements.capacity() * size_of::<[i32; 16]>() <= 1_000);
            }
            assert_eq!(seen, count.min(251), "count {count}");
        }
    }

    proptest! {
        #[test]
        fn values_survive_a_round_trip(number: i32, wide: i64, flag: bool, text: String,
                                       data: Option<Vec<u8>>) {
            let mut out = BytesMut::new();
            let mut writer = Writer::new(&mut out);
            writer.int(number);
            writer.long(wide);
            writer.boolean(flag);
            writer.text(&text);
            writer.buffer(data.as_deref());
            let mut reader = Reader::new(out.freeze());
            prop_assert_eq!(reader.int(), Ok(number));
            prop_assert_eq!(reader.long(), Ok(wide));
            prop_assert_eq!(reader.boolean(), Ok(flag));
            prop_assert_eq!(reader.required_text().unwrap(), text.as_str());
            prop_assert_eq!(reader.buffer().unwrap().map(|b| b.to_vec()), data);
            prop_assert_eq!(reader.remaining(), 0);
        }
    }
}
