//! Horizon: what the server itself says of its WAL. A metric and evidence, never a bound for what
//! may be shipped: that is `tail`'s own `fdatasync`.

use std::sync::Arc;
use std::time::Duration;

use crate::node::Node;
use crate::positions::Position;
use crate::server::Server;
use crate::stage::State;
use crate::trouble::{Kind, Trouble};

const STAGE: &str = "horizon";
const FIRST_ANSWER_LIMIT: Duration = Duration::from_secs(2);
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Asks until the node stops. A server that cannot be reached is asked again; one that must not be
/// followed stops this stage and shipping.
pub(crate) async fn run(node: Arc<Node>, conninfo: String) {
    while !node.stopping() {
        if let Err(trouble) = follow(&node, &conninfo).await {
            if trouble.kind() == Kind::Misuse {
                node.stages.fail(STAGE, State::Stopped, &trouble);
                node.forbid_shipping(trouble);
                return;
            }
            node.stages.fail(STAGE, State::Retrying, &trouble);
        }
        node.pause(Duration::from_secs(1)).await;
    }
}

/// Before anything is shipped: a server that answers, and must not be followed, ends the agent. One
/// that does not answer is asked later.
pub(crate) async fn refuse_misuse(conninfo: &str) -> Result<(), Trouble> {
    let ask = async { Server::connect(conninfo).await?.settings().await };
    match tokio::time::timeout(FIRST_ANSWER_LIMIT, ask).await {
        Ok(Err(trouble)) if trouble.kind() == Kind::Misuse => Err(trouble),
        _ => Ok(()),
    }
}

async fn follow(node: &Node, conninfo: &str) -> Result<(), Trouble> {
    let server = Server::connect(conninfo).await?;
    let settings = server.settings().await?;
    node.set_server_version(settings.version_num);
    if settings.in_recovery {
        node.stages.set(STAGE, State::Waiting, "the server is in recovery");
        return Ok(());
    }
    let detail = if settings.keeps_wal {
        ""
    } else {
        "the server keeps no WAL for an agent that is down or behind: \
         ALTER SYSTEM SET wal_keep_size = '4GB'; SELECT pg_reload_conf();"
    };
    node.stages.set(STAGE, State::Streaming, detail);
    while !node.stopping() {
        node.positions.advance(Position::ServerFlush, server.flush_position().await?);
        node.pause(ASK_EVERY).await;
        if server.settings().await?.in_recovery {
            return Ok(());
        }
    }
    Ok(())
}
