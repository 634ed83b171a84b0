//! Redo is judged by PostgreSQL itself: with `wal_consistency_checking` the server attaches to each
//! record the pages as they are after its change. All WAL after a base backup is replayed in
//! memory, and after each record its pages are held against these images. At the end every page of
//! every relation, and `pg_xact`, are held against the files of the server, now shut down.
//!
//! Beside it stand negative controls: one replayed page is spoiled by one bit, which must be noticed
//! at that very record; one rule is left out; one page is spoiled before the last comparison.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use integration::{BackupWal, Cluster, ClusterOptions, Scratch, StopMode};
use walfmt::backup_label::BackupLabel;
use walfmt::control::ControlFile;
use walfmt::relation::{
    BLOCK_SIZE, BLOCKS_PER_FILE, BlockNumber, DEFAULT_TABLESPACE, DatabaseLocator, ForkNumber,
    GLOBAL_TABLESPACE, PageId, RelFileLocator, RelFork,
};
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::heap2::RewriteMapping;
use walfmt::rmgr::relmap::RelationMap;
use walfmt::rmgr::tablespace::CreateTablespace;
use walfmt::rmgr::xact::Prepare;
use walfmt::rmgr::xlog::Change;
use walfmt::segment::{SegmentName, SegmentSize};
use walfmt::slru::{self, ClogPosition};
use walfmt::stream::{RecordStream, Step, StopKind, StreamStart};
use walfmt::version::Version;
use walfmt::{BlockReference, Lsn, Record, TransactionId};
use walfmt_physical::mask::mask;
use walfmt_physical::{
    CommitTsChange, Loose, MultiXactChange, OriginChange, Page, PageAccess, PageChange, PageNeed,
    RedoContext, RouteError, TransactionStatus, free_space_page, page, page_need, redo_page, route,
};

#[test]
fn replayed_pages_are_those_of_the_server_with_checksums() -> Result<()> {
    judge(true, "lz4")
}

#[test]
fn replayed_pages_are_those_of_the_server_without_checksums() -> Result<()> {
    judge(false, "zstd")
}

fn judge(data_checksums: bool, wal_compression: &str) -> Result<()> {
    let scratch = Scratch::new()?;
    let options = ClusterOptions {
        data_checksums,
        fsync: false,
        settings: [
            "wal_consistency_checking = all",
            "full_page_writes = on",
            "autovacuum = off",
            "checkpoint_timeout = 1h",
            "max_wal_size = 16GB",
            "wal_keep_size = 16GB",
            &format!("wal_compression = {wal_compression}"),
        ]
        .map(str::to_owned)
        .to_vec(),
        ..ClusterOptions::default()
    };
    let mut leader = Cluster::start_new(&scratch, "leader", &options)?;
    run_script(&leader, &scratch, BEFORE_BACKUP)?;
    let backup = scratch.path().join("backup");
    leader.base_backup(&backup, BackupWal::None)?;
    run_workload(&leader, &scratch)?;
    leader.stop(StopMode::Fast)?;

    let wal = Wal::of(&backup, &leader.wal_directory())?;
    let mut replay = Replay::new(&backup, &wal);
    replay.run(&wal)?;
    println!("{}", replay.report);
    ensure!(replay.mismatches.is_empty(), "{}", replay.mismatches.join("\n"));
    ensure!(replay.missing.is_empty(), "pages that were not there: {:?}", replay.missing);
    replay.report.ensure_covered()?;
    replay.compare_with_files(leader.data_directory())?;

    let compared = replay.report.comparable;
    ensure!(compared > 10_000, "only {compared} pages were redone and compared");
    for nth in [1, compared / 3, compared / 2, compared - 1] {
        let mut control = Replay::new(&backup, &wal);
        control.fault = Some(Fault::Bit { nth });
        control.run(&wal)?;
        let (spoiled, noticed) = (control.spoiled_at, control.noticed_at);
        ensure!(spoiled.is_some(), "negative control: nothing was spoiled");
        ensure!(spoiled == noticed, "spoiled at {spoiled:?}, noticed at {noticed:?}");
    }
    let mut control = Replay::new(&backup, &wal);
    control.fault = Some(Fault::NoImpliedClears);
    control.run(&wal)?;
    ensure!(control.noticed_at.is_some(), "bits that were not cleared went unnoticed");
    ensure!(replay.report.loose > 100, "only {} compared pages were loose", replay.report.loose);
    let mut control = Replay::new(&backup, &wal);
    control.fault = Some(Fault::NoPacking);
    control.run(&wal)?;
    ensure!(control.noticed_at.is_some(), "pages that were not packed went unnoticed");
    let of_catalog = |id: &PageId| id.locator.relation < 16384 && id.fork == ForkNumber::Main;
    let page = replay.pages.iter_mut().find(|(id, _)| of_catalog(id));
    let (id, page) = page.context("no page of a catalog was changed")?;
    if let Some(loose) = replay.loose.get_mut(id) {
        loose.pack(page);
    }
    spoil(page);
    ensure!(
        replay.compare_with_files(leader.data_directory()).is_err(),
        "a spoiled page is not noticed when compared with the server's files"
    );
    println!("negative control: 7 faults injected, 7 noticed");
    Ok(())
}

const BEFORE_BACKUP: &str = "
    create table old_rows (id int primary key, v int, filler text) with (fillfactor = 80);
    insert into old_rows select g, g % 100, repeat('x', 60) from generate_series(1, 20000) g;
    create index on old_rows (v);
    vacuum freeze old_rows;
    create table shrinking (id int primary key, filler text);
    insert into shrinking select g, repeat('y', 200) from generate_series(1, 8000) g;
    vacuum shrinking;";

/// All that PostgreSQL does to heaps, B-trees, their maps, sequences and bloom indexes, as far as SQL
/// reaches it. Nothing in it makes a multixact: those are compared in `transactions.rs`.
const WORKLOAD: &str = "
    -- Changes to all-visible, all-frozen pages: bits of the visibility map go.
    update old_rows set v = v where id % 50 = 0;
    update old_rows set v = v + 1 where id % 7 = 0;
    delete from old_rows where id % 11 = 0;
    begin; select count(*) from (select 1 from old_rows where id % 13 = 0 for update) x; commit;
    begin; select count(*) from (select 1 from old_rows where id between 15000 and 15200 for key share) x; commit;
    begin; select count(*) from (select 1 from old_rows where id between 16000 and 16200 for share) x; rollback;
    begin; select count(*) from (select 1 from old_rows where id between 17000 and 17100 for no key update) x; commit;
    select count(*), sum(v) from old_rows;
    vacuum old_rows;
    -- Inserts into the holes, among duplicates: posting lists are split.
    insert into old_rows select g, g % 100, repeat('z', g % 90) from generate_series(20001, 24000) g;
    update old_rows set filler = 'ab' || filler || g::text from generate_series(1, 3000) g where id = g;
    vacuum (freeze) old_rows;
    -- Tuples with nulls, with toasted values, and of odd lengths.
    create table mixed (id int, a int, b text, c text, d bool, e bigint);
    alter table mixed alter c set storage external;
    insert into mixed select g, nullif(g % 3, 0), nullif(repeat('q', g % 40), ''), case when g % 500 = 0 then repeat('t', 9000) end, g % 2 = 0, g from generate_series(1, 6000) g;
    create index mixed_id on mixed (id);
    create unique index mixed_e on mixed (e);
    create index mixed_b on mixed (b, a);
    update mixed set a = a + 1 where id % 2 = 0;
    update mixed set b = b || 'r' where id % 5 = 0;
    update mixed set c = repeat('u', 7000) where id % 1000 = 0;
    delete from mixed where id % 4 = 1;
    vacuum mixed;
    -- COPY, also of frozen rows.
    copy (select id, v, filler from old_rows) to '{file}';
    create table copied (id int, v int, filler text);
    create index on copied (v);
    copy copied from '{file}';
    copy copied from '{file}';
    begin; create table frozen (id int, v int, filler text); copy frozen from '{file}' (freeze); commit;
    delete from copied where id % 3 = 0;
    vacuum copied;
    copy copied from '{file}';
    insert into frozen select 1, 1, 'late' from generate_series(1, 10);
    -- Random keys: splits everywhere; then ranges go: pages are deleted and used again.
    create table keys (k text, n int);
    create index keys_k on keys (k);
    create unique index keys_n on keys (n);
    insert into keys select md5(g::text), g from generate_series(1, 15000) g;
    delete from keys where n between 2000 and 13000;
    vacuum keys;
    vacuum keys;
    insert into keys select md5(g::text), g from generate_series(15001, 24000) g;
    delete from keys;
    vacuum keys;
    vacuum keys;
    insert into keys select md5(g::text), g from generate_series(1, 4000) g;
    -- Many versions of few rows, under an index on what changes: bottom-up deletion.
    create table hot (id int primary key, n int, m int) with (fillfactor = 50);
    create index on hot (n);
    insert into hot select g, g, g from generate_series(1, 300) g;
    do $$ begin for i in 1..40 loop update hot set m = m + 1; commit; end loop; end $$;
    do $$ begin for i in 1..40 loop update hot set n = n + 1000; commit; end loop; end $$;
    -- Speculative inserts; subtransactions; rollbacks.
    insert into hot select g, 1, 1 from generate_series(200, 600) g on conflict (id) do update set m = excluded.m;
    insert into hot select g, 1, 1 from generate_series(500, 700) g on conflict do nothing;
    begin; insert into hot values (10001, 1, 1); savepoint a; insert into hot values (10002, 1, 1); rollback to a; insert into hot values (10003, 1, 1); commit;
    begin; update hot set m = -1; delete from hot where id < 50; rollback;
    create table nested (n int);
    do $$ begin for i in 1..34000 loop begin insert into nested values (i); exception when others then null; end; end loop; end $$;
    -- Rows that move to another partition.
    create table parts (k int, v text) partition by list (k);
    create table parts_1 partition of parts for values in (1);
    create table parts_2 partition of parts for values in (2);
    insert into parts select 1 + g % 2, g::text from generate_series(1, 500) g;
    update parts set k = 3 - k where v::int % 3 = 0;
    -- Relations become shorter, are rewritten, emptied, dropped.
    delete from shrinking where id > 1000;
    vacuum shrinking;
    insert into shrinking select g, repeat('w', 150) from generate_series(9001, 12000) g;
    vacuum (freeze) shrinking;
    vacuum full mixed;
    cluster hot using hot_pkey;
    reindex table old_rows;
    truncate keys;
    insert into keys select g::text, g from generate_series(1, 2000) g;
    begin; drop table copied; rollback;
    drop table frozen;
    begin; create table never (n int primary key); insert into never select generate_series(1, 1000); rollback;
    -- Catalogs that are found through a relation map are rewritten.
    vacuum full pg_class;
    reindex table pg_proc;
    -- Sequences; a bloom index, whose records are differences of bytes.
    create sequence counting;
    create table counted (id bigserial primary key, v text);
    insert into counted (v) select md5(g::text) from generate_series(1, 3000) g;
    select setval('counting', 77), nextval('counting');
    alter sequence counting restart with 5 increment by 3;
    create extension bloom;
    create index counted_bloom on counted using bloom (v);
    insert into counted (v) select md5(g::text) from generate_series(3001, 9000) g;
    delete from counted where id % 3 = 0;
    vacuum counted;
    insert into counted (v) select md5(g::text) from generate_series(9001, 12000) g;
    alter table mixed add column f int default 7;
    update mixed set f = 8 where id % 9 = 0;
    analyze;
    vacuum;
    select pg_create_restore_point('judged');
    select pg_switch_wal();";

fn run_workload(leader: &Cluster, scratch: &Scratch) -> Result<()> {
    let rows = scratch.path().join("rows.copy");
    run_script(leader, scratch, &WORKLOAD.replace("{file}", &rows.display().to_string()))?;
    leader.pgbench_init(1, &[])?;
    leader.pgbench_run(&["-c", "4", "-j", "2", "-t", "400"])?;
    leader.sql("vacuum pgbench_accounts")?;
    leader.pgbench_run(&["-c", "2", "-t", "100"])?;
    leader.sql("vacuum (freeze)")?;
    Ok(())
}

fn run_script(leader: &Cluster, scratch: &Scratch, script: &str) -> Result<()> {
    let file = scratch.file("script.sql", script)?;
    leader.endpoint().sql_file("postgres", &file).map(drop)
}

/// The WAL after a base backup.
struct Wal {
    directory: PathBuf,
    label: BackupLabel,
    segment_size: SegmentSize,
    version: &'static Version,
    hint_bits_are_logged: bool,
}

impl Wal {
    fn of(backup: &Path, directory: &Path) -> Result<Self> {
        let label = fs::read_to_string(backup.join("backup_label"))?;
        let control = ControlFile::from_bytes(&fs::read(backup.join("global/pg_control"))?)?;
        Ok(Self {
            directory: directory.to_owned(),
            label: BackupLabel::parse(&label)?,
            segment_size: control.segment_size,
            version: control.version,
            hint_bits_are_logged: control.hint_bits_are_logged(),
        })
    }
}

/// What was replayed and compared.
#[derive(Default)]
struct Report {
    records: u64,
    /// Pages whose image was compared, by the record's kind and block id.
    compared: BTreeMap<(u8, u8, u8), u64>,
    /// Among them, those that a handler changed.
    comparable: u64,
    /// Pages of the visibility map compared bit by bit, which the server's own check masks.
    maps: u64,
    /// Compared pages that had to be packed first.
    loose: u64,
    skipped: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Every opcode that a handler exists for was judged, as far as SQL alone brings it about.
    fn ensure_covered(&self) -> Result<()> {
        let opcodes: BTreeSet<(u8, u8)> =
            self.compared.keys().map(|(rmgr, opcode, _)| (*rmgr, *opcode)).collect();
        let heap = [0x00, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70].map(|opcode| (10, opcode));
        let heap2 = [0x10, 0x20, 0x30, 0x40, 0x50].map(|opcode| (9, opcode));
        let btree = [0x00, 0x10, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xA0, 0xB0, 0xC0];
        let btree = btree.map(|opcode| (11, opcode));
        let others = [(15, 0x00), (20, 0x00)];
        let missing: Vec<_> = [&heap[..], &heap2, &btree, &others]
            .concat()
            .into_iter()
            .filter(|kind| !opcodes.contains(kind))
            .map(|(rmgr, opcode)| format!("{} {opcode:#04x}", RmgrId(rmgr)))
            .collect();
        ensure!(missing.is_empty(), "the workload has none of: {}", missing.join(", "));
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compared: u64 = self.compared.values().sum();
        writeln!(f, "{} records, {compared} pages compared, masked", self.records)?;
        writeln!(f, "{} of them pages of the visibility map, compared bit by bit", self.maps)?;
        writeln!(f, "{} of them were loose, and packed to be compared", self.loose)?;
        for ((rmgr, opcode, block), count) in &self.compared {
            writeln!(f, "  {:6} {opcode:#04x} block {block}: {count}", RmgrId(*rmgr).to_string())?;
        }
        for (reason, count) in &self.skipped {
            writeln!(f, "  not compared, {reason}: {count}")?;
        }
        Ok(())
    }
}

/// What a negative control does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Flips a bit of the nth page that is redone and compared.
    Bit { nth: u64 },
    /// Compares loose pages as they are.
    NoPacking,
    /// Leaves out what records imply about the visibility map.
    NoImpliedClears,
}

/// A cluster's pages in memory: those of a base backup and what was made of them.
struct Replay {
    backup: PathBuf,
    context: RedoContext,
    pages: HashMap<PageId, Box<Page>>,
    /// What is still to be done to pages; they are packed only to be compared.
    loose: HashMap<PageId, Loose>,
    forks: HashMap<RelFork, Fork>,
    clog: BTreeMap<u64, Box<Page>>,
    missing: BTreeSet<PageId>,
    report: Report,
    mismatches: Vec<String>,
    next_xid: TransactionId,
    saw_backup_end: bool,
    /// Negative control.
    fault: Option<Fault>,
    spoiled_at: Option<Lsn>,
    noticed_at: Option<Lsn>,
}

#[derive(Clone, Copy, Default)]
struct Fork {
    blocks: BlockNumber,
    /// How many of them may be read from the backup, if they are not in memory.
    in_backup: BlockNumber,
}

impl Replay {
    fn new(backup: &Path, wal: &Wal) -> Self {
        Self {
            backup: backup.to_owned(),
            context: RedoContext {
                version: wal.version,
                hint_bits_are_logged: wal.hint_bits_are_logged,
            },
            pages: HashMap::new(),
            loose: HashMap::new(),
            forks: HashMap::new(),
            clog: BTreeMap::new(),
            missing: BTreeSet::new(),
            report: Report::default(),
            mismatches: Vec::new(),
            next_xid: TransactionId::FIRST_NORMAL,
            saw_backup_end: false,
            fault: None,
            spoiled_at: None,
            noticed_at: None,
        }
    }

    /// Replays to the end of the WAL, or to the first mismatch of a negative control.
    fn run(&mut self, wal: &Wal) -> Result<()> {
        let mut segment = wal.segment_size.segment_of(wal.label.redo);
        let mut stream = RecordStream::new(StreamStart {
            lsn: wal.segment_size.start_of(segment),
            segment_size: wal.segment_size,
            system_identifier: None,
        });
        loop {
            match stream.poll() {
                Step::Record(raw) => {
                    if raw.start < wal.label.redo {
                        continue;
                    }
                    let record = Record::decode(&raw, wal.version)
                        .with_context(|| format!("record at {}", raw.start))?;
                    self.replay(&record)?;
                    if self.noticed_at.is_some() && self.fault.is_some() {
                        return Ok(());
                    }
                }
                Step::NeedMore => {
                    let name = SegmentName::new(wal.label.timeline, segment, wal.segment_size);
                    match fs::read(wal.directory.join(name.to_string())) {
                        Ok(bytes) => stream.push(&bytes),
                        Err(_) => break,
                    }
                    segment = segment.next();
                }
                Step::Stop(stop) if stop.kind == StopKind::End => break,
                Step::Stop(stop) => bail!("{stop}"),
            }
        }
        ensure!(self.saw_backup_end, "the backup's end was not replayed");
        Ok(())
    }

    fn replay(&mut self, record: &Record<'_>) -> Result<()> {
        self.report.records += 1;
        let context = self.context;
        match route(record, &context, self) {
            Ok(()) => {}
            Err(RouteError::Redo(error)) => return Err(error.into()),
            Err(RouteError::Access(error)) => return Err(error),
        }
        for block in &record.blocks {
            self.compare(record, block)?;
        }
        Ok(())
    }

    fn compare(&mut self, record: &Record<'_>, block: &BlockReference<'_>) -> Result<()> {
        let skip = |report: &mut Report, reason| {
            *report.skipped.entry(reason).or_default() += 1;
        };
        let Some(image) = &block.image else {
            skip(&mut self.report, "the record has no image");
            return Ok(());
        };
        if image.apply {
            skip(&mut self.report, "the image was applied");
            return Ok(());
        }
        let Some(page) = self.pages.get_mut(&block.page) else {
            skip(&mut self.report, "the page is not there");
            return Ok(());
        };
        if page::lsn(page) > record.end {
            skip(&mut self.report, "the page is newer");
            return Ok(());
        }
        let redone = page::lsn(page) == record.end;
        if redone {
            self.report.comparable += 1;
        }
        let nth = self.report.comparable;
        if self.fault == Some(Fault::Bit { nth }) && self.spoiled_at.is_none() {
            if let Some(loose) = self.loose.get_mut(&block.page) {
                loose.pack(page); // what lies in a gap is nobody's
            }
            spoil(page);
            self.spoiled_at = Some(record.start);
        }
        let mut replayed = page.clone();
        if let Some(loose) = self.loose.get(&block.page).filter(|loose| loose.is_loose()) {
            self.report.loose += 1;
            if self.fault != Some(Fault::NoPacking) {
                loose.clone().pack(&mut replayed);
            }
        }
        let mut original = Box::new([0; BLOCK_SIZE]);
        image.restore(&mut original)?;

        if block.page.fork == ForkNumber::VisibilityMap {
            self.report.maps += 1;
            if replayed[24..] != original[24..] {
                self.mismatch(record, block, &replayed, &original);
            }
        }
        let rmgr = record.header.rmgr;
        mask(rmgr, block.page, &mut replayed)?;
        mask(rmgr, block.page, &mut original)?;
        let opcode_mask = if rmgr == RmgrId::BTREE { 0xF0 } else { 0x70 };
        let kind = (rmgr.0, record.header.info & opcode_mask, block.id);
        *self.report.compared.entry(kind).or_default() += 1;
        if replayed != original {
            self.mismatch(record, block, &replayed, &original);
        }
        Ok(())
    }

    fn mismatch(
        &mut self,
        record: &Record<'_>,
        block: &BlockReference<'_>,
        replayed: &Page,
        original: &Page,
    ) {
        self.noticed_at.get_or_insert(record.start);
        if self.mismatches.len() >= 20 {
            return;
        }
        self.mismatches.push(format!(
            "{} {:#04x} at {}, block {} ({}): {}",
            record.header.rmgr,
            record.header.opcode(),
            record.start,
            block.id,
            block.page,
            differences(replayed, original)
        ));
    }

    /// What is known of a fork: at first, what the backup has of it.
    fn fork(&mut self, fork: RelFork) -> Result<&mut Fork> {
        if !self.forks.contains_key(&fork) {
            let path = self.backup.join(relation_path(fork)?);
            let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
            let blocks = (length / BLOCK_SIZE as u64) as BlockNumber;
            ensure!(blocks < BLOCKS_PER_FILE, "relations of one file only");
            self.forks.insert(fork, Fork { blocks, in_backup: blocks });
        }
        Ok(self.forks.get_mut(&fork).expect("just inserted"))
    }

    /// Brings an existing page into memory.
    fn load(&mut self, id: PageId) -> Result<()> {
        if self.pages.contains_key(&id) {
            return Ok(());
        }
        let mut page = Box::new([0; BLOCK_SIZE]);
        if id.block < self.fork(id.rel_fork())?.in_backup {
            let file = File::open(self.backup.join(relation_path(id.rel_fork())?))?;
            file.read_exact_at(&mut page[..], u64::from(id.block) * BLOCK_SIZE as u64)?;
        }
        self.pages.insert(id, page);
        Ok(())
    }

    fn clog_page(&mut self, number: u64) -> Result<&mut Page> {
        if !self.clog.contains_key(&number) {
            let mut page = Box::new([0; BLOCK_SIZE]);
            let name = slru::segment_file_name(slru::segment_of_page(number));
            if let Ok(file) = File::open(self.backup.join("pg_xact").join(name)) {
                let _past_the_end_is_zero =
                    file.read_exact_at(&mut page[..], slru::offset_in_segment(number));
            }
            self.clog.insert(number, page);
        }
        Ok(self.clog.get_mut(&number).expect("just inserted"))
    }

    /// Holds all pages against the files of a server that was shut down.
    fn compare_with_files(&mut self, data_directory: &Path) -> Result<()> {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (fork, path) in relation_files(data_directory)? {
            let bytes = fs::read(&path)?;
            for (block, original) in (0..).zip(bytes.chunks_exact(BLOCK_SIZE)) {
                let id = PageId { locator: fork.locator, fork: fork.fork, block };
                let mut original: Box<Page> = Box::new(original.try_into().expect("a page"));
                let mut replayed: Box<Page> = if block < self.fork(fork)?.blocks {
                    self.load(id)?;
                    let mut page = self.pages[&id].clone();
                    if let Some(loose) = self.loose.get(&id) {
                        loose.clone().pack(&mut page);
                    }
                    page
                } else {
                    Box::new([0; BLOCK_SIZE]) // the server extends ahead, without WAL
                };
                if page::is_new(&original) && page::is_new(&replayed) {
                    *counts.entry("new").or_default() += 1;
                    continue;
                }
                let (kind, rmgr) = if fork.fork == ForkNumber::VisibilityMap {
                    ("visibility map", RmgrId::XLOG)
                } else if walfmt::page::special(&original) == BLOCK_SIZE as u16 {
                    ("heap", RmgrId::HEAP)
                } else if walfmt::page::special(&original) == BLOCK_SIZE as u16 - 16 {
                    ("btree", RmgrId::BTREE)
                } else if original[BLOCK_SIZE - 8..] == [0x17, 0x17, 0, 0, 0, 0, 0, 0] {
                    // A server logs a sequence ahead of what its page says.
                    *counts.entry("of sequences, judged above").or_default() += 1;
                    continue;
                } else if original[BLOCK_SIZE - 2..] == 0xFF83_u16.to_le_bytes() {
                    ("bloom", RmgrId::GENERIC)
                } else {
                    *counts.entry("of other access methods, not compared").or_default() += 1;
                    continue;
                };
                *counts.entry(kind).or_default() += 1;
                let lsns = (page::lsn(&replayed), page::lsn(&original));
                if lsns.0 != lsns.1 {
                    wrong.push(format!("{id} ({kind}): LSN {} here, {} there", lsns.0, lsns.1));
                }
                mask(rmgr, id, &mut original)?;
                if !page::is_new(&replayed) {
                    mask(rmgr, id, &mut replayed)?;
                }
                // No checksum is computed here.
                original[8..10].fill(0);
                replayed[8..10].fill(0);
                if replayed != original {
                    wrong.push(format!("{id} ({kind}): {}", differences(&replayed, &original)));
                }
            }
        }
        println!("pages compared with the server's files: {counts:?}");

        let mut transactions = 0;
        for page in 0..=ClogPosition::of(self.next_xid).page {
            let name = slru::segment_file_name(slru::segment_of_page(page));
            let file = fs::read(data_directory.join("pg_xact").join(name))?;
            let start = slru::offset_in_segment(page) as usize;
            let original: &Page = file[start..].first_chunk().context("page of pg_xact")?;
            let replayed = self.clog_page(page)?;
            if replayed != original {
                wrong.push(format!("pg_xact page {page}: {}", differences(replayed, original)));
            }
            transactions += u64::from(slru::CLOG_XACTS_PER_PAGE);
        }
        println!("transactions compared with the server's pg_xact: {transactions}");
        ensure!(
            wrong.is_empty(),
            "{} differences, first {:#?}",
            wrong.len(),
            &wrong[..wrong.len().min(20)]
        );
        Ok(())
    }
}

impl PageAccess for Replay {
    type Error = anyhow::Error;

    fn change_page(&mut self, record: &Record<'_>, id: PageId, change: PageChange) -> Result<()> {
        let implied = matches!(change, PageChange::ClearVisibility { .. });
        if implied && self.fault == Some(Fault::NoImpliedClears) {
            return Ok(());
        }
        let need = page_need(record, change);
        let blocks = self.fork(id.rel_fork())?.blocks;
        if id.block >= blocks {
            match need {
                PageNeed::Nothing | PageNeed::ExistingOrZero => {
                    self.fork(id.rel_fork())?.blocks = id.block + 1;
                }
                PageNeed::Existing => {
                    self.missing.insert(id);
                    return Ok(());
                }
                PageNeed::IfExists => return Ok(()),
            }
        }
        if need == PageNeed::Nothing {
            self.pages.insert(id, Box::new([0; BLOCK_SIZE]));
            self.loose.remove(&id);
        } else {
            self.load(id)?;
        }
        let page = self.pages.get_mut(&id).expect("just loaded");
        let before = page.clone();
        let loose = self.loose.entry(id).or_default();
        let outcome = redo_page(record, change, id, page, loose, &self.context)?;
        if outcome.missing() {
            self.missing.insert(id);
        }
        ensure!(
            outcome.changed() || before == *page,
            "{id} at {}: changed in silence",
            record.start
        );
        if let Some(free_bytes) = outcome.free_space() {
            let change = PageChange::RecordFreeSpace { heap_block: id.block, free_bytes };
            self.change_page(record, free_space_page(id), change)?;
        }
        Ok(())
    }

    fn create_fork(&mut self, fork: RelFork) -> Result<()> {
        self.fork(fork).map(drop)
    }

    fn truncate_fork(&mut self, fork: RelFork, blocks: BlockNumber) -> Result<()> {
        let state = self.fork(fork)?;
        state.blocks = state.blocks.min(blocks);
        state.in_backup = state.in_backup.min(blocks);
        self.pages.retain(|id, _| id.rel_fork() != fork || id.block < blocks);
        self.loose.retain(|id, _| id.rel_fork() != fork || id.block < blocks);
        self.missing.retain(|id| id.rel_fork() != fork || id.block < blocks);
        Ok(())
    }

    fn drop_relations(&mut self, locators: &mut dyn Iterator<Item = RelFileLocator>) -> Result<()> {
        for locator in locators {
            for fork in ForkNumber::ALL {
                self.forks.insert(RelFork { locator, fork }, Fork::default());
            }
            self.pages.retain(|id, _| id.locator != locator);
            self.loose.retain(|id, _| id.locator != locator);
            self.missing.retain(|id| id.locator != locator);
        }
        Ok(())
    }

    /// Maps are files, which are not judged here.
    fn write_relation_map(&mut self, _map: &RelationMap<'_>) -> Result<()> {
        Ok(())
    }

    fn create_database(&mut self, directory: DatabaseLocator) -> Result<()> {
        bail!("the workload creates no database, the WAL has {directory:?}")
    }

    fn copy_database(&mut self, from: DatabaseLocator, to: DatabaseLocator) -> Result<()> {
        bail!("the workload copies no database, the WAL has {from:?} and {to:?}")
    }

    fn drop_databases(
        &mut self,
        directories: &mut dyn Iterator<Item = DatabaseLocator>,
    ) -> Result<()> {
        bail!("the workload drops no database, the WAL has {:?}", directories.next())
    }

    fn create_tablespace(&mut self, create: &CreateTablespace<'_>) -> Result<()> {
        bail!("the workload creates no tablespace, the WAL has {create:?}")
    }

    fn drop_tablespace(&mut self, tablespace: u32) -> Result<()> {
        bail!("the workload drops no tablespace, the WAL has {tablespace}")
    }

    fn write_rewrite_mapping(
        &mut self,
        record: &Record<'_>,
        _mapping: &RewriteMapping<'_>,
    ) -> Result<()> {
        bail!("wal_level is replica, the WAL has a mapping at {}", record.start)
    }

    fn set_transaction_status(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        status: TransactionStatus,
    ) -> Result<()> {
        let bits = match status {
            TransactionStatus::Committed => 1,
            TransactionStatus::Aborted => 2,
        };
        for xid in xids {
            let ClogPosition { page, byte, shift } = ClogPosition::of(xid);
            let byte = &mut self.clog_page(page)?[byte];
            *byte = *byte & !(3 << shift) | bits << shift;
        }
        Ok(())
    }

    fn zero_clog_page(&mut self, page: u64) -> Result<()> {
        self.clog_page(page)?.fill(0);
        Ok(())
    }

    fn truncate_clog(&mut self, page: u64) -> Result<()> {
        bail!("pg_xact is cut at page {page}, which the workload is too short for")
    }

    /// What is not a page and not `pg_xact` is compared elsewhere, with a standby's files.
    fn change_multixacts(&mut self, _change: &MultiXactChange<'_>) -> Result<()> {
        Ok(())
    }

    fn change_commit_times(&mut self, _change: &CommitTsChange) -> Result<()> {
        Ok(())
    }

    fn set_commit_time(
        &mut self,
        _xids: &mut dyn Iterator<Item = TransactionId>,
        _time: i64,
        _origin: u16,
    ) -> Result<()> {
        Ok(())
    }

    fn prepare_transaction(
        &mut self,
        _record: &Record<'_>,
        _prepare: &Prepare<'_>,
    ) -> Result<bool> {
        Ok(true)
    }

    fn finish_prepared(&mut self, _xid: TransactionId) -> Result<()> {
        Ok(())
    }

    fn change_origin(&mut self, _change: &OriginChange) -> Result<()> {
        Ok(())
    }

    fn advance_next_xid(&mut self, xid: TransactionId) -> Result<()> {
        if self.next_xid.precedes(xid) {
            self.next_xid = xid;
        }
        Ok(())
    }

    fn server_state(&mut self, _record: &Record<'_>, change: &Change) -> Result<()> {
        self.saw_backup_end |= matches!(change, Change::BackupEnd { .. });
        Ok(())
    }
}

/// Flips one bit that no mask covers: of the first item, or of the page's version if there is none.
fn spoil(page: &mut Page) {
    const PD_PAGESIZE_VERSION: usize = 18;
    let mut items = 1..=page::max_offset(page);
    let item = items.find_map(|item| walfmt::page::item_range(page, item).ok());
    page[item.map_or(PD_PAGESIZE_VERSION, |range| range.start)] ^= 1;
}

/// The first places where two pages differ.
fn differences(replayed: &Page, original: &Page) -> String {
    let places = (0..BLOCK_SIZE).filter(|at| replayed[*at] != original[*at]);
    let count = places.clone().count();
    let shown: Vec<String> = places
        .take(16)
        .map(|at| format!("@{at} {:02x} for {:02x}", replayed[at], original[at]))
        .collect();
    format!("{count} bytes differ: {}", shown.join(", "))
}

fn relation_path(fork: RelFork) -> Result<PathBuf> {
    let RelFileLocator { tablespace, database, relation } = fork.locator;
    let name = format!("{relation}{}", fork.fork.file_suffix());
    match tablespace {
        DEFAULT_TABLESPACE => Ok(format!("base/{database}/{name}").into()),
        GLOBAL_TABLESPACE => Ok(format!("global/{name}").into()),
        _ => bail!("tablespace {tablespace}"),
    }
}

/// The files of main forks and visibility maps.
fn relation_files(data_directory: &Path) -> Result<Vec<(RelFork, PathBuf)>> {
    let mut directories = vec![(GLOBAL_TABLESPACE, 0, data_directory.join("global"))];
    for entry in fs::read_dir(data_directory.join("base"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(database) = name.parse() {
            directories.push((DEFAULT_TABLESPACE, database, path));
        }
    }
    let mut files = Vec::new();
    for (tablespace, database, directory) in directories {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let (number, fork) = match name.strip_suffix("_vm") {
                Some(number) => (number, ForkNumber::VisibilityMap),
                None => (name, ForkNumber::Main),
            };
            if let Ok(relation) = number.parse() {
                let locator = RelFileLocator { tablespace, database, relation };
                files.push((RelFork { locator, fork }, path));
            }
        }
    }
    files.sort();
    Ok(files)
}
