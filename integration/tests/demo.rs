//! The demo program tells equal from not equal, and leaves nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use integration::process::processes_in;

#[test]
fn the_demo_shows_equal_tables() -> Result<()> {
    let (output, text) = demo(&[])?;
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("] EQUAL\n") && !text.contains("DIFFERENT"), "{text}");
    for table in ["accounts", "branches", "history", "tellers"] {
        assert!(text.contains(&format!("equal     postgres.public.pgbench_{table}: ")), "{text}");
    }
    Ok(())
}

#[test]
fn the_demo_fails_when_a_row_is_changed() -> Result<()> {
    let (output, text) = demo(&[("DEMO_SABOTAGE", "1")])?;
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("] NOT EQUAL\n"), "{text}");
    let different: Vec<&str> = text.lines().filter(|line| line.starts_with("DIFFERENT")).collect();
    assert_eq!(different.len(), 1, "{text}");
    assert!(different[0].contains("postgres.public.pgbench_accounts: "), "{text}");
    assert!(text.contains("4 tables compared, 3 equal, 1 different"), "{text}");
    Ok(())
}

/// Runs the demo small and short, in a folder of its own for temporary files; gives what it wrote.
/// Nothing may be left of it.
fn demo(environment: &[(&str, &str)]) -> Result<(Output, String)> {
    let folder = tempfile::Builder::new().prefix("walferry-").tempdir()?;
    // The server's account must be able to pass through.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(["--scale", "1", "--clients", "2", "--seconds", "2"]);
    command
        .env("TMPDIR", folder.path())
        .env_remove("DEMO_SABOTAGE")
        .env_remove("WALFERRY_KEEP_SCRATCH");
    let output = command.envs(environment.iter().copied()).output().context("the demo starts")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(processes_in(folder.path()), Vec::<u32>::new(), "processes are left");
    assert_eq!(fs::read_dir(folder.path())?.count(), 0, "files are left");
    Ok((output, text))
}
