//! Scripts for one thing each, in files, where a person can read what went wrong.
//!
//! ```text
//! # What can go wrong.
//! a: begin
//! b: alter table t add column c int
//!    default 7
//! b!: select 1 / 0            ends with an error
//! b>: insert into t ...       waits for a lock
//! a: commit
//! b<                          ends
//! ```
//!
//! A letter is a session. A line that begins with a blank continues the one before.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::script::{Action, Script, Step};
use super::{Decoded, Transaction};

/// Prefix of the message that stands before what a script does.
const MARK: &str = "script";

/// The scripts in a directory, by name, in their order.
///
/// # Errors
/// One is not as above.
pub fn read_all(directory: &Path) -> Result<Vec<(String, Script)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).context("a name")?.to_owned();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        all.push((name.clone(), parse(&text).with_context(|| format!("script {name}"))?));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// All of them as one script, each behind a message that tells its name.
#[must_use]
pub fn joined(all: &[(String, Script)]) -> Script {
    let mark = |name: &str| Step {
        session: 0,
        action: Action::Run,
        sql: format!("select pg_logical_emit_message(false, '{MARK}', '{name}')"),
    };
    let steps = all
        .iter()
        .flat_map(|(name, script)| std::iter::once(mark(name)).chain(script.steps.iter().cloned()));
    Script { steps: steps.collect() }
}

/// What was decoded of each script, by its name.
#[must_use]
pub fn parts(decoded: &Decoded) -> Vec<(String, Decoded)> {
    let name_of = |transaction: &Transaction| {
        let message = transaction.changes.first()?.message.as_ref()?;
        let is_mark = transaction.xid.is_none() && message.prefix == MARK;
        is_mark.then(|| String::from_utf8_lossy(&message.content).into_owned())
    };
    let mut parts: Vec<(String, Decoded)> = Vec::new();
    for transaction in &decoded.transactions {
        match (name_of(transaction), parts.last_mut()) {
            (Some(name), _) => parts.push((name, Decoded::default())),
            (None, Some((_, part))) => part.transactions.push(transaction.clone()),
            (None, None) => {}
        }
    }
    parts
}

/// Parses a script.
///
/// # Errors
/// A line is not as above.
pub fn parse(text: &str) -> Result<Script> {
    let mut script = Script::default();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with(' ') {
            let step = script.steps.last_mut().context("nothing to continue")?;
            step.sql.push('\n');
            step.sql.push_str(line.trim_start());
            continue;
        }
        script.steps.push(step_of(line).with_context(|| format!("line {line:?}"))?);
    }
    ensure!(!script.steps.is_empty(), "it is empty");
    Ok(script)
}

fn step_of(line: &str) -> Result<Step> {
    let letter = line.chars().next().filter(char::is_ascii_lowercase).context("no session")?;
    let session = usize::from(letter as u8 - b'a');
    if &line[1..] == "<" {
        return Ok(Step { session, action: Action::Finish, sql: String::new() });
    }
    let (sign, sql) = line[1..].split_once(": ").context("no `: `")?;
    let action = match sign {
        "" => Action::Run,
        "!" => Action::Fail,
        ">" => Action::Block,
        _ => bail!("unknown sign {sign:?}"),
    };
    Ok(Step { session, action, sql: sql.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read() {
        let script = parse("# words\n\na: begin\nb>: select 1\n   from t\nb<\na!: x\n");
        let script = script.expect("a script");
        let actions: Vec<_> = script.steps.iter().map(|step| (step.session, step.action)).collect();
        let expected =
            [(0, Action::Run), (1, Action::Block), (1, Action::Finish), (0, Action::Fail)];
        assert_eq!(actions, expected);
        assert_eq!(script.steps[1].sql, "select 1\nfrom t");
        for wrong in ["", "  x", "A: x", "a?: x", "begin"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
