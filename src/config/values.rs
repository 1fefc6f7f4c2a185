//! Values of zoo.cfg: text in, typed value out, or what would have been accepted.

use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// What would have been accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expected(pub String);

impl Expected {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Bounds of a number, both included, and its unit as text after the word "number".
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub min: i64,
    pub max: i64,
    pub unit: &'static str,
}

pub const I32_MAX: i64 = i32::MAX as i64;
pub const PORT: Range = Range {
    min: 0,
    max: 65_535,
    unit: "",
};
pub const POSITIVE: Range = Range {
    min: 1,
    max: I32_MAX,
    unit: "",
};
pub const MILLISECONDS: Range = Range {
    min: 1,
    max: I32_MAX,
    unit: " of milliseconds",
};
pub const TIMEOUT: Range = Range {
    min: -1,
    max: I32_MAX,
    unit: " of milliseconds",
};
pub const TICKS: Range = Range {
    min: 1,
    max: I32_MAX,
    unit: " of ticks",
};
pub const COUNT: Range = Range {
    min: -1,
    max: I32_MAX,
    unit: "",
};

/// A whole number as Java parses it: decimal, with a sign or without.
pub fn whole(value: &str, range: Range) -> Result<i64, Expected> {
    let number = i64::from_str(value)
        .ok()
        .filter(|n| (range.min..=range.max).contains(n));
    let Range { min, max, unit } = range;
    number.ok_or_else(|| Expected(format!("a whole number{unit} from {min} to {max}")))
}

/// A count whose negative and zero values all mean "no limit".
pub fn limit(value: &str) -> Result<u32, Expected> {
    let no_limit = |e: Expected| Expected(format!("{}; 0 means no limit", e.0));
    whole(value, COUNT)
        .map(|n| n.max(0) as u32)
        .map_err(no_limit)
}

/// An amount of memory whose negative and zero values all mean "no limit".
pub fn memory(value: &str) -> Result<usize, Expected> {
    let range = Range {
        min: -1,
        max: 1 << 50,
        unit: " of bytes",
    };
    let no_limit = |e: Expected| Expected(format!("{}; 0 means no limit", e.0));
    let bytes = whole(value, range).map_err(no_limit)?;
    Ok(usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes > 0)
        .unwrap_or(usize::MAX))
}

/// What [`memory`] has read.
pub fn show_memory(bytes: usize) -> String {
    if bytes == usize::MAX { 0 } else { bytes }.to_string()
}

/// -1 leaves the choice to the server.
pub fn unless_negative(value: &str, range: Range) -> Result<Option<u32>, Expected> {
    whole(value, range).map(|n| u32::try_from(n).ok())
}

pub fn boolean(value: &str) -> Result<bool, Expected> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Expected::new("true or false")),
    }
}

/// In just this case: any other word leaves ZooKeeper as it is, also `YES`.
pub fn yes_or_no(value: &str) -> Result<bool, Expected> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(Expected::new("yes or no, in lower case")),
    }
}

pub fn directory(value: &str) -> Result<PathBuf, Expected> {
    match value {
        "" => Err(Expected::new("a directory")),
        _ => Ok(value.into()),
    }
}

pub fn file(value: &str) -> Result<PathBuf, Expected> {
    match value {
        "" => Err(Expected::new("a file")),
        _ => Ok(value.into()),
    }
}

/// Java's `Integer.getInteger`, which reads this one key, takes hexadecimal numbers too.
pub fn frame_bytes(value: &str) -> Result<usize, Expected> {
    let range = Range {
        min: 1024,
        // Two of them have room in one message between servers.
        max: 100 << 20,
        unit: " of bytes",
    };
    let hexadecimal = value
        .strip_prefix("0x")
        .or_else(|| value.strip_prefix("0X"));
    let decimal = hexadecimal.and_then(|digits| i64::from_str_radix(digits, 16).ok());
    whole(&decimal.map_or(value.to_owned(), |n| n.to_string()), range).map(|n| n as usize)
}

/// `super:` and the base64 of 20 bytes; anything else could never match.
pub fn super_digest(value: &str) -> Result<Option<String>, Expected> {
    let digest = value
        .split_once(':')
        .and_then(|(_, digest)| BASE64.decode(digest).ok());
    match digest {
        _ if value.is_empty() => Ok(None),
        Some(bytes) if bytes.len() == 20 => Ok(Some(value.to_owned())),
        _ => Err(Expected::new(
            "super:DIGEST, where DIGEST is the base64 of the SHA-1 of super:password; make one \
             with `printf super:password | openssl dgst -sha1 -binary | base64`",
        )),
    }
}
