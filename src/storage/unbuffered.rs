//! A file that is written past the page cache.
//!
//! Where every write is synced, the cache is a detour: the sync has to find the pages that are
//! dirty, hand them to the disk and wait, before it can have the disk empty its own cache. A write
//! past the page cache is at the disk when it returns. It saves a third of the processor time of
//! each write and sync, and when several logs share a disk also a third of the time they take.
//!
//! The kernel keeps both ways of writing a file coherent. What is not in whole sectors goes through
//! the cache, and so does everything else from the first refusal on: file systems and disks with
//! larger blocks refuse what is not in whole blocks of theirs, and some refuse it all.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::disk::{File, RealFile, ZEROS};
use super::segment::SECTOR;

/// Where in memory what is written must begin: at a page, which suits every disk.
const ALIGNMENT: usize = 4096;
/// So much is copied and written at once at most.
const PIECE: usize = 256 << 10;
/// Pieces of zeros in one write at most: the mebibyte that the log is filled ahead by.
#[cfg(target_os = "linux")]
const PIECES_MAX: usize = 16;

/// How to write past the cache. Both write some of what they are to, and say how many bytes.
pub(super) trait Direct: Send + Sync {
    fn write(&self, data: &[u8], offset: u64) -> io::Result<usize>;
    /// The same for that many zeros.
    fn write_zeros(&self, bytes: usize, offset: u64) -> io::Result<usize>;
}

/// A file with a second way to write it.
pub(super) struct Unbuffered {
    file: RealFile,
    direct: Box<dyn Direct>,
    refused: AtomicBool,
    /// Room to copy what does not begin at a page, and for its beginning to be moved to one.
    copy: Mutex<Vec<u8>>,
}

/// Opens an existing file so that writes go past the page cache.
///
/// # Errors
/// The file system does not know that, or the file cannot be opened.
#[cfg(target_os = "linux")]
pub(super) fn open(path: &Path) -> io::Result<Box<dyn Direct>> {
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = std::fs::OpenOptions::new();
    options.write(true).custom_flags(libc::O_DIRECT);
    Ok(Box::new(Uncached(options.open(path)?)))
}

#[cfg(target_os = "linux")]
struct Uncached(std::fs::File);

#[cfg(target_os = "linux")]
impl Direct for Uncached {
    fn write(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.0, data, offset)
    }

    /// The same zeros many times, in one write: a mebibyte in pieces takes the disk three times as
    /// long, and whoever wants to write something meanwhile waits.
    fn write_zeros(&self, bytes: usize, offset: u64) -> io::Result<usize> {
        use std::os::fd::AsRawFd;

        let piece = |at: usize| libc::iovec {
            iov_base: ZEROS.0.as_ptr().cast_mut().cast(),
            iov_len: ZEROS.0.len().min(bytes - at),
        };
        let starts = (0..bytes).step_by(ZEROS.0.len());
        let pieces: Vec<_> = starts.take(PIECES_MAX).map(piece).collect();
        let offset = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open as long as `self` is; each of the `pieces.len()` pieces
        // lies within a static, of which pwritev only reads.
        let written = unsafe {
            libc::pwritev64(
                self.0.as_raw_fd(),
                pieces.as_ptr(),
                pieces.len() as libc::c_int,
                offset,
            )
        };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn open(_: &Path) -> io::Result<Box<dyn Direct>> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Unbuffered {
    /// `direct` writes to the same file.
    pub fn new(file: RealFile, direct: Box<dyn Direct>) -> Self {
        Self {
            file,
            direct,
            refused: AtomicBool::new(false),
            copy: Mutex::default(),
        }
    }

    /// Writes whole sectors with `write`, which is told how many bytes are written and says how
    /// many it wrote besides. Returns how many went past the cache before it was refused.
    fn write_direct(
        &self,
        bytes: usize,
        write: impl Fn(usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes && !self.refused.load(Ordering::Relaxed) {
            match write(done) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_refusal(&error) => {
                    self.refused.store(true, Ordering::Relaxed);
                    tracing::debug!(%error, "the disk refuses such writes: through the page cache");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_part(&self, part: &[u8], offset: u64) -> io::Result<usize> {
        if part.as_ptr().align_offset(ALIGNMENT) == 0 {
            return self.direct.write(part, offset);
        }
        let mut copy = self.copy.lock();
        if copy.len() < part.len() + ALIGNMENT {
            *copy = vec![0; part.len() + ALIGNMENT];
        }
        let start = copy.as_ptr().align_offset(ALIGNMENT);
        let copy = &mut copy[start..][..part.len()];
        copy.copy_from_slice(part);
        self.direct.write(copy, offset)
    }
}

/// Whether it is this way of writing that cannot be: the blocks are too small, or some layer below
/// the file system has no such way.
fn is_refusal(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == io::ErrorKind::InvalidInput || kind == io::ErrorKind::Unsupported
}

/// Whether there is no part of a sector.
fn is_whole(bytes: u64) -> bool {
    bytes.is_multiple_of(SECTOR)
}

impl File for Unbuffered {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let done = match is_whole(offset) && is_whole(data.len() as u64) {
            true => self.write_direct(data.len(), |done| {
                let part = &data[done..data.len().min(done + PIECE)];
                self.write_part(part, offset + done as u64)
            })?,
            false => 0,
        };
        self.file.write_at(&data[done..], offset + done as u64)
    }

    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        let done = match is_whole(from) && is_whole(to) {
            true => self.write_direct((to - from) as usize, |done| {
                let at = from + done as u64;
                self.direct.write_zeros((to - at) as usize, at)
            })?,
            false => 0,
        };
        self.file.write_zeros(from + done as u64, to)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::disk::{Disk, RealDisk};
    use super::*;

    const LENGTHS: [usize; 8] = [512, 1536, 4096, 5632, 100, 262_144, 300_032, 700_000];

    fn bytes(length: usize, salt: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 + salt) as u8).collect()
    }

    /// Writes a bit of everything, over what is there and past the end, and reads it as it goes.
    fn write_all(file: &dyn File, path: &Path) {
        let mut expected: Vec<u8> = Vec::new();
        for (salt, length) in LENGTHS.into_iter().enumerate() {
            for offset in [0, 512, expected.len().next_multiple_of(512)] {
                let data = bytes(length, salt);
                // At no page: behind one byte.
                let moved = [&[0], &data[..]].concat();
                file.write_at(&moved[1..], offset as u64).unwrap();
                expected.resize(expected.len().max(offset + length), 0);
                expected[offset..offset + length].copy_from_slice(&data);
                assert!(fs::read(path).unwrap() == expected, "{length} at {offset}");
            }
        }
        // Above what one write takes, in sectors and not, over what is there and past the end.
        for (from, to) in [
            (512, 1 << 10),
            (513, 1025),
            (1024, 1_200_000),
            (1 << 10, 3 << 20),
        ] {
            file.write_zeros(from as u64, to as u64).unwrap();
            expected.resize(expected.len().max(to), 0);
            expected[from..to].fill(0);
            assert!(fs::read(path).unwrap() == expected, "zeros to {to}");
        }
        file.set_len(700).unwrap();
        file.sync_data().unwrap();
        let mut read = vec![0; 1000];
        assert_eq!(file.read_at(&mut read, 0).unwrap(), 700);
        assert!(read[..700] == expected[..700]);
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = RealDisk.create_unbuffered(&path).unwrap();
        write_all(&*file, &path);
        assert!(
            RealDisk.create_unbuffered(&path).is_err(),
            "the name is taken"
        );
    }

    impl<F: Fn(&[u8], u64) -> io::Result<usize> + Send + Sync> Direct for F {
        fn write(&self, data: &[u8], offset: u64) -> io::Result<usize> {
            self(data, offset)
        }

        fn write_zeros(&self, bytes: usize, offset: u64) -> io::Result<usize> {
            self(&vec![0; bytes.min(PIECE)], offset)
        }
    }

    fn over(path: &Path, direct: impl Direct + 'static) -> Unbuffered {
        drop(RealDisk.create(path).unwrap());
        Unbuffered::new(RealFile::open(path).unwrap(), Box::new(direct))
    }

    #[test]
    fn what_is_refused_goes_through_the_cache() {
        for code in [libc::EINVAL, libc::EOPNOTSUPP] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            let refuse = move |_: &[u8], _| Err(io::Error::from_raw_os_error(code));
            write_all(&over(&path, refuse), &path);
        }
    }

    /// A disk may take a part, and as good as none of them takes what is left of a sector.
    #[test]
    fn what_is_taken_in_part_is_written_whole() {
        for most in [512, 700] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            let at = path.clone();
            let direct = move |data: &[u8], offset: u64| {
                if !offset.is_multiple_of(SECTOR) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let part = &data[..data.len().min(most)];
                RealFile::open(&at)?.write_at(part, offset)?;
                Ok(part.len())
            };
            let file = over(&path, direct);
            file.file.write_at(&[7; 4096], 0).unwrap();
            file.write_zeros(0, 3072).unwrap();
            let expected = [vec![0; 3072], vec![7; 1024]].concat();
            assert!(fs::read(&path).unwrap() == expected, "zeros by {most}");
            fs::write(&path, b"").unwrap();
            write_all(&file, &path);
        }
    }

    #[test]
    fn what_fails_fails() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::WriteZero] {
            let dir = tempfile::tempdir().unwrap();
            let direct = move |_: &[u8], _| match kind {
                io::ErrorKind::WriteZero => Ok(0),
                kind => Err(kind.into()),
            };
            let file = over(&dir.path().join("file"), direct);
            assert_eq!(file.write_at(&[7; 512], 0).unwrap_err().kind(), kind);
            assert_eq!(file.write_zeros(0, 1024).unwrap_err().kind(), kind);
            assert!(file.is_empty().unwrap());
        }
    }
}
