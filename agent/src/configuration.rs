//! The configuration of the leader's server, where it lies outside of the data directory: a base backup
//! does not have it, so the leader's agent sends it along.
//!
//! ```text
//! pg_settings            ─► settings of the files, with the values the server runs with
//! hba_file, ident_file   ─► their text                     ═══ JSON ═══►  verb/bootstrap/configuration.rs
//! ```
//!
//! Which of it a promoted server may have is judged on the follower's machine, where that server runs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::server::Server;
use crate::trouble::Trouble;

/// The longest file that is sent.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest JSON of all this: two files, escaped as badly as can be, and settings.
pub(crate) const CONFIGURATION_BYTES_MAX: u64 = 16 << 20;
/// A backup does not wait longer for its configuration.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A server's configuration, as far as its agent may know it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Configuration {
    /// Those that stand in a file.
    #[serde(default)]
    pub(crate) settings: Vec<Setting>,
    /// The text of `pg_hba.conf`.
    #[serde(default)]
    pub(crate) access: Option<String>,
    /// The text of `pg_ident.conf`.
    #[serde(default)]
    pub(crate) identities: Option<String>,
    /// What is missing here, and why.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

/// A setting that stands in a configuration file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Setting {
    pub(crate) name: String,
    /// For a configuration file; of a whole number as `SHOW` prints it.
    pub(crate) value: String,
    /// As `pg_settings` has it, in the setting's own unit.
    pub(crate) raw: String,
    /// Whether it stands in `postgresql.auto.conf`, which the backup has.
    pub(crate) is_auto: bool,
}

/// Asks the server beside us, and reads its files. What cannot be had is a warning in it.
pub(crate) async fn of_server(conninfo: &str) -> Configuration {
    let asked = async { Server::connect(conninfo).await?.configuration().await };
    let asked = tokio::time::timeout(ANSWER_LIMIT, asked).await;
    let asked = asked.unwrap_or_else(|_| Err(Trouble::io("asking the server", "no answer")));
    let configured = match asked {
        Ok(configured) => configured,
        Err(trouble) => {
            let warnings = vec![format!("the leader's agent cannot tell its settings: {trouble}")];
            return Configuration { warnings, ..Configuration::default() };
        }
    };
    let mut warnings = Vec::new();
    if !configured.unreadable.is_empty() {
        warnings.push(format!(
            "the leader's agent cannot see what its configuration files say of {}: its role or \
             database has settings of its own",
            configured.unreadable.join(", ")
        ));
    }
    if !configured.pending_restart.is_empty() {
        warnings.push(format!(
            "changed in the leader's files and not in force before its restart, so that the \
             present value is taken: {}",
            configured.pending_restart.join(", ")
        ));
    }
    let files = [("pg_hba.conf", configured.hba_file), ("pg_ident.conf", configured.ident_file)];
    let read = tokio::task::spawn_blocking(move || {
        files.map(|(name, path)| match path {
            Some(path) => read_text(Path::new(&path)).map_err(|error| format!("{path}: {error}")),
            None => Err(format!(
                "the leader's agent may not know where its {name} is, nor settings as \
                 shared_preload_libraries: GRANT pg_read_all_settings to its role"
            )),
        })
    });
    let mut texts = Vec::new();
    for read in read.await.map_or_else(|_| Vec::new(), Vec::from) {
        texts.push(read.map_err(|words| warnings.push(words)).ok());
    }
    let identities = texts.pop().flatten();
    let access = texts.pop().flatten();
    Configuration { settings: configured.settings, access, identities, warnings }
}

/// A file that is text and not too long.
fn read_text(path: &Path) -> io::Result<String> {
    let refused = |words: &str| io::Error::new(io::ErrorKind::InvalidData, words.to_owned());
    // Nothing that an open would wait for.
    if !path.metadata()?.is_file() {
        return Err(refused("not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refused("longer than 1 MB"));
    }
    String::from_utf8(bytes).map_err(|_| refused("not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_a_bound() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("pg_hba.conf");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            read_text(&path).map_err(|error| error.to_string())
        };
        assert_eq!(
            read("local all all peer # ä\n".as_bytes()).expect("text"),
            "local all all peer # ä\n"
        );
        let most = vec![b'x'; FILE_BYTES_MAX as usize];
        assert_eq!(read(&most).expect("text").len(), most.len());
        assert_eq!(read(&[&most[..], b"x"].concat()), Err("longer than 1 MB".into()));
        assert_eq!(read(b"# \xe4\n"), Err("not UTF-8".into()));
        assert!(read_text(place.path()).is_err());
        // The longest of two files fits, however it must be escaped.
        let worst = "\u{1}".repeat(FILE_BYTES_MAX as usize);
        let whole = Configuration {
            access: Some(worst.clone()),
            identities: Some(worst),
            ..Configuration::default()
        };
        let json = serde_json::to_vec(&whole).expect("JSON");
        assert!((json.len() as u64) < CONFIGURATION_BYTES_MAX);
    }
}
