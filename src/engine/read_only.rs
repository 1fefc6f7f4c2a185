//! What a server without a majority may still do: show what it has to clients that asked for no
//! more than that (§9.5).

use super::Engine;

impl Engine {
    /// Begins to serve read-only clients once no leader was heard of for long enough, and ends when
    /// one is heard, or this server serves again.
    pub(super) fn update_read_only(&mut self) {
        let Some(after_ms) = self.shared.options.read_only_after_ms else {
            return;
        };
        let leader = self.replica.leader();
        let is_led = leader == self.id || self.is_active(leader);
        if is_led || self.shared.is_serving() {
            self.deserted_ms = None;
        } else if self.deserted_ms.is_none() {
            self.deserted_ms = Some(self.now_ms);
        }
        // A server that never heard from the others has nothing to show.
        let is_read_only = self.applied.index > 0
            && !self.agreement.is_outvoted()
            && self
                .deserted_ms
                .is_some_and(|since_ms| self.now_ms >= since_ms + after_ms)
            // Who was removed will have nothing new to show, and its clients belong elsewhere.
            && self.belongs;
        if self.shared.set_read_only(is_read_only) != is_read_only {
            match is_read_only {
                true => tracing::warn!("no majority: read-only clients are served what is here"),
                false => tracing::info!("read-only clients are not served any more"),
            }
        }
    }
}
