//! Rot: a byte of a disk changes by itself, or a start cannot read what is there.
//!
//! Snapshots that have their names and the log's segments rot, of one server at a time and only
//! while its disk may be lost as well: what it has the others must have. The next start goes on
//! with all that it had, or refuses for that very reason; then an operator gives the server an
//! empty disk. So does an operator who hears of the rot before it shows.
//!
//! What no single disk can tell from a torn tail is left out, and nothing else: groups at the end
//! of the newest segment that nothing on the disk proves to have been synced. A group's proof is a
//! later group that says so, and that may be gone after a loss of power unless it was synced
//! itself. All segments but the newest are proven by the one behind them. Nor does a second byte
//! rot before the disk is replaced: it might be of the proof.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use zkraft::storage::{Disk, Fault, list_snapshots};

use super::storage::{LOG_DIR, SNAPSHOT_DIR};
use super::*;
use crate::disk::{Faults, FaultyDisk, SECTOR};

/// What makes the stream of rot of a seed. Chosen so that it leaves the seeds that found something
/// as they were.
const ROT: u64 = 0xb1ec;
/// Runs with rot, of those with more than two servers, in percent.
const PERCENT: u64 = 15;
/// Rot shows at a start, which comes so long after it, in µs; and an operator replaces the disk.
const SHOWS_US: u64 = 1_000_000;
const REPLACED_US: (u64, u64) = (1_000_000, 5_000_000);
/// As long as the others cannot do without the disk, it is looked again after this time, in µs.
const LOOK_US: u64 = 300_000;

#[derive(Debug)]
pub(super) struct Rot {
    rng: Rng,
    /// Mean time between such troubles, in µs.
    every_us: u64,
    /// Starts with calls that cannot read, in percent, and such calls, in ‰.
    unread_starts: u64,
    unread_permille: u64,
    /// The server with rot on its disk, and the file.
    rotten: Option<(usize, PathBuf)>,
}

impl Rot {
    /// If the run has any.
    pub(super) fn draw(seed: u64, servers: usize, sabotage: Sabotage) -> Option<Self> {
        let mut rng = Rng::new(seed ^ ROT);
        let is_drawn = rng.percent(PERCENT) && sabotage == Sabotage::None;
        let has_rot = servers > 2 && (is_drawn || sabotage == Sabotage::CutRot);
        has_rot.then(|| Self {
            every_us: *rng.pick(&[200_000, 500_000, 2_000_000]),
            unread_starts: *rng.pick(&[0, 20, 50]),
            unread_permille: *rng.pick(&[10, 100]),
            rotten: None,
            rng,
        })
    }
}

impl World {
    /// When the next rot comes, if any does.
    pub(super) fn next_rot_us(&mut self) -> Option<u64> {
        let rot = self.rot.as_mut()?;
        Some(self.now_us + rot.rng.between(1, 2 * rot.every_us))
    }

    /// Some server's disk rots, if it may.
    pub(super) fn rot_somewhere(&mut self) -> Verdict {
        let servers = self.hosts.len() as u64;
        match &mut self.rot {
            Some(rot) => {
                let server = rot.rng.below(servers) as usize;
                self.meet(Trouble::Rot, server)
            }
            None => Ok(()),
        }
    }

    pub(super) fn rots(&mut self, server: usize) {
        let host = &self.hosts[server];
        // What is written goes on: a segment that is being made has no proof yet. Rot shows at a
        // start alone, and a snapshot that was just sent may be loaded before.
        let is_idle = |process: &Process| {
            let is_still = process.written.is_none() && !process.suspect;
            is_still && !process.desk.remembers(self.now_us)
        };
        let is_well = host.process.as_ref().is_some_and(is_idle)
            && host.disk_trouble_until_us <= self.now_us
            && !host.power_fails
            && !host.is_paused(self.now_us);
        if !is_well || self.has_rot() || !self.may_lose_disk(server) {
            return;
        }
        let places = places(&self.hosts[server].disk);
        let Some(rot) = self.rot.as_mut().filter(|_| !places.is_empty()) else {
            return;
        };
        let (path, proven) = rot.rng.pick(&places);
        let (offset, bit) = (rot.rng.below(*proven), 1 << rot.rng.below(8));
        if flip(&self.hosts[server].disk, path, offset, bit).is_err() {
            return;
        }
        rot.rotten = Some((server, path.clone()));
        let shows = rot.rng.percent(70).then(|| rot.rng.below(SHOWS_US));
        let replaced_us = rot.rng.between(REPLACED_US.0, REPLACED_US.1);
        note!(self, "{server}: byte {offset} of {} rots", path.display());
        self.stats.rots += 1;
        if let Some(after_us) = shows {
            self.at(self.now_us + after_us, What::PowerLoss { server });
        }
        self.at(self.now_us + replaced_us, What::NewDisk { server });
    }

    /// Whether some disk has rot, as far as anybody could know.
    pub(super) fn has_rot(&self) -> bool {
        self.rot.as_ref().is_some_and(|rot| rot.rotten.is_some())
    }

    /// Whether the others cannot do without a disk that has rot: it got a vote meanwhile, and two
    /// servers do not survive the loss of a disk.
    pub(super) fn depends_on_rot(&self) -> bool {
        let rotten = self.rot.as_ref().and_then(|rot| rot.rotten.as_ref());
        rotten.is_some_and(|(server, _)| {
            let id = self.hosts[*server].id;
            let present = self.checks.members.present();
            !present.is_majority(|other| other != u64::from(id))
        })
    }

    /// Whether it is another server's.
    pub(super) fn has_rot_elsewhere(&self, server: usize) -> bool {
        self.has_rot() && self.rotten(server).is_none()
    }

    /// The file of a server that rots.
    fn rotten(&self, server: usize) -> Option<&Path> {
        let (rotten, path) = self.rot.as_ref()?.rotten.as_ref()?;
        (*rotten == server).then_some(path)
    }

    /// A disk is replaced, and its rot with it.
    pub(super) fn rot_is_gone(&mut self, server: usize) {
        if let Some(rot) = &mut self.rot {
            rot.rotten.take_if(|(rotten, _)| *rotten == server);
        }
    }

    /// An operator replaces a disk with rot as soon as the others can do without it.
    pub(super) fn new_disk(&mut self, server: usize) {
        let is_rotten = self.rotten(server).is_some();
        // Once all is well, only if the server cannot do without.
        if !is_rotten || (self.healed && self.hosts[server].process.is_some()) {
            return;
        }
        // Without it the ensemble may not become what it should be, so that nobody waits for that
        // if it has no vote.
        let id = u64::from(self.hosts[server].id);
        match self.healed && !self.checks.members.present().has_say(id) {
            true => self.replace_disk(server),
            false => self.wipe(server),
        }
        if self.has_rot() {
            self.at(self.now_us + LOOK_US, What::NewDisk { server });
        }
    }

    /// Some calls of a start cannot read.
    pub(super) fn begin_unread(&mut self, server: usize) -> bool {
        let host = &self.hosts[server];
        let has_trouble = host.disk_trouble_until_us > self.now_us || host.power_fails;
        let Some(rot) = self.rot.as_mut().filter(|_| !self.healed && !has_trouble) else {
            return false;
        };
        let is_unread = rot.rng.percent(rot.unread_starts);
        if is_unread {
            self.stats.unread_starts += 1;
            let read_permille = rot.unread_permille;
            host.disk.set_faults(Faults {
                read_permille,
                ..Faults::default()
            });
        }
        is_unread
    }

    /// A start was refused. True: for rot, and somebody will do something about it.
    pub(super) fn is_refused_for_rot(&mut self, server: usize, fault: &Fault) -> bool {
        let Some(rotten) = self.rotten(server) else {
            return false;
        };
        let is_right = match fault {
            Fault::CorruptLog { path, .. } | Fault::CorruptHeader { path } => path == rotten,
            // Nor is there a snapshot that reaches as far.
            Fault::LogGap { .. } => true,
            _ => false,
        };
        if !is_right {
            return false;
        }
        self.stats.rot_refusals += 1;
        if let (Sabotage::CutRot, Fault::CorruptLog { path, offset, .. }) = (self.sabotage, fault) {
            cut(&self.hosts[server].disk, path, *offset);
        } else {
            self.new_disk(server);
        }
        let at = self.now_us + self.rng.between(100_000, 1_000_000);
        self.at(at, What::Start { server });
        true
    }
}

/// The files that may rot, and up to where.
fn places(disk: &FaultyDisk) -> Vec<(PathBuf, u64)> {
    let snapshots = list_snapshots(disk, Path::new(SNAPSHOT_DIR)).unwrap_or_default();
    let snapshots = snapshots.into_iter().map(|file| file.path);
    let mut segments: Vec<_> = disk.list(Path::new(LOG_DIR)).unwrap_or_default();
    segments.sort_unstable();
    let newest = segments.pop().map(|name| Path::new(LOG_DIR).join(name));
    let older = segments.iter().map(|name| Path::new(LOG_DIR).join(name));
    let whole = snapshots.chain(older).map(|path| {
        let len = content(disk, &path).len() as u64;
        (path, len)
    });
    let newest = newest.map(|path| {
        let proven = proven(&content(disk, &path));
        (path, proven)
    });
    whole.chain(newest).filter(|(_, len)| *len > 0).collect()
}

fn content(disk: &FaultyDisk, path: &Path) -> Vec<u8> {
    let read = || {
        let file = disk.open(path)?;
        let mut bytes = vec![0; file.len()? as usize];
        file.read_at(&mut bytes, 0)?;
        Ok::<_, std::io::Error>(bytes)
    };
    read().unwrap_or_default()
}

/// Up to where a segment that is being written cannot be taken for torn: the header, and the groups
/// of which one that is synced for sure says that they are synced. (Their form is told in
/// `storage::segment`.)
fn proven(segment: &[u8]) -> u64 {
    let number = |at: usize| {
        let bytes = segment.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    // Of each group its number, the last one that was synced then, and where it ends.
    let mut groups: Vec<(u64, u64, usize)> = Vec::new();
    let mut at = SECTOR;
    let is_next = |groups: &[(u64, u64, usize)], at| {
        let next = groups.last().map_or(number(at), |(last, ..)| last + 1);
        next > 0 && number(at) == next
    };
    while is_next(&groups, at) {
        let len = number(at + 16) as u32 as usize;
        let end = at + (24 + len).next_multiple_of(SECTOR);
        groups.push((number(at), number(at + 8), end));
        at = end;
    }
    let synced_at = |number: u64| {
        let mut groups = groups.iter().rev();
        groups.find(|group| group.0 <= number)
    };
    // The last group may be gone after a loss of power; those that it says are synced may not.
    let last = groups.last().and_then(|(_, synced, _)| synced_at(*synced));
    let proven = last.and_then(|(_, synced, _)| synced_at(*synced));
    proven.map_or(0, |(.., end)| *end as u64)
}

/// A byte is another one, under the kernel: at once for good.
fn flip(disk: &FaultyDisk, path: &Path, offset: u64, bit: u8) -> std::io::Result<()> {
    let file = disk.open(path)?;
    let mut byte = [0];
    file.read_at(&mut byte, offset)?;
    file.write_at(&[byte[0] ^ bit], offset)?;
    file.sync_data()
}

/// Sabotaged: rot is taken for a torn tail.
fn cut(disk: &FaultyDisk, path: &Path, offset: u64) {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let dir = Path::new(LOG_DIR);
    let cut = || {
        let file = disk.open(path)?;
        file.set_len(offset)?;
        file.sync_data()?;
        for name in disk.list(dir)? {
            let other = dir.join(name);
            if *other > *path {
                disk.remove(&other)?;
            }
        }
        disk.sync_dir(dir)
    };
    // A disk that fails meanwhile stops the next start as it is.
    drop::<std::io::Result<()>>(cut());
}

#[test]
fn what_a_durable_group_tells_of_is_proven() {
    let group = |number: u64, synced: u64, len: u32| {
        let mut group = [number.to_le_bytes(), synced.to_le_bytes()].concat();
        group.extend_from_slice(&len.to_le_bytes());
        group.resize((24 + len as usize).next_multiple_of(SECTOR), 7);
        group
    };
    let header = vec![1; SECTOR];
    let segment = |groups: &[Vec<u8>]| proven(&[&header[..], &groups.concat()].concat());
    assert_eq!(segment(&[]), 0);
    assert_eq!(segment(&[group(5, 4, 10)]), 0, "nothing tells of it");
    let two = [group(5, 4, 10), group(6, 5, 600)];
    assert_eq!(segment(&two), 0, "who tells of it may be gone");
    let three = [&two[..], &[group(7, 6, 0)]].concat();
    assert_eq!(segment(&three), 2 * SECTOR as u64);
    let gathered = [&two[..], &[group(7, 5, 0)]].concat();
    assert_eq!(segment(&gathered), 0);
    let four = [&three[..], &[group(8, 7, 0)]].concat();
    assert_eq!(segment(&four), 4 * SECTOR as u64);
}
