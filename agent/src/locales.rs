//! Locales of this machine. A server opens no database whose locale its machine lacks, so a follower
//! needs all that the leader's databases have before it is promoted.

use std::collections::BTreeSet;
use std::process::Command;

use walferry_wire::LocaleName;

/// What to do about locales that are missing.
pub(crate) const REMEDY: &str = "install them on this machine before a promotion needs them: apt install \
     locales-all, or dpkg-reconfigure locales";

/// Why databases with these locales could not be opened here; nothing if they could.
pub(crate) fn objection(needed: &[LocaleName]) -> Option<String> {
    if needed.iter().all(|name| is_built_in(&normalized(name.as_str()))) {
        return None;
    }
    let output = match Command::new("locale").arg("-a").output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => return Some(untold(needed, &output.status.to_string())),
        Err(error) => return Some(untold(needed, &error.to_string())),
    };
    let missing = missing(needed, &String::from_utf8_lossy(&output.stdout));
    (!missing.is_empty()).then(|| {
        format!(
            "databases of the leader need locales that this machine has not: {}. After a promotion \
             they could not be opened",
            missing.join(", ")
        )
    })
}

fn untold(needed: &[LocaleName], why: &str) -> String {
    let needed: Vec<&str> = needed.iter().map(LocaleName::as_str).collect();
    let needed = needed.join(", ");
    format!("databases of the leader need the locales {needed}; `locale -a` does not tell: {why}")
}

/// Those of `needed` that are not in what `locale -a` prints.
fn missing<'a>(needed: &'a [LocaleName], listed: &str) -> Vec<&'a str> {
    let there: BTreeSet<String> = listed.lines().map(|line| normalized(line.trim())).collect();
    let is_missing = |name: &&str| {
        let name = normalized(name);
        !is_built_in(&name) && !there.contains(&name)
    };
    needed.iter().map(LocaleName::as_str).filter(is_missing).collect()
}

/// What the C library has without any file. An empty name is the server's environment's.
fn is_built_in(normalized: &str) -> bool {
    matches!(normalized, "" | "C" | "POSIX" | "C.utf8")
}

/// A name as the C library compares it: of the character set only letters and digits count, and no
/// case.
fn normalized(name: &str) -> String {
    let (name, modifier) = match name.split_once('@') {
        Some((name, modifier)) => (name, format!("@{modifier}")),
        None => (name, String::new()),
    };
    let Some((language, codeset)) = name.split_once('.') else {
        return format!("{name}{modifier}");
    };
    let mut codeset: String = codeset.chars().filter(char::is_ascii_alphanumeric).collect();
    codeset.make_ascii_lowercase();
    let number = if codeset.bytes().all(|byte| byte.is_ascii_digit()) { "iso" } else { "" };
    format!("{language}.{number}{codeset}{modifier}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_the_c_library_does() {
        let listed = "C\nC.utf8\nPOSIX\nde_DE.utf8\nde_DE.iso885915@euro\nen_US\nfr_FR.iso88591\n";
        let missing = |name: &str| !missing(&[LocaleName::fitted(name)], listed).is_empty();
        for name in [
            "C",
            "POSIX",
            "C.UTF-8",
            "C.utf8",
            "de_DE.UTF-8",
            "de_DE.utf8",
            "de_DE.UTF8",
            "",
            "de_DE.ISO-8859-15@euro",
            "en_US",
            "fr_FR.8859-1",
        ] {
            assert!(!missing(name), "{name}");
        }
        for name in
            ["de_DE", "DE_de.UTF-8", "de_DE.ISO-8859-15", "en_US.UTF-8", "de_AT.utf8", "C.x"]
        {
            assert!(missing(name), "{name}");
        }
        // Without any list only what is built in is there.
        let needed = ["C.UTF-8", "POSIX", "en_US.UTF-8"].map(LocaleName::fitted);
        assert_eq!(super::missing(&needed, ""), ["en_US.UTF-8"]);
        assert_eq!(objection(&needed[..2]), None);
    }
}
