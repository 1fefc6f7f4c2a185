//! The disk as the log and the snapshots see it.
//!
//! [`Disk`] is the whole door to the file system: the log and the snapshot code run over it
//! unchanged on a real directory ([`RealDisk`]) and on the faulty disk of the simulator. An
//! implementation may lose whatever was not synced when the power fails, in any order and in parts;
//! it must keep what [`File::sync_data`] and [`Disk::sync_dir`] have promised.
//!
//! Rule: no caller retries a sync that failed. The kernel may already have dropped the dirty pages,
//! and a second call would report success for data that is gone.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::unbuffered::{self, Unbuffered};

/// A directory tree. All calls block.
pub trait Disk: Send + Sync {
    /// Makes a directory and its missing parents, durably; fine if it exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names of the files and directories in `dir`, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Makes a new, empty file; an error if the name is taken. The name is durable only after
    /// [`Disk::sync_dir`].
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// The same for a file whose every write is synced at once: what is written in whole sectors
    /// may go to the disk without a copy in the page cache.
    fn create_unbuffered(&self, path: &Path) -> io::Result<Box<dyn File>> {
        self.create(path)
    }
    /// Renames a file within a directory, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that may still be written under `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file with positioned reads and writes.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data`, growing the file as needed. Durable only after [`File::sync_data`].
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Writes zeros from one offset to another, as [`File::write_at`] does.
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let mut offset = from;
        while offset < to {
            let length = ZEROS.0.len().min((to - offset) as usize);
            self.write_at(&ZEROS.0[..length], offset)?;
            offset += length as u64;
        }
        Ok(())
    }
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file, or grows it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes everything written so far, and the length, durable.
    fn sync_data(&self) -> io::Result<()>;
}

/// Zeros to write, from where the disk can take them without a copy. An idle server has better uses
/// for more of them.
#[repr(align(4096))]
pub(super) struct Zeros(pub [u8; 64 << 10]);
pub(super) static ZEROS: Zeros = Zeros([0; 64 << 10]);

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// What is said where the directory above a mount is synced.
const IS_FOREIGN: [io::ErrorKind; 4] = [
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::ReadOnlyFilesystem,
    io::ErrorKind::InvalidInput,
    io::ErrorKind::Unsupported,
];

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if dir.is_dir() {
            // Whoever made it may have ended before this: an earlier start, or an operator's mkdir.
            // A parent that may not be read, or not be synced, is not ours: that of a mount.
            return match self.sync_dir(parent) {
                Err(error) if IS_FOREIGN.contains(&error.kind()) => Ok(()),
                done => done,
            };
        }
        self.create_dir(parent)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.sync_dir(parent),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is not one of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile::open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(create_new(path)?)))
    }

    fn create_unbuffered(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = RealFile(create_new(path)?);
        Ok(match unbuffered::open(path) {
            Ok(direct) => Box::new(Unbuffered::new(file, direct)),
            Err(error) => {
                tracing::debug!(%error, "the file system cannot do without the page cache");
                Box::new(file)
            }
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        free_bytes(dir)
    }
}

fn create_new(path: &Path) -> io::Result<fs::File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).open(path)
}

pub(super) struct RealFile(fs::File);

impl RealFile {
    /// Of an existing file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        Ok(Self(options.read(true).write(true).open(path)?))
    }
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    let path = CString::new(dir.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a NUL-terminated string and `stat` a writable struct of the right type,
    // both alive for the call; statvfs keeps neither.
    let result = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned success, so it has filled the struct.
    let stat = unsafe { stat.assume_init() };
    // The widths of these fields differ between platforms.
    #[allow(clippy::unnecessary_cast)]
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

/// Lets the calling thread yield the processor to the others. Best effort.
pub(super) fn lower_priority() {
    const NICE: libc::c_int = 10;
    // SAFETY: both calls take and return plain numbers. On Linux a thread id names one thread
    // for setpriority, and raising one's own niceness needs no privilege.
    unsafe {
        let thread = libc::syscall(libc::SYS_gettid) as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, thread, NICE);
    }
}
