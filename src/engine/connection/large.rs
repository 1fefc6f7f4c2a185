//! Large reads, a step at a time: see `engine::large`.

use crate::engine::large::{Large, Work};
use crate::machine::{Caller, MULTI_READ_BYTES_MAX};
use crate::watch::WatchMode;
use crate::wire::{Answer, Request};

use super::{Connection, LargeRead};

impl Connection {
    /// The large read that has its turn, if there is one. It is then to be begun by
    /// [`Self::begin_large`], and nothing else is read from the client before it is answered.
    pub fn large(&self) -> Option<LargeRead> {
        self.inner.lock().pipeline.large()?;
        let state = self.shared.state.read();
        let inner = self.inner.lock();
        let request = inner.pipeline.large()?;
        let bytes = state.machine.large_bytes(request, inner.session);
        Some(LargeRead {
            bytes: match request {
                // A larger one is refused.
                Request::MultiRead(_) => bytes.min(MULTI_READ_BYTES_MAX),
                _ => bytes,
            },
            is_long: !matches!(request, Request::GetData { .. }),
        })
    }

    /// Begins the large read that has its turn. Output may be taken again when it is answered.
    pub fn begin_large(&self) -> Option<Large> {
        let state = self.shared.state.read();
        let mut inner = self.inner.lock();
        let request = inner.pipeline.begin_large()?;
        let identities = self.identities();
        let caller = Caller {
            session: inner.session,
            identities: &identities,
        };
        let path_and_mode = match &request {
            Request::GetData { path, watch: true } => Some((path.clone(), WatchMode::Data)),
            Request::GetChildren {
                path, watch: true, ..
            } => Some((path.clone(), WatchMode::Child)),
            _ => None,
        };
        let mut large = Large::begin(request, &state.machine, &caller);
        if let Some((path, mode)) = path_and_mode
            && !matches!(large.work, Work::Done(Err(_)))
            && let Err(code) = self.watch(&state.watches, &path, mode)
        {
            large.work = Work::Done(Err(code));
        }
        if large.zxid.is_some() {
            // What happens from now on comes behind the answer, which does not show it (§6.5).
            self.outbox.reserve();
        }
        Some(large)
    }

    /// Goes on with a large read for a fraction of a millisecond. True: it is answered.
    pub fn step_large(&self, large: &mut Large, now_ms: u64) -> bool {
        if let Work::Rearm(rearm) = &mut large.work {
            let state = self.shared.state.read();
            for event in self.rearm(rearm, &state.machine, &mut state.watches.lock()) {
                let _ = self.event(event);
            }
            if rearm.is_done() {
                large.work = Work::Done(Ok(Answer::Empty));
            }
        } else {
            large.step();
        }
        let Work::Done(result) = &large.work else {
            return false;
        };
        let state = self.shared.state.read();
        let mut inner = self.inner.lock();
        if let Some(pending) = inner.pipeline.end_large() {
            let zxid = large.zxid.unwrap_or(state.machine.zxid());
            // The connection's own task is the caller and looks at the outbox next: no wake.
            let _ = self.reply(&pending, zxid, result.clone(), now_ms);
            let _ = self.run(&mut inner, &state.machine, &state.watches, now_ms);
        }
        true
    }

    /// Answers the large reads that have their turn, for who has nothing better to do meanwhile.
    pub fn answer_large(&self, now_ms: u64) {
        while let Some(mut large) = self.begin_large() {
            while !self.step_large(&mut large, now_ms) {}
        }
    }
}
