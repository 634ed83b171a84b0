//! Looking up a TOAST value in its relation's btree, a page at a time, without I/O.
//!
//! The index of a TOAST relation has two columns, both fixed and never null:
//!
//! ```text
//! index tuple, data behind its 8 bytes of header
//!   8  4  chunk_id    oid, unsigned
//!  12  4  chunk_seq   int4, signed; a pivot may leave it out, and the first one on a page both
//! ```
//!
//! What is left out counts as less than everything. Searched is the first tuple of a value:
//!
//! ```text
//!        meta ──► root            left of the search key (value, 0)?  high key < it: go right
//!                  │              last pivot < it: go down
//!               internal ─► ...
//!                  │
//!                leaf ──────► leaf ──────► ...    all tuples of the value, until one is larger
//! ```
//!
//! Between two records a tree may have splits whose parents do not know yet, pages that are empty but
//! still linked, and ones that are not in the tree any more: all of them are passed by going right.
//!
//! Rules: `_bt_search`, `_bt_moveright`, `_bt_binsrch` and `_bt_compare` in
//! `src/backend/access/nbtree/nbtsearch.c`; `_bt_getroot` in `nbtpage.c`.

use std::cmp::Ordering;

use walfmt::bytes::{i32_at, u16_at, u32_at};
use walfmt::page::{self, IndexTuple, ItemPointer, PAGE_HEADER_SIZE, PageError};
use walfmt::relation::{BLOCK_SIZE, BlockNumber};
use walfmt::rmgr::btree::{
    BT_IS_POSTING, BT_OFFSET_MASK, BTP_DELETED, BTP_HALF_DEAD, BTP_LEAF, BTP_META, BTREE_MAGIC,
    INDEX_ALT_TID_MASK, OPAQUE_SIZE, P_HIKEY, P_NONE, PostingList,
};

use crate::Page;

/// More than the chunks of the largest value, 1 GB in pieces of about 2 kB, a few times over: numbers
/// of values are used again.
const FOUND_MAX: usize = 1 << 22;

/// The versions of btrees that a server of ours can have: 2 and 3 are of before 12, from which one
/// may have been upgraded in place (`BTREE_MIN_VERSION`, `BTREE_VERSION`).
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=4;

/// A page that has no place in a search.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// The page is not of a btree, or not the kind of page that should be there.
    #[error("{0}")]
    Page(&'static str),
    /// An item is not where it could be.
    #[error(transparent)]
    Item(#[from] PageError),
    /// An index tuple is not one of a TOAST relation's index.
    #[error("item {item}: {what}")]
    Tuple {
        /// The item's number.
        item: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A page stands on another level than its place in the tree has.
    #[error("a page of level {found} where level {expected} should be")]
    Level {
        /// As the page above, or to the left, has it.
        expected: u32,
        /// As the page itself has it.
        found: u32,
    },
    /// More pages than the index has, or more chunks than a value can have: it goes round in circles.
    #[error("the search does not end")]
    Endless,
}

/// A search for all chunks of one value.
///
/// ```text
/// while let Some(block) = search.block() { search.look(page of that block)?; }
/// ```
#[derive(Clone, Debug)]
pub struct ToastSearch {
    value: u32,
    /// The next page.
    block: Option<BlockNumber>,
    level: u32,
    /// How many more pages may be looked at.
    pages_left: u32,
    found: Vec<ItemPointer>,
}

impl ToastSearch {
    /// Begins at the meta page, block 0 of an index that is `blocks` long. An empty index has nothing
    /// to be looked at.
    ///
    /// # Errors
    /// [`SearchError`] if that is no meta page.
    pub fn begin(meta: &Page, value: u32, blocks: BlockNumber) -> Result<Self, SearchError> {
        let opaque = Opaque::of(meta)?;
        let contents = &meta[PAGE_HEADER_SIZE..];
        if opaque.flags & BTP_META == 0 || u32_at(contents, 0) != BTREE_MAGIC {
            return Err(SearchError::Page("block 0 is not the meta page of a btree"));
        }
        if !VERSIONS.contains(&u32_at(contents, 4)) {
            return Err(SearchError::Page("a version of btrees that is not known"));
        }
        // The fast root is the lowest page that is alone on its level: nothing is above it but pages
        // with one child.
        let (root, level) = (u32_at(contents, 16), u32_at(contents, 20));
        let block = (root != P_NONE).then_some(root);
        Ok(Self { value, block, level, pages_left: blocks, found: Vec::new() })
    }

    /// The page to be looked at next; nothing when the search is over.
    #[must_use]
    pub const fn block(&self) -> Option<BlockNumber> {
        self.block
    }

    /// Looks at the page that was asked for.
    ///
    /// # Errors
    /// [`SearchError`] if it cannot be what it should be. The search is over then.
    pub fn look(&mut self, page: &Page) -> Result<(), SearchError> {
        self.block = None;
        self.pages_left = self.pages_left.checked_sub(1).ok_or(SearchError::Endless)?;
        let next = self.step(page)?;
        if self.found.len() > FOUND_MAX {
            return Err(SearchError::Endless);
        }
        self.block = next;
        Ok(())
    }

    /// Where chunks of the value are, as the index has it; not all need be there.
    #[must_use]
    pub fn found(mut self) -> Vec<ItemPointer> {
        self.found.sort_unstable();
        self.found.dedup();
        self.found
    }

    /// What comes after the page; nothing at the end.
    fn step(&mut self, page: &Page) -> Result<Option<BlockNumber>, SearchError> {
        let opaque = Opaque::of(page)?;
        if opaque.flags & BTP_META != 0 {
            return Err(SearchError::Page("the meta page in the middle of the tree"));
        }
        // Nothing is in it, and its level may be gone. What was has moved right.
        if opaque.flags & (BTP_DELETED | BTP_HALF_DEAD) != 0 {
            return opaque.right().map(Some).ok_or(SearchError::Page("the last page is dead"));
        }
        if opaque.level != self.level || (opaque.flags & BTP_LEAF != 0) != (self.level == 0) {
            return Err(SearchError::Level { expected: self.level, found: opaque.level });
        }
        let high_key = match opaque.right() {
            Some(right) => Some((right, Key::of(page, P_HIKEY)?)),
            None => None,
        };
        if let Some((right, high_key)) = high_key
            && high_key.is_before(self.value)
        {
            return Ok(Some(right));
        }
        let first = if high_key.is_some() { P_HIKEY + 1 } else { P_HIKEY };
        if self.level > 0 {
            self.level -= 1;
            return self.child(page, first).map(Some);
        }
        let last = page::max_offset(page);
        // The first that is not before.
        let begin = bisect(first, last, |item| Ok(Key::of(page, item)?.is_before(self.value)))?;
        for item in begin..=last {
            if Key::of(page, item)?.chunk_id > Some(self.value) {
                return Ok(None);
            }
            self.take(page, item)?;
        }
        // More may follow if the first key over there can be of the value.
        Ok(high_key.and_then(|(right, key)| (key.chunk_id <= Some(self.value)).then_some(right)))
    }

    /// Where the last pivot before the search key leads. The first one is before everything.
    fn child(&self, page: &Page, first: u16) -> Result<BlockNumber, SearchError> {
        let last = page::max_offset(page);
        if first > last {
            return Err(SearchError::Page("an internal page without items"));
        }
        let after = bisect(first + 1, last, |item| Ok(Key::of(page, item)?.is_before(self.value)))?;
        let child = tuple(page, after - 1)?.tid().block;
        if child == P_NONE {
            return Err(SearchError::Page("a downlink to the meta page"));
        }
        Ok(child)
    }

    /// Takes what a leaf's item points to. Whether the index knows it as dead does not matter: who
    /// asks may be behind.
    fn take(&mut self, page: &Page, item: u16) -> Result<(), SearchError> {
        let tuple = tuple(page, item)?;
        let Some(posting) = PostingList::of(tuple) else {
            self.found.push(tuple.tid());
            return Ok(());
        };
        let addresses = tuple.bytes().get(posting.start..posting.end());
        let addresses = addresses
            .ok_or(SearchError::Tuple { item, what: "a posting list longer than its tuple" })?;
        let addresses = addresses.chunks_exact(ItemPointer::SIZE);
        self.found.extend(addresses.map(|address| ItemPointer::read(address, 0)));
        Ok(())
    }
}

/// The chunks that a leaf of a TOAST relation's index has, as far as it can be read: value and place.
pub(crate) fn chunks_of_leaf(page: &Page) -> Vec<(u32, ItemPointer)> {
    let mut chunks = Vec::new();
    let Ok(opaque) = Opaque::of(page) else { return chunks };
    if opaque.flags & BTP_LEAF == 0 || opaque.flags & (BTP_META | BTP_DELETED | BTP_HALF_DEAD) != 0
    {
        return chunks;
    }
    let first = if opaque.right().is_some() { P_HIKEY + 1 } else { P_HIKEY };
    for item in first..=page::max_offset(page) {
        let Ok(Some(value)) = Key::of(page, item).map(|key| key.chunk_id) else { continue };
        let mut search =
            ToastSearch { value, block: None, level: 0, pages_left: 0, found: Vec::new() };
        if search.take(page, item).is_ok() {
            chunks.extend(search.found.into_iter().map(|place| (value, place)));
        }
    }
    chunks
}

/// The first item of `first..=last` for which `is_before` does not hold; `last + 1` if it holds for
/// all. Items should be in order; if they are not, some item.
fn bisect(
    first: u16,
    last: u16,
    is_before: impl Fn(u16) -> Result<bool, SearchError>,
) -> Result<u16, SearchError> {
    let (mut low, mut high) = (first, last.saturating_add(1).max(first));
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

fn tuple(page: &Page, item: u16) -> Result<IndexTuple<'_>, SearchError> {
    Ok(IndexTuple::read(page::item(page, item)?)?)
}

/// As much of a key as a tuple has. What is left out is less than everything, as in the order of
/// `Option`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    chunk_id: Option<u32>,
    chunk_seq: Option<i32>,
}

impl Key {
    fn of(page: &Page, item: u16) -> Result<Self, SearchError> {
        let tuple = tuple(page, item)?;
        let offset = tuple.tid().offset;
        let is_pivot = tuple.info() & INDEX_ALT_TID_MASK != 0 && offset & BT_IS_POSTING == 0;
        let columns = if is_pivot { offset & BT_OFFSET_MASK } else { 2 };
        if columns > 2 {
            return Err(SearchError::Tuple { item, what: "more than two columns" });
        }
        if tuple.size() < IndexTuple::HEADER_SIZE + 4 * usize::from(columns) {
            return Err(SearchError::Tuple { item, what: "shorter than its columns" });
        }
        let chunk_id = (columns > 0).then(|| u32_at(tuple.bytes(), 8));
        let chunk_seq = (columns > 1).then(|| i32_at(tuple.bytes(), 12));
        Ok(Self { chunk_id, chunk_seq })
    }

    /// Whether it is before the first chunk of the value.
    fn is_before(self, value: u32) -> bool {
        let order = self.chunk_id.cmp(&Some(value)).then(self.chunk_seq.cmp(&Some(0)));
        order == Ordering::Less
    }
}

/// What a search needs of a btree page's special space.
struct Opaque {
    next: BlockNumber,
    level: u32,
    flags: u16,
}

impl Opaque {
    fn of(page: &Page) -> Result<Self, SearchError> {
        let special = usize::from(page::special(page));
        if special != BLOCK_SIZE - OPAQUE_SIZE {
            return Err(SearchError::Page("not a page of a btree"));
        }
        Ok(Self {
            next: u32_at(page, special + 4),
            level: u32_at(page, special + 8),
            flags: u16_at(page, special + 12),
        })
    }

    fn right(&self) -> Option<BlockNumber> {
        (self.next != P_NONE).then_some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walfmt::bytes::put;
    use walfmt::page::ItemId;

    use super::*;
    use crate::page::tests::any_page;
    use crate::page::{add_item, init, set_item_id};

    type Tree = Vec<Page>;

    fn chunk(value: u32, seq: i32) -> ItemPointer {
        ItemPointer { block: value * 10 + seq as u32, offset: 1 }
    }

    fn key(value: u32, seq: Option<i32>) -> Vec<u8> {
        [value.to_le_bytes().to_vec(), seq.map_or(vec![], |seq| seq.to_le_bytes().to_vec())]
            .concat()
    }

    fn index_tuple(tid: ItemPointer, info: u16, data: &[u8]) -> Vec<u8> {
        let size = (8 + data.len()).next_multiple_of(8);
        let mut bytes = [&tid.to_bytes()[..], &(info | size as u16).to_le_bytes(), data].concat();
        bytes.resize(size, 0);
        bytes
    }

    fn leaf_item(value: u32, seq: i32) -> Vec<u8> {
        index_tuple(chunk(value, seq), 0, &key(value, Some(seq)))
    }

    fn pivot(child: u32, columns: u16, data: &[u8]) -> Vec<u8> {
        index_tuple(ItemPointer { block: child, offset: columns }, INDEX_ALT_TID_MASK, data)
    }

    fn minus_infinity(child: u32) -> Vec<u8> {
        pivot(child, 0, &[])
    }

    fn page(next: u32, level: u32, flags: u16, items: &[Vec<u8>]) -> Page {
        let mut page = [0; BLOCK_SIZE];
        init(&mut page, OPAQUE_SIZE);
        for (at, item) in items.iter().enumerate() {
            add_item(&mut page, at as u16 + 1, item).expect("fits");
        }
        let flags = flags | if level == 0 { BTP_LEAF } else { 0 };
        put(&mut page, BLOCK_SIZE - 12, next.to_le_bytes());
        put(&mut page, BLOCK_SIZE - 8, level.to_le_bytes());
        put(&mut page, BLOCK_SIZE - 4, flags.to_le_bytes());
        page
    }

    fn meta(root: u32, level: u32) -> Page {
        let mut page = page(0, 0, BTP_META, &[]);
        for (at, value) in [BTREE_MAGIC, 4, root, level, root, level].into_iter().enumerate() {
            put(&mut page, PAGE_HEADER_SIZE + 4 * at, value.to_le_bytes());
        }
        page
    }

    fn search(tree: &Tree, value: u32) -> Result<Vec<ItemPointer>, SearchError> {
        let mut search = ToastSearch::begin(&tree[0], value, tree.len() as u32)?;
        while let Some(block) = search.block() {
            search.look(tree.get(block as usize).ok_or(SearchError::Page("no such block"))?)?;
        }
        Ok(search.found())
    }

    fn chunks(value: u32, seqs: std::ops::Range<i32>) -> Vec<ItemPointer> {
        seqs.map(|seq| chunk(value, seq)).collect()
    }

    /// Two leaves in the tree, one that its parent does not know, one that is half dead.
    fn small_tree() -> Tree {
        let items = |parts: &[(u32, i32)]| -> Vec<Vec<u8>> {
            parts.iter().map(|(value, seq)| leaf_item(*value, *seq)).collect()
        };
        let with_high = |high: Vec<u8>, mut rest: Vec<Vec<u8>>| {
            rest.insert(0, high);
            rest
        };
        vec![
            meta(1, 1),
            page(
                0,
                1,
                0,
                &[minus_infinity(2), pivot(3, 1, &key(20, None)), pivot(5, 2, &key(30, Some(2)))],
            ),
            // Its right sibling is the half dead one.
            page(
                4,
                0,
                0,
                &with_high(pivot(0, 1, &key(20, None)), items(&[(10, 0), (10, 1), (15, 0)])),
            ),
            // It was split, and its parent does not know.
            page(6, 0, 0, &with_high(pivot(0, 1, &key(25, None)), items(&[(20, 0), (20, 1)]))),
            page(3, 0, BTP_HALF_DEAD, &[minus_infinity(0)]),
            page(0, 0, 0, &items(&[(30, 2), (40, 0)])),
            page(
                5,
                0,
                0,
                &with_high(pivot(0, 2, &key(30, Some(2))), items(&[(25, 0), (30, 0), (30, 1)])),
            ),
        ]
    }

    #[test]
    fn all_chunks_of_a_value_are_found_whatever_state_the_tree_is_in() {
        let tree = small_tree();
        assert_eq!(search(&tree, 10), Ok(chunks(10, 0..2)));
        assert_eq!(search(&tree, 15), Ok(chunks(15, 0..1)));
        assert_eq!(search(&tree, 20), Ok(chunks(20, 0..2)));
        assert_eq!(search(&tree, 25), Ok(chunks(25, 0..1)), "on the page that is not known above");
        assert_eq!(search(&tree, 30), Ok(chunks(30, 0..3)), "on two pages");
        assert_eq!(search(&tree, 40), Ok(chunks(40, 0..1)));
        for value in [0, 9, 11, 19, 24, 29, 35, 41, u32::MAX] {
            assert_eq!(search(&tree, value), Ok(Vec::new()), "{value}");
        }
    }

    #[test]
    fn posting_lists_and_dead_items_are_told_too() {
        let posting = [chunk(7, 0), ItemPointer { block: 99, offset: 3 }];
        let addresses: Vec<u8> = posting.iter().flat_map(|tid| tid.to_bytes()).collect();
        let head = ItemPointer { block: 16, offset: BT_IS_POSTING | 2 };
        let data = [key(7, Some(0)), addresses].concat();
        let items = [index_tuple(head, INDEX_ALT_TID_MASK, &data), leaf_item(7, 1)];
        let mut leaf = page(0, 0, 0, &items);
        let id = page::item_id(&leaf, 2).expect("is there");
        set_item_id(&mut leaf, 2, ItemId { flags: page::LP_DEAD, ..id }).expect("is there");
        let found = search(&vec![meta(1, 0), leaf], 7);
        assert_eq!(found, Ok(vec![posting[0], chunk(7, 1), posting[1]]));
    }

    #[test]
    fn an_empty_index_has_nothing() {
        assert_eq!(search(&vec![meta(P_NONE, 0)], 7), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_tree_is_noticed() {
        assert!(search(&vec![[0; BLOCK_SIZE]], 7).is_err());
        let circle = page(1, 0, 0, &[pivot(0, 1, &key(5, None)), leaf_item(4, 0)]);
        assert_eq!(search(&vec![meta(1, 0), circle], 7), Err(SearchError::Endless));
        let mut tree = small_tree();
        tree[1] = tree[5];
        assert_eq!(search(&tree, 7), Err(SearchError::Level { expected: 1, found: 0 }));
    }

    proptest! {
        /// Trees of three levels with values of any number of chunks, and high keys that are cut where
        /// a server may cut them.
        #[test]
        fn trees_are_searched_as_lists(
            counts in prop::collection::btree_map(1..2000_u32, 1..12_i32, 0..120),
            per_leaf in 1..9_usize,
            per_page in 1..5_usize,
            cut in any::<bool>(),
        ) {
            let mut tuples = Vec::new();
            for (value, count) in &counts {
                tuples.extend((0..*count).map(|seq| (*value, seq)));
            }
            let tree = build(&tuples, per_leaf, per_page, cut);
            for value in 0..2001 {
                let expected = chunks(value, 0..counts.get(&value).copied().unwrap_or(0));
                prop_assert_eq!(search(&tree, value), Ok(expected));
            }
        }

        #[test]
        fn no_pages_do_harm(
            pages in prop::collection::vec(any_page(), 1..4),
            is_meta in any::<bool>(),
            flags in prop::collection::vec(0..512_u16, 4),
            spoiled in prop::collection::vec((1..7_usize, 0..BLOCK_SIZE, any::<u8>()), 0..40),
            value in prop_oneof![Just(20), Just(30), any::<u32>()],
        ) {
            let mut tree: Tree = pages;
            for (page, flags) in tree.iter_mut().zip(flags) {
                put(page, BLOCK_SIZE - 4, flags.to_le_bytes());
                put(page, BLOCK_SIZE - 12, [1_u8, 0, 0, 0]);
            }
            if is_meta {
                tree.insert(0, meta(1, u32::from(value % 2 == 0)));
            }
            let _ = search(&tree, value);
            let mut tree = small_tree();
            for (page, at, byte) in spoiled {
                tree[page][at] = byte;
            }
            let _ = search(&tree, value);
        }
    }

    /// A tree over sorted tuples. With `cut` a high key has its second column only if it must.
    fn build(tuples: &[(u32, i32)], per_leaf: usize, per_page: usize, cut: bool) -> Tree {
        let mut tree = vec![[0; BLOCK_SIZE]];
        if tuples.is_empty() {
            tree[0] = meta(P_NONE, 0);
            return tree;
        }
        // Of each page of a level: its items, and the key it begins with.
        type Lower = (u32, Option<i32>);
        let separator = |left: (u32, i32), right: (u32, i32)| -> Lower {
            (right.0, (!cut || left.0 == right.0).then_some(right.1))
        };
        let pivot_of = |child, (value, seq): Lower| {
            pivot(child, 1 + u16::from(seq.is_some()), &key(value, seq))
        };
        let mut level = 0;
        let mut nodes: Vec<(Vec<Vec<u8>>, Option<Lower>)> = Vec::new();
        let mut before = None;
        for leaf in tuples.chunks(per_leaf) {
            let lower = before.map(|before| separator(before, leaf[0]));
            nodes.push((leaf.iter().map(|(value, seq)| leaf_item(*value, *seq)).collect(), lower));
            before = leaf.last().copied();
        }
        loop {
            let begin = tree.len() as u32;
            for (at, (items, _)) in nodes.iter().enumerate() {
                let next = nodes.get(at + 1).and_then(|(_, lower)| *lower);
                let high = next.map(|lower| pivot_of(0, lower));
                let items: Vec<_> = high.into_iter().chain(items.iter().cloned()).collect();
                let right = if next.is_some() { begin + at as u32 + 1 } else { P_NONE };
                tree.push(page(right, level, 0, &items));
            }
            if nodes.len() == 1 {
                tree[0] = meta(begin, level);
                return tree;
            }
            let children: Vec<_> = (begin..).zip(nodes).collect();
            nodes = children
                .chunks(per_page + 1)
                .map(|group| {
                    let items =
                        group.iter().enumerate().map(|(at, (child, (_, lower)))| match lower {
                            Some(lower) if at > 0 => pivot_of(*child, *lower),
                            _ => minus_infinity(*child),
                        });
                    (items.collect(), group[0].1.1)
                })
                .collect();
            level += 1;
        }
    }
}
