//! Signals to processes, and waiting for their end.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take that should happen by itself. None of it takes so long on a quiet machine:
/// what this bounds is how late a fault is told, and a machine that others load must not look like one.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How often a condition is looked at while waiting for it.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Sends a signal; a process that is gone already is no error.
///
/// # Errors
/// The operating system's, most likely that the process is another user's.
pub fn send_signal(pid: u32, signal: Signal) -> Result<()> {
    match kill_process(pid_of(pid)?, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot signal process {pid}")),
    }
}

/// Whether a process is there and still runs. One that has ended but that its parent has not waited
/// for (a zombie; in a container it may stay one) does not.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    stat_of(pid).is_some_and(|(state, _)| state != "Z")
}

/// Whether each thread of a process that was sent SIGSTOP has been stopped by it: none is within a call of the
/// system any more.
#[must_use]
pub fn stands_still(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        state_in(&stat).is_some_and(|(state, _)| state == "T")
    })
}

/// The direct children of a process, as `/proc` shows them now.
#[must_use]
pub fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat_of(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// The processes that were started with a path in `folder` or that work in it, this one excepted.
#[must_use]
pub fn processes_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let uses = |pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(&*folder.to_string_lossy())
            || directory.starts_with(folder)
    };
    pids.filter(|pid| *pid != std::process::id() && is_alive(*pid) && uses(pid)).collect()
}

/// The processes of the program `name` that work in `folder`.
#[must_use]
pub fn processes_of(name: &str, folder: &Path) -> Vec<u32> {
    // Links in `/proc` show the real path.
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_one = |pid: &u32| {
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        program.trim_end() == name && directory == folder
    };
    pids.filter(|pid| is_alive(*pid) && is_one(pid)).collect()
}

/// Waits for a child to end by itself.
///
/// # Errors
/// It is still running when `limit` is over.
pub fn wait_for_exit(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a child")? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("process {} is still running after {limit:?}", child.id());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// It does not within `limit`; `what` is what was waited for. Or the condition's own error.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The last `lines` lines of a text file, for messages; says so if it cannot be read.
#[must_use]
pub fn tail_of(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({} cannot be read: {error})", path.display()),
    }
}

fn pid_of(pid: u32) -> Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("{pid} is no process id"))
}

/// State and parent: fields 3 and 4 of `/proc/PID/stat`. The second field is the program's name in
/// brackets and may itself hold blanks and brackets.
fn stat_of(pid: u32) -> Option<(String, u32)> {
    state_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn state_in(stat: &str) -> Option<(String, u32)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
