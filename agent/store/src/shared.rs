//! What the dispatcher, the workers and the sync thread all see.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use walfmt::{Lsn, Version};

use crate::error::{FileError, PageFault};
use crate::invalid_pages::InvalidPages;

/// No failure: later than every record.
const NEVER: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) version: &'static Version,
    pub(crate) invalid_pages: InvalidPages,
    /// The end of the last record such that it and all before it are applied. Only grows.
    pub(crate) applied: Arc<AtomicU64>,
    /// The same for each worker's share.
    progress: Vec<AtomicU64>,
    /// The start of the earliest record that a worker failed at.
    failed_at: AtomicU64,
    failure: Mutex<Option<Failure>>,
    /// Pages that were compared with the leader's image of them.
    pub(crate) images_verified: AtomicU64,
}

/// Why the threads behind the dispatcher stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// At a page.
    Page {
        /// The record's start.
        at: Lsn,
        fault: PageFault,
    },
    /// At a write or sync that belongs to no record. The first error is final: after a failed sync
    /// the kernel may have dropped the pages, so a second, successful one would prove nothing.
    Sync(FileError),
}

impl Failure {
    fn at(&self) -> Lsn {
        match self {
            Self::Page { at, .. } => *at,
            Self::Sync(_) => Lsn::INVALID,
        }
    }
}

impl Shared {
    pub(crate) fn new(version: &'static Version, workers: usize, start: Lsn) -> Self {
        Self {
            version,
            invalid_pages: InvalidPages::default(),
            applied: Arc::new(AtomicU64::new(start.0)),
            progress: (0..workers).map(|_| AtomicU64::new(start.0)).collect(),
            failed_at: AtomicU64::new(NEVER),
            failure: Mutex::new(None),
            images_verified: AtomicU64::new(0),
        }
    }

    /// `worker` has applied its share of everything up to `end`.
    ///
    /// Whoever publishes last sees what all others have published, so `applied` reaches the
    /// smallest of them in the end, whatever the order of these calls.
    pub(crate) fn publish(&self, worker: usize, end: Lsn) {
        self.progress[worker].store(end.0, Ordering::SeqCst);
        let all = self.progress.iter().map(|progress| progress.load(Ordering::SeqCst));
        if let Some(least) = all.min() {
            self.applied.fetch_max(least, Ordering::SeqCst);
        }
    }

    pub(crate) fn count_verified(&self, images: u64) {
        if images > 0 {
            self.images_verified.fetch_add(images, Ordering::Relaxed);
        }
    }

    pub(crate) fn progress(&self, worker: usize) -> Lsn {
        Lsn(self.progress[worker].load(Ordering::SeqCst))
    }

    pub(crate) fn applied(&self) -> Lsn {
        Lsn(self.applied.load(Ordering::SeqCst))
    }

    /// Stops everything from the failure's record on. Of several failures the earliest counts.
    pub(crate) fn fail(&self, failure: Failure) {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|first| failure.at() < first.at()) {
            self.failed_at.fetch_min(failure.at().0, Ordering::SeqCst);
            *first = Some(failure);
        }
    }

    /// Whether the record that begins at `start` must not be applied any more.
    pub(crate) fn is_stopped_before(&self, start: Lsn) -> bool {
        self.failed_at.load(Ordering::Relaxed) <= start.0
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed_at.load(Ordering::SeqCst) != NEVER
    }

    pub(crate) fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
