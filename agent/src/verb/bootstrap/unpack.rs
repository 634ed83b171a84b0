//! A base backup as it comes from a server: tar archives into the store's place, and the manifest
//! that says what must be in them.
//!
//! ```text
//! base          base/5/1259          ─► <store>.part/base/5/1259
//!               pg_tblspc/16390 ─►   ─► a link of ours; where it led on the leader does not matter
//! tablespace    PG_15_.../5/16400    ─► <store>.tablespaces.part/16390/PG_15_.../5/16400
//! configuration JSON ─► read here, judged by `configuration`
//! manifest      path, size, CRC-32C of each file ── compared with what was written
//! ```
//!
//! Rules: `src/backend/backup/backup_manifest.c`, `src/bin/pg_verifybackup/parse_manifest.c`.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use walferry_wire::{BackupArchive, BackupContent};
use walfmt::Lsn;
use walfmt::bytes::{u16_at, u32_at};
use walfmt::page::{PAGE_HEADER_SIZE as HEADER_BYTES, field::PD_UPPER};
use walfmt::relation::BLOCK_SIZE;

use super::copy::{Copy, LEFT_OUT_FILES, failed};
use super::network::Progress;
use crate::configuration::{CONFIGURATION_BYTES_MAX, Configuration};
use crate::trouble::{Kind, Trouble};

const WRITE_BYTES: usize = 256 << 10;
/// 8 MB of memory; a server that compresses at level 1 needs less.
const WINDOW_LOG_MAX: u32 = 23;
/// A manifest has some 150 bytes for each file.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
/// A server ends an archive with two blocks of 512 zeros.
const PADDING_BYTES_MAX: u64 = 1 << 20;
/// The longest path that a server has, and more.
const PATH_BYTES_MAX: usize = 4096;

/// Writes a backup's files, and remembers what they are.
pub(super) struct Unpacker<'a> {
    copy: &'a Copy,
    progress: &'a Progress,
    /// By path within the data directory, as the manifest names them.
    files: BTreeMap<String, Facts>,
    manifest: Vec<u8>,
    configuration: Option<Configuration>,
    buffer: Vec<u8>,
    latest: LatestPage,
}

/// The page with the highest LSN of all.
#[derive(Debug, Default)]
struct LatestPage {
    lsn: Lsn,
    path: String,
    block: u64,
}

/// The headers of a relation's pages, as they go by. The server verifies the checksums of pages, but
/// leaves out those that look new or changed since the backup began: where that is not true, it shows
/// here (`sendFile`, `src/backend/backup/basebackup.c`).
struct Pages<'a> {
    path: &'a str,
    header: [u8; HEADER_BYTES],
    /// How many bytes have gone by.
    seen: u64,
}

impl<'a> Pages<'a> {
    /// Nothing if the file is none of a relation's.
    fn of(path: &'a str) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/')?;
        let holds_relations = ["base", "global", "pg_tblspc"]
            .contains(&directory.split('/').next().unwrap_or_default());
        let is_relation = holds_relations && name.starts_with(|first: char| first.is_ascii_digit());
        is_relation.then_some(Self { path, header: [0; HEADER_BYTES], seen: 0 })
    }

    fn look_at(&mut self, mut bytes: &[u8], latest: &mut LatestPage) -> Result<(), String> {
        while !bytes.is_empty() {
            let at = (self.seen % BLOCK_SIZE as u64) as usize;
            let wanted = if at < HEADER_BYTES { HEADER_BYTES - at } else { BLOCK_SIZE - at };
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            if at < HEADER_BYTES {
                self.header[at..at + part.len()].copy_from_slice(part);
            }
            self.seen += part.len() as u64;
            bytes = rest;
            if at < HEADER_BYTES && at + part.len() == HEADER_BYTES {
                self.check(latest)?;
            }
        }
        Ok(())
    }

    fn check(&self, latest: &mut LatestPage) -> Result<(), String> {
        let block = self.seen / BLOCK_SIZE as u64;
        // Two halves of 4 bytes, the high one first.
        let [high, low] = [0, 4].map(|at| u64::from(u32_at(&self.header, at)));
        let lsn = Lsn(high << 32 | low);
        if u16_at(&self.header, PD_UPPER) == 0 && self.header != [0; HEADER_BYTES] {
            let path = self.path;
            return Err(format!("{path}, block {block}: a page that is not new has no pd_upper"));
        }
        if lsn > latest.lsn {
            *latest = LatestPage { lsn, path: self.path.to_owned(), block };
        }
        Ok(())
    }
}

/// What is compared with the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    size: u64,
    crc: u32,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(copy: &'a Copy, progress: &'a Progress) -> Self {
        Self {
            copy,
            progress,
            files: BTreeMap::new(),
            manifest: Vec::new(),
            configuration: None,
            buffer: vec![0; WRITE_BYTES],
            latest: LatestPage::default(),
        }
    }

    /// Reads an archive to its end.
    pub(super) fn archive(
        &mut self,
        archive: BackupArchive,
        data: impl Read,
    ) -> Result<(), Trouble> {
        if archive.is_compressed {
            let mut decoder = zstd::Decoder::new(data).map_err(came)?;
            decoder.window_log_max(WINDOW_LOG_MAX).map_err(came)?;
            self.content(archive.content, decoder)
        } else {
            self.content(archive.content, data)
        }
    }

    fn content(&mut self, content: BackupContent, mut data: impl Read) -> Result<(), Trouble> {
        match content {
            BackupContent::Configuration => {
                let limited = io::BufReader::new(data.by_ref().take(CONFIGURATION_BYTES_MAX));
                let read = serde_json::from_reader(limited);
                self.configuration = Some(read.map_err(|error| {
                    corrupt(format_args!("the leader's configuration: {error}"))
                })?);
            }
            BackupContent::Base => {
                let root = self.copy.part().to_owned();
                self.tar(&root, "", &mut data)?;
            }
            BackupContent::Tablespace(oid) => {
                let root = self.copy.add_tablespace(oid)?;
                self.tar(&root, &format!("pg_tblspc/{oid}/"), &mut data)?;
            }
            BackupContent::Manifest => {
                let mut limited = data.by_ref().take(MANIFEST_BYTES_MAX);
                limited.read_to_end(&mut self.manifest).map_err(came)?;
            }
        }
        // What is behind the last entry is padding, and the end of a compressed frame.
        let rest =
            io::copy(&mut data.take(PADDING_BYTES_MAX + 1), &mut io::sink()).map_err(came)?;
        if rest > PADDING_BYTES_MAX {
            return Err(corrupt("an archive goes on after its end"));
        }
        Ok(())
    }

    /// Writes a tar archive's files below `root`; `prefix` and their names are their paths within the
    /// data directory.
    fn tar(&mut self, root: &Path, prefix: &str, data: &mut impl Read) -> Result<(), Trouble> {
        let mut archive = tar::Archive::new(data);
        // Raw: a server writes no extensions of the format, which could be of any length.
        for entry in archive.entries().map_err(came)?.raw(true) {
            let mut entry = entry.map_err(came)?;
            let name = entry.path_bytes();
            let name = std::str::from_utf8(&name)
                .map_err(|_| corrupt(format_args!("a file's name is not UTF-8: {name:?}")))?;
            let name = name.trim_start_matches("./").trim_end_matches('/').to_owned();
            let kind = entry.header().entry_type();
            let to = root.join(checked(&name)?);
            let path = format!("{prefix}{name}");
            if kind.is_dir() {
                make_directory(&to)?;
            } else if kind.is_symlink() && prefix.is_empty() && name.starts_with("pg_tblspc/") {
                // Its archive comes, or has come; where the leader has it is not used.
            } else if kind.is_symlink() && name == "pg_wal" {
                make_directory(&to)?; // the server may have it elsewhere
            } else if kind.is_file() {
                let file_name = name.rsplit('/').next().unwrap_or_default();
                let is_wanted = !LEFT_OUT_FILES.contains(&file_name);
                let facts = self.file(&mut entry, is_wanted.then_some(&to), &path)?;
                self.files.insert(path, facts);
            } else {
                return Err(corrupt(format_args!("{path} is neither a file nor a directory")));
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        data: &mut impl Read,
        to: Option<&PathBuf>,
        path: &str,
    ) -> Result<Facts, Trouble> {
        let mut facts = Facts { size: 0, crc: 0 };
        let mut pages = Pages::of(path);
        let mut file = match to {
            Some(path) => {
                let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
                Some((made.map_err(failed(path))?, path))
            }
            None => None,
        };
        loop {
            let length = match data.read(&mut self.buffer) {
                Ok(0) => return Ok(facts),
                Ok(length) => length,
                Err(error) => return Err(came(error)),
            };
            let bytes = &self.buffer[..length];
            facts.size += length as u64;
            facts.crc = crc32c::crc32c_append(facts.crc, bytes);
            if let Some(pages) = &mut pages {
                pages.look_at(bytes, &mut self.latest).map_err(corrupt)?;
            }
            if let Some((file, path)) = &mut file {
                file.write_all(bytes).map_err(failed(path))?;
            }
            self.progress.add(length as u64);
        }
    }

    /// Compares what came with what the manifest says, and pages with where the backup ended. Gives
    /// the leader's configuration, if that came.
    pub(super) fn check(self, end: Lsn) -> Result<Option<Configuration>, Trouble> {
        let LatestPage { lsn, path, block } = &self.latest;
        if *lsn > end {
            return Err(corrupt(format_args!(
                "{path}, block {block}: the page's LSN is {lsn}, the backup ended at {end}"
            )));
        }
        check_manifest(&self.manifest, self.files).map_err(corrupt)?;
        Ok(self.configuration)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Manifest {
    files: Vec<ManifestFile>,
}

#[derive(Deserialize)]
struct ManifestFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// Where the path is not UTF-8, in hexadecimal.
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

/// Says what is wrong, with the file's name.
fn check_manifest(manifest: &[u8], mut files: BTreeMap<String, Facts>) -> Result<(), String> {
    check_manifest_itself(manifest)?;
    let parsed: Manifest = serde_json::from_slice(manifest)
        .map_err(|error| format!("the backup's manifest cannot be read: {error}"))?;
    for file in parsed.files {
        let path = match (file.path, file.encoded_path) {
            (Some(path), _) => path,
            (None, Some(encoded)) => unhex(&encoded)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .ok_or("the backup's manifest has a path that cannot be read")?,
            (None, None) => return Err("the backup's manifest has a file without a path".into()),
        };
        let Some(found) = files.remove(&path) else {
            return Err(format!("{path} is in the manifest and did not come"));
        };
        if found.size != file.size {
            let (found, expected) = (found.size, file.size);
            return Err(format!("{path} has {found} bytes, the manifest says {expected}"));
        }
        if file.algorithm.as_deref() != Some("CRC32C") {
            return Err(format!("{path} has no CRC32C in the manifest"));
        }
        // The bytes of the CRC as they lie in memory, of a little-endian server.
        let expected = file.checksum.as_deref().and_then(unhex);
        if expected.as_deref() != Some(&found.crc.to_le_bytes()) {
            return Err(format!("{path}: what came is not what the manifest says (CRC32C)"));
        }
    }
    match files.keys().next() {
        None => Ok(()),
        Some(path) => Err(format!("{path} came and is not in the manifest")),
    }
}

/// The last line is the SHA-256 of all before it.
fn check_manifest_itself(manifest: &[u8]) -> Result<(), String> {
    let end = manifest.trim_ascii_end();
    let last_line = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (before, last) = end.split_at(last_line);
    let claimed = std::str::from_utf8(last)
        .ok()
        .and_then(|line| line.trim().strip_prefix("\"Manifest-Checksum\":"))
        .and_then(|rest| rest.trim().strip_suffix('}'))
        .and_then(|rest| unhex(rest.trim().trim_matches('"')))
        .ok_or("the backup's manifest has no checksum: it is not complete")?;
    if claimed == Sha256::digest(before).as_slice() {
        Ok(())
    } else {
        Err("the backup's manifest is not what the server made: its checksum differs".into())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// A path that stays below where it is put.
fn checked(name: &str) -> Result<&Path, Trouble> {
    let path = Path::new(name);
    let stays =
        path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if stays && name.len() <= PATH_BYTES_MAX {
        Ok(path)
    } else {
        Err(corrupt(format_args!("the path {name:?} leads elsewhere")))
    }
}

fn make_directory(path: &Path) -> Result<(), Trouble> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))
}

fn came(error: io::Error) -> Trouble {
    Trouble::io("the backup as it came", error)
}

fn corrupt(words: impl std::fmt::Display) -> Trouble {
    Trouble::new(Kind::Corrupt, format_args!("base backup: {words}"))
        .with_hint("nothing of it is kept; run bootstrap again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BTreeMap<String, Facts> {
        let facts = |bytes: &[u8]| Facts { size: bytes.len() as u64, crc: crc32c::crc32c(bytes) };
        BTreeMap::from([("PG_VERSION".into(), facts(b"15\n")), ("base/é".into(), facts(b"page"))])
    }

    fn manifest() -> String {
        let crc = |bytes: &[u8]| -> String {
            crc32c::crc32c(bytes).to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
             {{ \"Path\": \"PG_VERSION\", \"Size\": 3, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }},\n\
             {{ \"Encoded-Path\": \"626173652fc3a9\", \"Size\": 4, \"Last-Modified\": \"\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}\n],\n\"WAL-Ranges\": [],\n",
            crc(b"15\n"),
            crc(b"page"),
        );
        seal(&body)
    }

    fn seal(body: &str) -> String {
        let sum: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    #[test]
    fn what_came_is_held_against_the_manifest() {
        assert_eq!(check_manifest(manifest().as_bytes(), files()), Ok(()));
        let fails = |change: &dyn Fn(&mut BTreeMap<String, Facts>), words: &str| {
            let mut files = files();
            change(&mut files);
            let error = check_manifest(manifest().as_bytes(), files).expect_err(words);
            assert!(error.contains(words), "{error}");
        };
        fails(
            &|files| assert!(files.remove("base/é").is_some()),
            "base/é is in the manifest and did not come",
        );
        fails(
            &|files| files.get_mut("base/é").expect("there").crc ^= 1,
            "base/é: what came is not",
        );
        fails(&|files| files.get_mut("PG_VERSION").expect("there").size = 4, "has 4 bytes");
        let more = Facts { size: 0, crc: 0 };
        fails(
            &|files| assert!(files.insert("more".into(), more).is_none()),
            "more came and is not",
        );
    }

    #[test]
    fn a_manifest_with_any_flipped_byte_is_refused() {
        let sound = manifest().into_bytes();
        for at in 0..sound.len() - 1 {
            let mut spoiled = sound.clone();
            spoiled[at] ^= 0x01;
            assert!(check_manifest(&spoiled, files()).is_err(), "byte {at}");
        }
        for cut in 0..sound.len() - 2 {
            assert!(check_manifest(&sound[..cut], files()).is_err(), "{cut} bytes");
        }
        let none = manifest().replace("CRC32C", "NONE");
        let (body, _) = none.split_once("\"Manifest-Checksum\"").expect("there");
        assert!(check_manifest(seal(body).as_bytes(), files()).is_err(), "no checksums");
    }

    #[test]
    fn pages_that_the_server_does_not_verify_are_looked_at() {
        let page = |lsn: u64, upper: u16| {
            let mut page = [0x11; BLOCK_SIZE];
            walfmt::bytes::put(&mut page, 0, ((lsn >> 32) as u32).to_le_bytes());
            walfmt::bytes::put(&mut page, 4, (lsn as u32).to_le_bytes());
            walfmt::bytes::put(&mut page, PD_UPPER, upper.to_le_bytes());
            page
        };
        let look = |pages: &[[u8; BLOCK_SIZE]], cut: usize| {
            let (mut looking, mut latest) =
                (Pages::of("base/5/16384_fsm").expect("a relation"), LatestPage::default());
            for bytes in pages.as_flattened().chunks(cut) {
                looking.look_at(bytes, &mut latest)?;
            }
            Ok::<_, String>((latest.lsn, latest.block))
        };
        for cut in [1, 7, 24, 8192, 10_000] {
            let pages = [page(5, 8000), page(3 << 32 | 9, 8000), [0; BLOCK_SIZE], page(7, 8000)];
            assert_eq!(look(&pages, cut), Ok((Lsn(3 << 32 | 9), 1)), "{cut}");
            let error = look(&[page(5, 8000), page(6, 0)], cut).expect_err("not new");
            assert!(error.contains("16384_fsm, block 1"), "{error}");
        }
        for path in ["base/5/PG_VERSION", "global/pg_control", "pg_xact/0000", "1", "backup_label"]
        {
            assert!(Pages::of(path).is_none(), "{path}");
        }
    }

    #[test]
    fn paths_stay_inside() {
        for name in ["base/5/1259", "a", "pg_tblspc/1/PG_15/x"] {
            assert!(checked(name).is_ok(), "{name}");
        }
        for name in ["../x", "/etc/passwd", "a/../../b", &"x".repeat(5000)] {
            assert!(checked(name).is_err(), "{name}");
        }
    }
}
