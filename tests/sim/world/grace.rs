//! Sabotaged: who begins to lead counts silence from before.
//!
//! The engine gives everyone a full timeout from the turn in which it begins to keep the sessions'
//! time. Turns up to that one show it a clock that is late by the longest timeout, and the ticks
//! that it is behind then come at once: to its session clock it has led for that long, and who was
//! not heard *here* meanwhile is ended.

use zkraft::engine::{Event, Outputs};

use super::*;

impl World {
    /// The clock of a server's turn, in ms.
    pub(super) fn turn_clock_ms(&self, server: usize) -> u64 {
        let now_ms = self.clock_ms(server);
        match self.begins_to_lead(server) {
            true => now_ms.saturating_sub(self.silence_ms()),
            false => now_ms,
        }
    }

    /// After a turn: if it was the one in which the server began to lead, the ticks come that it is
    /// behind.
    pub(super) fn count_silence(&mut self, server: usize) -> Verdict {
        if !self.begins_to_lead(server) {
            return Ok(());
        }
        let now_ms = self.clock_ms(server);
        let (silence_ms, step_ms) = (self.silence_ms(), self.counted_ms());
        let process = self.process(server);
        let term = process.engine.term();
        // Entries of its own term are applied, so that it leads for all purposes.
        if process.shared.state.read().machine.applied().term != term {
            return Ok(());
        }
        process.counted_term = term;
        let mut out = Outputs::default();
        let mut behind_ms = silence_ms;
        while behind_ms > 0 {
            behind_ms = behind_ms.saturating_sub(step_ms);
            process
                .engine
                .handle(Event::Tick, now_ms - behind_ms, &mut out);
        }
        note!(self, "{server}: {silence_ms} ms of silence count");
        self.carry_out(server, out)?;
        self.turn_soon(server);
        Ok(())
    }

    /// Whether a server leads and has not counted the silence from before yet.
    fn begins_to_lead(&self, server: usize) -> bool {
        let host = &self.hosts[server];
        let Some(process) = host.process.as_ref() else {
            return false;
        };
        self.sabotage == Sabotage::NoGrace
            && process.engine.leader() == u64::from(host.id)
            && process.counted_term != process.engine.term()
    }

    /// A session that is silent for so long, in ms, has to end: the longest timeout, rounded up.
    fn silence_ms(&self) -> u64 {
        self.params.timeouts_ms.1 as u64 + self.params.session_tick_ms
    }

    /// What counts of the time between two ticks, at most (see engine::expiry).
    fn counted_ms(&self) -> u64 {
        (self.params.session_tick_ms / 2).max(2 * TICK_MS)
    }
}
