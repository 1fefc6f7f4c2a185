//! A disk that keeps no more than it must.
//!
//! [`FaultyDisk`] is a directory tree in memory behind the storage's [`Disk`] trait. What was
//! synced survives [`FaultyDisk::crash`]; of the rest, a draw of chance keeps what a real disk
//! might:
//!
//! * each 512-byte sector on its own, at any of the versions written since the last sync, and
//!   sometimes torn in the middle between two versions;
//! * the length of a file at any of its values since the last sync, with zeros where no data came;
//! * each change of a name (create, rename, remove) on its own, in any combination.
//!
//! Calls can be made to fail ([`Faults`]): reads, writes and syncs by chance, writes when the disk
//! is full, and everything once the power is gone. A write that fails may have been done in part; a
//! sync that fails may have lost any of what it should have kept, for good, while reads still show
//! it. Files opened before a crash are dead after it. Rot is written by whoever wants it, through
//! the trait.
//!
//! All chance comes from one function given by the caller, so a seed decides a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use zkraft::storage::{Disk, File};

/// The unit that a disk writes whole, nearly always.
pub const SECTOR: usize = 512;

/// What goes wrong while the power is on.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Chance of a write to fail, in a thousand.
    pub write_permille: u64,
    /// Chance of a sync of data or names to fail, in a thousand.
    pub sync_permille: u64,
    /// The same of a read.
    pub read_permille: u64,
    /// Bytes that fit, if limited.
    pub capacity: Option<u64>,
    /// Changing calls until the power goes, if it does. The call that meets that may be done in
    /// part; later ones do nothing and fail.
    pub power_for: Option<u64>,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct FaultyDisk(Arc<Mutex<State>>);

struct State {
    /// A number below the one given.
    chance: Box<dyn FnMut(u64) -> u64 + Send>,
    faults: Faults,
    inodes: Vec<Inode>,
    /// Those that may hold something: by far not all that ever were.
    kept: BTreeSet<usize>,
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Since the directory's last sync.
    renames: Vec<NameChange>,
    /// Counts crashes.
    epoch: u64,
    /// The power is gone.
    off: bool,
}

/// A file.
#[derive(Clone, Default)]
struct Inode {
    live: Content,
    durable: Content,
    /// Since the last sync, in order.
    pending: Vec<Change>,
    /// By how many.
    opened: usize,
}

/// The bytes of a file. Logs are filled with zeros ahead of what is written: those at the end are
/// counted and not kept.
#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    /// Not below the length of `bytes`.
    len: usize,
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, data: Content },
    SetLen(usize),
}

/// A change of names: one goes, one comes, or both at once.
#[derive(Clone)]
struct NameChange {
    gone: Option<PathBuf>,
    come: Option<(PathBuf, usize)>,
}

/// Without what is only for starts: traces tell of the others.
impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("write_permille", &self.write_permille)
            .field("sync_permille", &self.sync_permille)
            .field("capacity", &self.capacity)
            .field("power_for", &self.power_for)
            .finish()
    }
}

impl FaultyDisk {
    /// An empty disk. `chance` returns a number below its argument.
    pub fn new(chance: impl FnMut(u64) -> u64 + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(State {
            chance: Box::new(chance),
            faults: Faults::default(),
            inodes: Vec::new(),
            kept: BTreeSet::new(),
            dirs: BTreeSet::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            renames: Vec::new(),
            epoch: 0,
            off: false,
        })))
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The power goes and comes back: what survived is now all there is, and nothing fails until
    /// told to.
    pub fn crash(&self) {
        self.state().crash();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .lock()
            .expect("no call panics while it holds the lock")
    }
}

impl State {
    fn crash(&mut self) {
        self.faults = Faults::default();
        self.off = false;
        self.epoch += 1;
        // Often all or nothing: a killed process loses nothing, a lazy kernel everything.
        let mood = (self.chance)(4);
        let renames = std::mem::take(&mut self.renames);
        for change in renames {
            if survives(mood, &mut self.chance) {
                change.carry_out(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
        let linked: BTreeSet<usize> = self.names.values().copied().collect();
        for number in &self.kept {
            let inode = &mut self.inodes[*number];
            if linked.contains(number) {
                inode.crash(mood, &mut self.chance);
            } else {
                inode.empty();
            }
        }
    }

    /// Drops the bytes of files that have no name any more and never will, and that nobody reads.
    fn forget_removed(&mut self) {
        let to_come = self.renames.iter().filter_map(|change| {
            let (_, inode) = change.come.as_ref()?;
            Some(inode)
        });
        let names = self.names.values().chain(self.durable_names.values());
        let linked: BTreeSet<usize> = names.chain(to_come).copied().collect();
        self.kept.retain(|number| {
            let inode = &mut self.inodes[*number];
            let keeps = inode.opened > 0 || linked.contains(number);
            if !keeps {
                inode.empty();
            }
            keeps
        });
    }

    /// One more changing call: whether the power lasts for it. An error if it was gone before.
    fn draw_power(&mut self) -> io::Result<Power> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        match &mut self.faults.power_for {
            Some(0) => {
                self.off = true;
                Ok(Power::Fails)
            }
            Some(calls) => {
                *calls -= 1;
                Ok(Power::Lasts)
            }
            None => Ok(Power::Lasts),
        }
    }

    fn fails(&mut self, permille: u64) -> bool {
        permille > 0 && (self.chance)(1000) < permille
    }

    fn used(&self) -> u64 {
        let linked = self.names.values().collect::<BTreeSet<_>>();
        let len = |&&inode: &&usize| self.inodes[inode].live.len as u64;
        linked.iter().map(len).sum()
    }

    fn lookup(&self, path: &Path) -> io::Result<usize> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        let power = self.draw_power()?;
        change.carry_out(&mut self.names);
        self.renames.push(change);
        power.end()
    }

    fn write(&mut self, inode: usize, data: &[u8], offset: usize) -> io::Result<()> {
        let power = self.draw_power()?;
        let grows = (offset + data.len()).saturating_sub(self.inodes[inode].live.len) as u64;
        let full = self
            .faults
            .capacity
            .is_some_and(|capacity| self.used() + grows > capacity);
        let broken = self.fails(self.faults.write_permille);
        let result = if full {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        } else if broken {
            Err(io::Error::other("the disk cannot write"))
        } else {
            power.end()
        };
        let done = match &result {
            Ok(()) => data.len(),
            Err(_) if full => 0,
            Err(_) => (self.chance)(data.len() as u64 + 1) as usize,
        };
        if done > 0 {
            let data = Content::of(&data[..done]);
            self.inodes[inode].make(Change::Write { offset, data });
        }
        result
    }

    fn sync_data(&mut self, inode: usize) -> io::Result<()> {
        self.draw_power()?.end()?;
        if self.fails(self.faults.sync_permille) {
            // What the kernel could not write it drops, and forgets that it was dirty.
            let chance = &mut self.chance;
            self.inodes[inode].pending.retain(|_| chance(2) == 0);
            return Err(io::Error::other("the disk cannot sync"));
        }
        let inode = &mut self.inodes[inode];
        for change in std::mem::take(&mut inode.pending) {
            change.carry_out(&mut inode.durable);
        }
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.draw_power()?.end()?;
        if self.fails(self.faults.sync_permille) {
            return Err(io::Error::other("the disk cannot sync"));
        }
        let renames = std::mem::take(&mut self.renames);
        for change in renames {
            if change.is_in(dir) {
                change.carry_out(&mut self.durable_names);
            } else {
                self.renames.push(change);
            }
        }
        self.forget_removed();
        Ok(())
    }
}

enum Power {
    Lasts,
    /// During the call.
    Fails,
}

impl Power {
    fn end(self) -> io::Result<()> {
        match self {
            Self::Lasts => Ok(()),
            Self::Fails => Err(io::Error::other("the power went off")),
        }
    }
}

/// Whether one thing that was not synced survives a crash of this mood: 0 nothing does, 1 all does.
fn survives(mood: u64, chance: &mut dyn FnMut(u64) -> u64) -> bool {
    match mood {
        0 => false,
        1 => true,
        _ => chance(2) == 0,
    }
}

impl NameChange {
    fn carry_out(&self, names: &mut BTreeMap<PathBuf, usize>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((come, inode)) = &self.come {
            names.insert(come.clone(), *inode);
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let come = self.come.as_ref().map(|(path, _)| path);
        let mut paths = self.gone.iter().chain(come);
        paths.any(|path| path.parent() == Some(dir))
    }
}

impl Change {
    fn carry_out(&self, content: &mut Content) {
        match self {
            Self::Write { offset, data } => content.write(*offset, data),
            Self::SetLen(len) => content.set_len(*len),
        }
    }

    /// Whether the change may alter bytes from `start` to `end` of a file.
    fn touches(&self, start: usize, end: usize) -> bool {
        match self {
            Self::Write { offset, data } => *offset < end && offset + data.len > start,
            Self::SetLen(len) => *len < end,
        }
    }
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        let end = bytes.iter().rposition(|byte| *byte != 0);
        Self {
            bytes: bytes[..end.map_or(0, |last| last + 1)].to_vec(),
            len: bytes.len(),
        }
    }

    fn write(&mut self, offset: usize, data: &Self) {
        let Self { bytes, len } = self;
        *len = (*len).max(offset + data.len);
        let zeros_from = (offset + data.bytes.len()).min(bytes.len());
        let zeros_to = (offset + data.len).min(bytes.len());
        bytes[zeros_from..zeros_to].fill(0);
        if data.bytes.is_empty() {
            return;
        }
        bytes.resize(bytes.len().max(offset), 0);
        let kept = data.bytes.len().min(bytes.len() - offset);
        let (over, beyond) = data.bytes.split_at(kept);
        bytes[offset..offset + kept].copy_from_slice(over);
        bytes.extend_from_slice(beyond);
    }

    fn set_len(&mut self, len: usize) {
        self.bytes.truncate(len);
        self.len = len;
    }

    /// Bytes from an offset on, as many as there are.
    fn read(&self, buffer: &mut [u8], offset: usize) -> usize {
        let len = self.len.saturating_sub(offset).min(buffer.len());
        let rest = self.bytes.get(offset..).unwrap_or_default();
        let kept = rest.len().min(len);
        buffer[..kept].copy_from_slice(&rest[..kept]);
        buffer[kept..len].fill(0);
        len
    }
}

impl Inode {
    fn make(&mut self, change: Change) {
        change.carry_out(&mut self.live);
        self.pending.push(change);
    }

    fn empty(&mut self) {
        *self = Self {
            opened: self.opened,
            ..Self::default()
        };
    }

    fn crash(&mut self, mood: u64, chance: &mut dyn FnMut(u64) -> u64) {
        let pending = std::mem::take(&mut self.pending);
        match mood {
            0 => {}
            1 => pending
                .iter()
                .for_each(|change| change.carry_out(&mut self.durable)),
            _ if pending.is_empty() => {}
            _ => self.durable = scatter(&self.durable, &pending, chance),
        }
        self.live = self.durable.clone();
    }
}

/// What a disk may hold after a crash in the middle of these changes.
fn scatter(durable: &Content, pending: &[Change], chance: &mut dyn FnMut(u64) -> u64) -> Content {
    let mut content = durable.clone();
    let mut lens = vec![durable.len];
    for change in pending {
        change.carry_out(&mut content);
        lens.push(content.len);
    }
    let len = lens[chance(lens.len() as u64) as usize];
    let sectors = lens.iter().max().map_or(0, |len| len.div_ceil(SECTOR));
    let mut after = vec![0; sectors * SECTOR];
    durable.read(&mut after, 0);
    for start in (0..sectors * SECTOR).step_by(SECTOR) {
        let end = start + SECTOR;
        let touching = pending.iter().filter(|change| change.touches(start, end));
        let touching: Vec<&Change> = touching.collect();
        if touching.is_empty() {
            continue;
        }
        let version = chance(touching.len() as u64 + 1) as usize;
        let sector = sector_after(durable, &touching[..version], start);
        let torn = version > 0 && chance(50) == 0;
        let from = if torn {
            chance(SECTOR as u64) as usize
        } else {
            0
        };
        if torn {
            let before = sector_after(durable, &touching[..version - 1], start);
            after[start..start + from].copy_from_slice(&before[..from]);
        }
        after[start + from..end].copy_from_slice(&sector[from..]);
    }
    after.resize(len, 0);
    Content::of(&after)
}

/// One sector after these changes.
fn sector_after(durable: &Content, changes: &[&Change], start: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    durable.read(&mut sector, start);
    for change in changes {
        match change {
            Change::Write { offset, data } => {
                let from = start.max(*offset);
                let to = (start + SECTOR).min(offset + data.len);
                data.read(&mut sector[from - start..to - start], from - offset);
            }
            Change::SetLen(len) => sector[len.saturating_sub(start).min(SECTOR)..].fill(0),
        }
    }
    sector
}

impl Disk for FaultyDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.state().dirs.insert(dir.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name()?.to_str());
        Ok(names.map(str::to_owned).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        let inode = state.lookup(path)?;
        Ok(Box::new(OpenFile::new(self, &mut state, inode)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.kept.insert(inode);
        state.change_names(NameChange {
            gone: None,
            come: Some((path.to_owned(), inode)),
        })?;
        Ok(Box::new(OpenFile::new(self, &mut state, inode)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.lookup(from)?;
        let come = Some((to.to_owned(), inode));
        state.change_names(NameChange {
            gone: Some(from.to_owned()),
            come,
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.lookup(path)?;
        state.change_names(NameChange {
            gone: Some(path.to_owned()),
            come: None,
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.state().sync_dir(dir)
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.state();
        let capacity = state.faults.capacity.unwrap_or(u64::MAX);
        Ok(capacity.saturating_sub(state.used()))
    }
}

struct OpenFile {
    disk: FaultyDisk,
    inode: usize,
    epoch: u64,
}

impl OpenFile {
    fn new(disk: &FaultyDisk, state: &mut State, inode: usize) -> Self {
        state.inodes[inode].opened += 1;
        Self {
            disk: disk.clone(),
            inode,
            epoch: state.epoch,
        }
    }

    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.epoch == self.epoch {
            Ok(state)
        } else {
            Err(io::Error::other("the file was open before the crash"))
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.disk.state().inodes[self.inode].opened -= 1;
    }
}

impl File for OpenFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state()?;
        let permille = state.faults.read_permille;
        if state.fails(permille) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let live = &state.inodes[self.inode].live;
        Ok(live.read(buffer, offset as usize))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.state()?.write(self.inode, data, offset as usize)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.inodes[self.inode].live.len as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let power = state.draw_power()?;
        state.inodes[self.inode].make(Change::SetLen(len as usize));
        power.end()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.state()?.sync_data(self.inode)
    }
}
