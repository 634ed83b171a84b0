//! A gap in `pg_wal`, and the command that may fill it: what an existing WAL archive gives back.
//!
//! The command is as PostgreSQL's `restore_command`: `%f` stands for the segment's name, `%p` for where
//! to put it. What it brings goes through the same checks as a segment of `pg_wal`, and lies beside the
//! archive until the tail has passed it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use walfmt::SegmentName;
use walfmt::wal_page::{LONG_HEADER_SIZE, WalPageHeader};

use crate::identity::Identity;
use crate::node::Node;
use crate::stage::State;
use crate::stage::tail::STAGE;

/// How often a running command, and whether the node stops, is looked at.
const POLL: Duration = Duration::from_millis(50);

pub(super) struct GapFiller {
    node: Arc<Node>,
    command: String,
    directory: PathBuf,
    identity: Identity,
    /// Something was fetched since this was last asked.
    has_fetched: bool,
}

impl GapFiller {
    /// With what the configuration says, if it says something.
    pub(super) fn new(node: &Arc<Node>, identity: Identity) -> Option<Self> {
        let command = node.config.source.gap_command.clone()?;
        let directory = node.config.archive.directory.join("gap");
        Some(Self { node: Arc::clone(node), command, directory, identity, has_fetched: false })
    }

    /// Where a segment lies that was fetched.
    pub(super) fn path(&self, segment: SegmentName) -> PathBuf {
        self.directory.join(segment.to_string())
    }

    /// Whether anything was fetched since this was last asked.
    pub(super) fn take_fetched(&mut self) -> bool {
        std::mem::take(&mut self.has_fetched)
    }

    /// Runs the command; says why there is no segment, if there is none.
    pub(super) fn fetch(&mut self, segment: SegmentName) -> Result<(), String> {
        let said = format!("{segment} is gone from pg_wal: running gap_command");
        self.node.stages.set(STAGE, State::Waiting, said);
        let io = |what: &Path| {
            let what = what.display().to_string();
            move |error: std::io::Error| format!("{what}: {error}")
        };
        fs::create_dir_all(&self.directory).map_err(io(&self.directory))?;
        let (path, part) = (self.path(segment), self.directory.join(format!("{segment}.part")));
        let _ = fs::remove_file(&part);
        let command = fill_in(&self.command, &segment.to_string(), &part.to_string_lossy());
        let status = self.run(&command).map_err(|error| format!("{command}: {error}"))?;
        if !status.success() {
            return Err(format!("{command}: {status}"));
        }
        self.judge(segment, &part)?;
        // As durable as a segment of pg_wal, since what is shipped rests on it.
        fs::File::open(&part).and_then(|file| file.sync_all()).map_err(io(&part))?;
        fs::rename(&part, &path).map_err(io(&path))?;
        fs::File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io(&self.directory))?;
        self.has_fetched = true;
        tracing::info!(%segment, "fetched by gap_command");
        Ok(())
    }

    fn run(&self, command: &str) -> std::io::Result<ExitStatus> {
        let mut child = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.node.stopping() {
                child.kill()?;
                return child.wait();
            }
            self.node.hearts.excuse(STAGE); // it is the command that takes its time
            std::thread::sleep(POLL);
        }
    }

    /// That it is a segment at all, and that one. Its records are checked by the tail.
    fn judge(&self, segment: SegmentName, path: &Path) -> Result<(), String> {
        let size = self.identity.segment_size;
        let wrong = |words: String| format!("gap_command gave no segment {segment}: {words}");
        let file = fs::read(path).map_err(|error| wrong(error.to_string()))?;
        if file.len() as u64 != size.bytes() {
            return Err(wrong(format!("{} bytes instead of {}", file.len(), size.bytes())));
        }
        let start = segment.number(size).map(|number| size.start_of(number));
        match file.get(..LONG_HEADER_SIZE).and_then(WalPageHeader::from_bytes) {
            Some(header) if Some(header.address) == start => Ok(()),
            Some(header) => Err(wrong(format!("it begins with the page of {}", header.address))),
            None => Err(wrong("it begins with no page of WAL".to_owned())),
        }
    }

    /// The archive has everything before `segment` durably: what was fetched of it is needed no more.
    pub(super) fn forget_before(&self, segment: SegmentName) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let fetched = name.to_str().and_then(|name| name.parse::<SegmentName>().ok());
            if fetched.is_some_and(|fetched| fetched < segment) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// `%f`, `%p` and `%%`; a lone `%` stays (`BuildRestoreCommand`, `src/common/archive.c`).
fn fill_in(command: &str, name: &str, path: &str) -> String {
    let mut filled = String::with_capacity(command.len() + path.len());
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        let mut after = rest.clone();
        match (c, after.next()) {
            ('%', Some('f')) => filled.push_str(name),
            ('%', Some('p')) => filled.push_str(path),
            ('%', Some('%')) => filled.push('%'),
            _ => {
                filled.push(c);
                continue;
            }
        }
        rest = after;
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::fill_in;

    #[test]
    fn a_command_is_filled_in() {
        for (command, filled) in [
            ("cp /a/%f %p", "cp /a/S P"),
            ("%f%f %%f 100% %x", "SS %f 100% %x"),
            ("%%%p%", "%P%"),
            ("", ""),
        ] {
            assert_eq!(fill_in(command, "S", "P"), filled);
        }
    }
}
