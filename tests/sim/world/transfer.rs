//! Snapshots on their way from server to server.
//!
//! Played as `net::transfer` does it, over the storage's own code: an offer, the chunks that the
//! other side lacks, the word that it has stored them. A connection may break at any step; what was
//! received by then is kept, and the next attempt goes on there. A process that ends forgets both
//! sides of it.

use std::path::Path;
use std::sync::Arc;

use zkraft::engine::{Event, SendSnapshot, SnapshotMeta};
use zkraft::machine::{Machine, RestoreError};
use zkraft::storage::{
    Disk, Fault, SnapshotReader, SnapshotWriter, list_snapshots, write_snapshot,
};

use super::storage::SNAPSHOT_DIR;
use super::*;
use crate::disk::FaultyDisk;

/// How long it is remembered that a snapshot was stored, in µs.
const REMEMBER_US: u64 = 60_000_000;
/// Sabotaged: where those are that are sent.
const SHORT_DIR: &str = "/data/short";
const PAUSE_MIN_US: u64 = 100_000;
const PAUSE_MAX_US: u64 = 5_000_000;

/// A snapshot that is being sent.
pub(super) struct Sending {
    what: SendSnapshot,
    reader: SnapshotReader,
    /// The start of the receiver that the present attempt goes to; none: it is yet to begin.
    attempt: Option<u64>,
    /// Chunks that the receiver was known to have.
    have: u64,
    until_us: u64,
    pause_us: u64,
}

/// What a server receives: one snapshot at a time.
#[derive(Default)]
pub(super) struct Desk {
    partial: Option<(Key, SnapshotWriter)>,
    stored: Option<(Key, u64)>,
}

impl Desk {
    pub(super) fn is_receiving(&self) -> bool {
        self.partial.is_some()
    }

    /// Whether a snapshot is remembered: it is loaded once more if it is offered again.
    pub(super) fn remembers(&self, now_us: u64) -> bool {
        let stored = self.stored.as_ref();
        stored.is_some_and(|(_, at_us)| now_us < at_us + REMEMBER_US)
    }
}

/// What makes two offers the same.
#[derive(Clone, Debug, PartialEq)]
struct Key {
    server: usize,
    disk: u64,
    meta: SnapshotMeta,
    chunks: u64,
}

/// How a step ended.
enum Progress {
    More,
    Stored,
    /// The connection broke, or the receiver asks for another attempt.
    Broke,
    Failed,
    /// The file is damaged: it cannot be sent to anyone.
    Unreadable,
}

impl Progress {
    /// The file cannot be read on.
    fn stopped_by(fault: &Fault) -> Self {
        match fault {
            Fault::CorruptSnapshot { .. } => Self::Unreadable,
            _ => Self::Failed,
        }
    }
}

impl World {
    pub(super) fn send_snapshot(&mut self, server: usize, what: SendSnapshot) -> Verdict {
        let to = what.to as usize - 1;
        let process = self.process(server);
        let waiting = process.sendings.entry(to).or_default();
        waiting.0.push_back(what);
        match waiting.1.is_none() {
            true => self.begin_sending(server, to),
            false => Ok(()),
        }
    }

    /// Whether a snapshot is on its way to a server.
    pub(super) fn is_being_sent(&self, to: usize) -> bool {
        let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        let mut sendings = processes.filter_map(|process| process.sendings.get(&to));
        sendings.any(|(_, sending)| sending.is_some())
    }

    /// Begins with the next snapshot for a server, if nothing is on its way there.
    fn begin_sending(&mut self, server: usize, to: usize) -> Verdict {
        let patience_us = self.params.transfer.patience_us;
        let until_us = self.now_us + patience_us;
        loop {
            let sendings = &mut self.process(server).sendings;
            let waiting = sendings.get_mut(&to).map(|(waiting, _)| waiting);
            let Some(what) = waiting.and_then(VecDeque::pop_front) else {
                return Ok(());
            };
            match self.open_to_send(server, what) {
                Ok(reader) => {
                    let sending = Sending {
                        what,
                        reader,
                        attempt: None,
                        have: 0,
                        until_us,
                        pause_us: PAUSE_MIN_US,
                    };
                    self.put_back(server, to, sending);
                    note!(self, "{server}: sends snapshot {} to {to}", what.index);
                    self.stats.transfers += 1;
                    self.next_step_of_sending(server, to, 0);
                    return Ok(());
                }
                Err(fault) => {
                    note!(self, "{server}: snapshot {} for {to}: {fault}", what.index);
                    if let Progress::Unreadable = Progress::stopped_by(&fault) {
                        let index = what.index;
                        self.handle(server, Event::SnapshotUnreadable { index })?;
                    }
                    let (to, ok) = (what.to, false);
                    self.handle(server, Event::SnapshotSent { to, ok })?;
                }
            }
        }
    }

    fn open_to_send(&self, server: usize, what: SendSnapshot) -> Result<SnapshotReader, Fault> {
        let SendSnapshot { index, term, .. } = what;
        let (disk, dir) = (&self.hosts[server].disk, Path::new(SNAPSHOT_DIR));
        let reader = open(disk, dir, index, term)?;
        if self.sabotage != Sabotage::SentOneShort {
            return Ok(reader);
        }
        let Some((meta, machine)) = self.short_of(&reader.meta()) else {
            return Ok(reader);
        };
        let (cluster, dir) = (self.hosts[server].identity().cluster, Path::new(SHORT_DIR));
        let writes: Arc<dyn Disk> = Arc::new(disk.clone());
        let made = disk.create_dir(dir);
        made.map_err(|error| Fault::io("create", dir, error))?;
        write_snapshot(&writes, dir, cluster, &meta, machine.image().chunks())?;
        open(disk, dir, index, term)
    }

    fn next_step_of_sending(&mut self, server: usize, to: usize, pause_us: u64) {
        let after_us = self.rng.between(1, self.params.transfer.step_us);
        self.step_at(self.now_us + pause_us + after_us, server, Step::Send { to });
    }

    pub(super) fn send_on(&mut self, server: usize, to: usize) -> Verdict {
        let sendings = &mut self.process(server).sendings;
        let Some(sending) = sendings
            .get_mut(&to)
            .and_then(|(_, sending)| sending.take())
        else {
            return Ok(());
        };
        let mut sending = sending;
        let progress = self.sending_step(server, to, &mut sending)?;
        let now_us = self.now_us;
        let pause_us = sending.pause_us;
        let ended = match progress {
            Progress::More => {
                self.put_back(server, to, sending);
                self.next_step_of_sending(server, to, 0);
                return Ok(());
            }
            Progress::Stored => true,
            Progress::Broke if now_us + pause_us < sending.until_us => {
                self.stats.broken_transfers += 1;
                sending.attempt = None;
                sending.pause_us = (2 * pause_us).min(PAUSE_MAX_US);
                self.put_back(server, to, sending);
                self.next_step_of_sending(server, to, pause_us);
                return Ok(());
            }
            Progress::Broke | Progress::Failed => false,
            Progress::Unreadable => {
                let index = sending.what.index;
                self.handle(server, Event::SnapshotUnreadable { index })?;
                false
            }
        };
        let index = sending.what.index;
        note!(
            self,
            "{server}: snapshot {index} for {to} is stored: {ended}"
        );
        let sent = Event::SnapshotSent {
            to: sending.what.to,
            ok: ended,
        };
        self.handle(server, sent)?;
        self.begin_sending(server, to)
    }

    fn put_back(&mut self, server: usize, to: usize, sending: Sending) {
        let place = self.process(server).sendings.entry(to).or_default();
        place.1 = Some(sending);
    }

    /// The next step of the attempt.
    fn sending_step(
        &mut self,
        server: usize,
        to: usize,
        sending: &mut Sending,
    ) -> Result<Progress, Violation> {
        if !self.process(server).links.contains_key(&to) {
            // It is no peer any more.
            return Ok(Progress::Failed);
        }
        let breaks = self.rng.permille(self.params.transfer.breaks_permille);
        let boot = self.hosts[to].boot;
        let begun = sending.attempt.is_some();
        let lost = match sending.attempt {
            None => !self.can_connect(server, to)?,
            Some(begun) => {
                begun != boot
                    || self.hosts[to].process.is_none()
                    || self.network.is_cut(server, to, self.now_us)
            }
        };
        if breaks || lost {
            return Ok(Progress::Broke);
        }
        if self.hosts[to].is_paused(self.now_us) {
            return Ok(Progress::More);
        }
        let key = Key {
            server,
            disk: self.hosts[server].disk_id,
            meta: sending.reader.meta(),
            chunks: sending.reader.chunks(),
        };
        if !begun {
            sending.attempt = Some(boot);
            return self.offer(to, &key, sending);
        }
        match sending.reader.next_compressed() {
            Some(Err(fault)) => {
                note!(self, "{server}: sending to {to}: {fault}");
                Ok(Progress::stopped_by(&fault))
            }
            Some(Ok(chunk)) => {
                let desk = &mut self.process(to).desk;
                let Some((present, writer)) = &mut desk.partial else {
                    return Ok(Progress::Failed);
                };
                if *present != key {
                    return Ok(Progress::Failed);
                }
                if let Err(fault) = writer.push_compressed(&chunk) {
                    note!(self, "{to}: a chunk of {server}: {fault}");
                    self.process(to).desk.partial = None;
                    return Ok(Progress::Failed);
                }
                Ok(Progress::More)
            }
            None => self.finish(to, &key),
        }
    }

    /// The receiver says how much of it is there.
    fn offer(
        &mut self,
        to: usize,
        key: &Key,
        sending: &mut Sending,
    ) -> Result<Progress, Violation> {
        let now_us = self.now_us;
        let desk = &mut self.process(to).desk;
        if let Some((stored, at_us)) = &desk.stored
            && stored == key
            && now_us < at_us + REMEMBER_US
        {
            self.received(to, &key.meta)?;
            return Ok(Progress::Stored);
        }
        let have = match &desk.partial {
            Some((present, writer)) if present == key => writer.chunks(),
            _ => {
                // The old file goes before the new one is made.
                desk.partial = None;
                let disk = Arc::new(self.hosts[to].disk.clone());
                let cluster = self.hosts[to].identity().cluster;
                let dir = Path::new(SNAPSHOT_DIR);
                match SnapshotWriter::receive(disk, dir, cluster, &key.meta) {
                    Ok(writer) => self.process(to).desk.partial = Some((key.clone(), writer)),
                    Err(fault) => {
                        note!(self, "{to}: takes no snapshot: {fault}");
                        return Ok(Progress::Failed);
                    }
                }
                0
            }
        };
        self.stats.resumed_transfers += u64::from(have > 0);
        if have > sending.have {
            sending.have = have;
            sending.until_us = now_us + self.params.transfer.patience_us;
            sending.pause_us = PAUSE_MIN_US;
        }
        match sending.reader.skip_to(have) {
            Ok(()) => Ok(Progress::More),
            Err(fault) => {
                note!(self, "{}: {fault}", key.server);
                Ok(Progress::stopped_by(&fault))
            }
        }
    }

    /// Everything has arrived.
    fn finish(&mut self, to: usize, key: &Key) -> Result<Progress, Violation> {
        let now_us = self.now_us;
        let desk = &mut self.process(to).desk;
        let Some((present, writer)) = desk.partial.take() else {
            return Ok(Progress::Failed);
        };
        if present != *key {
            desk.partial = Some((present, writer));
            return Ok(Progress::Failed);
        }
        if writer.chunks() != key.chunks {
            return Ok(Progress::Broke);
        }
        if let Err(fault) = writer.finish() {
            note!(self, "{to}: a received snapshot: {fault}");
            // It may be there all the same.
            self.checks.logs[to].stored(key.meta.index);
            return Ok(Progress::Failed);
        }
        self.process(to).desk.stored = Some((key.clone(), now_us));
        self.received(to, &key.meta)?;
        // Its last word may be lost.
        match self.rng.permille(self.params.transfer.breaks_permille) {
            true => Ok(Progress::Broke),
            false => Ok(Progress::Stored),
        }
    }

    /// A snapshot is durable at its receiver: it is loaded, and the engine is given it.
    fn received(&mut self, to: usize, meta: &SnapshotMeta) -> Verdict {
        note!(self, "{to}: received snapshot {}", meta.index);
        self.checks.logs[to].stored(meta.index);
        self.purge(to);
        let disk = &self.hosts[to].disk;
        let opened = open(disk, Path::new(SNAPSHOT_DIR), meta.index, meta.term);
        let loaded = opened.and_then(|reader| load(Some(reader)));
        let machine = match loaded {
            Ok(machine) => machine,
            Err(fault @ (Fault::CorruptSnapshot { .. } | Fault::RejectedSnapshot { .. })) => {
                return broken(
                    Group::State,
                    format!("15: {to} was sent a snapshot: {fault}"),
                );
            }
            Err(fault) => {
                note!(self, "{to}: a received snapshot: {fault}");
                return Ok(());
            }
        };
        if self.sabotage == Sabotage::LoseReceived {
            return Ok(());
        }
        let received = Box::new((meta.clone(), machine));
        self.handle(to, Event::SnapshotReceived(received))
    }
}

/// Opens the snapshot of this place in the log.
fn open(disk: &FaultyDisk, dir: &Path, index: u64, term: u64) -> Result<SnapshotReader, Fault> {
    let files = list_snapshots(disk, dir)?;
    let found = files
        .iter()
        .find(|file| (file.index, file.term) == (index, term));
    match found {
        Some(file) => SnapshotReader::open(disk, file),
        None => Err(Fault::NoSnapshot {
            dir: dir.to_owned(),
            index,
            term,
        }),
    }
}

/// Makes the machine of a snapshot, or an empty one.
pub(super) fn load(reader: Option<SnapshotReader>) -> Result<Machine, Fault> {
    let Some(mut reader) = reader else {
        return Ok(Machine::new());
    };
    let path = reader.path().to_owned();
    let digest = reader.meta().digest;
    let rejected = |reason: String| Fault::RejectedSnapshot {
        path: path.clone(),
        reason,
    };
    let machine = Machine::restore(&mut reader).map_err(|error| match error {
        RestoreError::Source(fault) => fault,
        other => rejected(other.to_string()),
    })?;
    match machine.digest() == digest {
        true => Ok(machine),
        false => Err(rejected("its state has another digest".to_owned())),
    }
}
