//! What Linux says about processes.

use std::fs;

const MIB: f64 = (1 << 20) as f64;

/// Seconds of processor time that a process has taken, all its threads together; 0 if it is gone.
pub fn cpu(pid: u32) -> f64 {
    ticks(&stat(pid), &[UTIME, STIME])
}

/// The same of a process and all its children, also those that have ended and were waited for.
pub fn cpu_of_family(parent: u32) -> f64 {
    let living: f64 = children(parent).into_iter().map(cpu).sum();
    ticks(&stat(parent), &[UTIME, STIME, CUTIME, CSTIME]) + living
}

/// The most memory that a process has held since [`forget_peak`], in MiB.
pub fn peak(pid: u32) -> f64 {
    kib(&format!("/proc/{pid}/status"), "VmHWM:") / 1024.0
}

/// Lets the peak of a process's memory begin anew.
pub fn forget_peak(pid: u32) {
    // refused or gone: then the peak is that of its whole life
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// The memory of a process and its children now, what they share counted once, in MiB.
pub fn memory_of_family(parent: u32) -> f64 {
    let shares = |pid| kib(&format!("/proc/{pid}/smaps_rollup"), "Pss:") / 1024.0;
    // a child may have ended meanwhile
    std::iter::once(parent)
        .chain(children(parent))
        .map(shares)
        .filter(|mib| mib.is_finite())
        .sum()
}

/// All of the machine's memory, in MiB.
pub fn machine_memory() -> f64 {
    kib("/proc/meminfo", "MemTotal:") * 1024.0 / MIB
}

/// The fields of `/proc/PID/stat` from the third on: those before are the id and a name that may hold spaces.
fn stat(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    fields.split_whitespace().map(str::to_string).collect()
}

// proc(5) counts the fields from 1, and two are cut off.
const PPID: usize = 4 - 3;
const UTIME: usize = 14 - 3;
const STIME: usize = 15 - 3;
const CUTIME: usize = 16 - 3;
const CSTIME: usize = 17 - 3;

fn ticks(stat: &[String], fields: &[usize]) -> f64 {
    let ticks = fields
        .iter()
        .filter_map(|field| stat.get(*field)?.parse::<u64>().ok())
        .sum::<u64>();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        stat(*pid)
            .get(PPID)
            .is_some_and(|ppid| *ppid == parent.to_string())
    })
    .collect()
}

fn kib(file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let number = text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    number.unwrap_or(f64::NAN)
}
