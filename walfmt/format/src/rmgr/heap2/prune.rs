//! What Heap2 says of pruning, vacuuming and freezing a heap page. Layouts are drawn in the module above.

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::rmgr::items::Offsets;
use crate::version::Version;

/// The old `xvac` of a moved tuple becomes frozen (`XLH_FREEZE_XVAC`).
pub const FREEZE_XVAC: u8 = 0x02;
/// The old `xvac` of a moved tuple becomes invalid (`XLH_INVALID_XVAC`).
pub const INVALID_XVAC: u8 = 0x04;

/// Flags of PRUNE_* (`XLHP_*`): what is there, and what replay must take care of.
#[allow(missing_docs)] // the names are PostgreSQL's
pub mod prune_flags {
    pub const IS_CATALOG_REL: u8 = 0x02;
    pub const CLEANUP_LOCK: u8 = 0x04;
    pub const HAS_CONFLICT_HORIZON: u8 = 0x08;
    pub const HAS_FREEZE_PLANS: u8 = 0x10;
    pub const HAS_REDIRECTIONS: u8 = 0x20;
    pub const HAS_DEAD_ITEMS: u8 = 0x40;
    pub const HAS_NOW_UNUSED_ITEMS: u8 = 0x80;
}

/// Of both kinds of plans.
const FREEZE_PLAN_SIZE: usize = 12;

/// Line pointers that become redirections, as they lie in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redirections<'a>(&'a [u8]);

impl<'a> Redirections<'a> {
    fn read(cursor: &mut Cursor<'a>, count: u16) -> Result<Self, CursorError> {
        Ok(Self(cursor.take(usize::from(count) * 4, "redirected")?))
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Them, in order: (from, to).
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u16, u16)> + use<'a> {
        self.0.chunks_exact(4).map(|pair| (u16_at(pair, 0), u16_at(pair, 2)))
    }
}

/// The main data of PRUNE (`xl_heap_prune`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneCounts {
    /// The newest transaction whose tuples go (`latestRemovedXid`, later `snapshotConflictHorizon`).
    pub latest_removed_xid: TransactionId,
    /// How many line pointers become redirections.
    pub redirected: u16,
    /// How many line pointers become dead.
    pub dead: u16,
    /// Whether the table is a catalog that logical decoding reads, in majors that say it.
    pub is_catalog: Option<bool>,
}

impl PruneCounts {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &[u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let mut counts = Self::read_counts(&mut cursor)?;
        counts.is_catalog = read_catalog_flag(&mut cursor, version)?;
        Ok(counts)
    }

    fn read_counts(cursor: &mut Cursor<'_>) -> Result<Self, CursorError> {
        Ok(Self {
            latest_removed_xid: TransactionId(cursor.u32("latestRemovedXid")?),
            redirected: cursor.u16("nredirected")?,
            dead: cursor.u16("ndead")?,
            is_catalog: None,
        })
    }
}

fn read_catalog_flag(
    cursor: &mut Cursor<'_>,
    version: &Version,
) -> Result<Option<bool>, CursorError> {
    if version.conflicts_have_catalog_flag {
        Ok(Some(cursor.u8("isCatalogRel")? != 0))
    } else {
        Ok(None)
    }
}

/// PRUNE (`xl_heap_prune` and the data of its block).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prune<'a> {
    /// The newest transaction whose tuples go.
    pub latest_removed_xid: TransactionId,
    /// Line pointers that become redirections.
    pub redirections: Redirections<'a>,
    /// Line pointers that become dead.
    pub dead: Offsets<'a>,
    /// Line pointers that become unused.
    pub unused: Offsets<'a>,
}

impl<'a> Prune<'a> {
    /// Reads main data and the data of block 0.
    ///
    /// # Errors
    /// [`CursorError`] if either is too short.
    pub fn read(main_data: &[u8], block_data: &'a [u8]) -> Result<Self, CursorError> {
        let counts = PruneCounts::read_counts(&mut Cursor::new(main_data))?;
        let mut cursor = Cursor::new(block_data);
        Ok(Self {
            latest_removed_xid: counts.latest_removed_xid,
            redirections: Redirections::read(&mut cursor, counts.redirected)?,
            dead: Offsets::read(&mut cursor, counts.dead, "nowdead")?,
            unused: Offsets::of(cursor.rest()),
        })
    }

    /// Line pointers that become redirections: (from, to).
    pub fn redirected(&self) -> impl Iterator<Item = (u16, u16)> + 'a {
        self.redirections.iter()
    }
}

/// Reads VACUUM's main data: how many line pointers become unused.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn read_vacuum_count(main_data: &[u8]) -> Result<u16, CursorError> {
    Cursor::new(main_data).u16("nunused")
}

/// Reads VACUUM's main data and the data of block 0: the line pointers that become unused.
///
/// # Errors
/// [`CursorError`] if either is too short.
pub fn read_vacuum<'a>(main_data: &[u8], block_data: &'a [u8]) -> Result<Offsets<'a>, CursorError> {
    let count = read_vacuum_count(main_data)?;
    Offsets::read(&mut Cursor::new(block_data), count, "nowunused")
}

/// What freezing makes of one tuple (`xl_heap_freeze_tuple`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezePlan {
    /// Its new xmax.
    pub xmax: TransactionId,
    /// Its line pointer.
    pub offnum: u16,
    /// Its new `t_infomask2`.
    pub infomask2: u16,
    /// Its new `t_infomask`.
    pub infomask: u16,
    /// [`FREEZE_XVAC`], [`INVALID_XVAC`] or 0.
    pub flags: u8,
}

/// The main data of FREEZE_PAGE (`xl_heap_freeze_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeCounts {
    /// Transactions before this one are frozen (`cutoff_xid`), or the newest one whose tuples are
    /// (`snapshotConflictHorizon`, where plans are shared).
    pub cutoff_xid: TransactionId,
    /// How many plans there are (`ntuples`, `nplans`).
    pub plans: u16,
    /// Whether the table is a catalog that logical decoding reads, in majors that say it.
    pub is_catalog: Option<bool>,
}

impl FreezeCounts {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &[u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let mut counts = Self::read_counts(&mut cursor)?;
        counts.is_catalog = read_catalog_flag(&mut cursor, version)?;
        Ok(counts)
    }

    fn read_counts(cursor: &mut Cursor<'_>) -> Result<Self, CursorError> {
        Ok(Self {
            cutoff_xid: TransactionId(cursor.u32("cutoff_xid")?),
            plans: cursor.u16("ntuples")?,
            is_catalog: None,
        })
    }
}

/// FREEZE_PAGE (`xl_heap_freeze_page` and the data of its block) in majors where each tuple has a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezePage<'a> {
    /// Transactions before this one are frozen.
    pub cutoff_xid: TransactionId,
    plans: &'a [u8],
}

impl<'a> FreezePage<'a> {
    /// Reads main data and the data of block 0.
    ///
    /// # Errors
    /// [`CursorError`] if either is too short.
    pub fn read(main_data: &[u8], block_data: &'a [u8]) -> Result<Self, CursorError> {
        let counts = FreezeCounts::read_counts(&mut Cursor::new(main_data))?;
        let length = usize::from(counts.plans) * FREEZE_PLAN_SIZE;
        let plans = Cursor::new(block_data).take(length, "freeze plans")?;
        Ok(Self { cutoff_xid: counts.cutoff_xid, plans })
    }

    /// What becomes of each tuple.
    pub fn plans(&self) -> impl Iterator<Item = FreezePlan> + 'a {
        self.plans.chunks_exact(FREEZE_PLAN_SIZE).map(|plan| FreezePlan {
            xmax: TransactionId(u32_at(plan, 0)),
            offnum: u16_at(plan, 4),
            infomask2: u16_at(plan, 6),
            infomask: u16_at(plan, 8),
            flags: u8_at(plan, 10),
        })
    }
}

/// What freezing makes of some tuples (`xlhp_freeze_plan`, or `xl_heap_freeze_plan`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedFreezePlan<'a> {
    /// Their new xmax.
    pub xmax: TransactionId,
    /// Their new `t_infomask2`.
    pub infomask2: u16,
    /// Their new `t_infomask`.
    pub infomask: u16,
    /// [`FREEZE_XVAC`], [`INVALID_XVAC`] or 0.
    pub flags: u8,
    /// Their line pointers.
    pub offsets: Offsets<'a>,
}

/// Freeze plans and, after them, the line pointers of the tuples they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedFreezePlans<'a> {
    plans: &'a [u8],
    offsets: &'a [u8],
}

impl<'a> SharedFreezePlans<'a> {
    /// Reads the data of FREEZE_PAGE's block 0, in majors where plans are shared.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what the plans say.
    pub fn read(count: u16, block_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let mut plans = Self::read_plans(&mut cursor, count)?;
        plans.read_offsets(&mut cursor)?;
        cursor.finish("frz_offsets")?;
        Ok(plans)
    }

    fn read_plans(cursor: &mut Cursor<'a>, count: u16) -> Result<Self, CursorError> {
        let plans = cursor.take(usize::from(count) * FREEZE_PLAN_SIZE, "freeze plans")?;
        Ok(Self { plans, offsets: &[] })
    }

    fn read_offsets(&mut self, cursor: &mut Cursor<'a>) -> Result<(), CursorError> {
        let counts = self.plans.chunks_exact(FREEZE_PLAN_SIZE).map(Self::tuple_count);
        self.offsets = cursor.take(counts.sum::<usize>() * 2, "frz_offsets")?;
        Ok(())
    }

    fn tuple_count(plan: &[u8]) -> usize {
        usize::from(u16_at(plan, 10))
    }

    /// How many plans.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.plans.len() / FREEZE_PLAN_SIZE
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.plans.is_empty()
    }

    /// Them, in order.
    pub fn iter(&self) -> impl Iterator<Item = SharedFreezePlan<'a>> + use<'a> {
        let mut rest = self.offsets;
        self.plans.chunks_exact(FREEZE_PLAN_SIZE).map(move |plan| {
            // There are as many as the plans say, see `read_offsets`.
            let (offsets, others) = rest.split_at((Self::tuple_count(plan) * 2).min(rest.len()));
            rest = others;
            SharedFreezePlan {
                xmax: TransactionId(u32_at(plan, 0)),
                infomask2: u16_at(plan, 4),
                infomask: u16_at(plan, 6),
                flags: u8_at(plan, 8),
                offsets: Offsets::of(offsets),
            }
        })
    }
}

/// The main data of PRUNE_ON_ACCESS, PRUNE_VACUUM_SCAN and PRUNE_VACUUM_CLEANUP (`xl_heap_prune` where
/// these are).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneAndFreeze {
    /// [`prune_flags`].
    pub flags: u8,
    /// The newest transaction whose tuples go or are frozen, if a standby's query can care.
    pub conflict_horizon: Option<TransactionId>,
}

/// What PRUNE_* does to the items of its page: the data of block 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrunedItems<'a> {
    /// What is frozen.
    pub plans: SharedFreezePlans<'a>,
    /// Line pointers that become redirections.
    pub redirections: Redirections<'a>,
    /// Line pointers that become dead.
    pub dead: Offsets<'a>,
    /// Line pointers that become unused.
    pub unused: Offsets<'a>,
}

impl PruneAndFreeze {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what the flags say.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        cursor.u8("reason")?;
        let flags = cursor.u8("flags")?;
        let conflict_horizon = match flags & prune_flags::HAS_CONFLICT_HORIZON {
            0 => None,
            _ => Some(TransactionId(cursor.u32("snapshot_conflict_horizon")?)),
        };
        cursor.finish("snapshot_conflict_horizon")?;
        Ok(Self { flags, conflict_horizon })
    }

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Reads the data of block 0.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn items<'a>(&self, block_data: &'a [u8]) -> Result<PrunedItems<'a>, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let mut items = PrunedItems::default();
        if self.has(prune_flags::HAS_FREEZE_PLANS) {
            let count = cursor.u16("nplans")?;
            cursor.take(2, "padding")?;
            items.plans = SharedFreezePlans::read_plans(&mut cursor, count)?;
        }
        if self.has(prune_flags::HAS_REDIRECTIONS) {
            let count = cursor.u16("nredirected")?;
            items.redirections = Redirections::read(&mut cursor, count)?;
        }
        if self.has(prune_flags::HAS_DEAD_ITEMS) {
            let count = cursor.u16("ndead")?;
            items.dead = Offsets::read(&mut cursor, count, "nowdead")?;
        }
        if self.has(prune_flags::HAS_NOW_UNUSED_ITEMS) {
            let count = cursor.u16("nunused")?;
            items.unused = Offsets::read(&mut cursor, count, "nowunused")?;
        }
        items.plans.read_offsets(&mut cursor)?;
        cursor.finish("frz_offsets")?;
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prune_splits_its_offsets() {
        let main = [0, 0, 0, 0, 1, 0, 2, 0];
        let data: Vec<u8> = [1_u16, 2, 3, 4, 5, 6].iter().flat_map(|o| o.to_le_bytes()).collect();
        let prune = Prune::read(&main, &data).expect("long enough");
        assert_eq!(prune.redirected().collect::<Vec<_>>(), [(1, 2)]);
        assert_eq!(prune.dead.iter().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(prune.unused.iter().collect::<Vec<_>>(), [5, 6]);
        assert!(Prune::read(&main, &data[..6]).is_err());
    }

    #[test]
    fn a_catalog_is_said_where_the_major_says_it() {
        let [without, with] = [15, 16].map(|major| Version::from_major(major).expect("known"));
        let main = [9, 0, 0, 0, 1, 0, 2, 0, 1];
        let prune = |length: usize, version| PruneCounts::read(&main[..length], version);
        assert_eq!(prune(8, without).expect("long enough").is_catalog, None);
        assert!(prune(8, with).is_err());
        let counts = prune(9, with).expect("long enough");
        assert_eq!((counts.redirected, counts.dead, counts.is_catalog), (1, 2, Some(true)));
        let freeze = |length: usize, version| FreezeCounts::read(&main[..length], version);
        assert_eq!(freeze(6, without).expect("long enough").is_catalog, None);
        assert!(freeze(6, with).is_err());
        assert_eq!(freeze(7, with).expect("long enough").is_catalog, Some(true));
    }

    #[test]
    fn parts_of_a_pruned_page_are_there_if_the_flags_say_so() {
        let words = |words: &[u16]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let mut data = words(&[2, 0]); // plans
        data.extend(words(&[7, 0, 1, 2, 3, 2]));
        data.extend(words(&[0, 1, 4, 5, 0, 1]));
        data.extend(words(&[1, 10, 11])); // a redirection
        data.extend(words(&[2, 12, 13])); // dead
        data.extend(words(&[1, 14])); // unused
        data.extend(words(&[20, 21, 22])); // the plans' tuples
        let all = PruneAndFreeze::read(&[0xAA, 0xF8, 9, 0, 0, 0]).expect("exact");
        assert_eq!(all.conflict_horizon, Some(TransactionId(9)));
        let items = all.items(&data).expect("exact");
        let plans: Vec<_> = items.plans.iter().collect();
        assert_eq!(
            (plans[0].xmax, plans[0].infomask2, plans[0].infomask),
            (TransactionId(7), 1, 2)
        );
        assert_eq!((plans[0].flags, plans[1].xmax), (3, TransactionId(0x1_0000)));
        assert_eq!(plans[0].offsets.iter().collect::<Vec<_>>(), [20, 21]);
        assert_eq!(plans[1].offsets.iter().collect::<Vec<_>>(), [22]);
        assert_eq!(items.redirections.iter().collect::<Vec<_>>(), [(10, 11)]);
        assert_eq!(items.dead.iter().collect::<Vec<_>>(), [12, 13]);
        assert_eq!(items.unused.iter().collect::<Vec<_>>(), [14]);
        for length in 0..data.len() {
            assert!(all.items(&data[..length]).is_err(), "{length}");
        }
        data.push(0);
        assert!(all.items(&data).is_err(), "a byte too many");

        let dead = PruneAndFreeze::read(&[0, prune_flags::HAS_DEAD_ITEMS]).expect("exact");
        let items = dead.items(&[1, 0, 5, 0]).expect("exact");
        assert_eq!((items.dead.len(), items.unused.len(), items.plans.len()), (1, 0, 0));
        assert!(PruneAndFreeze::read(&[0, prune_flags::HAS_CONFLICT_HORIZON, 1, 2, 3]).is_err());
    }
}
