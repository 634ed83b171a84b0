//! `walferry fetch`: a WAL file out of the archive, as a server's `restore_command` wants it.
//!
//! Exit status 0: the file is there, whole. 3: the archive ends before it. 126: that could not be
//! told, or a file is missing that must be there, so a recovery must stop rather than take silence for the end of WAL; PostgreSQL gives up
//! on any status above 125 (`RestoreArchivedFile`, `src/backend/access/transam/xlogarchive.c`).
//!
//! The last segment may be unfinished. It is filled up with zeros, which is how WAL ends: a server
//! takes a restored segment only at its full size.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walferry_archive::{Archive, ArchiveError, OsFiles};
use walfmt::WalFileName;

use crate::config::Config;
use crate::identity::Identity;
use crate::stage::tail::read_control_file;
use crate::trouble::{Kind, Trouble};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file's name (`%f`).
    name: String,
    /// Where to put it (`%p`).
    destination: PathBuf,
}

const CANNOT_TELL: u8 = 126;

pub(crate) fn run(config: &Path, arguments: Arguments) -> Result<(), Trouble> {
    fetch(config, &arguments).map_err(|trouble| match trouble.kind() {
        Kind::NotThere => trouble,
        _ => trouble.with_exit_status(CANNOT_TELL),
    })
}

fn fetch(config: &Path, arguments: &Arguments) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let name: WalFileName = arguments.name.parse().map_err(Trouble::misuse)?;
    let root = &config.archive.directory;
    let data_directory = match (&config.store, &config.source.data_directory) {
        (Some(store), _) => Some(&store.data_directory),
        (None, Some(directory)) => Some(directory),
        (None, None) => None,
    };
    let (system_identifier, segment_size) = match data_directory {
        Some(directory) => {
            let control = read_control_file(&OsFiles, directory)?;
            (control.system_identifier, control.segment_size)
        }
        // A node that keeps WAL, and nothing else.
        None => {
            let identity = Identity::of_archive(root)?.ok_or_else(|| {
                Trouble::misuse(format_args!("there is no WAL in {}", root.display()))
            })?;
            (identity.system_identifier, identity.segment_size)
        }
    };
    let directory = root.join(system_identifier.to_string());
    if !directory.is_dir() {
        return Err(Trouble::misuse(format_args!("{} is not an archive", directory.display())));
    }
    let archive = Archive::open(Arc::new(OsFiles), root, system_identifier, segment_size)?;
    let not_there = || Trouble::new(Kind::NotThere, format_args!("{name} is not in the archive"));
    let bytes = match name {
        WalFileName::Segment(segment) => match archive.read_segment(segment) {
            Ok(mut wal) => {
                if wal.is_empty() {
                    return Err(not_there());
                }
                let size = usize::try_from(segment_size.bytes()).unwrap_or(usize::MAX);
                wal.resize(size, 0);
                wal
            }
            // Silence is the end of WAL for a server. It is that only after the last segment.
            Err(ArchiveError::NotArchived { .. }) => {
                let size = segment_size;
                let last = archive.last_segment(segment.timeline)?;
                let is_end = last.is_some_and(|last| segment.number(size) > last.number(size));
                let words = format_args!("{segment} is missing in {}", directory.display());
                return Err(if is_end { not_there() } else { Trouble::new(Kind::Corrupt, words) });
            }
            Err(error) => return Err(error.into()),
        },
        WalFileName::History(timeline) => archive.history(timeline)?.ok_or_else(not_there)?,
        WalFileName::Partial(_) | WalFileName::Backup(..) => return Err(not_there()),
    };
    write(&arguments.destination, &bytes)
        .map_err(|error| Trouble::io(arguments.destination.display(), error))
}

/// Writes the whole file or none: under another name first, so that an interrupted copy is never
/// taken for a segment.
fn write(destination: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = destination.as_os_str().to_owned();
    temporary.push(".walferry");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&temporary, destination)
}
