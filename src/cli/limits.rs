//! Limits of the operating system: raised where we may, mentioned where they hurt.

use std::io;
use std::path::Path;

/// Files below which a server with many clients runs dry: one is open for each connection.
const FILES_FEW: u64 = 4_096;
/// Memory below which even a small tree is a risk, in bytes: the tree lives in memory.
const MEMORY_LITTLE: u64 = 256 << 20;

/// Files that this process may have open; 0 if the system does not tell.
pub fn open_files() -> usize {
    let limit = open_files_limit().map_or(0, |limit| limit.rlim_cur);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Raises the limit of open files and warns of what is tight.
pub fn apply() {
    match raise_open_files() {
        Ok(files) if files < FILES_FEW => tracing::warn!(
            files,
            "few files may be open, which limits the number of clients; raise `ulimit -Hn`"
        ),
        Ok(files) => tracing::debug!(files, "open files allowed"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    if let Some(bytes) = memory_limit().filter(|bytes| *bytes < MEMORY_LITTLE) {
        let mebibytes = bytes >> 20;
        tracing::warn!(
            mebibytes,
            "this control group may use little memory, and the whole tree is kept in memory"
        );
    }
}

/// Asks for memory in small pages. With huge ones a server of few znodes takes three times the
/// memory that it uses, and one of a million a quarter more, for reads that are a tenth faster.
/// Only what is asked for afterwards is small: so this comes before anything is allocated. Where
/// the system does not know the request, pages stay as they are.
pub extern "C" fn use_small_pages() {
    // SAFETY: this call takes numbers only and sets a flag of this process.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Raises the soft limit of open files to the hard limit; returns what holds now.
fn raise_open_files() -> io::Result<u64> {
    let mut limit = open_files_limit()?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit only reads one `rlimit` through the pointer, which is valid and
        // initialised above. It changes a number of this process and no memory.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

fn open_files_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit writes one `rlimit` through the pointer, which is valid, aligned and
    // exclusively ours for the duration of the call. It keeps no reference to it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

/// Bytes that the control group of this process may use, if it is limited.
fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_files(&groups)
        .iter()
        .filter_map(|file| limit_in(&std::fs::read_to_string(Path::new(file)).ok()?))
        .min()
}

/// The files that may hold the limit, by the lines of /proc/self/cgroup.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        match (parts.next(), parts.next(), parts.next()) {
            // Version 2 has one tree for all controllers. Inside a container the group's path may
            // not be mounted; its own limit is then in the root.
            (Some("0"), Some(""), Some(path)) => {
                files.push(format!("/sys/fs/cgroup{path}/memory.max"));
                files.push("/sys/fs/cgroup/memory.max".to_owned());
            }
            (_, Some(controllers), Some(path)) if controllers.split(',').any(|c| c == "memory") => {
                files.push(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"));
                files.push("/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned());
            }
            _ => {}
        }
    }
    files
}

fn limit_in(text: &str) -> Option<u64> {
    // Version 2 writes "max" for no limit, version 1 a number near 2^63.
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_ends_at_the_hard_limit() {
        let raised = raise_open_files().unwrap();
        assert_eq!(open_files() as u64, raised);
        assert_eq!(raise_open_files().unwrap(), raised);
        assert!(raised > 0);
    }

    #[test]
    fn both_versions_of_control_groups_are_understood() {
        assert_eq!(
            limit_files("0::/system.slice/zkraft.service\n"),
            [
                "/sys/fs/cgroup/system.slice/zkraft.service/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(
            limit_files("5:cpu,cpuacct:/a\n4:hugetlb,memory:/docker/1\n"),
            [
                "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            ]
        );
        assert_eq!(limit_in("max\n"), None);
        assert_eq!(limit_in("9223372036854771712\n"), None);
        assert_eq!(limit_in("268435456\n"), Some(256 << 20));
    }
}
