//! The walls of the house: who may import whom, held against `cargo metadata`.
//!
//! What a crate must not know is as much a part of the design as what it does. That is why the list
//! below is written by hand and not derived.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};
use serde_json::{Value, json};

/// Each crate with those of ours it may import. `integration` may import all; nothing imports it but
/// tests.
const MAY_IMPORT: [(&str, &[&str]); 8] = [
    ("walfmt", &[]),
    ("walfmt-physical", &["walfmt"]),
    ("walfmt-logical", &["walfmt"]),
    ("walferry-wire", &["walfmt"]),
    ("walferry-archive", &["walfmt"]),
    ("walferry-store", &["walfmt", "walfmt-physical"]),
    (
        "walferry",
        &[
            "walfmt",
            "walfmt-physical",
            "walfmt-logical",
            "walferry-wire",
            "walferry-archive",
            "walferry-store",
        ],
    ),
    (
        "integration",
        &[
            "walfmt",
            "walfmt-physical",
            "walfmt-logical",
            "walferry-wire",
            "walferry-archive",
            "walferry-store",
        ],
    ),
];

/// Crates of pure functions: no I/O, no clock, no threads, so that they run in a fuzzer.
const PURE: [&str; 4] = ["walfmt", "walfmt-physical", "walfmt-logical", "walferry-wire"];

/// What a pure crate has no use for, at whatever distance. (`libc` is not here: `crc32c` and `zstd`
/// bind C code. Nor is `bytes`, which only holds them.)
const IMPURE: [&str; 24] = [
    "async-io",
    "async-std",
    "axum",
    "chrono",
    "crossbeam-channel",
    "futures-executor",
    "getrandom",
    "hyper",
    "inotify",
    "io-uring",
    "jiff",
    "mio",
    "nix",
    "notify",
    "polling",
    "quinn",
    "rayon",
    "reqwest",
    "rustix",
    "smol",
    "socket2",
    "time",
    "tokio",
    "tokio-postgres",
];

/// All that may stand at the top level; beside these only names that begin with a dot.
const TOP_LEVEL: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "agent",
    "integration",
    "systemd",
    "target",
    "walfmt",
];

#[test]
fn the_walls_stand() -> Result<()> {
    let house = House::from_metadata(&metadata()?)?;
    let breaches = house.breaches();
    ensure!(breaches.is_empty(), "{}", breaches.join("\n"));
    println!("{} crates, {} packages looked at, no breach", house.ours.len(), house.names.len());
    Ok(())
}

/// The negative controls: the same judge on the same metadata with one thing changed.
#[test]
fn a_breach_is_found() -> Result<()> {
    let sound = metadata()?;
    let spoiled = |spoil: &dyn Fn(&mut Value)| -> Result<String> {
        let mut metadata = sound.clone();
        spoil(&mut metadata);
        Ok(House::from_metadata(&metadata)?.breaches().join("\n"))
    };
    let add = |from: &'static str, to: &'static str, kind: Value| {
        move |metadata: &mut Value| add_dependency(metadata, from, to, kind.clone())
    };
    let normal = Value::Null;
    let controls = [
        ("walfmt", "tokio", normal.clone(), "walfmt depends on tokio"),
        ("walferry-wire", "walferry-store", normal.clone(), "walferry-wire imports walferry-store"),
        ("walfmt-physical", "rustix", normal.clone(), "walfmt-physical depends on rustix"),
        (
            "walferry-archive",
            "walferry-store",
            normal.clone(),
            "walferry-archive imports walferry-store",
        ),
        ("walfmt", "integration", normal.clone(), "walfmt imports integration"),
        ("walferry-wire", "walferry-store", json!("build"), "walferry-wire imports walferry-store"),
        // Two steps away: what a pure crate imports is looked through.
        ("thiserror", "mio", normal, "walfmt depends on mio"),
    ];
    for (from, to, kind, expected) in controls {
        let breaches = spoiled(&add(from, to, kind))?;
        ensure!(breaches.contains(expected), "{from} -> {to}: found {breaches:?}");
    }
    // Tests may import what they like.
    let breaches = spoiled(&add("walfmt", "integration", json!("dev")))?;
    ensure!(breaches.is_empty(), "a dev-dependency is no breach: {breaches}");
    // A crate that the list does not know is one.
    let breaches = spoiled(&|metadata| {
        let text = metadata
            .to_string()
            .replace("\"name\":\"walferry-wire\"", "\"name\":\"walferry-extra\"");
        *metadata = serde_json::from_str(&text).expect("still JSON");
    })?;
    ensure!(breaches.contains("walferry-extra"), "a new crate went unnoticed: {breaches:?}");
    Ok(())
}

#[test]
fn manifests_and_crate_roots_say_what_they_must() -> Result<()> {
    let house = House::from_metadata(&metadata()?)?;
    for (name, manifest) in &house.ours {
        let text = fs::read_to_string(manifest)?;
        let lints: toml::Table = text.parse().with_context(|| format!("{}", manifest.display()))?;
        let inherits = lints.get("lints").and_then(|lints| lints.get("workspace"));
        ensure!(inherits == Some(&true.into()), "{name}: no `[lints] workspace = true`");
        if PURE.contains(&name.as_str()) {
            let root = manifest.with_file_name("src").join("lib.rs");
            let forbids =
                fs::read_to_string(root)?.lines().any(|line| line == "#![forbid(unsafe_code)]");
            ensure!(forbids, "{name}: no `#![forbid(unsafe_code)]` in its lib.rs");
        }
    }
    Ok(())
}

#[test]
fn the_top_level_holds_only_its_fixed_names() -> Result<()> {
    let strays = strays_in(&top())?;
    ensure!(strays.is_empty(), "does not belong at the top level: {strays:?}");
    let spoiled = tempfile::tempdir()?;
    fs::write(spoiled.path().join("notes.md"), "")?;
    fs::create_dir(spoiled.path().join("walfmt"))?;
    ensure!(strays_in(spoiled.path())? == ["notes.md"], "a stray file went unnoticed");
    Ok(())
}

fn strays_in(directory: &Path) -> Result<Vec<String>> {
    let mut strays = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) {
            strays.push(name);
        }
    }
    Ok(strays)
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The workspace's metadata as JSON, so that a copy can be changed.
fn metadata() -> Result<Value> {
    let mut command = MetadataCommand::new();
    command.manifest_path(top().join("Cargo.toml")).other_options(vec!["--locked".to_owned()]);
    Ok(serde_json::to_value(command.exec().context("cargo metadata")?)?)
}

/// Makes package `from` depend on package `to`.
fn add_dependency(metadata: &mut Value, from: &str, to: &str, kind: Value) {
    let id_of = |name: &str| {
        let packages = metadata["packages"].as_array().expect("packages");
        let package = packages.iter().find(|package| package["name"] == name);
        package.unwrap_or_else(|| panic!("no package {name}"))["id"].clone()
    };
    let (from, to) = (id_of(from), id_of(to));
    let nodes = metadata["resolve"]["nodes"].as_array_mut().expect("nodes");
    let node = nodes.iter_mut().find(|node| node["id"] == from).expect("a node");
    let edge =
        json!({ "name": "added", "pkg": to, "dep_kinds": [{ "kind": kind, "target": null }] });
    node["deps"].as_array_mut().expect("deps").push(edge);
}

/// The packages and who imports whom, by package id.
struct House {
    /// Our crates with their manifests, by name.
    ours: BTreeMap<String, PathBuf>,
    members: BTreeSet<String>,
    names: BTreeMap<String, String>,
    /// All direct imports but those of tests.
    imports: BTreeMap<String, BTreeSet<String>>,
    /// The imports that become a part of the program. What a build script needs (`zstd`'s starts a C
    /// compiler, with threads) runs elsewhere.
    linked: BTreeMap<String, BTreeSet<String>>,
}

impl House {
    fn from_metadata(metadata: &Value) -> Result<Self> {
        let metadata: cargo_metadata::Metadata = serde_json::from_value(metadata.clone())?;
        let members: BTreeSet<String> =
            metadata.workspace_members.iter().map(ToString::to_string).collect();
        let mut house = Self {
            ours: BTreeMap::new(),
            members,
            names: BTreeMap::new(),
            imports: BTreeMap::new(),
            linked: BTreeMap::new(),
        };
        for package in &metadata.packages {
            let id = package.id.to_string();
            if house.members.contains(&id) {
                let manifest = package.manifest_path.clone().into_std_path_buf();
                house.ours.insert(package.name.to_string(), manifest);
            }
            house.names.insert(id, package.name.to_string());
        }
        for node in metadata.resolve.context("metadata without a resolved graph")?.nodes {
            let of_kinds = |kinds: &[DependencyKind]| {
                let wanted = node.deps.iter().filter(|dependency| {
                    dependency.dep_kinds.iter().any(|found| kinds.contains(&found.kind))
                });
                wanted.map(|dependency| dependency.pkg.to_string()).collect()
            };
            let id = node.id.to_string();
            house.linked.insert(id.clone(), of_kinds(&[DependencyKind::Normal]));
            house.imports.insert(id, of_kinds(&[DependencyKind::Normal, DependencyKind::Build]));
        }
        Ok(house)
    }

    fn breaches(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        for id in &self.members {
            let name = &self.names[id];
            let Some((_, may_import)) = MAY_IMPORT.iter().find(|(of, _)| of == name) else {
                breaches.push(format!("{name} is not in this test's list of crates"));
                continue;
            };
            for import in self.imports.get(id).into_iter().flatten() {
                let imported = self.names[import].as_str();
                if self.members.contains(import) && !may_import.contains(&imported) {
                    breaches.push(format!("{name} imports {imported}"));
                }
            }
            if PURE.contains(&name.as_str()) {
                let reached = self.reached_from(id);
                let impure = IMPURE.iter().filter(|impure| reached.contains(**impure));
                breaches.extend(impure.map(|impure| format!("{name} depends on {impure}")));
            }
        }
        breaches
    }

    /// The names of all packages that are linked with `id`, at whatever distance.
    fn reached_from(&self, id: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut left = vec![id];
        while let Some(id) = left.pop() {
            for import in self.linked.get(id).into_iter().flatten() {
                if reached.insert(self.names[import].as_str()) {
                    left.push(import);
                }
            }
        }
        reached
    }
}
