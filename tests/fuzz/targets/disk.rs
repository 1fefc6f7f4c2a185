//! A disk in memory that does all it is told and loses nothing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use zkraft::storage::{Disk, File};

type Content = Arc<Mutex<Vec<u8>>>;

#[derive(Clone, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<PathBuf, Content>>>,
}

struct MemoryFile(Content);

impl MemoryDisk {
    pub fn put(&self, path: impl Into<PathBuf>, content: Vec<u8>) {
        let content = Arc::new(Mutex::new(content));
        held(&self.files).insert(path.into(), content);
    }

    /// Every file's content, in the order of their names.
    pub fn contents(&self) -> Vec<Vec<u8>> {
        let files = held(&self.files);
        files.values().map(|file| held(file).clone()).collect()
    }

    fn find(&self, path: &Path) -> io::Result<Content> {
        let found = held(&self.files).get(path).cloned();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no one panics while holding it")
}

impl Disk for MemoryDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let files = held(&self.files);
        let inside = files.keys().filter(|path| path.parent() == Some(dir));
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Ok(inside.filter_map(name).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(MemoryFile(self.find(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        if self.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.put(path, Vec::new());
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = held(&self.files).remove(from);
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        held(&self.files).insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = held(&self.files).remove(path);
        removed
            .map(|_| ())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = held(&self.0);
        let from = content.get(offset as usize..).unwrap_or_default();
        let length = from.len().min(buffer.len());
        buffer[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut content = held(&self.0);
        let end = offset as usize + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(held(&self.0).len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        held(&self.0).resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
