//! `walferry bootstrap`: from a base backup to a store that the agent can replay into.
//!
//! ```text
//! a peer's server    ──tar ──►  <store>.part ──────────────rename──► <store>
//! or backup/         ──copy──►
//! backup/pg_wal      ──check, compress──►  archive  ◄── the rest, from a peer
//!                                             │
//!                               checkpoint and end of backup are there: pg_control may say
//!                               from where to replay
//! ```
//!
//! Tablespaces go to a directory beside the store, see `copy`. Nothing is there under the store's
//! name before all of it is: an interrupted bootstrap is simply run again. The backup is only read.

pub(crate) mod configuration;
mod copy;
mod network;
mod settings;
mod unpack;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use walferry_archive::{Archive, ArchiveReader, ArchiveWriter, OsFiles};
use walferry_store::Store;
use walferry_wire::ProbeAnswer;
use walfmt::backup_label::BackupLabel;
use walfmt::control::ControlFile;
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::xlog::{Change, CheckPoint};
use walfmt::{Lsn, Record, RecordStream, SegmentName, Step, StreamStart};

use crate::config::{Config, Source};
use crate::configuration::Configuration;
use crate::identity::Identity;
use crate::locales;
use crate::node::{Node, Signals};
use crate::peer::{self, Answer};
use crate::positions::Position;
use crate::stage::tail::{WalTail, read_control_file};
use crate::stage::{State, receive};
use crate::trouble::{Kind, Trouble};
use crate::verb::bootstrap::configuration::Written;
use crate::verb::bootstrap::copy::Copy;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A plain base backup, as `pg_basebackup -Fp` makes it, to be used instead of one from a peer.
    /// It is only read.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Have the leader's server make its checkpoint at once, not spread over its usual time.
    #[arg(long, conflicts_with = "from")]
    fast_checkpoint: bool,
    /// How many kB per second the leader's server may read at most (32 to 1048576).
    #[arg(long, value_name = "KB", conflicts_with = "from", default_value = "0", hide_default_value = true,
        value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    max_rate: u32,
}

pub(crate) fn run(config: &Path, arguments: Arguments) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let target = config.store()?.data_directory.clone();
    check_target(&target)?;
    if control_answers(&config) {
        return Err(Trouble::misuse("the agent of this node is running")
            .with_hint("stop it, bootstrap, start it again"));
    }
    let node = Arc::new(Node::new(config)?);
    match arguments.from {
        Some(backup) => from_directory(&node, &backup, &target),
        None => {
            let Arguments { fast_checkpoint, max_rate, .. } = arguments;
            from_peer(&node, &target, network::Options { fast_checkpoint, max_rate })
        }
    }
}

fn from_directory(node: &Arc<Node>, backup: &Path, target: &Path) -> Result<(), Trouble> {
    let (control, label) = read_backup(backup)?;
    let identity = Identity {
        system_identifier: control.system_identifier,
        timeline: label.timeline,
        segment_size: control.segment_size,
        version: control.version,
    };
    let archive = node.open_archive(identity)?;
    let copy = Copy::make(backup, target, control.version)?;
    let begin = identity.segment_size.start_of(identity.segment_size.segment_of(label.redo));
    let writer = open_archive_at(node, &archive, identity, begin, label.redo)?;
    if let Some(writer) = writer {
        import_wal(node, &archive, identity, backup, begin, writer)?;
    }
    finish(node, &archive, identity, copy, &label, None)
}

/// With a backup that the leader's agent relays. Its WAL is in the leader's archive.
fn from_peer(node: &Arc<Node>, target: &Path, options: network::Options) -> Result<(), Trouble> {
    let Source::Receive(peers) = node.config.source()? else {
        return Err(Trouble::misuse("[source] names no peers to get a backup from")
            .with_hint("bootstrap makes followers; on a leader there is nothing to bootstrap"));
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Trouble::io("starting the runtime", error))?;
    let interrupted = Arc::clone(node);
    runtime.spawn(async move {
        if let Ok(mut signals) = Signals::listen() {
            signals.recv().await;
            interrupted.begin_stop();
        }
    });
    let prepare = |identity: Identity| node.open_archive(identity).map(drop);
    let (copy, identity, leader) =
        network::fetch(node, &runtime, &peers, target, options, prepare)?;
    let prepared = read_backup(copy.part()).and_then(|(control, label)| {
        let is_same = control.system_identifier == identity.system_identifier
            && control.segment_size == identity.segment_size;
        if !is_same || label.from_standby {
            let what = if is_same { "is of a standby" } else { "is of another cluster" };
            return Err(Trouble::new(Kind::Refused, format_args!("the backup {what}")).with_hint(
                "[source] conninfo of the leader's agent must lead to the server of its \
                 data_directory",
            ));
        }
        let archive = node.open_archive(identity)?;
        let begin = identity.segment_size.start_of(identity.segment_size.segment_of(label.redo));
        drop(open_archive_at(node, &archive, identity, begin, label.redo)?);
        Ok((archive, label))
    });
    match prepared {
        Ok((archive, label)) => finish(node, &archive, identity, copy, &label, leader.as_ref()),
        Err(trouble) => {
            copy.discard();
            Err(trouble)
        }
    }
}

/// Gets the WAL that is still missing, and makes a store of the copy.
fn finish(
    node: &Arc<Node>,
    archive: &Archive,
    identity: Identity,
    copy: Copy,
    label: &BackupLabel,
    leader: Option<&Configuration>,
) -> Result<(), Trouble> {
    let programs = &node.config.store()?.bin_directory;
    let prepared = collect(node, archive, identity, label).and_then(|facts| {
        Store::prepare(copy.part(), &facts.check_point, label.check_point, label)
            .map_err(|error| Trouble::new(Kind::Unsupported, error))?;
        let control = read_control_file(&OsFiles, copy.part())?;
        let written = configuration::write_missing(copy.part(), &control, programs, leader)
            .map_err(|error| Trouble::io(copy.part().display(), error))?;
        Ok((facts, written))
    });
    let (facts, written) = match prepared {
        Ok(prepared) => prepared,
        Err(trouble) => {
            copy.discard();
            return Err(trouble);
        }
    };
    let target = copy.put_in_place()?;
    println!(
        "{} is ready: replay begins at {}, the backup ended at {}, the archive holds WAL up to {}",
        target.display(),
        label.redo,
        facts.backup_end,
        facts.archive_end
    );
    match written {
        Written { is_new: true, taken: Some(taken), .. } => println!(
            "the backup has no postgresql.conf: one with {taken} of the leader's settings was \
             written; its end says what was left out. It listens on localhost only"
        ),
        Written { is_new: true, taken: None, .. } => println!(
            "the backup has no postgresql.conf: the least one was written; put the leader's \
             settings there, and into pg_hba.conf who may connect, before a promotion needs them"
        ),
        Written { is_new: false, .. } => {}
    }
    for warning in written.warnings {
        eprintln!("warning: {warning}");
    }
    warn_of_locales(node);
    Ok(())
}

/// Says which locales are missing here, if a peer knows what is needed.
fn warn_of_locales(node: &Node) {
    let (Ok(Source::Receive(peers)), Ok(runtime)) =
        (node.config.source(), tokio::runtime::Builder::new_current_thread().enable_all().build())
    else {
        return;
    };
    for peer in peers {
        let asked = runtime.block_on(peer::probe(node.tls.as_ref(), &peer, node.name()));
        let Ok(Answer { answer: ProbeAnswer::Standing(standing), .. }) = asked else { continue };
        if let Some(words) = locales::objection(&standing.locales) {
            eprintln!("warning: {words}: {}", locales::REMEDY);
            return;
        }
    }
}

fn control_answers(config: &Config) -> bool {
    std::os::unix::net::UnixStream::connect(config.control_socket()).is_ok()
}

/// The store's place must be free, so that nothing is ever overwritten.
fn check_target(target: &Path) -> Result<(), Trouble> {
    let mut entries = match fs::read_dir(target) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Trouble::io(target.display(), error)),
    };
    if entries.next().is_none() {
        return Ok(());
    }
    Err(Trouble::misuse(format_args!("{} is not empty", target.display()))
        .with_hint("name another [store] data_directory, or remove the old store"))
}

fn read_backup(backup: &Path) -> Result<(ControlFile, BackupLabel), Trouble> {
    let label_path = backup.join("backup_label");
    let no_backup = |error: &dyn std::fmt::Display| {
        Trouble::misuse(format_args!("{}: {error}", label_path.display())).with_hint(
            "--from wants a base backup: pg_basebackup -D DIR (plain format). A copy of a data \
             directory without backup_label would be corrupt",
        )
    };
    let text = fs::read_to_string(&label_path).map_err(|error| no_backup(&error))?;
    let label = BackupLabel::parse(&text).map_err(|error| no_backup(&error))?;
    let control = read_control_file(&OsFiles, backup)?;
    Ok((control, label))
}

/// Opens the archive where the backup's WAL belongs, which begins at `begin`; nothing if what it holds
/// ends before. What it holds already must not begin after the backup.
fn open_archive_at(
    node: &Node,
    archive: &Archive,
    identity: Identity,
    begin: Lsn,
    redo: Lsn,
) -> Result<Option<ArchiveWriter>, Trouble> {
    let size = identity.segment_size;
    let extent = archive.extent(identity.timeline)?;
    if let Some(extent) = &extent {
        let first = extent.first.number(size).map_or(Lsn(u64::MAX), |first| size.start_of(first));
        if first > begin {
            return Err(Trouble::misuse(format_args!(
                "the archive in {} begins with {}, the backup at {redo}",
                archive.dir().display(),
                extent.first,
            ))
            .with_hint("move that directory away: it does not reach back to this backup"));
        }
    }
    let mut writer = node.open_writer(archive, begin)?;
    if extent.is_some() {
        // Cuts off what a crash of this machine may have spoiled.
        receive::Chain::of_archive(archive, &mut writer)?;
    }
    // What is missing before the backup is received.
    Ok((writer.content_end() >= begin).then_some(writer))
}

/// Puts the backup's own WAL into the archive: all of it, or what an earlier bootstrap that was
/// interrupted left to do. What the archive holds already must be the same.
fn import_wal(
    node: &Node,
    archive: &Archive,
    identity: Identity,
    backup: &Path,
    begin: Lsn,
    mut writer: ArchiveWriter,
) -> Result<(), Trouble> {
    let size = identity.segment_size;
    let end = writer.content_end();
    let from = size.start_of(size.segment_before(end)).max(begin);
    let held = if from < end {
        archive.read_segment(SegmentName::new(identity.timeline, size.segment_of(from), size))?
    } else {
        Vec::new()
    };
    let files = Arc::clone(node.files());
    let mut tail = WalTail::new(files, backup.join("pg_wal"), identity, from);
    while tail.advance(Lsn::INVALID, |_| {})? {
        let (lsn, wal) = tail.fresh(from);
        let offset = lsn.bytes_since(from) as usize;
        let known = held.iter().skip(offset).zip(wal);
        if let Some(differs) = known.into_iter().position(|(held, backup)| held != backup) {
            return Err(Trouble::misuse(format_args!(
                "the WAL in {} is not the backup's, from {} on",
                archive.dir().display(),
                lsn.advance(differs as u64)
            ))
            .with_hint("move that directory away: it is of another history than this backup"));
        }
        let (lsn, wal) = tail.fresh(end);
        if !wal.is_empty() {
            writer.append(lsn, wal)?;
            writer.flush()?;
        }
    }
    writer.sync()?;
    Ok(())
}

/// What the archive must say before the store may be used.
struct Facts {
    check_point: CheckPoint,
    backup_end: Lsn,
    archive_end: Lsn,
}

/// Finds the backup's checkpoint and its end in the archive; what is missing is received from a
/// peer first.
fn collect(
    node: &Arc<Node>,
    archive: &Archive,
    identity: Identity,
    label: &BackupLabel,
) -> Result<Facts, Trouble> {
    let mut search = Search::new(archive, identity, label)?;
    if let Some(facts) = search.search(Lsn(u64::MAX))? {
        return Ok(facts);
    }
    let Source::Receive(peers) = node.config.source()? else {
        return Err(Trouble::new(
            Kind::NotThere,
            "the backup's own WAL does not reach its end, and [source] names no peers to ask",
        )
        .with_hint("take the backup with pg_basebackup -X stream"));
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Trouble::io("starting the runtime", error))?;
    let inbox = receive::Inbox::new();
    runtime.spawn(receive::run(Arc::clone(node), peers, inbox.outlet()));
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(200));
    let found = std::thread::scope(|scope| {
        let writer = scope.spawn(|| receive::write(node, inbox));
        let found = wait_for_facts(node, &mut search, &spinner);
        node.begin_stop();
        runtime.shutdown_timeout(Duration::from_secs(5));
        let _ = writer.join();
        found
    });
    spinner.finish_and_clear();
    found
}

fn wait_for_facts(
    node: &Node,
    search: &mut Search<'_>,
    spinner: &ProgressBar,
) -> Result<Facts, Trouble> {
    loop {
        if node.stopping() {
            return Err(network::interrupted());
        }
        let durable = node.positions.get(Position::Durable);
        if let Some(facts) = search.search(durable)? {
            return Ok(facts);
        }
        let stages = node.stages.all();
        if let Some(report) = stages.get("receive") {
            if matches!(report.state, State::NeedsBootstrap | State::Diverged | State::Stopped) {
                let trouble = Trouble::new(Kind::NotThere, &report.detail).with_hint(
                    "no peer has all the WAL that this backup needs: take a new one while the \
                     leader's agent runs",
                );
                return Err(trouble);
            }
            spinner.set_message(format!("WAL up to {durable}: {}", report.detail));
        }
        node.positions.wait_beyond(Position::Durable, durable, Duration::from_millis(500));
    }
}

/// Goes through the archive's records as they come.
struct Search<'a> {
    label: &'a BackupLabel,
    reader: ArchiveReader,
    stream: RecordStream,
    identity: Identity,
    check_point: Option<CheckPoint>,
    backup_end: Option<Lsn>,
}

impl<'a> Search<'a> {
    fn new(archive: &Archive, identity: Identity, label: &'a BackupLabel) -> Result<Self, Trouble> {
        let size = identity.segment_size;
        let redo = size.segment_of(label.redo);
        let last = archive.last_segment(identity.timeline)?.and_then(|last| last.number(size));
        let begin = size.start_of(last.map_or(redo, |last| last.min(redo)));
        Ok(Self {
            label,
            reader: ArchiveReader::open(archive, identity.timeline, begin)?,
            stream: RecordStream::new(StreamStart {
                lsn: begin,
                segment_size: size,
                system_identifier: Some(identity.system_identifier),
            }),
            identity,
            check_point: None,
            // A backup of a standby, or one made by other means, has no end record of its own.
            backup_end: (!label.streamed || label.from_standby).then_some(label.redo),
        })
    }

    fn search(&mut self, bound: Lsn) -> Result<Option<Facts>, Trouble> {
        while let Some(chunk) = self.reader.next(bound)? {
            // All of it was checked when it came, see `replay`.
            self.stream.set_known_end(Lsn(u64::MAX));
            self.stream.push(chunk.wal);
            loop {
                let raw = match self.stream.poll() {
                    Step::Record(raw) => raw,
                    Step::NeedMore => break,
                    Step::Stop(stop) => {
                        return Err(Trouble::new(Kind::Corrupt, format_args!("archive: {stop}"))
                            .with_hint("move the archive directory away and bootstrap again"));
                    }
                };
                if raw.header.rmgr != RmgrId::XLOG {
                    continue;
                }
                let change = Record::decode(&raw, self.identity.version)
                    .ok()
                    .and_then(|record| Change::read(&record).ok());
                match change {
                    Some(Change::CheckpointOnline(found) | Change::CheckpointShutdown(found))
                        if raw.start == self.label.check_point =>
                    {
                        self.check_point = Some(found);
                    }
                    Some(Change::BackupEnd { start_point }) if start_point == self.label.redo => {
                        self.backup_end = Some(raw.end);
                    }
                    _ => {}
                }
            }
        }
        let facts = self.check_point.zip(self.backup_end);
        Ok(facts.map(|(check_point, backup_end)| Facts {
            check_point,
            backup_end,
            archive_end: self.stream.record_end(),
        }))
    }
}
