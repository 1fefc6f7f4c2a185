//! Paths of znodes: which are legal, and how they split (§5.4).
//!
//! A path stays the text the client sent: legal or not is asked where the protocol asks it, since
//! which check comes first decides the error a client sees (§3.3).

/// No new znode has a longer path than that, in bytes. A znode costs its last name alone, but who
/// ends a session, lists ephemerals or looks for watches of ancestors makes whole paths of many.
pub const PATH_BYTES_MAX: usize = 4096;

/// The znodes that nobody may delete (§5.5).
/// What clients are shown of the ensemble.
pub const CONFIG: &str = "/zookeeper/config";
const UNDELETABLE: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", CONFIG];

/// The full path validation of §5.4.
pub fn is_valid(path: &str) -> bool {
    if path == "/" {
        return true;
    }
    names(path).is_some_and(|mut names| names.all(is_name))
}

/// The names that a path leads through, as the bytes of text. `None` if it does not begin with a
/// slash. Every request splits a path or two, and this is cheaper than to split it as text.
pub fn names(path: &str) -> Option<impl Iterator<Item = &[u8]>> {
    let rest = path.as_bytes().strip_prefix(b"/")?;
    Some(rest.split(|byte| *byte == b'/'))
}

/// Whether this may be the name of a znode: one component of a legal path.
fn is_name(name: &[u8]) -> bool {
    // Without a branch per byte, as nearly every name is plain.
    let is_plain = name.iter().fold(true, |plain, byte| {
        plain & (byte.wrapping_sub(b' ') <= b'~' - b' ')
    });
    !matches!(name, b"" | b"." | b"..")
        && (is_plain || std::str::from_utf8(name).is_ok_and(|name| name.chars().all(is_legal)))
}

/// Judged per UTF-16 unit, so everything beyond U+FFFF is out: its surrogates are.
fn is_legal(character: char) -> bool {
    !matches!(
        u32::from(character),
        0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..
    )
}

/// The test that create and delete make first: a parent can be told from a name (§3.3).
pub fn has_shape(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.contains(&b'/') && !bytes.contains(&0)
}

/// Splits at the last slash: the parent, `""` for the root, and the name. `None` without a slash.
pub fn split(path: &str) -> Option<(&str, &str)> {
    let slash = path.bytes().rposition(|byte| byte == b'/')?;
    Some((&path[..slash], &path[slash + 1..]))
}

/// The parent of a legal path; the root's is the root.
pub fn parent(path: &str) -> &str {
    match split(path) {
        None | Some(("", _)) => "/",
        Some((parent, _)) => parent,
    }
}

pub fn is_undeletable(path: &str) -> bool {
    UNDELETABLE.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_paths() {
        let paths = [
            "/",
            "/a",
            "/a/b",
            "/...",
            "/.x",
            "/x..",
            "/\u{e9}",
            "/a b",
            "/\u{fef0}",
        ];
        for path in paths {
            assert!(is_valid(path), "{path:?}");
        }
    }

    #[test]
    fn s24_s25_s26_illegal_paths() {
        let paths = [
            "",
            "a",
            "a/b",
            "/a/",
            "//",
            "//a",
            "/a//b",
            "/.",
            "/..",
            "/a/./b",
            "/a/..",
            "/\0",
            "/\u{1}",
            "/\u{1f}",
            "/\u{7f}",
            "/\u{9f}",
            "/\u{e000}",
            "/\u{f8ff}",
            "/\u{fff0}",
            "/\u{fffd}",
            "/\u{1f600}",
        ];
        for path in paths {
            assert!(!is_valid(path), "{path:?}");
        }
    }

    #[test]
    fn parents() {
        assert_eq!(parent("/a/b"), "/a");
        assert_eq!(parent("/a"), "/");
        assert_eq!(parent("/"), "/");
        assert_eq!(split("/a"), Some(("", "a")));
        assert_eq!(split("/a/"), Some(("/a", "")));
        assert_eq!(split("a"), None);
    }
}
