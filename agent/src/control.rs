//! The two HTTP doors of an agent: the control socket, which can change things, and the public
//! port, which only answers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use walfmt::Lsn;

use crate::config::{Config, Source};
use crate::node::Node;
use crate::positions::Position;
use crate::stage::{State, receive, send};
use crate::trouble::{Kind, Trouble};

/// How long receiving may take to end for a promotion.
const QUIET_LIMIT: Duration = Duration::from_secs(30);

/// What `walferry status` shows.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Status {
    pub(crate) node: String,
    pub(crate) version: String,
    pub(crate) system_identifier: Option<String>,
    pub(crate) timeline: Option<u32>,
    /// By name, in PostgreSQL's text form; those this node does not have are left out.
    pub(crate) positions: std::collections::BTreeMap<String, String>,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) stages: Vec<StageStatus>,
    pub(crate) followers: Vec<FollowerStatus>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct StageStatus {
    pub(crate) stage: String,
    pub(crate) state: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct FollowerStatus {
    pub(crate) name: String,
    pub(crate) connected: bool,
    pub(crate) shipped: String,
    pub(crate) received: String,
    pub(crate) durable: String,
    pub(crate) replayed: String,
    /// Nothing before it has reported anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lag_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lag_seconds: Option<f64>,
}

/// What a promotion is asked for.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PromoteRequest {
    pub(crate) leader_is_dead: bool,
}

/// A store that a server may open now.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Promotion {
    /// End of what has been replayed.
    pub(crate) replayed: String,
    /// Where the server will begin to read WAL again.
    pub(crate) redo: String,
    /// How much it will read, in bytes.
    pub(crate) reread_bytes: u64,
    pub(crate) timeline: u32,
}

/// A refusal or failure, from the agent to a verb.
#[derive(Debug, Deserialize, Serialize)]
struct Failure {
    words: String,
    hint: Option<String>,
}

/// Makes the control socket, for this user and group only. A socket that someone answers on
/// belongs to a running agent.
pub(crate) fn bind(config: &Config) -> Result<UnixListener, Trouble> {
    let path = config.control_socket();
    let failed = |error| Trouble::io(format_args!("control socket {}", path.display()), error);
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(Trouble::misuse(format_args!(
            "an agent is running already: it answers on {}",
            path.display()
        )));
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    remove_socket(config);
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Removes the control socket; no matter if there is none.
pub(crate) fn remove_socket(config: &Config) {
    let _ = std::fs::remove_file(config.control_socket());
}

/// Serves the control socket until the process ends.
pub(crate) async fn serve(node: Arc<Node>, listener: UnixListener) {
    let router = Router::new()
        .route("/status", get(status))
        .route("/wait", get(wait))
        .route("/promote", post(promote))
        .with_state(node);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("control socket: {error}");
    }
}

/// Serves the public port until the process ends.
pub(crate) async fn serve_public(node: Arc<Node>, listener: TcpListener) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .with_state(node);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("metrics port: {error}");
    }
}

async fn metrics(Shared(node): Shared<Arc<Node>>) -> Response {
    match node.metrics.render(&node) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// 200 if no stage has stopped for good, or stands until somebody does something.
async fn health(Shared(node): Shared<Arc<Node>>) -> Response {
    let stuck = |state| {
        matches!(state, State::Stopped | State::Gap | State::NeedsBootstrap | State::Diverged)
    };
    let stages = node.stages.all();
    let bad = stages.iter().find(|(_, report)| stuck(report.state));
    match bad {
        None => "ok\n".into_response(),
        Some((stage, report)) => {
            let words = format!("{stage} {}: {}\n", report.state.label(), report.detail);
            (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
        }
    }
}

async fn status(Shared(node): Shared<Arc<Node>>) -> Json<Status> {
    Json(status_of(&node))
}

fn status_of(node: &Node) -> Status {
    let identity = node.identity();
    let lag = node.lag();
    Status {
        node: node.config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        system_identifier: identity.map(|identity| identity.system_identifier.to_string()),
        timeline: identity.map(|identity| identity.timeline.0),
        positions: Position::ALL
            .into_iter()
            .map(|position| (position.name().to_owned(), node.positions.get(position)))
            .filter(|(_, lsn)| lsn.is_valid())
            .map(|(name, lsn)| (name, lsn.to_string()))
            .collect(),
        lag_bytes: lag.map(|lag| lag.bytes),
        lag_seconds: lag.and_then(|lag| lag.seconds),
        stages: node
            .stages
            .all()
            .into_iter()
            .map(|(stage, report)| StageStatus {
                stage: stage.to_owned(),
                state: report.state.label().to_owned(),
                detail: report.detail,
                hint: report.hint,
            })
            .collect(),
        followers: node
            .positions
            .followers()
            .into_iter()
            .map(|(name, mut follower)| {
                let end = node.positions.get(send::readable(node));
                (name, follower.lag(Instant::now(), end), follower)
            })
            .map(|(name, lag, follower)| FollowerStatus {
                name,
                lag_bytes: lag.map(|lag| lag.bytes),
                lag_seconds: lag.map(|lag| lag.seconds),
                connected: follower.connections > 0,
                shipped: follower.shipped.to_string(),
                received: follower.received.to_string(),
                durable: follower.durable.to_string(),
                replayed: follower.replayed.to_string(),
            })
            .collect(),
    }
}

/// What `walferry wait` asks for.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct WaitRequest {
    pub(crate) position: String,
    pub(crate) lsn: String,
    pub(crate) timeout_millis: u64,
}

async fn wait(Shared(node): Shared<Arc<Node>>, Query(request): Query<WaitRequest>) -> Response {
    let position = Position::ALL.into_iter().find(|position| position.name() == request.position);
    let (Some(position), Ok(lsn)) = (position, request.lsn.parse::<Lsn>()) else {
        return failure(&Trouble::misuse("wait needs a position's name and an LSN"));
    };
    let deadline = Instant::now() + Duration::from_millis(request.timeout_millis);
    let mut changes = node.positions.subscribe();
    while node.positions.get(position) < lsn {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || node.stopping() {
            let words = format_args!(
                "{} is {}, not yet {lsn}",
                position.name(),
                node.positions.get(position)
            );
            return failure(&Trouble::new(Kind::NotThere, words));
        }
        let _ = tokio::time::timeout(left, changes.changed()).await;
    }
    Json(status_of(&node)).into_response()
}

async fn promote(Shared(node): Shared<Arc<Node>>, Json(request): Json<PromoteRequest>) -> Response {
    // In a task of its own: it is brought to an end even if whoever asked goes away.
    match tokio::spawn(async move { promotion(&node, &request).await }).await {
        Ok(Ok(promotion)) => Json(promotion).into_response(),
        Ok(Err(trouble)) => failure(&trouble),
        Err(error) => failure(&Trouble::io("promotion", error)),
    }
}

/// Hands the store over. The order matters: first it is sure that the leader does not answer, then
/// nothing more is received, then replay finishes what is durable here.
async fn promotion(node: &Arc<Node>, request: &PromoteRequest) -> Result<Promotion, Trouble> {
    let Source::Receive(peers) = node.config.source()? else {
        return Err(Trouble::misuse("this node's server is a primary already"));
    };
    node.config.store()?;
    if !request.leader_is_dead {
        for peer in &peers {
            if receive::answers(peer).await {
                let words = format!("the leader's agent answers at {peer}: it may be alive");
                return Err(Trouble::new(Kind::Refused, words).with_hint(
                    "two primaries would take different writes; stop the leader for good, then \
                     give --leader-is-dead",
                ));
            }
        }
    }
    let _turn = node.promoting.lock().await;
    node.end_receiving(true);
    let promotion = match receiving_quiet(node).await {
        Ok(()) => node.replay.promote(node).await,
        Err(trouble) => Err(trouble),
    };
    if promotion.is_err() {
        node.end_receiving(false);
    }
    promotion
}

/// Waits until the archive has all that was received: what is acknowledged is promoted.
async fn receiving_quiet(node: &Node) -> Result<(), Trouble> {
    let mut changes = node.positions.subscribe();
    let quiet = async {
        while !node.receiving_quiet() && !node.stopping() {
            let _ = changes.changed().await;
        }
    };
    tokio::time::timeout(QUIET_LIMIT, quiet).await.map_err(|_| {
        Trouble::new(Kind::Io, "receiving does not end").with_hint("walferry status says why")
    })
}

fn failure(trouble: &Trouble) -> Response {
    let status = match trouble.kind() {
        Kind::NotThere => StatusCode::REQUEST_TIMEOUT,
        Kind::Refused => StatusCode::CONFLICT,
        Kind::Misuse => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let failure = Failure { words: trouble.to_string(), hint: trouble.hint().map(str::to_owned) };
    (status, Json(failure)).into_response()
}

/// Asks the running agent, from a verb; gives what it answers.
pub(crate) fn ask<T: serde::de::DeserializeOwned>(
    config: &Config,
    method: &str,
    path_and_query: &str,
    body: Option<String>,
) -> Result<T, Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Trouble::io("starting the runtime", error))?;
    let socket = config.control_socket();
    runtime.block_on(exchange(&socket, method, path_and_query, body))
}

async fn exchange<T: serde::de::DeserializeOwned>(
    socket: &Path,
    method: &str,
    path_and_query: &str,
    body: Option<String>,
) -> Result<T, Trouble> {
    let failed = |error: &dyn std::fmt::Display| {
        Trouble::io(format_args!("asking the agent on {}", socket.display()), error)
    };
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        Trouble::io(format_args!("no agent answers on {}", socket.display()), error)
            .with_hint("is the agent running with this configuration? may this user reach it?")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path_and_query)
        .header("host", "walferry")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body.unwrap_or_default())))
        .map_err(|error| failed(&error))?;
    let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|error| failed(&error));
    }
    let Ok(failure) = serde_json::from_slice::<Failure>(&body) else {
        return Err(failed(&status));
    };
    let kind = match status {
        StatusCode::REQUEST_TIMEOUT => Kind::NotThere,
        StatusCode::CONFLICT => Kind::Refused,
        StatusCode::BAD_REQUEST => Kind::Misuse,
        _ => Kind::Io,
    };
    let trouble = Trouble::new(kind, failure.words);
    Err(match failure.hint {
        Some(hint) => trouble.with_hint(hint),
        None => trouble,
    })
}
