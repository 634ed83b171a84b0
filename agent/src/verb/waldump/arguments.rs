//! What `walferry waldump` is told: `pg_waldump`'s options, and how it reads their values.

use std::path::PathBuf;
use std::str::FromStr;

use walfmt::rmgr::RmgrId;
use walfmt::{BlockNumber, ForkNumber, Lsn, RelFileLocator, Timeline};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The segment to begin with; without ENDSEG, also the one to end with. A path to it gives the
    /// directory. May be a .zst file of an archive or a .partial.
    #[arg(value_name = "STARTSEG")]
    pub(super) start_segment: Option<PathBuf>,
    /// The segment to end with. If it is on another timeline, the ways between them are followed.
    #[arg(value_name = "ENDSEG")]
    pub(super) end_segment: Option<PathBuf>,
    /// The directory with the segments, or with a pg_wal that has them; or an archive of walferry. Without
    /// it: the archive of the --config that is given, or the current directory, ./pg_wal, $PGDATA/pg_wal.
    #[arg(short, long = "path", value_name = "DIRECTORY")]
    pub(super) path: Option<PathBuf>,
    /// Begin with the first record at or after this position.
    #[arg(short, long, value_name = "LSN")]
    pub(super) start: Option<Lsn>,
    /// End with the last record that is whole before this position.
    #[arg(short, long, value_name = "LSN")]
    pub(super) end: Option<Lsn>,
    /// Print as many records at most.
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) limit: Option<u64>,
    /// Stay on this timeline. Without it WAL is followed from timeline 1, or STARTSEG's, to the newest
    /// that a history file beside the segments leads to.
    #[arg(short, long, value_name = "TIMELINE", value_parser = timeline)]
    pub(super) timeline: Option<Timeline>,
    /// Only records of this resource manager. May be given repeatedly; `list` lists their names.
    #[arg(short, long, value_name = "RMGR")]
    pub(super) rmgr: Vec<RmgrArgument>,
    /// Only records of this transaction.
    #[arg(short, long, value_name = "XID")]
    pub(super) xid: Option<u32>,
    /// Only records that change this relation: tablespace OID, database OID, relation's file number.
    #[arg(short = 'R', long, value_name = "T/D/R", value_parser = relation)]
    pub(super) relation: Option<RelFileLocator>,
    /// Only records that change this block of the relation.
    #[arg(short = 'B', long, value_name = "N", requires = "relation")]
    pub(super) block: Option<BlockNumber>,
    /// Only records that change this fork: main, fsm, vm or init.
    #[arg(short = 'F', long, value_name = "FORK", value_parser = fork)]
    pub(super) fork: Option<ForkNumber>,
    /// Only records with a page image.
    #[arg(short = 'w', long = "fullpage")]
    pub(super) only_images: bool,
    /// Show more of the blocks that a record changes, on lines of their own.
    #[arg(short, long)]
    pub(super) bkp_details: bool,
    /// Show counts and sizes instead of records: of each resource manager, or of each kind of record.
    #[arg(
        short = 'z',
        long,
        value_name = "record",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "rmgr"
    )]
    pub(super) stats: Option<StatsBy>,
    /// Print nothing: only look whether the WAL is whole.
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Go on with what is written, until interrupted.
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Print one JSON object for each record.
    #[arg(long, conflicts_with_all = ["stats", "bkp_details"])]
    pub(super) json: bool,
}

/// How records are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum StatsBy {
    Rmgr,
    Record,
}

/// A resource manager on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RmgrArgument {
    List,
    One(RmgrId),
}

impl FromStr for RmgrArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("list") {
            return Ok(Self::List);
        }
        let all = (0..=u8::MAX).map(RmgrId).filter(|rmgr| rmgr.is_possible());
        let found = all.into_iter().find(|rmgr| rmgr.to_string().eq_ignore_ascii_case(text));
        found
            .map(Self::One)
            .ok_or_else(|| format!("there is no resource manager {text:?}; see --rmgr list"))
    }
}

/// As C's `strtoul` reads it: decimal, hexadecimal behind 0x, octal behind 0.
fn timeline(text: &str) -> Result<Timeline, String> {
    let digits = text.trim();
    let number =
        if let Some(digits) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            u32::from_str_radix(digits, 16)
        } else if digits.len() > 1 && digits.starts_with('0') {
            u32::from_str_radix(digits, 8)
        } else {
            digits.parse()
        };
    match number {
        Ok(number @ 1..) => Ok(Timeline(number)),
        _ => Err(format!("a timeline is a number from 1 to {}", u32::MAX)),
    }
}

fn relation(text: &str) -> Result<RelFileLocator, String> {
    let mut parts = text.split('/').map(str::parse::<u32>);
    let mut next = || parts.next().and_then(Result::ok);
    let (tablespace, database, relation) = (next(), next(), next());
    match (tablespace, database, relation, parts.next()) {
        (Some(tablespace @ 1..), Some(database), Some(relation @ 1..), None) => {
            Ok(RelFileLocator { tablespace, database, relation })
        }
        _ => Err("expected tablespace OID/database OID/relation's file number".to_owned()),
    }
}

fn fork(text: &str) -> Result<ForkNumber, String> {
    match text {
        "main" => Ok(ForkNumber::Main),
        "fsm" => Ok(ForkNumber::FreeSpace),
        "vm" => Ok(ForkNumber::VisibilityMap),
        "init" => Ok(ForkNumber::Init),
        _ => Err("a fork is main, fsm, vm or init".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_pg_waldump_reads_them() {
        assert_eq!(timeline("0x1F"), Ok(Timeline(31)));
        assert_eq!(timeline("010"), Ok(Timeline(8)));
        assert_eq!(timeline("12 "), Ok(Timeline(12)));
        assert!(
            timeline("0").is_err() && timeline("x").is_err() && timeline("4294967296").is_err()
        );
        let locator = RelFileLocator { tablespace: 1663, database: 0, relation: 5 };
        assert_eq!(relation("1663/0/5"), Ok(locator));
        for text in ["0/1/2", "1/2/0", "1/2", "1/2/3/4", "a/b/c", ""] {
            assert!(relation(text).is_err(), "{text}");
        }
        assert_eq!("bTree".parse(), Ok(RmgrArgument::One(RmgrId::BTREE)));
        assert_eq!("custom128".parse(), Ok(RmgrArgument::One(RmgrId(128))));
        assert_eq!("LIST".parse(), Ok(RmgrArgument::List));
        assert!("custom127".parse::<RmgrArgument>().is_err());
    }
}
