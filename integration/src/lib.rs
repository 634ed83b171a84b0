//! Real PostgreSQL as the judge of walferry: what the demo, the end-to-end tests and the fault
//! tests need.
//!
//! Start with [`Scratch`], a folder that is gone when the test is; in it live [`Cluster`]s, which
//! are real servers, and [`Agent`]s, which are real `walferry` processes. [`compare`] says whether
//! two servers hold the same rows. Everything is stopped and removed on drop, also after a panic.
//!
//! PostgreSQL refuses to run as root. When the tests do, servers and agents run as the operating
//! system user `postgres` ([`Account`]), otherwise as whoever runs the tests.
//!
//! Nothing is skipped: a missing PostgreSQL is a failure.
#![forbid(unsafe_code)]

pub mod account;
pub mod agent;
pub mod authority;
pub mod binaries;
pub mod command;
pub mod compare;
pub mod decoding;
pub mod endpoint;
pub mod identical;
pub mod load;
pub mod made_wal;
pub mod majors;
pub mod metrics;
pub mod opcodes;
pub mod pair;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod recording;
pub mod scratch;
pub mod seed;
pub mod segments;
pub mod standby;
pub mod trial;
pub mod wal_text;
pub mod waldump;
pub mod workload;

pub use account::Account;
pub use agent::{Agent, AgentConfig, Source, StoreConfig};
pub use binaries::Binaries;
pub use endpoint::Endpoint;
pub use load::Load;
pub use metrics::Metrics;
pub use pair::Pair;
pub use ports::free_port;
pub use postgres::{BackupWal, Cluster, ClusterOptions, StopMode};
pub use process::PATIENCE;
pub use prometheus::Prometheus;
pub use proxy::Proxy;
pub use recording::Recording;
pub use scratch::Scratch;
pub use seed::Seed;
pub use segments::Segments;
pub use standby::Standby;
pub use waldump::{DumpedRecord, Waldump};
