//! Log lines about what goes on and on: a peer that cannot be reached, a server that is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The same text is said again after this time, if it is still true.
const AGAIN: Duration = Duration::from_secs(60);
/// Addresses that are remembered at a time.
const SOURCES_MAX: usize = 256;
/// What a stranger says may be different each time. It is still not heard more often than this.
const STRANGER_PAUSE: Duration = Duration::from_secs(1);

/// What was said last about something.
#[derive(Debug, Default)]
pub(super) struct Notice {
    last: Option<(String, Instant)>,
}

impl Notice {
    /// Whether the text should be logged: it is a new one, or was not for a minute.
    pub fn is_news(&mut self, text: &str) -> bool {
        let now = Instant::now();
        let known = matches!(&self.last, Some((last, at)) if last == text && *at + AGAIN > now);
        if !known {
            self.last = Some((text.to_owned(), now));
        }
        !known
    }

    /// It is over; should it begin again, that is news.
    pub fn clear(&mut self) {
        self.last = None;
    }
}

/// Notices about those who dial, by their addresses.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<BTreeMap<IpAddr, (String, Instant)>>);

impl Notices {
    /// Whether the text about this address should be logged.
    pub fn is_news(&self, address: IpAddr, text: &str) -> bool {
        let now = Instant::now();
        let mut known = self.0.lock();
        if known.len() >= SOURCES_MAX {
            known.retain(|_, (_, at)| *at + AGAIN > now);
        }
        let said = match known.get(&address) {
            Some((last, at)) if last == text => *at + AGAIN > now,
            Some((_, at)) => *at + STRANGER_PAUSE > now,
            None => known.len() >= SOURCES_MAX,
        };
        if !said {
            known.insert(address, (text.to_owned(), now));
        }
        !said
    }
}

/// What a peer said, fit for a line of the log.
pub(in crate::net) fn printable(text: &str) -> String {
    const CHARS_MAX: usize = 500;
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(CHARS_MAX).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once() {
        let mut notice = Notice::default();
        assert!(notice.is_news("a"));
        assert!(!notice.is_news("a"));
        assert!(notice.is_news("b"));
        assert!(notice.is_news("a"));
        notice.clear();
        assert!(notice.is_news("a"));
    }

    #[test]
    fn strangers_fill_neither_log_nor_memory() {
        let notices = Notices::default();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        assert!(notices.is_news(address(0), "a"));
        assert!(!notices.is_news(address(0), "a"));
        assert!(!notices.is_news(address(0), "b"));
        let heard = (1..1_000).filter(|&n| notices.is_news(address(n), "a"));
        assert_eq!(heard.count(), SOURCES_MAX - 1);
        assert_eq!(printable("a\n\u{1b}[31mb"), "a  [31mb");
    }
}
