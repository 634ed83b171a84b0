//! The copy of a base backup, beside the store's place until all of it is there.
//!
//! ```text
//! <backup>/...                 ─► <store>.part/...                     ─rename─► <store>
//! <backup>/pg_tblspc/16390/    ─► <store>.tablespaces.part/16390/      ─rename─► <store>.tablespaces
//!                                 <store>.part/pg_tblspc/16390  ──link to──► <store>.tablespaces/16390
//! <backup>/pg_tblspc/16391/    ─► <store>.part/pg_tblspc/16391/        one "in place"
//! ```
//!
//! A plain backup has links to its tablespaces; they are followed here, to be read, and never again.
//! From an unpacked tar backup, whose links are lines of `tablespace_map`, each `<OID>.tar` is
//! expected unpacked in `pg_tblspc/<OID>`. Rules: `read_tablespace_map` in
//! `src/backend/access/transam/xlogrecovery.c`.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use walferry_store::tablespaces_directory;
use walfmt::Version;

use crate::trouble::Trouble;

/// What a copy leaves out: a server's own leavings, and what recovery removes anyway. WAL goes
/// into the archive. (`excludeDirContents` and `excludeFiles`,
/// `src/backend/backup/basebackup.c`.)
const EMPTIED_DIRECTORIES: [&str; 8] = [
    "pg_wal",
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];
pub(super) const LEFT_OUT_FILES: [&str; 7] = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_manifest",
    "standby.signal",
    "recovery.signal",
    "tablespace_map",
    "pg_internal.init",
];

/// A backup that was copied.
pub(super) struct Copy {
    part: PathBuf,
    target: PathBuf,
    tablespaces_part: PathBuf,
    tablespaces: PathBuf,
    /// `part`, locked: another bootstrap would take it for one that was interrupted.
    _lock: fs::File,
}

impl Copy {
    /// Copies the backup of a cluster of this major for a store at `target`, whose place is free.
    /// What an interrupted copy left is removed first.
    pub(super) fn make(backup: &Path, target: &Path, version: &Version) -> Result<Self, Trouble> {
        let copy = Self::empty(target)?;
        let mut plan = Plan::default();
        let made = plan.add_backup(backup, &copy, version).and_then(|()| plan.carry_out(&copy));
        match made {
            Ok(()) => Ok(copy),
            Err(trouble) => {
                copy.discard();
                Err(trouble)
            }
        }
    }

    /// An empty copy for a store at `target`, whose place is free, to be filled by the caller. What an
    /// interrupted one left is removed first.
    pub(super) fn empty(target: &Path) -> Result<Self, Trouble> {
        let target = std::path::absolute(target).map_err(failed(target))?;
        let tablespaces = tablespaces_directory(&target);
        let (part, tablespaces_part) = (part_of(&target), part_of(&tablespaces));
        clear_place(&part, &tablespaces, &tablespaces_part)?;
        fs::create_dir_all(parent(&target)).map_err(failed(parent(&target)))?;
        make_directory(&part)?;
        let lock = lock(&part)?;
        Ok(Self { part, target, tablespaces_part, tablespaces, _lock: lock })
    }

    /// Makes a tablespace's directory and the link to it; gives where its files go.
    pub(super) fn add_tablespace(&self, oid: u32) -> Result<PathBuf, Trouble> {
        if !self.tablespaces_part.exists() {
            make_directory(&self.tablespaces_part)?;
        }
        let directory = self.tablespaces_part.join(oid.to_string());
        make_directory(&directory)?;
        let links = self.part.join("pg_tblspc");
        if !links.exists() {
            make_directory(&links)?;
        }
        let link = links.join(oid.to_string());
        std::os::unix::fs::symlink(self.tablespaces.join(oid.to_string()), &link)
            .map_err(failed(&link))?;
        Ok(directory)
    }

    /// Makes all that was copied durable.
    pub(super) fn sync(&self) -> Result<(), Trouble> {
        // One call for all files; what was copied is nothing before it is renamed.
        let synced = fs::File::open(&self.part)
            .and_then(|directory| rustix::fs::syncfs(directory).map_err(std::io::Error::from));
        synced.map_err(failed(&self.part))
    }

    /// Removes what was copied. What cannot be removed now is by the next bootstrap.
    pub(super) fn discard(self) {
        for path in [&self.tablespaces_part, &self.part] {
            let _ = fs::remove_dir_all(path);
        }
    }

    /// Where the store is until it is put in its place.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// Gives everything its name, the store last; gives that one.
    pub(super) fn put_in_place(self) -> Result<PathBuf, Trouble> {
        if self.tablespaces_part.exists() {
            fs::rename(&self.tablespaces_part, &self.tablespaces)
                .and_then(|()| sync_directory(parent(&self.tablespaces)))
                .map_err(failed(&self.tablespaces))?;
        }
        fs::rename(&self.part, &self.target)
            .and_then(|()| sync_directory(parent(&self.target)))
            .map_err(failed(&self.target))?;
        Ok(self.target)
    }
}

fn clear_place(part: &Path, tablespaces: &Path, tablespaces_part: &Path) -> Result<(), Trouble> {
    // While it is there, a copy was interrupted, which had found the other place free.
    let interrupted = part.exists();
    if interrupted {
        drop(lock(part)?); // or it is not interrupted at all
    }
    if !interrupted && fs::read_dir(tablespaces).is_ok_and(|mut dir| dir.next().is_some()) {
        return Err(Trouble::misuse(format_args!("{} is not empty", tablespaces.display()))
            .with_hint(
                "the store's tablespaces go there: name another [store] data_directory, or remove \
                 what an old store has left",
            ));
    }
    for path in [tablespaces, tablespaces_part, part] {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed(path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn lock(part: &Path) -> Result<fs::File, Trouble> {
    let directory = fs::File::open(part).map_err(failed(part))?;
    match rustix::fs::flock(&directory, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let words = format_args!("another bootstrap is at work in {}", part.display());
            Err(Trouble::misuse(words).with_hint("wait for it, or end it"))
        }
        Err(error) => Err(failed(part)(error.into())),
    }
}

/// What is to be made, directories before what is in them.
#[derive(Default)]
struct Plan {
    directories: Vec<PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
    files: Vec<(PathBuf, PathBuf, u64)>,
}

impl Plan {
    fn add_backup(&mut self, backup: &Path, copy: &Copy, version: &Version) -> Result<(), Trouble> {
        let mapped = read_tablespace_map(backup)?;
        let mut seen = BTreeSet::new();
        self.add_tree(backup, &copy.part, &|relative| {
            if EMPTIED_DIRECTORIES.iter().any(|name| relative == Path::new(name)) {
                Descend::Empty
            } else if relative.parent() == Some(Path::new("pg_tblspc")) {
                Descend::Not
            } else {
                Descend::Whole
            }
        })?;
        let links = backup.join("pg_tblspc");
        for entry in fs::read_dir(&links).map_err(failed(&links))? {
            let entry = entry.map_err(failed(&links))?;
            let path = entry.path();
            let oid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let Some(oid) = oid else {
                return Err(Trouble::misuse(format_args!(
                    "{}: its name is not the OID of a tablespace",
                    path.display()
                )));
            };
            seen.insert(oid);
            let link = copy.part.join("pg_tblspc").join(oid.to_string());
            let is_link = entry.file_type().map_err(failed(&path))?.is_symlink();
            let to = if is_link || mapped.contains(&oid) {
                self.links.push((link, copy.tablespaces.join(oid.to_string())));
                if self.links.len() == 1 {
                    self.directories.push(copy.tablespaces_part.clone());
                }
                copy.tablespaces_part.join(oid.to_string())
            } else {
                link
            };
            // There may be directories of other majors.
            let own = version.tablespace_directory();
            self.directories.push(to.clone());
            self.add_tree(&path.join(&own), &to.join(&own), &|_| Descend::Whole)?;
        }
        match mapped.difference(&seen).next() {
            None => Ok(()),
            Some(missing) => Err(Trouble::misuse(format_args!(
                "tablespace_map names tablespace {missing}, and the backup has no pg_tblspc/{missing}"
            ))
            .with_hint(format!("unpack {missing}.tar of the backup there"))),
        }
    }

    /// Adds a directory and what is in it, as far as `descend` says by the path relative to it.
    fn add_tree(
        &mut self,
        from: &Path,
        to: &Path,
        descend: &dyn Fn(&Path) -> Descend,
    ) -> Result<(), Trouble> {
        let mut pending = vec![PathBuf::new()];
        while let Some(directory) = pending.pop() {
            let descend_here = descend(&directory);
            if descend_here == Descend::Not {
                continue;
            }
            self.directories.push(to.join(&directory));
            if descend_here == Descend::Empty {
                continue;
            }
            let path = from.join(&directory);
            for entry in fs::read_dir(&path).map_err(failed(&path))? {
                let entry = entry.map_err(failed(&path))?;
                let relative = directory.join(entry.file_name());
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with("pgsql_tmp") {
                    continue;
                }
                // Followed, so that a linked pg_wal counts as the directory it is.
                let metadata = fs::metadata(entry.path()).map_err(failed(&entry.path()))?;
                if metadata.is_dir() {
                    pending.push(relative);
                } else if !LEFT_OUT_FILES.contains(&&*name) {
                    self.files.push((entry.path(), to.join(relative), metadata.len()));
                }
            }
        }
        Ok(())
    }

    fn carry_out(&self, copy: &Copy) -> Result<(), Trouble> {
        let progress = ProgressBar::new(self.files.iter().map(|(.., length)| length).sum());
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        ) {
            progress.set_style(style);
        }
        let status = copy.part.join("pg_wal/archive_status");
        let directories = self.directories.iter().filter(|path| **path != copy.part);
        for path in directories.chain([&status]) {
            make_directory(path)?;
        }
        for (link, to) in &self.links {
            std::os::unix::fs::symlink(to, link).map_err(failed(link))?;
        }
        for (from, to, length) in &self.files {
            fs::copy(from, to).map_err(failed(from))?;
            fs::set_permissions(to, fs::Permissions::from_mode(0o600)).map_err(failed(to))?;
            progress.inc(*length);
        }
        copy.sync()?;
        progress.finish();
        Ok(())
    }
}

/// What is copied of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Descend {
    Whole,
    /// It alone.
    Empty,
    Not,
}

/// The tablespaces in a backup's `tablespace_map`: lines of an OID and a path, which is not used.
fn read_tablespace_map(backup: &Path) -> Result<BTreeSet<u32>, Trouble> {
    let path = backup.join("tablespace_map");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(failed(&path)(error)),
    };
    let text = String::from_utf8_lossy(&text);
    // A line break in a path is escaped by a backslash before it.
    let mut goes_on = false;
    let mut oids = BTreeSet::new();
    for line in text.lines() {
        let is_new = !std::mem::replace(&mut goes_on, line.ends_with('\\'));
        if is_new && !line.is_empty() {
            let oid = line.split_once(' ').and_then(|(oid, _)| oid.parse().ok());
            let oid = oid.ok_or_else(|| {
                Trouble::misuse(format_args!("{}: {line:?} names no tablespace", path.display()))
            })?;
            oids.insert(oid);
        }
    }
    Ok(oids)
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn make_directory(path: &Path) -> Result<(), Trouble> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(failed(path))
}

fn sync_directory(directory: &Path) -> std::io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

pub(super) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Trouble + use<> {
    let what = path.display().to_string();
    move |error| Trouble::io(what, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "PG_15_202209061";

    struct Place(tempfile::TempDir);

    impl Place {
        /// A backup with a mapped tablespace, one in place, and one of a tar backup.
        fn new() -> Self {
            let place = Self(tempfile::tempdir().expect("a directory"));
            for (name, text) in [
                ("backup/PG_VERSION", "15\n"),
                ("backup/base/5/1259", "pg_class"),
                ("backup/base/pgsql_tmp/1", "temporary"),
                ("backup/pg_wal/000000010000000000000001", "WAL"),
                ("elsewhere/PG_15_202209061/5/16400", "mapped"),
                ("elsewhere/PG_14_202107181/5/1", "of another major"),
                ("backup/pg_tblspc/16391/PG_15_202209061/5/16401", "in place"),
                ("backup/pg_tblspc/16392/PG_15_202209061/5/16402", "unpacked"),
                ("backup/tablespace_map", "16392 /leader\\\nodd\n"),
            ] {
                place.write(name, text);
            }
            let link = place.at("backup/pg_tblspc/16390");
            std::os::unix::fs::symlink(place.at("elsewhere"), link).expect("a link");
            place
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.at(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }

        fn copy(&self) -> Result<Copy, Trouble> {
            let version = Version::from_major(15).expect("15 is known");
            // A test beside this one may start a program: until that is another one, it has our locks.
            for _ in 0..100 {
                match Copy::make(&self.at("backup"), &self.at("store"), version) {
                    Err(trouble) if trouble.to_string().contains("another bootstrap") => {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    done => return done,
                }
            }
            panic!("the lock is never free");
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.at(name)).ok()
        }
    }

    #[test]
    fn tablespaces_come_along() {
        let place = Place::new();
        for _ in 0..2 {
            drop(place.copy().expect("copied")); // interrupted
        }
        place.copy().and_then(Copy::put_in_place).expect("copied");
        assert_eq!(place.read("store/base/5/1259").as_deref(), Some("pg_class"));
        assert!(!place.at("store/pg_wal/000000010000000000000001").exists());
        assert!(!place.at("store/tablespace_map").exists());
        for (oid, relation, text) in
            [(16390, 16400, "mapped"), (16391, 16401, "in place"), (16392, 16402, "unpacked")]
        {
            let name = format!("pg_tblspc/{oid}/{OWN}/5/{relation}");
            assert_eq!(place.read(&format!("store/{name}")).as_deref(), Some(text));
            let link = fs::read_link(place.at(&format!("store/pg_tblspc/{oid}"))).ok();
            let expected = place.at(&format!("store.tablespaces/{oid}"));
            assert_eq!(link, (oid != 16391).then_some(expected));
        }
        assert!(!place.at("store.tablespaces/16390/PG_14_202107181").exists());
        let left: Vec<_> = fs::read_dir(place.0.path())
            .expect("there")
            .map(|entry| entry.expect("an entry").file_name())
            .filter(|name| name.to_string_lossy().ends_with(".part"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn nobodys_tablespaces_are_overwritten() {
        let place = Place::new();
        place.write("store.tablespaces/1/precious", "data");
        let error = place.copy().map(drop).expect_err("in the way").to_string();
        assert!(error.contains("store.tablespaces is not empty"), "{error}");
        assert_eq!(place.read("store.tablespaces/1/precious").as_deref(), Some("data"));
    }

    #[test]
    fn a_tablespace_that_was_not_unpacked_is_missed() {
        let place = Place::new();
        place.write("backup/tablespace_map", "16392 /a\n16393 /b\n");
        let error = place.copy().map(drop).expect_err("missing").to_string();
        assert!(error.contains("tablespace 16393"), "{error}");
        place.write("backup/tablespace_map", "words\n");
        assert!(place.copy().is_err());
    }
}
