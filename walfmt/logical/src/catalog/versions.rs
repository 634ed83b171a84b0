//! Rows of a catalog in all the versions that anybody may still ask for.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use walfmt::{Lsn, TransactionId};

/// From when on something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// It was when decoding began.
    Always,
    /// Since this record, for its transaction.
    Pending { xid: TransactionId, lsn: Lsn },
    /// Since this commit, for all.
    Committed { lsn: Lsn },
}

/// Whose eyes, at which record: rows are as that record's transaction saw them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// The record.
    pub(crate) at: Lsn,
    /// Its transaction with all subtransactions that were not rolled back, in ascending order.
    pub(crate) tree: &'a [TransactionId],
}

impl View<'_> {
    /// What was committed before this record.
    pub(crate) const fn now(at: Lsn) -> Self {
        Self { at, tree: &[] }
    }

    fn sees(&self, when: When) -> bool {
        match when {
            When::Always => true,
            When::Pending { xid, lsn } => lsn < self.at && self.owns(xid),
            When::Committed { lsn } => lsn < self.at,
        }
    }

    fn owns(&self, xid: TransactionId) -> bool {
        self.tree.binary_search_by_key(&xid.0, |own| own.0).is_ok()
    }
}

#[derive(Clone, Debug)]
struct Version<V> {
    value: V,
    /// The row as entries have it, to write it down again.
    contents: Box<[u8]>,
    created: When,
    deleted: Option<When>,
}

/// All versions of all rows of one catalog.
#[derive(Clone, Debug)]
pub(crate) struct Versions<K, V>(BTreeMap<K, Vec<Version<V>>>);

impl<K, V> Default for Versions<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy, V> Versions<K, V> {
    pub(crate) fn insert(&mut self, key: K, value: V, contents: &[u8], created: When) {
        let contents = contents.into();
        self.0.entry(key).or_default().push(Version { value, contents, created, deleted: None });
    }

    /// All rows that are there or may be one day: their contents, with who has inserted and deleted
    /// them and not ended.
    pub(crate) fn living(
        &self,
        keys: impl RangeBounds<K>,
    ) -> impl Iterator<Item = (K, &[u8], TransactionId, TransactionId)> {
        let pending = |when: Option<When>| match when {
            Some(When::Pending { xid, .. }) => xid,
            _ => TransactionId::INVALID,
        };
        let all = self.0.range(keys);
        let all = all.flat_map(|(key, versions)| versions.iter().map(|version| (*key, version)));
        all.filter(|(_, version)| !matches!(version.deleted, Some(When::Committed { .. }))).map(
            move |(key, version)| {
                let (created, deleted) = (pending(Some(version.created)), pending(version.deleted));
                (key, &*version.contents, created, deleted)
            },
        )
    }

    /// The newest version that is not deleted is, from then on.
    pub(crate) fn delete(&mut self, key: K, when: When) {
        let versions = self.0.get_mut(&key).map(Vec::as_mut_slice).unwrap_or_default();
        if let Some(version) = versions.iter_mut().rev().find(|version| version.deleted.is_none()) {
            version.deleted = Some(when);
        }
    }

    pub(crate) fn get(&self, key: K, view: View<'_>) -> Option<&V> {
        self.0.get(&key).and_then(|versions| visible(versions, view))
    }

    pub(crate) fn range(
        &self,
        keys: impl RangeBounds<K>,
        view: View<'_>,
    ) -> impl Iterator<Item = (K, &V)> {
        let all = self.0.range(keys);
        all.filter_map(move |(key, versions)| Some((*key, visible(versions, view)?)))
    }

    /// The newest versions, whoever may see them, of rows that are not gone for everybody.
    pub(crate) fn living_values(&self, keys: impl RangeBounds<K>) -> impl Iterator<Item = (K, &V)> {
        let is_living =
            |version: &&Version<V>| !matches!(version.deleted, Some(When::Committed { .. }));
        self.0.range(keys).filter_map(move |(key, versions)| {
            versions.iter().rev().find(is_living).map(|version| (*key, &version.value))
        })
    }

    /// The newest version, whoever may see it.
    pub(crate) fn newest(&self, key: K) -> Option<&V> {
        self.0.get(&key).and_then(|versions| versions.last()).map(|version| &version.value)
    }

    /// Whether any version fits, whoever may see it.
    pub(crate) fn any(&self, key: K, fits: impl Fn(&V) -> bool) -> bool {
        self.0.get(&key).into_iter().flatten().any(|version| fits(&version.value))
    }

    /// Whether any version fits, and was created by one of these transactions.
    pub(crate) fn is_own(&self, key: K, view: View<'_>, fits: impl Fn(&V) -> bool) -> bool {
        self.0.get(&key).into_iter().flatten().any(|version| {
            let When::Pending { xid, .. } = version.created else { return false };
            view.owns(xid) && fits(&version.value)
        })
    }

    /// The transaction that has made the first version that fits, if it has not ended.
    pub(crate) fn maker(&self, key: K, fits: impl Fn(&V) -> bool) -> Option<TransactionId> {
        let first = self.0.get(&key)?.iter().find(|version| fits(&version.value))?;
        match first.created {
            When::Pending { xid, .. } => Some(xid),
            When::Always | When::Committed { .. } => None,
        }
    }

    /// A transaction's changes to a row are everybody's from now on.
    pub(crate) fn commit(&mut self, key: K, xid: TransactionId, lsn: Lsn) {
        let is_its = |when: &When| matches!(when, When::Pending { xid: its, .. } if *its == xid);
        for version in self.0.get_mut(&key).into_iter().flatten() {
            if is_its(&version.created) {
                version.created = When::Committed { lsn };
            }
            if version.deleted.as_ref().is_some_and(is_its) {
                version.deleted = Some(When::Committed { lsn });
            }
        }
    }

    /// A transaction's changes to a row never were.
    pub(crate) fn abort(&mut self, key: K, xid: TransactionId) {
        let is_its = |when: &When| matches!(when, When::Pending { xid: its, .. } if *its == xid);
        let Some(versions) = self.0.get_mut(&key) else { return };
        versions.retain(|version| !is_its(&version.created));
        for version in
            versions.iter_mut().filter(|version| version.deleted.as_ref().is_some_and(is_its))
        {
            version.deleted = None;
        }
        if versions.is_empty() {
            self.0.remove(&key);
        }
    }

    /// Forgets versions of a row that were deleted for all who are still to ask; gives whether any is
    /// left that one day can be.
    pub(crate) fn forget(&mut self, key: K, horizon: Lsn, mut gone: impl FnMut(&V)) -> bool {
        let Some(versions) = self.0.get_mut(&key) else { return false };
        versions.retain(|version| {
            let is_gone = matches!(version.deleted, Some(When::Committed { lsn }) if lsn < horizon);
            if is_gone {
                gone(&version.value);
            }
            !is_gone
        });
        let is_left = versions.iter().any(|version| version.deleted.is_some());
        if versions.is_empty() {
            self.0.remove(&key);
        }
        is_left
    }

    /// Forgets rows, whoever may see them.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.0.retain(|key, _| keep(key));
    }
}

fn visible<'a, V>(versions: &'a [Version<V>], view: View<'_>) -> Option<&'a V> {
    let is_visible = |version: &&Version<V>| {
        view.sees(version.created) && !version.deleted.is_some_and(|deleted| view.sees(deleted))
    };
    versions.iter().rev().find(is_visible).map(|version| &version.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TransactionId = TransactionId(10);
    const TWO: TransactionId = TransactionId(11);

    fn at(lsn: u64, tree: &[TransactionId]) -> View<'_> {
        View { at: Lsn(lsn), tree }
    }

    fn pending(xid: TransactionId, lsn: u64) -> When {
        When::Pending { xid, lsn: Lsn(lsn) }
    }

    #[test]
    fn a_transaction_sees_its_own_and_what_was_committed() {
        let mut rows = Versions::default();
        rows.insert(1, "old", &[], When::Always);
        rows.delete(1, pending(ONE, 50));
        rows.insert(1, "new", &[], pending(ONE, 50));
        assert_eq!(rows.get(1, at(50, &[ONE])), Some(&"old"), "before its own record");
        assert_eq!(rows.get(1, at(51, &[ONE])), Some(&"new"));
        assert_eq!(rows.get(1, at(99, &[TWO])), Some(&"old"));
        rows.commit(1, ONE, Lsn(70));
        assert_eq!(rows.get(1, at(60, &[TWO])), Some(&"old"), "a record of before the commit");
        assert_eq!(rows.get(1, at(71, &[TWO])), Some(&"new"));
        assert!(rows.forget(1, Lsn(70), |_| ()), "somebody may still ask");
        assert!(!rows.forget(1, Lsn(71), |_| ()));
        assert_eq!(rows.get(1, at(60, &[TWO])), None);
    }

    #[test]
    fn what_was_rolled_back_never_was() {
        let mut rows = Versions::default();
        rows.insert(1, "old", &[], When::Always);
        rows.delete(1, pending(ONE, 50));
        rows.insert(1, "new", &[], pending(ONE, 50));
        rows.insert(2, "other", &[], pending(ONE, 51));
        rows.abort(1, ONE);
        rows.abort(2, ONE);
        assert_eq!(rows.get(1, at(60, &[ONE])), Some(&"old"));
        assert_eq!(rows.range(.., at(60, &[ONE])).count(), 1);
        assert_eq!(rows.newest(2), None);
    }
}
