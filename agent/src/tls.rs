//! Certificates: who may connect, and to whom.
//!
//! With a `[tls]` section all connections between agents are TLS 1.3, and both sides show a
//! certificate of the same authority:
//!
//! - A node is who its certificate names: the name it gives of itself must stand in it.
//! - Whom it connects to is checked by the name or address in `peers`, or by the name before an
//!   `@` there: `db1@10.0.0.1:5480`.
//! - `[tls.roles]`, if there is one, lists what each node may ask for; others get nothing.
//!
//! The files are looked at for each connection and read again when they have changed; what cannot be
//! read then is reported, and the certificates from before go on. Without the section connections are
//! plain text, and the configuration allows that on loopback only.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use walferry_wire::NodeName;

use crate::trouble::{Kind, Trouble};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Who has not shown a certificate by then is let go.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// `[tls]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsSection {
    /// This node's certificate, and those between it and the authority's; PEM.
    pub(crate) certificate: PathBuf,
    /// Its private key; PEM.
    pub(crate) key: PathBuf,
    /// The certificates of whom to trust; PEM.
    pub(crate) authority: PathBuf,
    /// What each node may ask for. Without it, all nodes with a certificate may ask for all.
    pub(crate) roles: Option<BTreeMap<String, Vec<Role>>>,
}

/// What a node can ask another one for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// WAL.
    Follower,
    /// A base backup.
    Bootstrap,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::Bootstrap => "bootstrap",
        }
    }
}

/// A node's certificates, as they are in their files.
#[derive(Debug)]
pub(crate) struct Tls {
    section: TlsSection,
    loaded: Mutex<Loaded>,
}

#[derive(Clone, Debug)]
struct Loaded {
    /// By which a changed file is noticed: inode, length, time of change in s and ns.
    versions: Option<[[i64; 4]; 3]>,
    /// Those that could not be used.
    complained_of: Option<[[i64; 4]; 3]>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// What they are made of: this node's, those between, and the authority's.
    chain: Vec<CertificateDer<'static>>,
    authorities: Vec<CertificateDer<'static>>,
}

/// A connection to another agent.
pub(crate) struct Connection {
    pub(crate) stream: Box<dyn Stream>,
    /// What the peer has shown; nothing in plain text.
    certificate: Option<CertificateDer<'static>>,
}

/// What bytes go through, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a peer is, and the name that its certificate must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerAddress<'a> {
    /// `host:port`
    pub(crate) address: &'a str,
    name: &'a str,
}

impl<'a> PeerAddress<'a> {
    /// Reads `host:port` or `name@host:port`.
    pub(crate) fn parse(text: &'a str) -> Result<Self, Trouble> {
        let (name, address) =
            text.split_once('@').map_or((None, text), |(name, address)| (Some(name), address));
        let host = address.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
        let Some((host, _)) = host.filter(|(host, _)| !host.is_empty()) else {
            return Err(Trouble::misuse(format_args!("[source] peers: {text:?} is no address"))
                .with_hint("write it like \"10.0.0.1:5480\" or \"db1@10.0.0.1:5480\""));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Self { address, name: name.unwrap_or(host) })
    }

    /// Whether it is on this machine.
    pub(crate) fn is_loopback(self) -> bool {
        let host = self.address.rsplit_once(':').map_or(self.address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// Connects to a peer.
pub(crate) async fn connect(tls: Option<&Arc<Tls>>, peer: &str) -> Result<Connection, Trouble> {
    let lost = |error: &dyn std::fmt::Display| Trouble::io(format_args!("peer {peer}"), error);
    let PeerAddress { address, name } = PeerAddress::parse(peer)?;
    let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address))
        .await
        .map_err(|_| lost(&"no answer"))?
        .map_err(|error| lost(&error))?;
    stream.set_nodelay(true).map_err(|error| lost(&error))?;
    let Some(tls) = tls else { return Ok(Connection::plain(stream)) };
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| Trouble::misuse(format_args!("[source] peers: {name:?}: {error}")))?;
    let connector = TlsConnector::from(Tls::current(tls).await.client);
    let shaken = tokio::time::timeout(HANDSHAKE_LIMIT, connector.connect(name, stream)).await;
    let stream = shaken.map_err(|_| lost(&"it shows no certificate"))?.map_err(|error| {
        let words = format_args!("TLS with peer {peer}: {error}");
        Trouble::new(Kind::Io, words).with_hint(
            "both sides need a certificate of the same authority, in date; the peer's must have \
             the name or address in [source] peers, or the name before an @ there",
        )
    })?;
    let certificate = first_of(stream.get_ref().1.peer_certificates());
    Ok(Connection { stream: Box::new(stream), certificate })
}

/// Answers who has connected.
pub(crate) async fn accept(tls: Option<&Arc<Tls>>, stream: TcpStream) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Connection::plain(stream)) };
    let acceptor = TlsAcceptor::from(Tls::current(tls).await.server);
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await??;
    let certificate = first_of(stream.get_ref().1.peer_certificates());
    Ok(Connection { stream: Box::new(stream), certificate })
}

impl Connection {
    fn plain(stream: TcpStream) -> Self {
        Self { stream: Box::new(stream), certificate: None }
    }

    /// Sends all of it, also what TLS would keep for later.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Ends it, if the peer still takes something.
    pub(crate) async fn close(&mut self) {
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.stream.shutdown()).await;
    }

    /// Why the peer may not have this name, if it may not.
    pub(crate) fn objection_to_name(&self, name: &NodeName) -> Option<String> {
        let matches = is_of(self.certificate.as_ref()?, name.as_str());
        (!matches).then(|| format!("the certificate shown is not one of {}", name.as_str()))
    }

    /// Why the node of this name may not have this role here, if it may not.
    pub(crate) fn objection(
        &self,
        tls: Option<&Arc<Tls>>,
        name: &NodeName,
        role: Role,
    ) -> Option<String> {
        self.objection_to_name(name).or_else(|| {
            let roles = tls?.section.roles.as_ref()?;
            let has_role = roles.get(name.as_str()).is_some_and(|roles| roles.contains(&role));
            let (name, role) = (name.as_str(), role.name());
            (!has_role).then(|| format!("{name} has not the role {role} here: see [tls.roles]"))
        })
    }
}

/// Whether a certificate is of a node with this name.
fn is_of(certificate: &CertificateDer<'_>, name: &str) -> bool {
    webpki::EndEntityCert::try_from(certificate)
        .ok()
        .zip(ServerName::try_from(name).ok())
        .is_some_and(|(certificate, name)| {
            certificate.verify_is_valid_for_subject_name(&name).is_ok()
        })
}

fn first_of(certificates: Option<&[CertificateDer<'static>]>) -> Option<CertificateDer<'static>> {
    certificates.and_then(<[_]>::first).cloned()
}

impl Tls {
    /// Reads the files.
    pub(crate) fn new(section: TlsSection) -> Result<Self, Trouble> {
        let loaded = Mutex::new(load(&section)?);
        Ok(Self { section, loaded })
    }

    /// Whether this node's own certificate has its name.
    pub(crate) fn is_certificate_of(&self, name: &str) -> bool {
        self.loaded().chain.first().is_some_and(|certificate| is_of(certificate, name))
    }

    /// All that was loaded, and whose each is; DER.
    pub(crate) fn certificates(&self) -> Vec<(&'static str, CertificateDer<'static>)> {
        let loaded = self.loaded();
        let chain = loaded.chain.iter().enumerate().map(|(number, certificate)| {
            (
                if number == 0 { "the certificate" } else { "an intermediate certificate" },
                certificate,
            )
        });
        let authorities = loaded.authorities.iter().map(|authority| ("the authority", authority));
        chain.chain(authorities).map(|(what, certificate)| (what, certificate.clone())).collect()
    }

    /// The certificates as they are now. Looks at files, so not on a thread of tokio's.
    async fn current(tls: &Arc<Self>) -> Loaded {
        let tls = Arc::clone(tls);
        let before = tls.loaded().clone();
        let looked = tokio::task::spawn_blocking(move || tls.refresh()).await;
        looked.unwrap_or(before)
    }

    fn refresh(&self) -> Loaded {
        let mut loaded = self.loaded();
        let versions = versions(&self.section);
        if versions != loaded.versions {
            match load(&self.section) {
                Ok(new) => {
                    tracing::info!("[tls] certificates read again");
                    *loaded = new;
                }
                // Tried again with the next connection; said once.
                Err(trouble) if loaded.complained_of != versions => {
                    tracing::warn!("{trouble}; the certificates from before go on");
                    loaded.complained_of = versions;
                }
                Err(_) => {}
            }
        }
        loaded.clone()
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn versions(section: &TlsSection) -> Option<[[i64; 4]; 3]> {
    let version = |path: &Path| -> Option<[i64; 4]> {
        let found = fs::metadata(path).ok()?;
        Some([found.ino() as i64, found.size() as i64, found.ctime(), found.ctime_nsec()])
    };
    Some([version(&section.certificate)?, version(&section.key)?, version(&section.authority)?])
}

fn load(section: &TlsSection) -> Result<Loaded, Trouble> {
    let versions = versions(section);
    let unusable = |key: &'static str, path: &Path| {
        let what = format!("[tls] {key} {}", path.display());
        move |error: &dyn std::fmt::Display| Trouble::misuse(format_args!("{what}: {error}"))
    };
    let certificates = |key, path: &Path| -> Result<Vec<CertificateDer<'static>>, Trouble> {
        let unusable = unusable(key, path);
        let found = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
        let found: Result<Vec<_>, _> = found.collect();
        let found = found.map_err(|error| unusable(&error))?;
        if found.is_empty() {
            return Err(unusable(&"there is no certificate in it"));
        }
        Ok(found)
    };
    check_key_mode(&section.key)?;
    let chain = certificates("certificate", &section.certificate)?;
    let key = || -> Result<PrivateKeyDer<'static>, Trouble> {
        PrivateKeyDer::from_pem_file(&section.key)
            .map_err(|error| unusable("key", &section.key)(&error))
    };
    let mut roots = RootCertStore::empty();
    let authorities = certificates("authority", &section.authority)?;
    for certificate in &authorities {
        roots
            .add(certificate.clone())
            .map_err(|error| unusable("authority", &section.authority)(&error))?;
    }
    let (roots, provider) = (Arc::new(roots), provider());
    let wrong = |error: &dyn std::fmt::Display| {
        unusable("certificate", &section.certificate)(error)
            .with_hint("certificate and key must belong together")
    };
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| unusable("authority", &section.authority)(&error))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key()?)
        .map_err(|error| wrong(&error))?;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| wrong(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.clone(), key()?)
        .map_err(|error| wrong(&error))?;
    // A resumed session would not look at the certificate again, which may have ended since.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    client.resumption = Resumption::disabled();
    let (server, client) = (Arc::new(server), Arc::new(client));
    Ok(Loaded { versions, complained_of: None, server, client, chain, authorities })
}

/// The only one of this program.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// As a server demands of its key: others may not read it, and a group only if it is root's
/// (`check_ssl_key_file_permissions`, `src/backend/libpq/be-secure-common.c`).
fn check_key_mode(key: &Path) -> Result<(), Trouble> {
    let found = fs::metadata(key)
        .map_err(|error| Trouble::misuse(format_args!("[tls] key {}: {error}", key.display())))?;
    let forbidden = if found.uid() == 0 { 0o037 } else { 0o077 };
    if found.mode() & forbidden == 0 {
        return Ok(());
    }
    let words = format_args!("[tls] key {} can be read by others", key.display());
    Err(Trouble::misuse(words).with_hint(format!("chmod 0600 {}", key.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_peers() {
        for (text, address, name, is_loopback) in [
            ("10.0.0.1:5480", "10.0.0.1:5480", "10.0.0.1", false),
            ("db1:5480", "db1:5480", "db1", false),
            ("db1@10.0.0.1:5480", "10.0.0.1:5480", "db1", false),
            ("db1@[::1]:5480", "[::1]:5480", "db1", true),
            ("[::1]:5480", "[::1]:5480", "::1", true),
            ("127.0.0.9:1", "127.0.0.9:1", "127.0.0.9", true),
            ("localhost:1", "localhost:1", "localhost", true),
        ] {
            let found = PeerAddress::parse(text).expect(text);
            assert_eq!(
                (found.address, found.name, found.is_loopback()),
                (address, name, is_loopback)
            );
        }
        for text in ["", "db1", "db1:", ":5480", "db1:99999", "db1@", "a@b"] {
            assert!(PeerAddress::parse(text).is_err(), "{text}");
        }
    }
}
