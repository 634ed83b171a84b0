//! A replication connection to the server beside us, for a base backup.
//!
//! ```text
//! startup (replication=true), authentication
//! SHOW server_version_num
//!   one row: the version
//! CREATE_REPLICATION_SLOT name TEMPORARY PHYSICAL (RESERVE_WAL)      WAL stays until the connection ends
//! BASE_BACKUP (...)
//!   one row: start LSN, timeline
//!   rows: OID, location and kB of each tablespace, the data directory last (no OID)
//!   CopyData   'n' name, location: an archive begins
//!              'm': the manifest begins
//!              'd' bytes
//!              'p' how far it is
//!   one row: end LSN, timeline
//! ```
//!
//! tokio-postgres has no replication connections; this is `postgres-protocol` and a socket. What is
//! answered: `SendXlogRecPtrResult` and `SendTablespaceList` in
//! `src/backend/backup/basebackup_copy.c`, from PostgreSQL 15 on.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ChannelBinding, ScramSha256};
use postgres_protocol::message::backend::{
    DataRowBody, ErrorFields, ErrorResponseBody, Message, NoticeResponseBody,
};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::fallible_iterator::FallibleIterator;
use walferry_wire::BACKUP_DATA_MAX;
use walfmt::{Lsn, Timeline};

use crate::tls::Stream;
use crate::trouble::{Kind, Trouble};

const READ_BYTES: usize = 128 << 10;
const DEFAULT_PORT: u16 = 5432;
/// No answer of a server is longer.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How many of the server's warnings are kept.
const WARNINGS_MAX: usize = 20;
/// What a server says that was built without zstd: `ERRCODE_SYNTAX_ERROR` where it looks at the option
/// (`validate_compress_specification`), else `ERRCODE_FEATURE_NOT_SUPPORTED`.
const WITHOUT_ZSTD: [&str; 2] = ["42601", "0A000"];
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection that ends when this is dropped, and with it its backup and its slot.
pub(crate) struct ReplicationConnection {
    stream: Box<dyn Stream>,
    received: BytesMut,
    /// What the server has warned of, as of a page whose checksum is wrong.
    warnings: Vec<String>,
}

/// How a base backup is to be made.
pub(crate) struct BackupOptions {
    pub(crate) label: String,
    /// The name of the slot.
    pub(crate) slot: String,
    pub(crate) fast_checkpoint: bool,
    /// kB per second; 0 is as fast as it can.
    pub(crate) max_rate: u32,
}

/// What is known when a backup begins.
#[derive(Debug)]
pub(crate) struct BackupStart {
    pub(crate) start: Lsn,
    pub(crate) timeline: Timeline,
    /// About how much will come, before compression.
    pub(crate) bytes: u64,
    /// Whether archives are compressed with zstd.
    pub(crate) is_compressed: bool,
}

/// A piece of a backup.
#[derive(Debug)]
pub(crate) enum BackupPiece {
    /// The archive of a tablespace begins; of the data directory without an OID.
    Archive(Option<u32>),
    Manifest,
    /// At most [`BACKUP_DATA_MAX`] bytes of what began last.
    Data(Bytes),
    End {
        end: Lsn,
        timeline: Timeline,
    },
}

/// What an error response says.
struct Refusal {
    code: String,
    message: String,
}

impl ReplicationConnection {
    pub(crate) async fn connect(conninfo: &str) -> Result<Self, Trouble> {
        let config: tokio_postgres::Config = conninfo
            .parse()
            .map_err(|error| Trouble::misuse(format_args!("[source] conninfo: {error}")))?;
        let user = config.get_user().ok_or_else(|| {
            Trouble::misuse("[source] conninfo names no user")
                .with_hint("a base backup needs a user with REPLICATION: add user=... to conninfo")
        })?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(Trouble::misuse("[source] conninfo: sslmode=require is not possible here")
                .with_hint("connect through the Unix socket: the server is on this machine"));
        }
        let stream = tokio::time::timeout(CONNECT_LIMIT, open_socket(&config))
            .await
            .map_err(|_| Trouble::io("connecting to the server", "no answer"))??;
        let mut connection = Self { stream, received: BytesMut::new(), warnings: Vec::new() };
        let parameters = [
            ("user", user),
            ("replication", "true"),
            ("application_name", "walferry bootstrap"),
            ("client_encoding", "UTF8"),
        ];
        connection.send(|out| frontend::startup_message(parameters, out)).await?;
        connection.authenticate(user, config.get_password()).await?;
        Ok(connection)
    }

    /// `server_version_num`.
    pub(crate) async fn server_version(&mut self) -> Result<u32, Trouble> {
        self.query("SHOW server_version_num").await?;
        let mut version = None;
        loop {
            match self.receive().await? {
                Message::DataRow(row) => {
                    version = column(&row, 0)?.and_then(|text| text.parse().ok());
                }
                Message::ErrorResponse(body) => {
                    let refusal = self.refusal(&body);
                    return Err(self.refused(&refusal));
                }
                Message::ReadyForQuery(_) => {
                    return version.ok_or_else(|| unexpected("no version"));
                }
                _ => {}
            }
        }
    }

    /// Has the server keep all WAL from now on, until this connection ends or a command fails.
    async fn hold_wal(&mut self, slot: &str) -> Result<(), Trouble> {
        let command =
            format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY PHYSICAL (RESERVE_WAL)");
        self.query(&command).await?;
        loop {
            match self.receive().await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => {
                    let refusal = self.refusal(&body);
                    self.ready().await?;
                    return Err(self.refused(&refusal));
                }
                _ => {}
            }
        }
    }

    /// Begins a base backup without WAL, and has the server keep that under a temporary slot until
    /// this connection ends. Its pieces come from [`next`](Self::next).
    pub(crate) async fn base_backup(
        &mut self,
        options: &BackupOptions,
    ) -> Result<BackupStart, Trouble> {
        self.hold_wal(&options.slot).await?;
        match self.try_base_backup(options, true).await? {
            Ok(start) => Ok(start),
            // A server can be built without zstd.
            Err(refusal) if WITHOUT_ZSTD.contains(&&*refusal.code) => {
                self.ready().await?;
                self.hold_wal(&options.slot).await?; // an error ends temporary slots
                let again = self.try_base_backup(options, false).await?;
                again.map_err(|refusal| self.refused(&refusal))
            }
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    async fn try_base_backup(
        &mut self,
        options: &BackupOptions,
        is_compressed: bool,
    ) -> Result<Result<BackupStart, Refusal>, Trouble> {
        let quoted = options.label.replace('\'', "''");
        let checkpoint = if options.fast_checkpoint { "fast" } else { "spread" };
        let mut command = format!(
            "BASE_BACKUP (LABEL '{quoted}', PROGRESS true, CHECKPOINT '{checkpoint}', WAL false, \
             WAIT false, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'"
        );
        if options.max_rate > 0 {
            command += &format!(", MAX_RATE {}", options.max_rate);
        }
        if is_compressed {
            command += ", COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=1'";
        }
        command.push(')');
        self.query(&command).await?;
        let (mut begun, mut bytes) = (None, 0_u64);
        loop {
            match self.receive().await? {
                Message::DataRow(row) if begun.is_none() => begun = Some(position(&row)?),
                Message::DataRow(row) => {
                    // The third column; nothing without PROGRESS.
                    let kilobytes = column(&row, 2)?.unwrap_or_default();
                    bytes = kilobytes
                        .parse::<u64>()
                        .unwrap_or(0)
                        .saturating_mul(1024)
                        .saturating_add(bytes);
                }
                Message::CopyOutResponse(_) => {
                    let Some((start, timeline)) = begun else {
                        return Err(unexpected("a backup without a start"));
                    };
                    return Ok(Ok(BackupStart { start, timeline, bytes, is_compressed }));
                }
                Message::ErrorResponse(body) => return Ok(Err(self.refusal(&body))),
                Message::ReadyForQuery(_) => return Err(unexpected("no backup")),
                _ => {}
            }
        }
    }

    /// The next piece of the backup. After its end there is none.
    pub(crate) async fn next(&mut self) -> Result<BackupPiece, Trouble> {
        loop {
            match self.receive().await? {
                Message::CopyData(body) => {
                    if let Some(piece) = copy_data(body.into_bytes())? {
                        return Ok(piece);
                    }
                }
                Message::DataRow(row) => {
                    let (end, timeline) = position(&row)?;
                    // A checksum that was wrong is told only now.
                    self.ready().await?;
                    // Such as that it could not verify a file's checksums, and has not.
                    if !self.warnings.is_empty() {
                        let message = "the backup came with warnings".to_owned();
                        return Err(self.refused(&Refusal { code: String::new(), message }));
                    }
                    return Ok(BackupPiece::End { end, timeline });
                }
                Message::ErrorResponse(body) => {
                    let refusal = self.refusal(&body);
                    return Err(self.refused(&refusal));
                }
                Message::ReadyForQuery(_) => return Err(unexpected("a backup without an end")),
                _ => {}
            }
        }
    }

    /// Waits until the server takes the next command.
    async fn ready(&mut self) -> Result<(), Trouble> {
        loop {
            match self.receive().await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => {
                    let refusal = self.refusal(&body);
                    return Err(self.refused(&refusal));
                }
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, user: &str, password: Option<&[u8]>) -> Result<(), Trouble> {
        let needed = || {
            password.ok_or_else(|| {
                Trouble::misuse("the server asks for a password, [source] conninfo has none")
            })
        };
        let mut scram: Option<ScramSha256> = None;
        loop {
            match self.receive().await? {
                Message::AuthenticationOk | Message::ParameterStatus(_) => {}
                Message::BackendKeyData(_) => {}
                // That the server knows the password too.
                Message::AuthenticationSaslFinal(body) => {
                    let client = scram.as_mut().ok_or_else(|| unexpected("SASL out of turn"))?;
                    client.finish(body.data()).map_err(broken)?;
                }
                Message::AuthenticationCleartextPassword => {
                    let password = needed()?;
                    self.send(|out| frontend::password_message(password, out)).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), needed()?, body.salt());
                    self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
                }
                Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut is_known = false;
                    while let Some(mechanism) = mechanisms.next().map_err(broken)? {
                        is_known |= mechanism == sasl::SCRAM_SHA_256;
                    }
                    if !is_known {
                        return Err(unexpected("no way to authenticate that is known here"));
                    }
                    let client = ScramSha256::new(needed()?, ChannelBinding::unsupported());
                    let message = client.message().to_vec();
                    self.send(|out| {
                        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, &message, out)
                    })
                    .await?;
                    scram = Some(client);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let client = scram.as_mut().ok_or_else(|| unexpected("SASL out of turn"))?;
                    client.update(body.data()).map_err(broken)?;
                    let message = client.message().to_vec();
                    self.send(|out| frontend::sasl_response(&message, out)).await?;
                }
                Message::ErrorResponse(body) => {
                    let refusal = self.refusal(&body);
                    return Err(self.refused(&refusal).with_hint(
                        "the user of [source] conninfo needs REPLICATION, and pg_hba.conf a line \
                         that lets it connect to \"replication\"",
                    ));
                }
                Message::ReadyForQuery(_) => return Ok(()),
                _ => return Err(unexpected("another answer than one to a login")),
            }
        }
    }

    async fn query(&mut self, command: &str) -> Result<(), Trouble> {
        self.send(|out| frontend::query(command, out)).await
    }

    async fn send(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), Trouble> {
        let mut out = BytesMut::new();
        encode(&mut out).map_err(broken)?;
        self.stream.write_all(&out).await.map_err(broken)
    }

    /// The next message; warnings are kept, not given.
    async fn receive(&mut self) -> Result<Message, Trouble> {
        loop {
            // Looked at before the parser makes room for it.
            if let Some(mut length) = self.received.get(1..5)
                && length.get_u32() as usize > MESSAGE_BYTES_MAX
            {
                return Err(unexpected("a message of more than 1 MB"));
            }
            match Message::parse(&mut self.received).map_err(broken)? {
                Some(Message::NoticeResponse(body)) => self.note(&body),
                Some(message) => return Ok(message),
                None => {
                    self.received.reserve(READ_BYTES);
                    if self.stream.read_buf(&mut self.received).await.map_err(broken)? == 0 {
                        return Err(broken("it has closed the connection"));
                    }
                }
            }
        }
    }

    fn note(&mut self, body: &NoticeResponseBody) {
        let [severity, _, message] = fields(body.fields());
        tracing::warn!("the server, about a base backup: {severity}: {message}");
        if severity == "WARNING" && self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(message);
        }
    }

    fn refusal(&self, body: &ErrorResponseBody) -> Refusal {
        let [_, code, message] = fields(body.fields());
        Refusal { code, message }
    }

    fn refused(&self, refusal: &Refusal) -> Trouble {
        let mut words = format!("the server says: {}", refusal.message);
        for warning in &self.warnings {
            words += &format!("; {warning}");
        }
        Trouble::new(Kind::Io, words)
    }
}

async fn open_socket(config: &tokio_postgres::Config) -> Result<Box<dyn Stream>, Trouble> {
    let mut last = Trouble::misuse("[source] conninfo names no host");
    for (index, host) in config.get_hosts().iter().enumerate() {
        let ports = config.get_ports();
        let port = *ports.get(index).or(ports.first()).unwrap_or(&DEFAULT_PORT);
        let opened: std::io::Result<Box<dyn Stream>> = match host {
            Host::Tcp(name) => TcpStream::connect((name.as_str(), port)).await.map(|s| {
                let _ = s.set_nodelay(true);
                Box::new(s) as Box<dyn Stream>
            }),
            Host::Unix(directory) => {
                UnixStream::connect(directory.join(format!(".s.PGSQL.{port}")))
                    .await
                    .map(|s| Box::new(s) as Box<dyn Stream>)
            }
        };
        match opened {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Trouble::io("connecting to the server", error),
        }
    }
    Err(last)
}

/// `CopyData` of a backup, if it says something that matters here.
fn copy_data(mut bytes: Bytes) -> Result<Option<BackupPiece>, Trouble> {
    let kind = if bytes.has_remaining() { bytes.get_u8() } else { 0 };
    match kind {
        b'd' if bytes.len() > BACKUP_DATA_MAX => Err(unexpected("more data than it sends at once")),
        b'd' => Ok(Some(BackupPiece::Data(bytes))),
        b'm' => Ok(Some(BackupPiece::Manifest)),
        b'p' => Ok(None),
        b'n' => {
            // "base.tar.zst", or "16390.tar.zst" and where the tablespace is.
            let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            match name.split('.').next() {
                Some("base") => Ok(Some(BackupPiece::Archive(None))),
                Some(oid) if oid.parse::<u32>().is_ok_and(|oid| oid != 0) => {
                    Ok(Some(BackupPiece::Archive(oid.parse().ok())))
                }
                _ => Err(unexpected(&format!("an archive named {name:?}"))),
            }
        }
        _ => Err(unexpected("copy data of an unknown kind")),
    }
}

/// A row of an LSN and a timeline.
fn position(row: &DataRowBody) -> Result<(Lsn, Timeline), Trouble> {
    let lsn = column(row, 0)?.and_then(|text| text.parse().ok());
    let timeline = column(row, 1)?.and_then(|text| text.parse().ok());
    let (Some(lsn), Some(timeline)) = (lsn, timeline) else {
        return Err(unexpected("a row without a position"));
    };
    Ok((lsn, Timeline(timeline)))
}

fn column(row: &DataRowBody, number: usize) -> Result<Option<String>, Trouble> {
    let range = row.ranges().nth(number).map_err(broken)?.flatten();
    let text = range.and_then(|range| row.buffer().get(range));
    Ok(text.map(|text| String::from_utf8_lossy(text).into_owned()))
}

/// Severity, code and message.
fn fields(mut fields: ErrorFields<'_>) -> [String; 3] {
    let mut found = [const { String::new() }; 3];
    while let Ok(Some(field)) = fields.next() {
        let place = match field.type_() {
            b'V' => 0, // never translated
            b'C' => 1,
            b'M' => 2,
            _ => continue,
        };
        found[place] = String::from_utf8_lossy(field.value_bytes()).into_owned();
    }
    found
}

fn broken(error: impl std::fmt::Display) -> Trouble {
    Trouble::io("the replication connection to the server", error)
}

fn unexpected(what: &str) -> Trouble {
    broken(format_args!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use tokio::net::UnixListener;

    use super::*;

    const VERSION: &str = "SHOW server_version_num";

    /// A server's messages: a kind and what is in it.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind];
        message.put_u32(body.len() as u32 + 4);
        message.extend_from_slice(body);
        message
    }

    fn row(columns: &[Option<&str>]) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u16(columns.len() as u16);
        for column in columns {
            body.put_i32(column.map_or(-1, |text| text.len() as i32));
            body.extend_from_slice(column.unwrap_or_default().as_bytes());
        }
        message(b'D', &body)
    }

    fn failure(kind: u8, severity: &str, code: &str, words: &str) -> Vec<u8> {
        message(kind, format!("S{severity}\0V{severity}\0C{code}\0M{words}\0\0").as_bytes())
    }

    /// Answers a login, the question for its version, and then each query with what `answer` gives;
    /// gives those queries.
    async fn serve(
        listener: UnixListener,
        answer: impl Fn(&str) -> Vec<u8>,
    ) -> std::io::Result<Vec<String>> {
        let (mut stream, _) = listener.accept().await?;
        let length = stream.read_u32().await? as usize;
        stream.read_exact(&mut vec![0; length - 4]).await?;
        let ready = message(b'Z', b"I");
        stream.write_all(&[message(b'R', &[0; 4]), ready.clone()].concat()).await?;
        let mut queries = Vec::new();
        while let Ok(b'Q') = stream.read_u8().await {
            let mut query = vec![0; stream.read_u32().await? as usize - 4];
            stream.read_exact(&mut query).await?;
            let query = String::from_utf8_lossy(&query).trim_end_matches('\0').to_owned();
            let answered = match query == VERSION {
                true => row(&[Some("150018")]),
                false => answer(&query),
            };
            stream.write_all(&[answered, ready.clone()].concat()).await?;
            queries.push(query);
        }
        assert_eq!(queries.remove(0), VERSION);
        Ok(queries)
    }

    fn backup(warning: Option<&str>) -> Vec<u8> {
        let mut copy = Vec::new();
        for data in [&b"nbase.tar\0\0"[..], b"dbytes", b"p\0\0\0\0\0\0\0\x01", b"m", b"d{}"] {
            copy.extend(message(b'd', data));
        }
        [
            row(&[Some("0/2000028"), Some("1")]),
            message(b'C', b"SELECT\0"),
            row(&[Some("16390"), Some("/somewhere"), Some("3")]),
            row(&[None, None, Some("2")]),
            message(b'C', b"SELECT\0"),
            message(b'H', &[0, 0, 0]),
            copy,
            warning.map_or(Vec::new(), |words| failure(b'N', "WARNING", "01000", words)),
            message(b'c', b""),
            row(&[Some("0/3000000"), Some("1")]),
            message(b'C', b"SELECT\0"),
        ]
        .concat()
    }

    /// Takes a whole backup of such a server; gives its queries and what came.
    async fn take(
        answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
    ) -> (Vec<String>, Result<Vec<String>, Trouble>) {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join(".s.PGSQL.5432")).expect("bound");
        let server = tokio::spawn(serve(listener, answer));
        let conninfo = format!("host={} user=u", directory.path().display());
        let taken = async {
            let mut connection = ReplicationConnection::connect(&conninfo).await?;
            let version = connection.server_version().await?;
            let options = BackupOptions {
                label: "it's".into(),
                slot: "slot".into(),
                fast_checkpoint: true,
                max_rate: 0,
            };
            let start = connection.base_backup(&options).await?;
            let mut pieces = vec![format!("{version} {} {}", start.bytes, start.is_compressed)];
            loop {
                let piece = connection.next().await?;
                pieces.push(format!("{piece:?}"));
                if matches!(piece, BackupPiece::End { .. }) {
                    return Ok(pieces);
                }
            }
        }
        .await;
        (server.await.expect("no panic").expect("served"), taken)
    }

    #[tokio::test]
    async fn a_server_without_zstd_is_asked_again() {
        let (queries, taken) = take(|query| {
            if query.contains("zstd") {
                failure(b'E', "ERROR", "42601", "this build does not support zstd")
            } else if query.starts_with("BASE_BACKUP") {
                backup(None)
            } else {
                message(b'C', b"CREATE\0")
            }
        })
        .await;
        let taken = taken.expect("a backup");
        assert_eq!(taken[0], format!("150018 {} false", 5 << 10));
        assert_eq!(taken.len(), 6, "{taken:?}");
        // The error has ended the slot.
        let kinds: Vec<_> = queries.iter().map(|query| query.split(' ').next()).collect();
        let slot = Some("CREATE_REPLICATION_SLOT");
        assert_eq!(kinds, [slot, Some("BASE_BACKUP"), slot, Some("BASE_BACKUP")]);
        assert!(queries[1].contains("'it''s'"), "{queries:?}");
    }

    #[tokio::test]
    async fn a_backup_with_a_warning_or_too_long_a_message_is_none() {
        let answer = |copy: fn() -> Vec<u8>| {
            move |query: &str| match query.starts_with("BASE_BACKUP") {
                true => copy(),
                false => message(b'C', b"CREATE\0"),
            }
        };
        let (_, taken) = take(answer(|| backup(Some("could not verify checksum in \"x\"")))).await;
        let error = taken.expect_err("a warning").to_string();
        assert!(error.contains("could not verify checksum in \"x\""), "{error}");
        let (_, taken) = take(answer(|| vec![b'd', 0x7F, 0xFF, 0xFF, 0xFF])).await;
        assert!(taken.expect_err("2 GB").to_string().contains("more than 1 MB"));
        // The control.
        assert!(take(answer(|| backup(None))).await.1.is_ok());
    }
}
