//! The configuration of the server that will open the store one day, where the base backup has none.
//!
//! Debian keeps `postgresql.conf` and `pg_hba.conf` outside of the data directory, so a base backup
//! does not have them, and without them no server starts. Written is what the leader's agent has told,
//! as far as a server may have it here (see `settings`). Without that it is the least with which one
//! starts: the settings that recovery demands to be no lower than the leader's
//! (`CheckRequiredParameterValues`, `src/backend/access/transam/xlogrecovery.c`), and connections of
//! this machine's users only.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use walferry_wire::PlainText;
use walfmt::control::ControlFile;

use super::settings::{Place, Verdict};
use crate::configuration::Configuration;
use crate::verb::promote::ask_for_data_directory;

const CONFIGURATION: &str = "postgresql.conf";
const LEAST_ACCESS: &str = "# Written by walferry bootstrap: add those who may connect from elsewhere.\n\
                            local all all peer\n";
const LEAST_HEAD: &str = "\
# Written by walferry bootstrap: the base backup has no postgresql.conf, as on Debian, which
# keeps it elsewhere. It is the least with which a promoted server starts. Put the leader's
# settings here before they are needed, as TimeZone, default_text_search_config, ssl and
# listen_addresses, but not data_directory, hba_file, ident_file, external_pid_file or
# include_dir. In pg_hba.conf stands who may connect.
";
const LEADERS_HEAD: &str = "\
# Written by walferry bootstrap: the base backup has no postgresql.conf, as on Debian, which
# keeps it elsewhere. These are the leader's settings as they were then. Change here what you
# change there. The end lists what was left out, and why. What ALTER SYSTEM has set stands in
# postgresql.auto.conf; settings of libraries that the leader had not loaded are not known.
#
# Put this machine's addresses here, if others are to connect after a promotion:
";
/// Why a setting was left out to which a server with these programs objects.
pub(crate) const REFUSED_HERE: &str = "a server on this machine refuses the value";
/// Each time a server objects, at least one setting less is tried.
const ATTEMPTS_MAX: usize = 4;

/// What was written, for whoever runs the bootstrap.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// There was no `postgresql.conf`.
    pub(super) is_new: bool,
    /// How many settings are as the leader has them; nothing if only the least was written.
    pub(super) taken: Option<usize>,
    pub(super) warnings: Vec<String>,
}

/// Writes what is missing in the directory that becomes the store, to be opened by the server with
/// these programs. All of it is durable then.
pub(super) fn write_missing(
    part: &Path,
    control: &ControlFile,
    programs: &Path,
    leader: Option<&Configuration>,
) -> io::Result<Written> {
    let mut written = Written::default();
    let leader = leader.cloned().unwrap_or_default();
    let is_missing = |name: &str| !part.join(name).exists();
    let is_whole = !is_missing(CONFIGURATION) && !is_missing("pg_hba.conf");
    if !is_whole {
        written.warnings.extend(leader.warnings.iter().cloned());
    }
    for (name, text, least) in
        [("pg_hba.conf", &leader.access, LEAST_ACCESS), ("pg_ident.conf", &leader.identities, "")]
    {
        if !is_missing(name) {
            continue;
        }
        let mut text = text.as_deref();
        if let Some(words) = text.and_then(reference) {
            written.warnings.push(format!(
                "the leader's {name} refers to other files ({words}), which are not here: the \
                 least one is in its place"
            ));
            text = None;
        }
        write(&part.join(name), text.unwrap_or(least))?;
    }
    if is_missing(CONFIGURATION) {
        written.is_new = true;
        let demanded = demanded(control);
        let path = part.join(CONFIGURATION);
        if leader.settings.is_empty() {
            write(&path, &least(&demanded))?;
        } else {
            let place = Place::new(part, programs, &leader);
            let ask = || objection(programs, part);
            write_leaders(&place, &demanded, &leader, ask, &mut written)?;
        }
    }
    File::open(part)?.sync_all()?;
    // Some of it is a peer's word, and goes to a terminal.
    for warning in &mut written.warnings {
        *warning = PlainText::<2000>::fitted(warning).to_string();
    }
    Ok(written)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Writes the leader's settings without those to which a server of this machine objects, as it does
/// where a locale or a time zone is missing: with one of them it would not start. `ask` gives its
/// objection.
fn write_leaders(
    place: &Place<'_>,
    demanded: &Demanded,
    leader: &Configuration,
    ask: impl Fn() -> Option<String>,
    written: &mut Written,
) -> io::Result<()> {
    let path = place.directory().join(CONFIGURATION);
    let mut refused = BTreeSet::new();
    for _ in 0..ATTEMPTS_MAX {
        let text = Text::of(place, demanded, leader, &refused);
        write(&path, &text.text)?;
        let Some(words) = ask() else {
            written.taken = Some(text.taken);
            written.warnings.extend(text.warnings);
            return Ok(());
        };
        let before = refused.len();
        refused.extend(parameters(&words).map(str::to_lowercase));
        if refused.len() == before {
            written.warnings.push(format!("a server here refuses the leader's settings: {words}"));
            return write(&path, &least(demanded));
        }
    }
    written
        .warnings
        .push("a server here refuses the leader's settings, again and again".to_owned());
    write(&path, &least(demanded))
}

/// What a server with these programs objects to in a configuration. Whether its programs are there is
/// for others to say.
fn objection(programs: &Path, directory: &Path) -> Option<String> {
    // A server refuses root, even with such a question.
    if rustix::process::geteuid().is_root() {
        return None;
    }
    ask_for_data_directory(programs, directory).ok()?.err()
}

/// The names in what a server says of a configuration, as in `invalid value for parameter "x": "y"`.
fn parameters(words: &str) -> impl Iterator<Item = &str> {
    words.split("parameter \"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0))
}

/// A `postgresql.conf`.
#[derive(Default)]
struct Text {
    text: String,
    /// How many settings are as the leader has them.
    taken: usize,
    warnings: Vec<String>,
}

impl Text {
    fn of(
        place: &Place<'_>,
        demanded: &Demanded,
        leader: &Configuration,
        refused: &BTreeSet<String>,
    ) -> Self {
        let minimums = raised(demanded, leader);
        let mut text = Self { text: LEADERS_HEAD.to_owned(), ..Self::default() };
        text.line("listen_addresses", "localhost");
        text.text.push('\n');
        for (name, value) in &minimums {
            text.line(name, value);
        }
        let (mut left_out, mut effective) = (String::new(), Vec::new());
        for setting in &leader.settings {
            let (name, value) = (setting.name.as_str(), setting.value.as_str());
            let is_minimum = minimums.iter().any(|(minimum, _)| *minimum == name);
            let verdict = if refused.contains(&name.to_lowercase()) {
                let why = REFUSED_HERE.to_owned();
                Verdict::Unusable { why, instead: None }
            } else {
                place.judge(setting)
            };
            if setting.is_auto {
                // The backup has it, and it counts.
                match verdict {
                    Verdict::Taken => {}
                    Verdict::OfTheLeader(why) => effective.push(format!("{name} ({why})")),
                    Verdict::Unusable { why, .. } => effective.push(format!("{name} ({why})")),
                }
                continue;
            }
            // A value goes into a comment only without line ends.
            let shown = PlainText::<4096>::fitted(value);
            let shown = format!("{} = {}", PlainText::<256>::fitted(name), quoted(shown.as_str()));
            match verdict {
                _ if is_minimum => text.taken += 1,
                Verdict::Taken => {
                    text.line(name, value);
                    text.taken += 1;
                }
                Verdict::OfTheLeader(why) => {
                    let _ = writeln!(left_out, "# {shown}    # {why}");
                }
                Verdict::Unusable { why, instead } => {
                    let why = PlainText::<1000>::fitted(&why);
                    let _ = writeln!(left_out, "# {shown}    # {why}");
                    if let Some(value) = &instead {
                        text.line(name, value);
                    }
                    let of = if instead.is_some() { "a part of it" } else { "it" };
                    text.warnings.push(format!("{shown} of the leader: {of} is left out: {why}"));
                }
            }
        }
        if !left_out.is_empty() {
            text.text.push_str("\n# Left out:\n");
            text.text.push_str(&left_out);
        }
        if !effective.is_empty() {
            text.warnings.push(format!(
                "ALTER SYSTEM has set what a promoted server should not have; remove it from the \
                 store's postgresql.auto.conf: {}",
                effective.join(", ")
            ));
        }
        text
    }

    fn line(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.text, "{name} = {}", quoted(value));
    }
}

/// As a configuration file has it (`DeescapeQuotedString`, `src/backend/utils/misc/guc-file.l`).
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', "''"))
}

/// Settings that recovery demands to be at least so.
type Demanded = Vec<(&'static str, String)>;

fn demanded(control: &ControlFile) -> Demanded {
    let times = if control.track_commit_timestamp { "on" } else { "off" };
    vec![
        ("max_connections", control.max_connections.to_string()),
        ("max_worker_processes", control.max_worker_processes.to_string()),
        ("max_wal_senders", control.max_wal_senders.to_string()),
        ("max_prepared_transactions", control.max_prepared_transactions.to_string()),
        ("max_locks_per_transaction", control.max_locks_per_transaction.to_string()),
        ("track_commit_timestamp", times.to_owned()),
    ]
}

/// The same, or more where the leader has more.
fn raised(demanded: &Demanded, leader: &Configuration) -> Demanded {
    let raise = |(name, least): &(&'static str, String)| {
        let known = leader.settings.iter().find(|setting| setting.name == *name);
        let more = known.map(|setting| &setting.raw).filter(|raw| {
            let [raw, least] = [raw, least].map(|value| match value.as_str() {
                "on" => Ok(1),
                "off" => Ok(0),
                number => number.parse::<i64>(),
            });
            matches!((raw, least), (Ok(raw), Ok(least)) if raw > least)
        });
        (*name, more.unwrap_or(least).clone())
    };
    demanded.iter().map(raise).collect()
}

/// The least that a server starts with.
fn least(demanded: &Demanded) -> String {
    let mut text = LEAST_HEAD.to_owned();
    text.push_str("listen_addresses = 'localhost'\n");
    for (name, value) in demanded {
        let _ = writeln!(text, "{name} = {value}");
    }
    text
}

/// What in a `pg_hba.conf` or `pg_ident.conf` leads to another file: a line that includes one, or a
/// name that begins with @ (`next_token`, `src/backend/libpq/hba.c`).
fn reference(text: &str) -> Option<&str> {
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if matches!(first, "include" | "include_if_exists" | "include_dir") {
            return Some(line.trim());
        }
        let (mut is_quoted, mut begins) = (false, true);
        for (at, c) in line.char_indices() {
            match c {
                '#' if !is_quoted => break,
                '@' if begins => {
                    let end =
                        line[at..].find([' ', '\t', ',', '#']).map_or(line.len(), |end| at + end);
                    return Some(&line[at..end]);
                }
                '"' => is_quoted = !is_quoted,
                _ => {}
            }
            begins = !is_quoted && (c == ',' || c.is_whitespace());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Setting;

    fn setting(name: &str, value: &str, is_auto: bool) -> Setting {
        Setting { name: name.into(), value: value.into(), raw: value.into(), is_auto }
    }

    fn text_of(settings: Vec<Setting>, refused: &[&str]) -> Text {
        let folder = tempfile::tempdir().expect("a folder");
        let leader = Configuration { settings, ..Configuration::default() };
        let place = Place::new(folder.path(), folder.path(), &leader);
        let refused = refused.iter().map(|name| (*name).to_owned()).collect();
        let demanded = [
            ("max_connections", "137"),
            ("max_wal_senders", "10"),
            ("track_commit_timestamp", "on"),
        ];
        let demanded = demanded.map(|(name, value)| (name, value.to_owned())).to_vec();
        Text::of(&place, &demanded, &leader, &refused)
    }

    #[test]
    fn references_to_other_files_are_seen() {
        for (text, found) in [
            ("local all all peer\nhost all @admins 0/0 md5\n", Some("@admins")),
            ("host db1,@dbs all 0/0 md5", Some("@dbs")),
            ("include_dir 'more'", Some("include_dir 'more'")),
            ("  include_if_exists x", Some("include_if_exists x")),
            ("host all \"@quoted\" 0/0 md5", None),
            ("host all user@host 0/0 md5", None),
            ("local all all peer # for @all\n# include x", None),
            ("m /^(.*)@example\\.org$ \\1", None),
            ("", None),
        ] {
            assert_eq!(reference(text), found, "{text}");
        }
    }

    #[test]
    fn what_a_server_objects_to_is_found() {
        let words = "LOG:  invalid value for parameter \"lc_time\": \"xx\"\n\
                     LOG:  unrecognized configuration parameter \"a.b\" in file \"/x\" line 3\n\
                     FATAL:  configuration file \"/x\" contains errors";
        assert_eq!(parameters(words).collect::<Vec<_>>(), ["lc_time", "a.b"]);
        assert_eq!(parameters("FATAL: parameter \"").count(), 0);
    }

    #[test]
    fn what_a_server_refuses_is_left_out_or_all_of_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = vec![setting("work_mem", "8MB", false), setting("lc_time", "xx", false)];
        let leader = Configuration { settings, ..Configuration::default() };
        let place = Place::new(folder.path(), folder.path(), &leader);
        let demanded = vec![("max_connections", "137".to_owned())];
        let path = folder.path().join(CONFIGURATION);
        let text = || std::fs::read_to_string(&path).expect("written");
        let ask_with = |ask: &dyn Fn() -> Option<String>| {
            let mut written = Written::default();
            write_leaders(&place, &demanded, &leader, ask, &mut written).expect("written");
            (written.taken, written.warnings.len())
        };
        assert_eq!(ask_with(&|| None), (Some(2), 0));
        let objects =
            || text().contains("\nlc_time").then(|| "parameter \"lc_time\": \"xx\"".into());
        assert_eq!(ask_with(&objects), (Some(1), 1));
        assert!(text().contains("\nwork_mem = '8MB'") && text().contains("# lc_time = 'xx'"));
        // What it says names nothing, or a name that is not to blame.
        for words in ["FATAL: no", "parameter \"other\""] {
            assert_eq!(ask_with(&|| Some(words.into())), (None, 1), "{words}");
            assert!(text().contains("max_connections = 137\n") && !text().contains("work_mem"));
        }
    }

    #[test]
    fn a_configuration_has_what_may_be_taken_and_says_what_not() {
        let settings = vec![
            setting("DateStyle", "ISO, DMY", false),
            setting("log_line_prefix", r"it's \ %m ", false),
            setting("cluster_name", "15/main", false),
            setting("lc_time", "xx_XX.UTF-8", false),
            setting("max_connections", "100", false),
            setting("max_wal_senders", "99999", false),
            setting("work_mem", "8MB", true),
            setting("synchronous_standby_names", "*", true),
            setting("application_name", "a\nb = c", false),
        ];
        let Text { text, taken, warnings } = text_of(settings, &["lc_time"]);
        let has = |line: &str| text.lines().any(|found| found == line);
        assert!(has("DateStyle = 'ISO, DMY'"), "{text}");
        assert!(has(r"log_line_prefix = 'it''s \\ %m '"), "{text}");
        assert!(has("max_connections = '137'") && has("max_wal_senders = '99999'"), "{text}");
        assert!(has("track_commit_timestamp = 'on'"), "{text}");
        assert!(has("listen_addresses = 'localhost'"), "{text}");
        for begin in ["# cluster_name = '15/main'    # ", "# lc_time = 'xx_XX.UTF-8'    # "] {
            assert!(text.lines().any(|line| line.starts_with(begin)), "{begin}: {text}");
        }
        for name in ["work_mem", "synchronous_standby_names", "\ncluster_name", "\nb = c"] {
            assert!(!text.contains(name), "{name}: {text}");
        }
        assert_eq!(taken, 4, "two more are minimums");
        let told = |words: &str| warnings.iter().any(|warning| warning.contains(words));
        assert!(told("lc_time") && told("application_name"), "{warnings:?}");
        assert!(told("postgresql.auto.conf: synchronous_standby_names"), "{warnings:?}");
        assert_eq!(warnings.len(), 3, "{warnings:?}");
    }
}
