//! `walferry promote`: the store becomes a primary.
//!
//! The agent replays what it has and lets go of the store; then a stock server opens it in archive
//! recovery, reads the WAL since the last restart point again with `walferry fetch`, chooses a new
//! timeline and opens for writing. The server is started from here, not by the agent, so that it
//! does not end with the agent's service.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use walferry_archive::OsFiles;
use walfmt::Timeline;
use walfmt::control::ClusterState;

use crate::config::{Config, StoreSection};
use crate::control::{self, PromoteRequest, Promotion};
use crate::stage::tail::read_control_file;
use crate::trouble::{Kind, Trouble};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Do not ask whether the leader still answers: it is known to be dead for good.
    #[arg(long)]
    leader_is_dead: bool,
    /// The port of the promoted server, if not the one in its postgresql.conf.
    #[arg(long)]
    port: Option<u16>,
    /// More options for the server, as for `pg_ctl -o`.
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Option<String>,
    /// How long the server may take to come out of recovery.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(config: &Path, arguments: Arguments) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let store = config.store()?;
    check_server(store)?;
    let request = PromoteRequest { leader_is_dead: arguments.leader_is_dead };
    let body = serde_json::to_string(&request)
        .map_err(|error| Trouble::io("writing the request", error))?;
    let begun = Instant::now();
    let promotion: Promotion = control::ask(&config, "POST", "/promote", Some(body))?;
    if !arguments.json {
        println!(
            "replayed up to {}; the server reads {} MB of WAL again, from {}",
            promotion.replayed,
            promotion.reread_bytes >> 20,
            promotion.redo
        );
    }
    start_server(&config, store, &arguments)?;
    let timeline = wait_for_primary(store, arguments.timeout)?;
    if timeline.0 <= promotion.timeline {
        return Err(Trouble::new(
            Kind::Corrupt,
            format_args!("the server is a primary, but on timeline {timeline}"),
        )
        .with_hint("stop it: it writes WAL where the old leader did"));
    }
    let seconds = begun.elapsed().as_secs_f64();
    if arguments.json {
        let report = serde_json::json!({ "promotion": promotion, "timeline": timeline.0 });
        println!("{report}");
    } else {
        println!("the server is a primary on timeline {timeline}, after {seconds:.1} s");
    }
    Ok(())
}

/// Everything that starting the server will need, before the store is let go of.
fn check_server(store: &StoreSection) -> Result<(), Trouble> {
    let control = read_control_file(&OsFiles, &store.data_directory)?;
    if control.state != ClusterState::IN_ARCHIVE_RECOVERY {
        return Err(Trouble::new(
            Kind::Refused,
            "the store was promoted already: its pg_control is not in archive recovery",
        ));
    }
    for (directory, name) in
        [(&store.bin_directory, "pg_ctl"), (&store.data_directory, "postgresql.conf")]
    {
        let path = directory.join(name);
        if !path.exists() {
            return Err(Trouble::misuse(format_args!("{} is not there", path.display()))
                .with_hint(
                    "[store] bin_directory must hold the server's programs, the store a \
                     postgresql.conf and a pg_hba.conf",
                ));
        }
    }
    if let Some(words) = objection_to_configuration(store) {
        let remedy = configuration_remedy(&words);
        return Err(Trouble::misuse(words).with_hint(remedy));
    }
    Ok(())
}

/// What to do about a configuration with which no server would open the store, for the reason in `words`.
pub(crate) fn configuration_remedy(words: &str) -> &'static str {
    if words.contains("parameter \"") {
        "mend that setting in the store's postgresql.conf or postgresql.auto.conf, or what it needs on \
         this machine"
    } else {
        "mend the postgresql.conf in the store: it must not have the leader's data_directory, \
         hba_file, ident_file, external_pid_file or include_dir"
    }
}

/// Why a server with the store's configuration would not open the store, as far as the server's own
/// reading of it tells.
pub(crate) fn objection_to_configuration(store: &StoreSection) -> Option<String> {
    let directory = &store.data_directory;
    let found = match ask_for_data_directory(&store.bin_directory, directory) {
        Ok(Ok(found)) => found,
        Ok(Err(words)) => {
            return Some(format!("postgres cannot use the store's configuration: {words}"));
        }
        Err(error) => return Some(format!("asking postgres for its configuration: {error}")),
    };
    let same = std::fs::canonicalize(&found).ok() == std::fs::canonicalize(directory).ok();
    (!same).then(|| {
        format!("the store's postgresql.conf leads to {found}, not to {}", directory.display())
    })
}

/// Has a server with these programs read the configuration in `directory`: gives where it finds its
/// data directory, or what it objects to, in English. Nothing there is locked or changed by that.
pub(crate) fn ask_for_data_directory(
    programs: &Path,
    directory: &Path,
) -> std::io::Result<Result<String, String>> {
    let mut command = Command::new(programs.join("postgres"));
    command.env("LC_ALL", "C").arg("-D").arg(directory);
    let output = command.args(["-c", "lc_messages=C", "-C", "data_directory"]).output()?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) })
}

fn start_server(
    config: &Config,
    store: &StoreSection,
    arguments: &Arguments,
) -> Result<(), Trouble> {
    let program =
        std::env::current_exe().map_err(|error| Trouble::io("finding this program", error))?;
    // Only for this start, on the command line: nothing is left behind in the configuration.
    // Nobody needs to read while it recovers, and without hot standby it starts even if some of
    // its settings are lower than the leader's.
    let restore =
        format!("\"{}\" fetch --config \"{}\" %f \"%p\"", program.display(), config.path.display());
    let mut options = format!("-c hot_standby=off -c restore_command={}", shell_quoted(&restore));
    if let Some(port) = arguments.port {
        options.push_str(&format!(" -p {port}"));
    }
    if let Some(more) = &arguments.options {
        options.push(' ');
        options.push_str(more);
    }
    let log = promotion_log(store);
    let status = Command::new(store.bin_directory.join("pg_ctl"))
        .arg("-D")
        .arg(&store.data_directory)
        .arg("-l")
        .arg(&log)
        .args(["-w", "-s", "-t", &arguments.timeout.as_secs().to_string(), "-o", &options, "start"])
        .status()
        .map_err(|error| Trouble::io("starting pg_ctl", error))?;
    if status.success() {
        return Ok(());
    }
    Err(Trouble::io("pg_ctl start", status).with_hint(format!(
        "read {}; the store is unharmed: once the cause is mended, start the server by hand with \
         the same options:  {} -D {} -o {} start",
        log.display(),
        store.bin_directory.join("pg_ctl").display(),
        store.data_directory.display(),
        shell_quoted(&options)
    )))
}

/// Waits until recovery is over and connections are taken; gives the timeline. `pg_ctl` does not
/// wait for that: for it, a server without hot standby is done when recovery begins.
fn wait_for_primary(store: &StoreSection, limit: Duration) -> Result<Timeline, Trouble> {
    let deadline = Instant::now() + limit;
    let pid_file = store.data_directory.join("postmaster.pid");
    loop {
        // The status is line 8 (LOCK_FILE_LINE_PM_STATUS, src/include/utils/pidfile.h).
        let lock = std::fs::read_to_string(&pid_file).map_err(|error| {
            Trouble::io("the server ended during recovery", error)
                .with_hint(format!("read {}", promotion_log(store).display()))
        })?;
        let ready = lock.lines().nth(7).is_some_and(|status| status.trim() == "ready");
        let control = read_control_file(&OsFiles, &store.data_directory)?;
        if ready && control.state == ClusterState::IN_PRODUCTION {
            return Ok(control.check_point_copy.this_timeline);
        }
        if Instant::now() >= deadline {
            return Err(Trouble::new(Kind::NotThere, "the server is still in recovery")
                .with_hint(format!("it goes on; read {}", promotion_log(store).display())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn promotion_log(store: &StoreSection) -> PathBuf {
    store.data_directory.join("walferry-promote.log")
}

/// In single quotes, as `sh` reads them: `pg_ctl` hands its options to a shell.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::shell_quoted;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in ["plain", "it's", "a \"b\" $c `d` \\", "'"] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_quoted(text))])
                .output()
                .expect("sh runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
