//! Running a program to its end.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program that must succeed, and gives what it wrote to its standard output.
///
/// # Errors
/// It cannot be started, or its exit status is not 0; the error then carries the command line and
/// everything it wrote.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command_line(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "{} failed ({})\n{}{stdout}",
            command_line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr),
        );
    }
    Ok(stdout.into_owned())
}

/// A command as one would type it, for messages.
#[must_use]
pub fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
