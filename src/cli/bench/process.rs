//! Processor time and memory of processes, from /proc.

use std::fs;

/// Processor time of this thread, user and system, in seconds.
pub fn thread_cpu() -> f64 {
    // SAFETY: an all-zero `rusage` is a valid value of that plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage writes one `rusage` through the pointer, which is valid, aligned and ours
    // alone for the duration of the call. It keeps no reference to it.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(result, 0, "the arguments are right, so it cannot fail");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Processor time of these processes since their starts, in seconds. `None` without processes, or
/// if one of them is not there.
pub fn cpu_of(pids: &[u32]) -> Option<f64> {
    let ticks = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        cpu_ticks(&stat)
    };
    let sum: u64 = pids.iter().map(ticks).sum::<Option<u64>>()?;
    (!pids.is_empty()).then(|| sum as f64 / ticks_per_second())
}

/// Resident memory of these processes, now and at its highest, in bytes.
pub fn memory_of(pids: &[u32]) -> Option<(u64, u64)> {
    let memory = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kibibytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some((kibibytes("VmRSS:")? << 10, kibibytes("VmHWM:")? << 10))
    };
    let each: Option<Vec<_>> = pids.iter().map(memory).collect();
    let each = each.filter(|each| !each.is_empty())?;
    Some((
        each.iter().map(|(now, _)| now).sum(),
        each.iter().map(|(_, peak)| peak).sum(),
    ))
}

/// The fields utime and stime. The second field is a name that may hold anything, even brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let utime: u64 = fields.next()?.parse().ok()?;
    let stime: u64 = fields.next()?.parse().ok()?;
    Some(utime + stime)
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf takes a number and returns one; no memory is involved.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 400 23 0 0 20 0 1 0 5";
        assert_eq!(cpu_ticks(stat), Some(423));
        assert_eq!(cpu_ticks("7"), None);
    }

    #[test]
    fn this_process_is_measured() {
        let this = [std::process::id()];
        assert!(cpu_of(&this).is_some_and(|seconds| seconds >= 0.0));
        let (now, peak) = memory_of(&this).unwrap();
        assert!(now > 0 && peak >= now);
        assert!(thread_cpu() >= 0.0);
        assert_eq!(cpu_of(&[]), None);
    }
}
