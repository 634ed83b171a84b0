//! Whose the store is: `postmaster.pid` against servers, `walferry.lock` against other agents.
//!
//! ```text
//! postmaster.pid, as a server writes it first        walferry.lock, held with flock
//!   process id                                         running | stopped
//!   data directory                                     held | free
//!   start time, seconds since 1970
//!   port: 0
//!   socket directory: empty
//! ```
//!
//! A server refuses to start while the process in `postmaster.pid` lives. Two agents that start at
//! once both see the same stale file; the flock lets one of them through. Whoever has it knows that an
//! agent's file is stale, whatever runs under its process id by now: ids repeat after a boot, and a
//! server of the same user may have the one that the agent had. (No server writes port 0.)
//!
//! `walferry.lock` also says whether the store was stopped cleanly, durably before the first page is
//! changed; and whether pages of TOAST relations have waited for rows in all of its life (`gate.rs`): who
//! takes rows again from a restart point on needs to know whether the values are there that they need.
//! There is no shared memory line: a server that takes over must not look for ours.
//!
//! Rules: `CreateLockFile` in `src/backend/utils/init/miscinit.c`,
//! `src/include/utils/pidfile.h`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Pid;

use crate::disk::DiskFile;
use crate::error::{FileError, LockError};
use crate::layout::{Layout, read_all};

const RUNNING: &str = "running";
const STOPPED: &str = "stopped";
const HELD: &str = "held";
const FREE: &str = "free";

const PID_NAME: &str = "postmaster.pid";
/// Counted from 0.
const PORT_LINE: usize = 3;
const NO_PORT: &str = "0";
const LOCK_NAME: &str = "walferry.lock";

/// The right to change the store. Dropped without [`release`](Self::release), it leaves the files
/// of an unclean stop.
#[derive(Debug)]
pub(crate) struct StoreLock {
    layout: Layout,
    pid_path: PathBuf,
    lock_path: PathBuf,
    state: Arc<Mutex<StateFile>>,
    /// The stop before was not a clean one.
    pub(crate) after_unclean_stop: bool,
    /// Pages of TOAST relations were written before rows were durable.
    pub(crate) after_free_toast: bool,
}

/// What `walferry.lock` says.
#[derive(Debug)]
struct StateFile {
    file: Box<dyn DiskFile>,
    is_stopped: bool,
    toast_is_held: bool,
}

impl StateFile {
    fn write(&self) -> Result<(), FileError> {
        let first = if self.is_stopped { STOPPED } else { RUNNING };
        let second = if self.toast_is_held { HELD } else { FREE };
        let state = format!("{first}\n{second}\n");
        // All states have the same length and lie in one sector: a crash leaves one of them.
        self.file.write_at(0, state.as_bytes())?;
        self.file.set_len(state.len() as u64)?;
        self.file.sync()
    }

    fn hold_toast(&mut self, is_held: bool) -> Result<(), FileError> {
        if self.toast_is_held == is_held {
            return Ok(());
        }
        self.toast_is_held = is_held;
        self.write()
    }
}

/// A way to say, from any thread, that pages of TOAST relations wait no longer. It does not keep the lock.
#[derive(Debug)]
pub(crate) struct FreeToast(Weak<Mutex<StateFile>>);

impl FreeToast {
    /// Says so, durably, if the store is still open.
    pub(crate) fn write(&self) -> Result<(), FileError> {
        self.0.upgrade().map_or(Ok(()), |state| locked(&state).hold_toast(false))
    }
}

fn locked(state: &Mutex<StateFile>) -> MutexGuard<'_, StateFile> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StoreLock {
    /// Takes the store, or says who has it. Pages of TOAST relations go on to wait for rows if
    /// `holds_toast`.
    pub(crate) fn take(layout: &Layout, holds_toast: bool) -> Result<Self, LockError> {
        let pid_path = layout.at(PID_NAME);
        let lock_path = layout.at(LOCK_NAME);
        let lock_file = take_flock(layout, &lock_path)?;
        let last_state = read_all(&*lock_file)?;

        // From here on there is no other agent: a pid file that exists is a server's, or stale.
        let pid_file_was_there = match read_pid(layout, &pid_path)? {
            PidFile::Missing => false,
            PidFile::Server(pid) if is_somebody_else(pid) => {
                return Err(LockError::Server { pid, directory: layout.root().to_owned() });
            }
            PidFile::Server(_) | PidFile::Agent(_) | PidFile::Unreadable => {
                layout.remove_file(&pid_path)?
            }
        };
        let toast_was_held = line(&last_state, 1) == HELD;
        let state = StateFile {
            file: lock_file,
            is_stopped: false,
            toast_is_held: holds_toast && toast_was_held,
        };
        let lock = Self {
            layout: layout.clone(),
            after_unclean_stop: pid_file_was_there || !is_clean(&last_state),
            after_free_toast: !toast_was_held,
            pid_path,
            lock_path,
            state: Arc::new(Mutex::new(state)),
        };
        lock.write_pid_file()?;
        locked(&lock.state).write()?;
        layout.sync_directory(layout.root())?;
        Ok(lock)
    }

    /// Lets the store go after a clean stop: all pages are durable.
    pub(crate) fn release(self) -> Result<(), FileError> {
        {
            let mut state = locked(&self.state);
            state.is_stopped = true;
            state.write()?;
        }
        self.layout.remove_file(&self.pid_path)?;
        self.layout.sync_directory(self.layout.root())
    }

    /// Lets the directory go for good: a server takes it over.
    pub(crate) fn release_and_forget(self) -> Result<(), FileError> {
        self.layout.remove_file(&self.lock_path)?;
        self.layout.remove_file(&self.pid_path)?;
        self.layout.sync_directory(self.layout.root())
    }

    /// Lets the store go, knowing that its pages are of different times. The next one who takes it
    /// sees an unclean stop.
    pub(crate) fn release_unclean(self) -> Result<(), FileError> {
        self.layout.remove_file(&self.pid_path)?;
        self.layout.sync_directory(self.layout.root())
    }

    fn write_pid_file(&self) -> Result<(), LockError> {
        let start_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let pid = std::process::id();
        let root = self.layout.root();
        let contents = format!("{pid}\n{}\n{start_time}\n{NO_PORT}\n\n", root.display());
        match self.layout.create_new(&self.pid_path) {
            Ok(file) => {
                file.write_at(0, contents.as_bytes())?;
                Ok(file.sync()?)
            }
            // A server was started between our look and our own file.
            Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
                match read_pid(&self.layout, &self.pid_path)? {
                    PidFile::Server(pid) => {
                        Err(LockError::Server { pid, directory: root.to_owned() })
                    }
                    _ => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Pages of TOAST relations wait for rows from now on, or no longer.
    pub(crate) fn hold_toast(&self, is_held: bool) -> Result<(), FileError> {
        locked(&self.state).hold_toast(is_held)
    }

    pub(crate) fn free_toast(&self) -> FreeToast {
        FreeToast(Arc::downgrade(&self.state))
    }
}

/// A store that nobody has, looked at without changing anything. No agent can take it meanwhile.
#[derive(Debug)]
pub(crate) struct AtRest {
    layout: Layout,
    /// Locked; nothing if no agent has had the store yet, or it was let go of for good.
    lock_file: Option<Box<dyn DiskFile>>,
    /// The last stop was not a clean one.
    pub(crate) after_unclean_stop: bool,
}

impl AtRest {
    /// Makes sure that nobody has the store, or says who has it.
    pub(crate) fn take(layout: &Layout) -> Result<Self, LockError> {
        let lock_file = layout.open_existing(&layout.at(LOCK_NAME))?;
        if let Some(file) = &lock_file
            && !file.try_lock()?
        {
            return Err(somebody_has(layout)?);
        }
        let at_rest = Self { layout: layout.clone(), lock_file, after_unclean_stop: false };
        at_rest.check()?;
        let state = at_rest.lock_file.as_deref().map(read_all).transpose()?.unwrap_or_default();
        let pid_file_is_there = layout.metadata(&layout.at(PID_NAME))?.is_some();
        Ok(Self { after_unclean_stop: pid_file_is_there || !is_clean(&state), ..at_rest })
    }

    /// Makes sure that nobody came meanwhile: a server is not kept out by the lock, nor is an agent
    /// where there was none to hold.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        let named = self.layout.metadata(&self.layout.at(LOCK_NAME))?;
        let held = self.lock_file.as_ref().map(|file| file.metadata()).transpose()?;
        if named.map(|named| named.identity) != held.map(|held| held.identity) {
            return Err(somebody_has(&self.layout)?);
        }
        match read_pid(&self.layout, &self.layout.at(PID_NAME))? {
            PidFile::Server(pid) if is_somebody_else(pid) => {
                Err(LockError::Server { pid, directory: self.layout.root().to_owned() })
            }
            _ => Ok(()),
        }
    }
}

/// Whether `walferry.lock` says so. Empty: made just now, or by one whom a crash met before it had
/// changed anything.
fn is_clean(state: &[u8]) -> bool {
    state.is_empty() || line(state, 0) == STOPPED
}

fn line(state: &[u8], number: usize) -> &str {
    std::str::from_utf8(state).unwrap_or_default().lines().nth(number).unwrap_or_default()
}

/// Another agent has the store, or another part of this one.
fn somebody_has(layout: &Layout) -> Result<LockError, FileError> {
    let pid = match read_pid(layout, &layout.at(PID_NAME))? {
        PidFile::Agent(pid) | PidFile::Server(pid) => Some(pid),
        PidFile::Missing | PidFile::Unreadable => None,
    };
    Ok(LockError::Agent { pid, directory: layout.root().to_owned() })
}

/// Opens and locks `walferry.lock`. The one who held it before may have removed it between our open
/// and our lock, so the locked file must still be the one with the name.
fn take_flock(layout: &Layout, path: &Path) -> Result<Box<dyn DiskFile>, LockError> {
    loop {
        let file = layout.open_or_create(path)?;
        if !file.try_lock()? {
            return Err(somebody_has(layout)?);
        }
        let locked = file.metadata()?.identity;
        if layout.metadata(path)?.is_some_and(|named| named.identity == locked) {
            return Ok(file);
        }
    }
}

enum PidFile {
    Missing,
    Unreadable,
    /// As [`StoreLock`] writes it.
    Agent(u32),
    Server(u32),
}

/// Reads the process id. A server run on its own (`--single`) writes it as a negative number.
fn read_pid(layout: &Layout, path: &Path) -> Result<PidFile, FileError> {
    let Some(contents) = layout.read(path)? else { return Ok(PidFile::Missing) };
    let text = String::from_utf8_lossy(&contents);
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    let is_agents = text.lines().nth(PORT_LINE) == Some(NO_PORT);
    Ok(match pid {
        Some(pid) if pid > 0 && is_agents => PidFile::Agent(pid.unsigned_abs()),
        Some(pid) if pid != 0 => PidFile::Server(pid.unsigned_abs()),
        _ => PidFile::Unreadable,
    })
}

/// Whether a process with this id runs that could be a server in our directory. Our own id and our
/// parent's come from a life before (process ids repeat in containers); a process that we may not
/// signal belongs to another user, and cannot be a server in a directory of ours.
fn is_somebody_else(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    pid != rustix::process::getpid()
        && Some(pid) != rustix::process::getppid()
        && rustix::process::test_kill_process(pid).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(directory: &tempfile::TempDir) -> Layout {
        Layout::new(directory.path()).unwrap()
    }

    #[test]
    fn the_second_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let lock = StoreLock::take(&layout(&directory), false).unwrap();
        assert!(!lock.after_unclean_stop);
        match StoreLock::take(&layout(&directory), false) {
            Err(LockError::Agent { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        lock.release().unwrap();
        let lock = StoreLock::take(&layout(&directory), false).unwrap();
        assert!(!lock.after_unclean_stop);
        lock.release_and_forget().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_pid_file_is_a_servers() {
        let directory = tempfile::tempdir().unwrap();
        let lock = StoreLock::take(&layout(&directory), false).unwrap();
        let text = std::fs::read_to_string(directory.path().join("postmaster.pid")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], std::process::id().to_string());
        assert_eq!(Path::new(lines[1]), directory.path());
        assert!(lines[2].parse::<u64>().unwrap() > 1_600_000_000);
        assert_eq!((lines[3], lines[4]), ("0", ""));
        lock.release().unwrap();
    }

    #[test]
    fn a_dead_process_leaves_a_stale_file_and_a_live_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pid_path = directory.path().join("postmaster.pid");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(&pid_path, format!("{}\n/elsewhere\n", child.id())).unwrap();
        match StoreLock::take(&layout(&directory), false) {
            Err(LockError::Server { pid, .. }) => assert_eq!(pid, child.id()),
            other => panic!("{other:?}"),
        }
        let text = std::fs::read_to_string(&pid_path).unwrap();
        assert!(text.contains("/elsewhere"), "a refusal must leave the file alone: {text}");

        child.kill().unwrap();
        child.wait().unwrap();
        let lock = StoreLock::take(&layout(&directory), false).unwrap();
        assert!(lock.after_unclean_stop);
        lock.release().unwrap();
        assert!(!pid_path.exists());
    }

    #[test]
    fn an_agents_file_is_stale_whoever_has_its_process_id_by_now() {
        let directory = tempfile::tempdir().unwrap();
        let pid_path = directory.path().join("postmaster.pid");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let file = |port| format!("{}\n/store\n1700000000\n{port}\n\n", child.id());
        std::fs::write(&pid_path, file(5432)).unwrap();
        let servers = StoreLock::take(&layout(&directory), false);
        std::fs::write(&pid_path, file(0)).unwrap();
        let agents = StoreLock::take(&layout(&directory), false);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(servers, Err(LockError::Server { .. })), "{servers:?}");
        assert!(agents.unwrap().after_unclean_stop);
    }

    #[test]
    fn a_lock_that_was_dropped_is_an_unclean_stop() {
        let directory = tempfile::tempdir().unwrap();
        drop(StoreLock::take(&layout(&directory), false).unwrap());
        // Even if somebody tidied up the pid file.
        std::fs::remove_file(directory.path().join("postmaster.pid")).unwrap();
        let lock = StoreLock::take(&layout(&directory), false).unwrap();
        assert!(lock.after_unclean_stop);
        lock.release_unclean().unwrap();
        assert!(StoreLock::take(&layout(&directory), false).unwrap().after_unclean_stop);
    }

    #[test]
    fn a_look_changes_nothing_and_keeps_agents_out() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let names = || std::fs::read_dir(directory.path()).unwrap().count();
        let look = AtRest::take(&layout).unwrap();
        assert_eq!((look.after_unclean_stop, names()), (false, 0));

        let lock = StoreLock::take(&layout, false).unwrap();
        assert!(matches!(look.check(), Err(LockError::Agent { .. })), "one came meanwhile");
        assert!(matches!(AtRest::take(&layout), Err(LockError::Agent { pid: Some(_), .. })));
        lock.release().unwrap();

        let look = AtRest::take(&layout).unwrap();
        assert_eq!((look.after_unclean_stop, names()), (false, 1));
        assert!(matches!(StoreLock::take(&layout, false), Err(LockError::Agent { pid: None, .. })));
        look.check().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(directory.path().join("postmaster.pid"), child.id().to_string()).unwrap();
        let came = look.check();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(came, Err(LockError::Server { .. })), "a server came: {came:?}");
        std::fs::remove_file(directory.path().join("postmaster.pid")).unwrap();
        drop(look);

        drop(StoreLock::take(&layout, false).unwrap());
        let look = AtRest::take(&layout).unwrap();
        assert_eq!((look.after_unclean_stop, names()), (true, 2));
    }

    #[test]
    fn it_is_kept_whether_toast_was_held() {
        let directory = tempfile::tempdir().unwrap();
        let take = |holds| StoreLock::take(&layout(&directory), holds).unwrap();
        let text = || std::fs::read_to_string(directory.path().join(LOCK_NAME)).unwrap();

        // Nobody knows what was before; from some moment on it is held, whatever stop comes.
        let lock = take(true);
        assert!(lock.after_free_toast);
        assert_eq!(text(), "running\nfree\n");
        lock.hold_toast(true).unwrap();
        assert_eq!(text(), "running\nheld\n");
        drop(lock);
        let lock = take(true);
        assert!(!lock.after_free_toast && lock.after_unclean_stop);
        lock.release().unwrap();
        assert_eq!(text(), "stopped\nheld\n");

        // Rows are lost, which another thread says; it does not hold the lock.
        let lock = take(true);
        assert!(!lock.after_free_toast && !lock.after_unclean_stop);
        let free = lock.free_toast();
        free.write().unwrap();
        assert_eq!(text(), "running\nfree\n");
        drop(lock);
        let lock = take(true);
        assert!(lock.after_free_toast);
        lock.hold_toast(true).unwrap();
        free.write().unwrap();
        assert_eq!(text(), "running\nheld\n", "it speaks of a store that is gone");
        lock.release().unwrap();

        // Nobody takes rows: it is free before anything else happens.
        let lock = take(false);
        assert_eq!(text(), "running\nfree\n");
        lock.release().unwrap();
        assert!(take(true).after_free_toast);

        // An agent of before the second line.
        std::fs::write(directory.path().join(LOCK_NAME), "stopped\n").unwrap();
        std::fs::remove_file(directory.path().join(PID_NAME)).unwrap();
        let lock = take(true);
        assert!(lock.after_free_toast && !lock.after_unclean_stop);
    }
}
