//! Which PostgreSQL majors this machine has.
//!
//! 15 is where the other tests find theirs ([`Binaries::find`]). Another major is looked for in the
//! directory that `WALFERRY_PG16_BIN` (or 17, 18) names, else where `integration/majors.sh` puts it: in
//! `WALFERRY_MAJORS`, or a cache directory if that is not set.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::binaries::Binaries;

/// The majors that walferry reads, as [`walfmt::version::VERSIONS`] has them.
pub fn known() -> impl Iterator<Item = u16> {
    walfmt::version::VERSIONS.iter().map(|version| version.major)
}

/// A major's programs.
///
/// # Errors
/// They are not where they are looked for; the error names that place.
pub fn binaries(major: u16) -> Result<Binaries> {
    if let Some(directory) = std::env::var_os(format!("WALFERRY_PG{major}_BIN")) {
        return Binaries::at(directory.into());
    }
    if major == 15 {
        return Binaries::find();
    }
    Binaries::at(directory()?.join(major.to_string()).join("bin")).with_context(|| {
        format!("PostgreSQL {major} is not here: integration/majors.sh gets it (Debian, amd64)")
    })
}

/// Where `integration/majors.sh` puts majors if nothing else is said. Servers of tests that run as root
/// run as user postgres, who cannot look into root's home.
fn directory() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("WALFERRY_MAJORS") {
        return Ok(directory.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/cache/walferry-majors".into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty());
    let cache = cache.map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Ok(cache.context("no home directory")?.join("walferry-majors"))
}
