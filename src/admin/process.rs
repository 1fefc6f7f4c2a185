//! What this process and its machine say of themselves.
//!
//! Read from the environment and from /proc. What cannot be read is shown as unknown: operators
//! ask for these values when something is wrong, so they must not make anything worse.

use std::fs;

use super::VERSION;

/// Shown for what does not exist, as ZooKeeper does for missing Java properties.
const NOT_AVAILABLE: &str = "<NA>";

/// Files and sockets that are open, and how many may be.
pub fn file_descriptors() -> (u64, u64) {
    let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    (open, soft_limit(&limits, "Max open files").unwrap_or(0))
}

/// The soft limit in the line of /proc/self/limits that starts with `name`.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The keys of the four-letter word `envi` in ZooKeeper's order (§11.1).
pub fn environment() -> Vec<(&'static str, String)> {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| NOT_AVAILABLE.to_owned());
    let kernel = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        if text.is_empty() {
            NOT_AVAILABLE.to_owned()
        } else {
            text.trim().to_owned()
        }
    };
    let directory = std::env::current_dir().map_or(NOT_AVAILABLE.to_owned(), |directory| {
        directory.display().to_string()
    });
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mebibytes = |name: &str| match kibibytes(&memory, name) {
        Some(kibibytes) => format!("{}MB", kibibytes / 1024),
        None => NOT_AVAILABLE.to_owned(),
    };
    let java = || NOT_AVAILABLE.to_owned();
    vec![
        ("zookeeper.version", VERSION.to_owned()),
        ("host.name", kernel("hostname")),
        ("java.version", java()),
        ("java.vendor", java()),
        ("java.home", java()),
        ("java.class.path", java()),
        ("java.library.path", java()),
        ("java.io.tmpdir", std::env::temp_dir().display().to_string()),
        ("java.compiler", java()),
        ("os.name", kernel("ostype")),
        ("os.arch", std::env::consts::ARCH.to_owned()),
        ("os.version", kernel("osrelease")),
        ("user.name", variable("USER")),
        ("user.home", variable("HOME")),
        ("user.dir", directory),
        ("os.memory.free", mebibytes("MemAvailable:")),
        ("os.memory.max", mebibytes("MemTotal:")),
        ("os.memory.total", mebibytes("MemTotal:")),
    ]
}

fn kibibytes(memory: &str, name: &str) -> Option<u64> {
    let line = memory.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_counted_and_limited() {
        let (open, limit) = file_descriptors();
        assert!(open >= 3 && limit >= open, "{open} of {limit}");
        let limits = "Limit      Soft Limit    Hard Limit   Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max processes"), None);
    }

    #[test]
    fn the_environment_is_complete_and_of_one_line_each() {
        let environment = environment();
        assert_eq!(environment.len(), 18);
        assert!(
            environment
                .iter()
                .all(|(_, v)| !v.is_empty() && !v.contains('\n'))
        );
        assert_eq!(kibibytes("MemTotal:  2048 kB\n", "MemTotal:"), Some(2048));
    }
}
