//! Which of the leader's settings the promoted server may have. Most are taken as they are: it is to
//! behave as the leader does. Not taken is what belongs to the leader's machine or to its place among
//! other servers, and what would keep a server from starting here.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::configuration::{Configuration, Setting};
use crate::verb::check::machine::memory;

/// Not to be taken, and why.
const OF_THE_LEADER: &[(&[&str], &str)] = &[
    (
        &["data_directory", "config_file", "hba_file", "ident_file", "external_pid_file"],
        "where the leader has its files; here they are in the data directory",
    ),
    (
        &["unix_socket_directories", "unix_socket_group", "stats_temp_directory"],
        "of the leader's machine",
    ),
    (&["listen_addresses"], "addresses of the leader's machine; see above"),
    (&["cluster_name", "bonjour_name"], "the leader's name"),
    (
        // With archive_mode alone, a server keeps all WAL until a command takes it.
        &["archive_mode", "archive_command", "archive_library", "archive_cleanup_command"],
        "two servers must not archive to one place: set archive_mode and the command for this one",
    ),
    (
        &["synchronous_standby_names", "synchronized_standby_slots"],
        "commits would wait for standbys that do not follow this server yet",
    ),
    (
        &[
            "restore_command",
            "recovery_end_command",
            "recovery_min_apply_delay",
            "primary_conninfo",
            "primary_slot_name",
            "promote_trigger_file",
        ],
        "for recovery, which `walferry promote` sets up",
    ),
];
const RECOVERY_TARGETS: &str = "recovery_target";

/// Names of libraries that a server or its connections load; one that is missing ends them.
const PRELOADED: [&str; 4] = [
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "oauth_validator_libraries",
];
/// Files that are of use with `ssl = on` only, with their defaults.
const SSL_FILES: [(&str, &str); 6] = [
    ("ssl_cert_file", "server.crt"),
    (SSL_KEY_FILE, "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_crl_dir", ""),
    ("ssl_dh_params_file", ""),
];
const SSL_KEY_FILE: &str = "ssl_key_file";
const PASSPHRASE: &str = "ssl_passphrase_command";
/// `shared_buffers` is in pages.
const PAGE_BYTES: u64 = 8192;

/// What becomes of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Taken,
    /// It is the leader's own affair; nobody misses it.
    OfTheLeader(&'static str),
    /// It is missed, so the operator is told. There may be a value to have in its place.
    Unusable {
        why: String,
        instead: Option<String>,
    },
}

/// The machine and the directory that the promoted server will have.
pub(super) struct Place<'a> {
    directory: &'a Path,
    /// What is `$libdir` there, if that is known.
    libraries: Option<PathBuf>,
    /// Bytes of memory, if that is known.
    memory: Option<u64>,
    /// Why encrypted connections cannot be had.
    ssl: Option<String>,
    library_path: String,
}

impl<'a> Place<'a> {
    /// A server with these programs, on what is in `directory` now.
    pub(super) fn new(directory: &'a Path, programs: &Path, leader: &Configuration) -> Self {
        let library_path = value_of(leader, "dynamic_library_path").unwrap_or("$libdir").to_owned();
        Self {
            directory,
            libraries: libraries_of(programs),
            memory: memory(),
            ssl: ssl_objection(directory, leader),
            library_path,
        }
    }

    pub(super) fn judge(&self, setting: &Setting) -> Verdict {
        let name = setting.name.as_str();
        let is_named = |(names, _): &&(&[&str], &str)| names.contains(&name);
        if let Some((_, why)) = OF_THE_LEADER.iter().find(is_named) {
            return Verdict::OfTheLeader(why);
        }
        if name.starts_with(RECOVERY_TARGETS) {
            return Verdict::OfTheLeader("for recovery, which `walferry promote` sets up");
        }
        let unusable = |why: &str| Verdict::Unusable { why: why.to_owned(), instead: None };
        if !is_name(name) || setting.value.chars().any(char::is_control) {
            return unusable("it has a control character");
        }
        let is_ssl = name == "ssl" || name == PASSPHRASE || SSL_FILES.iter().any(|f| f.0 == name);
        match name {
            _ if is_ssl => match &self.ssl {
                Some(why) => unusable(why),
                None => Verdict::Taken,
            },
            _ if PRELOADED.contains(&name) => self.preloaded(name, &setting.value),
            "log_directory" if setting.value.starts_with('/') => {
                Verdict::OfTheLeader("a directory of the leader's machine")
            }
            "krb_server_keyfile" if fs::File::open(&setting.value).is_err() => {
                unusable("this machine has no such file, or this user may not read it")
            }
            // A server does not start where they cannot be had; by default it tries.
            "huge_pages" if setting.value == "on" => {
                Verdict::OfTheLeader("they may not be set up on this machine")
            }
            "shared_buffers" if self.exceeds_memory(&setting.raw) => {
                unusable("more than this machine's memory")
            }
            _ => Verdict::Taken,
        }
    }

    fn exceeds_memory(&self, pages: &str) -> bool {
        let bytes = pages.parse::<u64>().unwrap_or_default().saturating_mul(PAGE_BYTES);
        self.memory.is_some_and(|memory| bytes > memory)
    }

    fn preloaded(&self, setting: &str, value: &str) -> Verdict {
        let (there, missing): (Vec<_>, Vec<_>) =
            list(value).into_iter().partition(|(_, name)| self.has_library(setting, name));
        if missing.is_empty() {
            return Verdict::Taken;
        }
        let written = |libraries: Vec<(String, String)>| {
            libraries.into_iter().map(|(written, _)| written).collect::<Vec<_>>().join(", ")
        };
        let why = format!("not installed on this machine: {}", written(missing));
        let instead = (!there.is_empty()).then(|| written(there));
        Verdict::Unusable { why, instead }
    }

    /// As `expand_dynamic_library_name` looks for it (`src/backend/utils/fmgr/dfmgr.c`).
    fn has_library(&self, setting: &str, name: &str) -> bool {
        let Some(own) = &self.libraries else { return false };
        let expanded = |path: &str| match path.strip_prefix("$libdir") {
            Some(rest) => PathBuf::from(format!("{}{rest}", own.display())),
            None => PathBuf::from(path),
        };
        let places: Vec<PathBuf> = if name.contains('/') {
            vec![expanded(name)]
        } else if setting == "local_preload_libraries" {
            vec![own.join("plugins").join(name)]
        } else {
            self.library_path.split(':').map(|place| expanded(place.trim()).join(name)).collect()
        };
        places.iter().any(|place| {
            place.is_file() || PathBuf::from(format!("{}.so", place.display())).is_file()
        })
    }

    /// Where this is.
    pub(super) const fn directory(&self) -> &Path {
        self.directory
    }
}

/// What it says of a setting, wherever that stands.
fn value_of<'a>(leader: &'a Configuration, name: &str) -> Option<&'a str> {
    leader.settings.iter().find(|setting| setting.name == name).map(|found| found.value.as_str())
}

/// A name that a configuration file may have, of an extension's setting too.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.');
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(allowed)
}

/// The parts of a list as it is written, and what they mean: one in double quotes may have a comma.
fn list(value: &str) -> Vec<(String, String)> {
    let (mut parts, mut part, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in value.chars() {
        is_quoted ^= c == '"';
        if c == ',' && !is_quoted {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    parts.push(part);
    let written = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    written.map(|part| (part.to_owned(), part.replace('"', ""))).collect()
}

/// `$libdir` of the server with these programs.
fn libraries_of(programs: &Path) -> Option<PathBuf> {
    let asked = Command::new(programs.join("pg_config")).arg("--pkglibdir").output();
    let told = asked.ok().filter(|output| output.status.success());
    let told = told.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    // Without pg_config: where Debian has them.
    told.or_else(|| Some(programs.parent()?.join("lib"))).filter(|directory| directory.is_dir())
}

/// Why a server here would not start with the leader's `ssl = on`
/// (`be_tls_init`, `src/backend/libpq/be-secure-openssl.c`).
fn ssl_objection(directory: &Path, leader: &Configuration) -> Option<String> {
    if value_of(leader, "ssl") != Some("on") {
        return None;
    }
    if value_of(leader, PASSPHRASE).is_some_and(|command| !command.is_empty()) {
        return Some("ssl_passphrase_command is a command of the leader's machine".to_owned());
    }
    for (name, default) in SSL_FILES {
        let value = value_of(leader, name).unwrap_or(default);
        if value.is_empty() {
            continue;
        }
        let path = directory.join(value);
        let looked = if name == SSL_KEY_FILE {
            fs::File::open(&path).and_then(|file| file.metadata()).map(|found| {
                let us = rustix::process::geteuid().as_raw();
                let mode = found.mode() & 0o777;
                let is_ours = found.uid() == us && mode & 0o077 == 0;
                is_ours || found.uid() == 0 && mode & 0o037 == 0
            })
        } else if name == "ssl_crl_dir" {
            fs::read_dir(&path).map(|_| true)
        } else {
            fs::File::open(&path).map(|_| true)
        };
        match looked {
            Ok(true) => {}
            Ok(false) => {
                return Some(format!(
                    "{value} must be this user's with mode 0600, or root's, 0640"
                ));
            }
            Err(error) => return Some(format!("{name} = {value} of this machine: {error}")),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn setting(name: &str, value: &str) -> Setting {
        Setting { name: name.into(), value: value.into(), raw: value.into(), is_auto: false }
    }

    fn leader(settings: &[(&str, &str)]) -> Configuration {
        let settings = settings.iter().map(|(name, value)| setting(name, value)).collect();
        Configuration { settings, ..Configuration::default() }
    }

    fn why(verdict: Verdict) -> String {
        match verdict {
            Verdict::Unusable { why, instead: None } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_leaders_own_affairs_stay_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::new(folder.path(), folder.path(), &Configuration::default());
        for (name, value) in [
            ("TimeZone", "Europe/Berlin"),
            ("shared_buffers", "1"),
            ("log_directory", "log"),
            ("huge_pages", "try"),
            ("port", "5433"),
            ("pg_stat_statements.max", "100"),
            ("ssl", "off"),
        ] {
            assert_eq!(place.judge(&setting(name, value)), Verdict::Taken, "{name}");
        }
        for (name, value) in [
            ("data_directory", "/x"),
            ("synchronous_standby_names", "*"),
            ("archive_mode", "on"),
            ("recovery_target_lsn", "0/1"),
            ("log_directory", "/var/log/postgresql"),
            ("huge_pages", "on"),
        ] {
            let verdict = place.judge(&setting(name, value));
            assert!(matches!(verdict, Verdict::OfTheLeader(_)), "{name}: {verdict:?}");
        }
        for (name, value) in [
            ("log_line_prefix", "two\nlines"),
            ("a = b\nc", "x"),
            ("shared_buffers", "99999999999999"),
            ("krb_server_keyfile", "/nonexistent"),
        ] {
            why(place.judge(&setting(name, value)));
        }
    }

    #[test]
    fn libraries_that_are_missing_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let (programs, library) = (folder.path().join("bin"), folder.path().join("lib"));
        fs::create_dir_all(library.join("plugins")).expect("made");
        for name in ["here.so", "odd,name.so", "plugins/plugin.so"] {
            fs::write(library.join(name), "").expect("made");
        }
        let place = Place::new(folder.path(), &programs, &Configuration::default());
        let judge = |name: &str, value: &str| place.judge(&setting(name, value));
        let shared = "shared_preload_libraries";
        for value in ["", "here", "here, here.so", "$libdir/here", "\"odd,name\" ,here"] {
            assert_eq!(judge(shared, value), Verdict::Taken, "{value}");
        }
        assert_eq!(judge("local_preload_libraries", "plugin"), Verdict::Taken);
        assert!(why(judge("local_preload_libraries", "here")).contains("here"));
        assert!(why(judge(shared, "gone")).contains("gone"));
        let Verdict::Unusable { why, instead } = judge(shared, "gone, \"odd,name\",here") else {
            panic!("gone is missing")
        };
        assert_eq!(instead.as_deref(), Some("\"odd,name\", here"));
        assert!(why.ends_with(": gone"), "{why}");
    }

    #[test]
    fn ssl_is_on_where_its_files_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let (key, certificate) = (folder.path().join("server.key"), folder.path().join("own.crt"));
        let on = leader(&[("ssl", "on"), ("ssl_cert_file", &certificate.to_string_lossy())]);
        let judge = |leader: &Configuration| {
            Place::new(folder.path(), folder.path(), leader).judge(&setting("ssl", "on"))
        };
        assert!(why(judge(&on)).contains("own.crt"));
        fs::write(&certificate, "").expect("made");
        assert!(why(judge(&on)).contains("server.key"));
        fs::write(&key, "").expect("made");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(why(judge(&on)).contains("0600"));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("set");
        assert_eq!(judge(&on), Verdict::Taken);
        let mut asking = on.clone();
        asking.settings.push(setting(PASSPHRASE, "ask"));
        assert!(why(judge(&asking)).contains(PASSPHRASE));
    }
}
