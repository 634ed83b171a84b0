//! The configuration of the server that will open the store one day, where the base backup has none.
//!
//! Debian keeps `postgresql.conf` and `pg_hba.conf` outside of the data directory, so a base backup
//! does not have them, and without them no server starts. What is written here is the least with which
//! one does: the settings that recovery demands to be no lower than the leader's
//! (`CheckRequiredParameterValues`, `src/backend/access/transam/xlogrecovery.c`), and connections of
//! this machine's users only.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use walfmt::control::ControlFile;

const CONFIGURATION: &str = "postgresql.conf";

/// Writes what is missing in the directory that becomes the store; says whether its `postgresql.conf`
/// was. All of it is durable then.
pub(super) fn write_missing(part: &Path, control: &ControlFile) -> io::Result<bool> {
    let settings = format!(
        "# Written by walferry bootstrap: the base backup has no postgresql.conf, as on Debian, which\n\
         # keeps it elsewhere. It is the least with which a promoted server starts. Put the leader's\n\
         # settings here before they are needed, as TimeZone, default_text_search_config, ssl and\n\
         # listen_addresses, but not data_directory, hba_file, ident_file, external_pid_file or\n\
         # include_dir. In pg_hba.conf stands who may connect.\n\
         listen_addresses = 'localhost'\n\
         max_connections = {}\n\
         max_worker_processes = {}\n\
         max_wal_senders = {}\n\
         max_prepared_transactions = {}\n\
         max_locks_per_transaction = {}\n\
         track_commit_timestamp = {}\n",
        control.max_connections,
        control.max_worker_processes,
        control.max_wal_senders,
        control.max_prepared_transactions,
        control.max_locks_per_transaction,
        if control.track_commit_timestamp { "on" } else { "off" },
    );
    let access = "# Written by walferry bootstrap: add those who may connect from elsewhere.\n\
                  local all all peer\n";
    let mut is_new = false;
    for (name, text) in
        [(CONFIGURATION, settings.as_str()), ("pg_hba.conf", access), ("pg_ident.conf", "")]
    {
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(part.join(name));
        let mut file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        is_new |= name == CONFIGURATION;
    }
    File::open(part)?.sync_all()?;
    Ok(is_new)
}
