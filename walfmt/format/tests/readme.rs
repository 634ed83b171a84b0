//! `walfmt/README.md` names every kind of record as the code does.

use walfmt::rmgr::RmgrId;
use walfmt::text;
use walfmt::version::VERSIONS;

/// One line for each kind of record: what `xl_info` must be, and its name in each major.
fn kinds() -> String {
    let majors: Vec<String> = VERSIONS.iter().map(|version| version.major.to_string()).collect();
    let mut table = format!("| rmgr | info | {} |\n", majors.join(" | "));
    table.push_str(&format!("|---|---|{}\n", "---|".repeat(majors.len())));
    for rmgr in (0..22).map(RmgrId) {
        for info in (0..=0xF0).step_by(0x10) {
            let names: Vec<&str> = VERSIONS
                .iter()
                .map(|version| text::identify(rmgr, info, version).unwrap_or_default())
                .collect();
            if names.iter().all(|name| name.is_empty()) {
                continue;
            }
            // What is alike in all is said once.
            let first = names[0];
            let cells = if names.iter().all(|name| *name == first) {
                [vec![first], vec!["="; names.len() - 1]].concat()
            } else {
                names.iter().map(|name| if name.is_empty() { "–" } else { *name }).collect()
            };
            table.push_str(&format!("| {rmgr} | {info:02X} | {} |\n", cells.join(" | ")));
        }
    }
    table
}

#[test]
fn the_readme_names_every_kind_of_record() {
    let readme = include_str!("../../README.md");
    let kinds = kinds();
    if !readme.contains(&kinds) {
        println!("{kinds}");
        panic!("walfmt/README.md does not have this table");
    }
    // The negative control.
    let spoiled = kinds.replacen("HOT_UPDATE", "WARM_UPDATE", 1);
    assert!(spoiled != kinds && !readme.contains(&spoiled));
}
