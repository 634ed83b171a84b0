//! Syncing early, while a lot arrives: a thread has the disk write what the archive's thread has
//! appended, so that its own sync, on which alone durability rests, finds little left to do.

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use walferry_archive::{FileError, Files};

/// The disk is set to work when so much was written since it last was.
const AHEAD_BYTES: u64 = 1 << 20;

pub(super) struct EarlySync {
    ask: SyncSender<PathBuf>,
    failed: Arc<Mutex<Option<FileError>>>,
    unsynced: u64,
}

impl EarlySync {
    /// Starts the thread; it ends with this.
    pub(super) fn start(files: Arc<dyn Files>) -> std::io::Result<Self> {
        // One file at a time: whoever asks meanwhile asks again later.
        let (ask, asked) = sync_channel::<PathBuf>(1);
        let failed = Arc::new(Mutex::new(None));
        let report = Arc::clone(&failed);
        thread::Builder::new().name("receive-sync".to_owned()).spawn(move || {
            for path in asked {
                // The file may have been removed by retention; then there is nothing to sync.
                let result = files.open_read(&path).and_then(|file| file.fdatasync());
                if let Err(error) = result
                    && error.is_sync()
                {
                    *report.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            }
        })?;
        Ok(Self { ask, failed, unsynced: 0 })
    }

    /// So many bytes were appended to this file.
    pub(super) fn appended(&mut self, bytes: usize, path: impl FnOnce() -> PathBuf) {
        self.unsynced += bytes as u64;
        if self.unsynced >= AHEAD_BYTES && self.ask.try_send(path()).is_ok() {
            self.unsynced = 0;
        }
    }

    /// A sync that failed. The kernel may have dropped what it was for: whoever relies on a later one
    /// must not.
    pub(super) fn take_failure(&self) -> Option<FileError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
