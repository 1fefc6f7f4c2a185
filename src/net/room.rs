//! Room that all connections share, in bytes: who has none waits for it.

use std::pin::Pin;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Permits are KiB, since a semaphore cannot count the bytes of a large memory on every machine.
const UNIT: usize = 1 << 10;

/// A number of bytes that may be in use at a time.
#[derive(Debug)]
pub struct Rooms {
    all: u32,
    free: Semaphore,
}

/// Bytes in use, given back when it is dropped.
#[derive(Debug)]
pub struct Room<'a>(#[expect(dead_code, reason = "held for its end")] Option<SemaphorePermit<'a>>);

impl Rooms {
    pub fn new(bytes: usize) -> Self {
        let most = u32::MAX as usize >> 3;
        let all = bytes
            .div_ceil(UNIT)
            .clamp(1, most.min(Semaphore::MAX_PERMITS));
        Self {
            all: all as u32,
            free: Semaphore::new(all),
        }
    }

    /// Waits for room, first come first served. Who needs more than there is gets all of it.
    pub async fn take(&self, bytes: usize) -> Room<'_> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        // It is never closed, and who gets nothing of a closed one needs no room any more.
        Room(self.free.acquire_many(units.min(self.all)).await.ok())
    }

    /// Whether more than half is in use.
    pub fn is_tight(&self) -> bool {
        self.free.available_permits() < self.all as usize / 2
    }
}

type Coming<'a> = Pin<Box<dyn Future<Output = Room<'a>> + Send + 'a>>;

/// A place in the queue for room. Who waits does other things in between, and must not go to the
/// end of the queue each time.
#[derive(Default)]
pub struct Place<'a> {
    /// Bytes that are waited for.
    waiting: Option<(usize, Coming<'a>)>,
}

impl<'a> Place<'a> {
    /// Says for how many bytes room is wanted, if for any. Nothing is lost by saying it again.
    pub fn want(&mut self, rooms: &'a Rooms, bytes: Option<usize>) {
        if self.waiting.as_ref().map(|(bytes, _)| *bytes) != bytes {
            self.waiting = bytes.map(|bytes| (bytes, Box::pin(rooms.take(bytes)) as _));
        }
    }

    /// Ends when there is room. The place is kept if this is given up.
    pub async fn room(&mut self) -> Room<'a> {
        let Some((_, room)) = &mut self.waiting else {
            return std::future::pending().await;
        };
        let room = room.await;
        self.waiting = None;
        room
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn who_comes_when_all_is_taken_waits_and_who_wants_too_much_gets_all() {
        let mut context = Context::from_waker(Waker::noop());
        let rooms = Rooms::new(10 << 10);
        let Poll::Ready(first) = pin!(rooms.take(100 << 10)).poll(&mut context) else {
            panic!("nobody was there before");
        };
        assert!(rooms.is_tight());
        let mut second = pin!(rooms.take(1));
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(first);
        assert!(second.poll(&mut context).is_ready());
        assert!(!rooms.is_tight());
    }

    #[test]
    fn who_does_something_else_meanwhile_keeps_its_place() {
        let mut context = Context::from_waker(Waker::noop());
        let rooms = Rooms::new(10 << 10);
        let Poll::Ready(all) = pin!(rooms.take(10 << 10)).poll(&mut context) else {
            panic!("nobody was there before");
        };
        let mut place = Place::default();
        place.want(&rooms, Some(10 << 10));
        assert!(pin!(place.room()).poll(&mut context).is_pending());
        let mut later = pin!(rooms.take(10 << 10));
        assert!(later.as_mut().poll(&mut context).is_pending());
        // It was woken for something else, and wants the same as before.
        place.want(&rooms, Some(10 << 10));
        drop(all);
        assert!(later.as_mut().poll(&mut context).is_pending());
        let Poll::Ready(room) = pin!(place.room()).poll(&mut context) else {
            panic!("it was the first");
        };
        drop(room);
        assert!(later.poll(&mut context).is_ready());
        // Who wants nothing any more waits for nothing, and has nothing.
        place.want(&rooms, None);
        assert!(pin!(place.room()).poll(&mut context).is_pending());
    }
}
