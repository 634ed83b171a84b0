//! The server beside this agent: its files, and what it says of itself.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{getegid, geteuid, getgroups};
use tokio::runtime::Runtime;
use walferry_archive::OsFiles;
use walfmt::control::ControlFile;
use walfmt::{SegmentName, WalFileName};

use super::finding::{Code, Findings};
use crate::config::Config;
use crate::server::replication::ReplicationConnection;
use crate::server::{Server, Survey};
use crate::stage::tail;
use crate::trouble::{Kind, Trouble};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The newest minor of each major that the tests have seen.
const MINORS_SEEN: [(u32, u32); 1] = [(15, 20)];
/// `wal_level` in the control file.
const WAL_LEVEL_MINIMAL: i32 = 0;

pub(super) fn check(config: &Config, directory: &Path, runtime: &Runtime, findings: &mut Findings) {
    let control = match tail::read_control_file(&OsFiles, directory) {
        Ok(control) => Some(control),
        Err(trouble) => {
            let unreadable = "[source] data_directory must be the server's, and this user one who \
                              may read it: run the agent as the server's user";
            let hint = trouble.hint().filter(|_| trouble.kind() != Kind::Io);
            findings.add(Code::DataDirectory, &trouble, hint.unwrap_or(unreadable));
            None
        }
    };
    if let Some(control) = &control {
        files(directory, control, findings);
        if control.wal_level == WAL_LEVEL_MINIMAL {
            findings.add(
                Code::WalLevel,
                "wal_level = minimal: the WAL does not hold all changes",
                "ALTER SYSTEM SET wal_level = replica; and restart the server",
            );
        }
        if control.data_checksum_version == 0 {
            findings.add(
                Code::Checksums,
                "the cluster has no data checksums: damage on its disk is copied unseen",
                "pg_checksums --enable, while the server is stopped",
            );
        }
    }
    let Some(conninfo) = &config.source.conninfo else {
        findings.add(
            Code::Conninfo,
            "[source] conninfo is not set: settings cannot be checked, WAL is not held by a slot, \
             no follower can be bootstrapped from here",
            "set it, for example \"host=/run/postgresql user=walferry dbname=postgres\"",
        );
        return;
    };
    let asked = runtime.block_on(async {
        let survey = async { Server::connect(conninfo).await?.survey().await };
        tokio::time::timeout(ANSWER_LIMIT, survey).await
    });
    let survey = match asked {
        Ok(Ok(survey)) => survey,
        Ok(Err(trouble)) => {
            unreachable(&trouble, findings);
            return;
        }
        Err(_) => {
            unreachable(&Trouble::io("connecting to the server", "no answer"), findings);
            return;
        }
    };
    if let Some(control) = control
        && control.system_identifier != survey.system_identifier
    {
        findings.add(
            Code::OtherServer,
            format_args!(
                "conninfo leads to system {}, data_directory is of system {}",
                survey.system_identifier, control.system_identifier
            ),
            "correct one of them in [source]: they must be the same server",
        );
        return;
    }
    settings(&survey, config.slot().is_ok_and(|slot| slot.is_some()), findings);
    let connected = runtime.block_on(async {
        tokio::time::timeout(ANSWER_LIMIT, ReplicationConnection::connect(conninfo)).await
    });
    match connected {
        Ok(Ok(_)) => findings.ok("server", "a replication connection is possible"),
        Ok(Err(trouble)) => {
            let remedy = "bootstrap needs it: give the user REPLICATION, and add a line for \
                          \"replication\" to pg_hba.conf";
            findings.add_trouble(Code::Replication, &trouble, remedy);
        }
        Err(_) => findings.add(Code::Replication, "no answer", "see the server's log"),
    }
}

fn unreachable(trouble: &Trouble, findings: &mut Findings) {
    let remedy = "does the server run? is [source] conninfo right, and does pg_hba.conf let its \
                  user in?";
    findings.add_trouble(Code::Unreachable, trouble, remedy);
}

/// Whether the WAL can be read, now and with the next segment.
fn files(directory: &Path, control: &ControlFile, findings: &mut Findings) {
    let wal = directory.join("pg_wal");
    let mut segments = match segments(&wal) {
        Ok(segments) => segments,
        Err(error) => {
            findings.add(
                Code::PgWal,
                format_args!("{}: {error}", wal.display()),
                "run the agent as the server's user",
            );
            return;
        }
    };
    segments.sort_unstable();
    for segment in &segments {
        let path = wal.join(segment.to_string());
        let read = File::open(&path).and_then(|mut file| file.read(&mut [0; 512]));
        match read {
            Ok(_) => {}
            // It may be recycled at any moment.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                findings.add(
                    Code::PgWal,
                    format_args!("{}: {error}", path.display()),
                    "run the agent as the server's user",
                );
                return;
            }
        }
    }
    let found = match fs::metadata(directory) {
        Ok(found) => found,
        Err(error) => {
            let words = format_args!("{}: {error}", directory.display());
            findings.add(Code::DataDirectory, words, "run the agent as the server's user");
            return;
        }
    };
    let groups = getgroups().unwrap_or_default().into_iter().chain([getegid()]);
    let groups: Vec<u32> = groups.map(|group| group.as_raw()).collect();
    let (us, owner) = (geteuid().as_raw(), (found.uid(), found.gid()));
    if let Some(words) = objection_to_mode(us, &groups, owner, found.mode()) {
        findings.add(
            Code::PgWalMode,
            words,
            "run the agent as the server's user; or stop the server, chmod -R g+rX its data \
             directory, and put this user into its group",
        );
        return;
    }
    let count = segments.len();
    findings.ok(
        "server",
        format_args!(
            "{}: {count} segments can be read; system {}, PostgreSQL {}",
            wal.display(),
            control.system_identifier,
            control.version.major
        ),
    );
}

fn segments(wal: &Path) -> std::io::Result<Vec<SegmentName>> {
    let names: Vec<PathBuf> =
        fs::read_dir(wal)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    Ok(names
        .iter()
        .filter_map(|path| match path.file_name()?.to_str()?.parse() {
            Ok(WalFileName::Segment(segment)) => Some(segment),
            _ => None,
        })
        .collect())
}

/// Why a segment that the server makes from now on could not be read, whatever those that are there
/// allow: it makes files with the mode of its data directory, with or without the group
/// (`SetDataDirectoryCreatePerm`, `src/common/file_perm.c`).
fn objection_to_mode(
    us: u32,
    groups: &[u32],
    (owner, group): (u32, u32),
    mode: u32,
) -> Option<String> {
    let by_group = mode & 0o050 == 0o050 && groups.contains(&group);
    (us != 0 && us != owner && !by_group).then(|| {
        format!(
            "the server makes segments that only user id {owner} may read (its data directory has \
             mode {:04o}); this is user id {us}",
            mode & 0o777
        )
    })
}

fn settings(survey: &Survey, uses_slot: bool, findings: &mut Findings) {
    let (major, minor) = (survey.version_num / 10_000, survey.version_num % 10_000);
    let seen = MINORS_SEEN.iter().find(|(known, _)| *known == major).map_or(0, |(_, minor)| *minor);
    if minor > seen {
        findings.add(
            Code::Minor,
            format_args!("PostgreSQL {major}.{minor} is newer than what this version has seen"),
            "nothing, as a rule: minors do not change the WAL; a newer walferry will know it",
        );
    }
    for (code, name, is_on, why) in [
        (
            Code::Fsync,
            "fsync",
            survey.fsync,
            "a crash of its machine may leave the server behind what was shipped",
        ),
        (
            Code::FullPageWrites,
            "full_page_writes",
            survey.full_page_writes,
            "pages torn by a crash could not be repaired by replay",
        ),
    ] {
        if !is_on {
            findings.add(
                code,
                format_args!("{name} = off: {why}"),
                format_args!("ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();"),
            );
        }
    }
    if !survey.sees_settings {
        findings.add(
            Code::Rights,
            "the user of [source] conninfo may not see all settings: a follower made from here gets \
             neither all of them nor pg_hba.conf, and is to be configured by hand before a promotion",
            "GRANT pg_read_all_settings TO its role",
        );
    }
    if survey.in_recovery {
        findings.add(
            Code::Standby,
            "the server is a standby: its WAL is its primary's to ship, tail waits",
            "run the agent beside the primary, or receive from that agent ([source] peers)",
        );
    }
    match survey.hold.objection() {
        _ if !uses_slot && survey.hold.keep_bytes > 0 => {
            findings.ok("server", survey.hold.without_slot());
        }
        _ if !uses_slot => {
            let remedy = "ALTER SYSTEM SET wal_keep_size = '4GB'; SELECT pg_reload_conf();";
            findings.add(Code::Hold, survey.hold.without_slot(), remedy);
        }
        Some((words, remedy)) => findings.add(Code::Hold, words, remedy),
        None => findings.ok("server", survey.hold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Hold;

    #[test]
    fn who_may_read_the_next_segment() {
        for (us, groups, owner, mode, may) in [
            (26, &[26][..], (26, 26), 0o700, true),
            (0, &[0], (26, 26), 0o700, true),
            (99, &[26, 99], (26, 26), 0o750, true),
            (99, &[26, 99], (26, 26), 0o700, false),
            (99, &[99], (26, 26), 0o750, false),
            (99, &[99], (26, 26), 0o755, false),
        ] {
            assert_eq!(objection_to_mode(us, groups, owner, mode).is_none(), may, "{us} {mode:o}");
        }
    }

    #[test]
    fn a_minor_of_tomorrow_is_told() {
        let hold = Hold { slot_bytes: Some(1 << 30), keep_bytes: 0 };
        let mut survey = Survey {
            version_num: 150_099,
            system_identifier: 1,
            in_recovery: false,
            fsync: true,
            full_page_writes: true,
            sees_settings: true,
            hold,
        };
        let warned = |survey: &Survey| {
            let mut findings = Findings::default();
            settings(survey, true, &mut findings);
            (findings.failed(), findings.warnings())
        };
        assert_eq!(warned(&survey), (0, 1));
        survey.version_num = 150_020;
        assert_eq!(warned(&survey), (0, 0));
    }
}
