//! The store and the programs that will open it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use indicatif::HumanBytes;
use walferry_archive::OsFiles;
use walfmt::Version;
use walfmt::control::ClusterState;

use super::finding::{Code, Findings};
use super::machine;
use crate::config::StoreSection;
use crate::stage::tail;
use crate::verb::bootstrap::configuration::REFUSED_HERE;
use crate::verb::promote::{configuration_remedy, objection_to_configuration};

pub(super) fn check(store: &StoreSection, findings: &mut Findings) {
    let major = directory(&store.data_directory, findings);
    let is_installed = programs(&store.bin_directory, major, findings);
    // A server refuses root, even with such a question.
    let is_promoted = is_promoted(&store.data_directory);
    if is_promoted {
        findings.ok(
            "store",
            "it belongs to a server, after a promotion for example, and where its configuration is \
             is that server's matter; to make a follower again, remove it and bootstrap",
        );
    }
    let may_ask =
        !is_promoted && is_installed && major.is_some() && !rustix::process::geteuid().is_root();
    if let Some(words) = may_ask.then(|| objection_to_configuration(store)).flatten() {
        let remedy = configuration_remedy(&words);
        findings.add(Code::StoreConfiguration, words, remedy);
    }
    if !is_promoted {
        left_out(&store.data_directory, findings);
    }
    memory(store, findings);
}

fn is_promoted(store: &Path) -> bool {
    let control = tail::read_control_file(&OsFiles, store);
    control.is_ok_and(|control| control.state != ClusterState::IN_ARCHIVE_RECOVERY)
}

/// Settings of the leader that the bootstrap could not take because of this machine: they stay out when
/// the machine is mended.
fn left_out(store: &Path, findings: &mut Findings) {
    let Ok(text) = fs::read_to_string(store.join("postgresql.conf")) else { return };
    let names: Vec<&str> = refused_settings(&text).collect();
    if !names.is_empty() {
        findings.add(
            Code::StoreSettings,
            format_args!(
                "settings of the leader that a server here refused at the bootstrap: {}",
                names.join(", ")
            ),
            "mend what they need on this machine (a locale, a time zone), and then take the # off \
             their lines at the end of the store's postgresql.conf, or bootstrap again",
        );
    }
}

/// The names in lines as `# lc_monetary = 'de_CH.UTF-8'    # a server on this machine refuses ...`, as
/// `bootstrap` writes them.
fn refused_settings(text: &str) -> impl Iterator<Item = &str> {
    let refused = text.lines().filter(|line| line.ends_with(REFUSED_HERE));
    refused.filter_map(|line| Some(line.strip_prefix("# ")?.split_once(" = ")?.0))
}

/// The major of the store, if there is one.
fn directory(store: &Path, findings: &mut Findings) -> Option<&'static Version> {
    if !store.exists() {
        findings.add(
            Code::StoreMissing,
            format_args!("there is no store at {}", store.display()),
            "walferry bootstrap makes it",
        );
        return None;
    }
    let control = match tail::read_control_file(&OsFiles, store) {
        Ok(control) => control,
        Err(trouble) => {
            let remedy = "only a directory that `walferry bootstrap` made can be a store";
            findings.add(Code::StoreUnusable, trouble, remedy);
            return None;
        }
    };
    // A server demands the same (`checkDataDir`, `src/backend/utils/init/miscinit.c`).
    let found = fs::metadata(store).map(|found| (found.uid(), found.mode() & 0o777));
    match found {
        Ok((owner, mode)) => {
            let us = rustix::process::geteuid();
            let fits = us.is_root() || owner == us.as_raw();
            if fits && matches!(mode, 0o700 | 0o750) {
                let (system, major) = (control.system_identifier, control.version.major);
                findings.ok("store", format_args!("of system {system}, PostgreSQL {major}"));
            } else {
                findings.add(
                    Code::StoreUnusable,
                    format_args!("{} is of user id {owner} and mode {mode:04o}", store.display()),
                    "a server opens only what is its own user's, with mode 0700 or 0750 (chown, \
                     chmod)",
                );
            }
        }
        Err(error) => findings.add(
            Code::StoreUnusable,
            format_args!("{}: {error}", store.display()),
            "give the directory to this user",
        ),
    }
    Some(control.version)
}

/// Whether a server is installed that can open the store.
fn programs(directory: &Path, major: Option<&'static Version>, findings: &mut Findings) -> bool {
    let postgres = directory.join("postgres");
    let version = Command::new(&postgres).arg("--version").output();
    let remedy = "install the leader's PostgreSQL here, and set [store] bin_directory";
    let text = match version {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(output) => {
            let words = format_args!("{} --version: {}", postgres.display(), output.status);
            findings.add(Code::StorePrograms, words, remedy);
            return false;
        }
        Err(error) => {
            findings.add(
                Code::StorePrograms,
                format_args!("{}: {error}", postgres.display()),
                remedy,
            );
            return false;
        }
    };
    // As in "postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)".
    let found = text.split_whitespace().nth(2).and_then(|version| version.split('.').next());
    let found = found.and_then(|major| major.parse::<u16>().ok());
    if let Some(major) = major.filter(|major| found != Some(major.major)) {
        findings.add(
            Code::StorePrograms,
            format_args!("the store is of PostgreSQL {}, {text:?} is installed", major.major),
            remedy,
        );
        return false;
    }
    findings.ok("store", format_args!("{text} can open it"));
    true
}

fn memory(store: &StoreSection, findings: &mut Findings) {
    let Some(total) = machine::memory() else { return };
    if store.cache_bytes > total / 2 {
        findings.add(
            Code::StoreMemory,
            format_args!(
                "[store] cache_bytes = {} is more than half of this machine's {}",
                HumanBytes(store.cache_bytes),
                HumanBytes(total)
            ),
            "take less: the kernel's own cache serves the store too",
        );
    }
}
