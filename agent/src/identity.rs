//! Whose WAL a node has: its server's control file says so, its store's, its archive's first page of
//! a segment, or a peer.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use walferry_wire::Standing;
use walfmt::control::ClusterState;
use walfmt::wal_page::{LONG_HEADER_SIZE, WalPageHeader};
use walfmt::{SegmentName, SegmentSize, Timeline, Version};

use crate::node::Node;
use crate::stage::tail;
use crate::trouble::{Kind, Trouble};

/// Whose WAL a node has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) system_identifier: u64,
    pub(crate) timeline: Timeline,
    pub(crate) segment_size: SegmentSize,
    pub(crate) version: &'static Version,
}

impl Identity {
    /// What a peer says of itself; nothing while it does not know.
    pub(crate) fn of_standing(standing: &Standing) -> Result<Option<Self>, Trouble> {
        if standing.system_identifier == 0 {
            return Ok(None);
        }
        let major = standing.server_major;
        let version = Version::from_major(major).filter(|version| version.is_replayed);
        let version = version.ok_or_else(|| {
            let words = format_args!("the leader's server is of PostgreSQL {major}");
            Trouble::new(Kind::Unsupported, words).with_hint("a newer walferry may know it")
        })?;
        Ok(Some(Self {
            system_identifier: standing.system_identifier,
            timeline: standing.timeline,
            segment_size: standing.segment_size,
            version,
        }))
    }

    /// Whose WAL an archive holds; nothing if it holds none. It is read from the newest segment that
    /// has its first page.
    pub(crate) fn of_archive(root: &Path) -> Result<Option<Self>, Trouble> {
        let failed = |path: &Path| {
            let what = path.display().to_string();
            move |error: std::io::Error| Trouble::io(what, error)
        };
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(root)(error)),
        };
        let mut found: Option<(u64, Vec<(SegmentName, PathBuf)>)> = None;
        for entry in entries {
            let path = entry.map_err(failed(root))?.path();
            let system = path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok());
            let Some(system) = system else { continue };
            let segments = segments(&path).map_err(failed(&path))?;
            if segments.is_empty() {
                continue;
            }
            if let Some((other, _)) = &found {
                let words = format_args!(
                    "[archive] directory {} holds WAL of two systems, {other} and {system}",
                    root.display()
                );
                return Err(Trouble::misuse(words).with_hint(
                    "a node without a store takes the archive's; move the other one away",
                ));
            }
            found = Some((system, segments));
        }
        let Some((system, segments)) = found else { return Ok(None) };
        for (name, path) in segments.iter().rev() {
            // The newest may be empty yet, or cut off by a crash.
            let header = match first_page(path) {
                Ok(Some(header)) => header,
                Ok(None) => continue,
                // Damage at the archive's end is for its writer to mend.
                Err(error) if error.kind() == std::io::ErrorKind::Other => {
                    tracing::warn!("{}: {error}", path.display());
                    continue;
                }
                Err(error) => return Err(failed(path)(error)),
            };
            let long = header.long.filter(|long| long.system_identifier == system);
            let size = long.and_then(|long| SegmentSize::new(long.segment_size));
            let version = Version::from_page_magic(header.magic);
            let (Some(segment_size), Some(version)) = (size, version) else {
                let words = format_args!("{} does not begin with WAL of {system}", path.display());
                return Err(Trouble::new(Kind::Corrupt, words)
                    .with_hint("the archive's file is damaged: move the archive away"));
            };
            if !version.is_replayed {
                let words = format_args!("{} is of PostgreSQL {}", path.display(), version.major);
                return Err(Trouble::new(Kind::Unsupported, words)
                    .with_hint("a newer walferry may know it"));
            }
            let timeline = name.timeline;
            return Ok(Some(Self { system_identifier: system, timeline, segment_size, version }));
        }
        Ok(None)
    }
}

/// The segments in a directory, oldest first.
fn segments(directory: &Path) -> std::io::Result<Vec<(SegmentName, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".zst"));
        if let Some(name) = name.and_then(|name| name.parse().ok()) {
            segments.push((name, path));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// The header of the page that a segment begins with, as far as the file has it.
fn first_page(path: &Path) -> std::io::Result<Option<WalPageHeader>> {
    let mut header = [0; LONG_HEADER_SIZE];
    let mut decoder = zstd::Decoder::with_buffer(BufReader::new(File::open(path)?))?;
    match decoder.read_exact(&mut header) {
        Ok(()) => Ok(WalPageHeader::from_bytes(&header)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// A follower's store says whose WAL it wants.
pub(crate) fn by_store(node: &Node, data_directory: &Path) -> Result<(), Trouble> {
    let control =
        tail::read_control_file(node.files().as_ref(), data_directory).map_err(|trouble| {
            if data_directory.join("global/pg_control").exists() {
                return trouble; // a disk that fails: to be tried again
            }
            Trouble::misuse(format_args!("[store] {trouble}"))
                .with_hint("make the store with `walferry bootstrap`")
        })?;
    if control.state != ClusterState::IN_ARCHIVE_RECOVERY {
        // It ends the agent, and is not tried again. The archive would go on with what an old leader
        // writes that comes back, beside the history that the promoted server has chosen.
        return Err(Trouble::misuse(format_args!(
            "[store] {} is a server's: its pg_control is in state {}, not in archive recovery",
            data_directory.display(),
            control.state.0
        ))
        .with_hint("after a promotion it stays so; for a follower, bootstrap another one"));
    }
    node.open_archive(Identity {
        system_identifier: control.system_identifier,
        timeline: control.check_point_copy.this_timeline,
        segment_size: control.segment_size,
        version: control.version,
    })?;
    Ok(())
}
