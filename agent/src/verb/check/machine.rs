//! What this machine gives the agent: an account, a clock, disks, addresses.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::HumanBytes;
use rustix::fs::{Access, access};
use walferry_archive::OsFiles;

use super::finding::{Code, Findings};
use crate::config::Config;
use crate::stage::retention::space;
use crate::stage::tail;

/// A control file this much younger than now, in seconds, tells that the clock stands wrong.
const CLOCK_TOLERANCE: i64 = 60;

pub(super) fn account(config: &Config, findings: &mut Findings) {
    if !rustix::process::geteuid().is_root() {
        findings.ok("account", format_args!("user id {}", rustix::process::geteuid().as_raw()));
        return;
    }
    let data = config.source.data_directory.as_ref();
    let owner = data.and_then(|directory| fs::metadata(directory).ok()).map(|found| found.uid());
    findings.add(
        Code::AccountRoot,
        "this runs as root, who may read everything: that says nothing of the service's account",
        match owner {
            Some(owner) if owner != 0 => format!("run it as the server's user, id {owner}"),
            _ => "run it as the user of the service: sudo -u postgres walferry check".to_owned(),
        },
    );
}

/// Whether the clock stands before a moment that has been: the control file's.
pub(super) fn clock(config: &Config, findings: &mut Findings) {
    let directories =
        [&config.source.data_directory, &config.store.as_ref().map(|s| s.data_directory.clone())];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    for directory in directories.into_iter().flatten() {
        let Ok(control) = tail::read_control_file(&OsFiles, directory) else { continue };
        let ahead = control.time.saturating_sub(now);
        if ahead > CLOCK_TOLERANCE {
            findings.add(
                Code::Clock,
                format_args!(
                    "the clock stands {ahead} s before the last change of {}",
                    directory.join("global/pg_control").display()
                ),
                "set it, and let a time service keep it: certificates and recovery targets are \
                 judged by it",
            );
            return;
        }
    }
    findings.ok("clock", "not before the control file's last change");
}

/// Whether directories can be written and have room.
pub(super) fn disks(config: &Config, findings: &mut Findings) {
    let archive = &config.archive.directory;
    let store = config.store.as_ref().map(|store| store.data_directory.as_path());
    let store_is_there = store.is_some_and(Path::is_dir);
    let directories = [
        ("archive", Some(archive.as_path())),
        ("store", if store_is_there { store } else { store.and_then(Path::parent) }),
        ("row spool", config.decode.as_ref().map(|decode| decode.directory.as_path())),
        ("control socket", Some(config.node.run_directory.as_path())),
    ];
    for (what, directory) in directories {
        let Some(directory) = directory else { continue };
        let there = existing(directory);
        if let Err(error) = access(&there, Access::WRITE_OK | Access::EXEC_OK) {
            findings.add(
                Code::DiskAccess,
                format_args!("{what}: {} cannot be written: {error}", there.display()),
                format_args!(
                    "make {} and give it to this user (mkdir, chown)",
                    directory.display()
                ),
            );
            continue;
        }
        if what == "control socket" {
            continue;
        }
        room(config, what, &there, findings);
    }
    let device = |path: &Path| fs::metadata(existing(path)).ok().map(|found| found.dev());
    if let Some(data) = &config.source.data_directory
        && device(&data.join("pg_wal")) == device(archive)
    {
        findings.add(
            Code::DiskShared,
            "archive and pg_wal are on the same file system: what fills one stops the other",
            format_args!(
                "give the archive a file system of its own; until then [archive] min_free_bytes \
                 ({}) keeps room for the server",
                HumanBytes(config.archive.min_free_bytes)
            ),
        );
    }
}

fn room(config: &Config, what: &'static str, directory: &Path, findings: &mut Findings) {
    let free = match space(directory) {
        Ok(found) => found.free,
        Err(error) => {
            let words = format_args!("{what}: {}: {error}", directory.display());
            findings.add(Code::DiskAccess, words, "check the disk");
            return;
        }
    };
    let least = config.archive.min_free_bytes;
    let words = format!("{what}: {} free at {}", HumanBytes(free), directory.display());
    if free < least {
        findings.add(
            Code::DiskSpace,
            format_args!("{words}, less than [archive] min_free_bytes = {}", HumanBytes(least)),
            "make room or take a larger disk: old WAL is removed from the archive until then",
        );
    } else {
        findings.ok("disk", words);
    }
}

/// The directory itself, or the nearest one above it that is there.
fn existing(directory: &Path) -> PathBuf {
    let there = directory.ancestors().find(|ancestor| ancestor.is_dir());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// This machine's memory in bytes, if it tells.
pub(crate) fn memory() -> Option<u64> {
    // In kB (`man 5 proc`).
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024))
}

/// Whether the configured addresses can be listened on.
pub(super) fn addresses(config: &Config, findings: &mut Findings) {
    for (key, address) in
        [("replication", config.listen.replication), ("metrics", config.listen.metrics)]
    {
        let Some(address) = address else { continue };
        match TcpListener::bind(address) {
            Ok(_) => findings.ok("listen", format_args!("{key} {address} is free")),
            Err(error) => findings.add(
                Code::Listen,
                format_args!("[listen] {key} = \"{address}\": {error}"),
                "choose an address of this machine and a port that nothing else has",
            ),
        }
    }
}
