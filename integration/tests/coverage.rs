//! The table of what redo means beside its block references (`walfmt/physical/README.md`) is whole,
//! and names tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

#[test]
fn the_table_of_redo_names_tests_that_exist() -> Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a workspace")?;
    let table = fs::read_to_string(top.join("walfmt/physical/README.md"))?;
    let rows: Vec<u32> = table.lines().filter_map(number_of_row).collect();
    assert_eq!(rows, (1..=65).collect::<Vec<_>>());
    let functions = functions_in(["walfmt", "agent", "integration"].map(|name| top.join(name)))?;
    let named = names_in(&table);
    println!("{} rows name {} tests", rows.len(), named.len());
    assert!(named.len() > 60, "{}", named.len());
    let missing = missing_from(&named, &functions);
    assert!(missing.is_empty(), "there are no {missing:?}");

    // The control: a test that is not there is missed, and one that is in another file, too.
    let spoiled = table
        .replacen("`redo::special_deletes`", "`redo::special_delete`", 1)
        .replacen("`image::*`", "`picture::*`", 1)
        .replacen("`redo::a_new_page_is_missing`", "`route::a_new_page_is_missing`", 1);
    let spoiled = names_in(&spoiled);
    let missing = missing_from(&spoiled, &functions);
    assert_eq!(missing, ["picture::*", "redo::special_delete", "route::a_new_page_is_missing"]);
    Ok(())
}

fn number_of_row(line: &str) -> Option<u32> {
    line.strip_prefix("| ")?.split(' ').next()?.parse().ok()
}

/// What stands in backquotes and looks like `file::test` or `file::*`.
fn names_in(table: &str) -> BTreeSet<String> {
    let in_quotes = table.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let is_file = |file: &str| file.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let names =
        in_quotes.filter(|text| text.split_once("::").is_some_and(|(file, _)| is_file(file)));
    names.filter(|name| *name != "file::test").map(str::to_owned).collect()
}

fn missing_from<'a>(
    named: &'a BTreeSet<String>,
    functions: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<&'a str> {
    let exists = |name: &str| {
        let (file, test) = name.split_once("::").unwrap_or_default();
        functions.get(file).is_some_and(|tests| test == "*" || tests.contains(test))
    };
    named.iter().map(String::as_str).filter(|name| !exists(name)).collect()
}

/// The tests in all Rust files below these directories, by the files' names.
fn functions_in(roots: [PathBuf; 3]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut functions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut pending = Vec::from(roots);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let file = path.file_stem().and_then(|stem| stem.to_str()).context("a name")?;
            let text = fs::read_to_string(&path)?;
            let mut lines = text.lines().map(str::trim);
            while let Some(line) = lines.next() {
                if line == "#[test]"
                    && let Some(function) = lines.find_map(|line| line.strip_prefix("fn "))
                    && let Some((name, _)) = function.split_once('(')
                {
                    functions.entry(file.to_owned()).or_default().insert(name.to_owned());
                }
            }
        }
    }
    Ok(functions)
}
