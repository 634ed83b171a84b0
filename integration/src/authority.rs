//! A certificate authority for tests, made by `authority.sh`, and agents that use it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::agent::AgentConfig;
use crate::scratch::Scratch;

/// Makes an authority in the directory `name`, or certificates of one that is there, for nodes as
/// in `db1=10.0.0.1`. They are valid for `days`, which may be negative.
///
/// # Errors
/// There is no `openssl`, or it fails.
pub fn authority(scratch: &Scratch, name: &str, nodes: &[&str], days: i32) -> Result<PathBuf> {
    let directory = scratch.directory(name)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("authority.sh");
    let mut command = scratch.account().command(script);
    command.env("AUTHORITY_DAYS", days.to_string()).arg(&directory).args(nodes);
    let made = command.output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(directory)
}

/// An agent's configuration with the certificate of node `name`.
#[must_use]
pub fn with_tls(mut config: AgentConfig, authority: &Path, name: &str) -> AgentConfig {
    for (key, file) in [
        ("certificate", format!("{name}.crt")),
        ("key", format!("{name}.key")),
        ("authority", "ca.crt".into()),
    ] {
        let path = authority.join(file).to_string_lossy().into_owned();
        config.more.push(("tls".into(), key.into(), path.into()));
    }
    config
}
