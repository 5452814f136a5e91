//! One thread of a process ended, as no program expects it: it has the kernel end the thread in the middle of a wait, so that
//! nothing of it runs any more, neither a destructor nor a panic.

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::process::Process;
use crate::wait;

/// The number of `exit`, which ends a thread (`exit_group` would end the process).
const EXIT: u64 = 60;
/// The length of the instruction `syscall`.
const SYSCALL: u64 = 2;

/// Ends the thread of this name (the kernel knows its first 15 characters) and waits until it is gone.
///
/// # Panics
/// When there is no such thread, or the kernel does not let this process trace its child.
pub fn end(process: &Process, name: &str) {
    let tid = wait::eventually(&format!("the thread {name}"), || find(process.pid(), name));
    wait::until(&format!("{name} to wait in the kernel"), || {
        exit_in_wait(Pid::from_raw(tid))
    });
    wait::until(&format!("{name} to be gone"), || {
        find(process.pid(), name).is_none()
    });
}

fn find(pid: u32, name: &str) -> Option<i32> {
    let short: String = name.chars().take(15).collect();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let named = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == short)
    };
    tasks
        .flatten()
        .find(named)?
        .file_name()
        .to_str()?
        .parse()
        .ok()
}

/// Whether the thread was in a system call; then it makes another one in its place.
fn exit_in_wait(tid: Pid) -> bool {
    ptrace::attach(tid).unwrap_or_else(|error| panic!("can't trace thread {tid}: {error}"));
    waitpid(tid, Some(WaitPidFlag::__WALL)).expect("it stops");
    let mut registers = ptrace::getregs(tid).expect("its registers");
    let in_call = registers.orig_rax as i64 >= 0;
    if in_call {
        registers.rip -= SYSCALL;
        (registers.rax, registers.rdi, registers.orig_rax) = (EXIT, 0, u64::MAX);
        ptrace::setregs(tid, registers).expect("its registers");
    }
    ptrace::detach(tid, None).expect("it goes on");
    in_call
}
