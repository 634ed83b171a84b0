//! The stages of a node, and what each says of itself.
//!
//! A stage stops alone: what ends one leaves the others running. A stopped replay never stops the
//! archive.

pub(crate) mod backup;
pub(crate) mod decode;
pub(crate) mod heart;
pub(crate) mod horizon;
pub(crate) mod receive;
pub(crate) mod replay;
pub(crate) mod retention;
pub(crate) mod send;
pub(crate) mod tail;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::trouble::Trouble;

/// What a stage is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Getting ready.
    Starting,
    /// Waiting for something that may come, which the detail names.
    Waiting,
    /// At work.
    Streaming,
    /// Something failed that may pass; trying again.
    Retrying,
    /// Stopped for good, with the reason in the detail.
    Stopped,
    /// The peer no longer has the WAL this node needs.
    NeedsBootstrap,
    /// The server has removed WAL that is not in the archive.
    Gap,
    /// This node's WAL and the peer's are different histories.
    Diverged,
    /// The store was handed to a server.
    Promoted,
}

impl State {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Stopped => "stopped",
            Self::NeedsBootstrap => "needs_bootstrap",
            Self::Gap => "gap",
            Self::Diverged => "diverged",
            Self::Promoted => "promoted",
        }
    }
}

/// What a stage says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) state: State,
    /// In words; empty if there is nothing to say.
    pub(crate) detail: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// The trouble's kind, if there is one.
    pub(crate) kind: Option<&'static str>,
}

/// The reports of all stages. Each change is logged once, here.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    reports: Mutex<BTreeMap<&'static str, Report>>,
    /// How often a stage has failed, by kind of trouble.
    failures: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Stages {
    /// A stage's new state; none comes after [`State::Stopped`].
    pub(crate) fn set(&self, stage: &'static str, state: State, detail: impl Into<String>) {
        let detail = detail.into();
        self.put(stage, Report { state, detail, hint: None, kind: None });
    }

    /// A stage's new state because of trouble.
    pub(crate) fn fail(&self, stage: &'static str, state: State, trouble: &Trouble) {
        let report = Report {
            state,
            detail: trouble.to_string(),
            hint: trouble.hint().map(str::to_owned),
            kind: Some(trouble.kind().label()),
        };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        *failures.entry((stage, trouble.kind().label())).or_default() += 1;
        drop(failures);
        self.put(stage, report);
    }

    /// How often each stage has failed, by kind of trouble.
    pub(crate) fn failures(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, stage: &'static str, report: Report) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let before = reports.get(stage);
        // What another part of the stage notices later does not hide why it stopped.
        if before.is_some_and(|before| before.state == State::Stopped) {
            return;
        }
        let known = before
            .is_some_and(|before| before.state == report.state && before.detail == report.detail);
        if !known {
            let (state, detail) = (report.state.label(), &report.detail);
            let hint = report.hint.as_deref().unwrap_or_default();
            match report.kind {
                Some(kind) => tracing::warn!(stage, state, kind, hint, "{detail}"),
                None => tracing::info!(stage, state, "{detail}"),
            }
        }
        reports.insert(stage, report);
    }

    pub(crate) fn all(&self) -> BTreeMap<&'static str, Report> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a stage of this node is still getting ready.
    pub(crate) fn is_starting(&self, stage: &str) -> bool {
        self.is_in(stage, State::Starting)
    }

    /// Whether a stage is in this state.
    pub(crate) fn is_in(&self, stage: &str, state: State) -> bool {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(stage).is_some_and(|report| report.state == state)
    }
}
