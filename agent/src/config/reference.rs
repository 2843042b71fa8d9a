//! docs/configuration.md against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::{Config, build};

/// The keys of each section, with their defaults in TOML.
type Reference = BTreeMap<&'static str, BTreeMap<&'static str, Option<&'static str>>>;

/// A section's name as its heading has it; the top level has none.
fn reference() -> Reference {
    let text = include_str!("../../../docs/configuration.md");
    let mut reference = Reference::new();
    for part in text.split("\n## ").skip(1) {
        let (heading, rows) = part.split_once('\n').unwrap();
        let rows = rows.lines().filter_map(|row| {
            let (key, rest) = row.strip_prefix("| `")?.split_once("` | ")?;
            let default = rest.split(" | ").next()?;
            Some((key, default.strip_prefix('`').and_then(|it| it.strip_suffix('`'))))
        });
        let name = heading.strip_prefix("`[").and_then(|it| it.strip_suffix("]`"));
        reference.insert(name.unwrap_or_default(), rows.collect());
    }
    reference
}

fn read(text: &str) -> Result<Config, String> {
    let path = Path::new("agent.toml");
    moai_settings::read(path, text, |root| build(path, root)).map_err(|error| error.to_string())
}

/// What a key or section of this name may be called in a section, as the code says to a wrong one.
fn known(section: &str) -> BTreeSet<String> {
    let text = match section {
        "" => "nonsense = 1".to_owned(),
        "[tasks.topics]" => "[[tasks]]\n[[tasks.topics]]\nnonsense = 1".to_owned(),
        section => format!("[{section}]\nnonsense = 1"),
    };
    let message = read(&text).unwrap_err();
    let line = message.lines().find(|line| line.contains("nonsense` is unknown here"));
    let keys = line.and_then(|line| line.split("known keys: ").nth(1));
    keys.unwrap_or_else(|| panic!("{message}")).split(", ").map(str::to_owned).collect()
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let reference = reference();
    for (section, keys) in &reference {
        let documented: BTreeSet<String> = keys.keys().map(|key| (*key).to_owned()).collect();
        let mut known = known(section);
        // Sections have headings of their own.
        let plain = |name: &'static str| name.trim_matches(['[', ']']);
        for inner in reference.keys().map(|name| plain(name)) {
            let (outer, name) = inner.rsplit_once('.').unwrap_or(("", inner));
            if outer == plain(section) {
                known.remove(name);
            }
        }
        assert_eq!(documented, known, "[{section}]");
    }
}

#[test]
fn the_defaults_are_those_of_the_reference() {
    // Sections that only some robots have, and whose absence means something.
    let without = ["pkcs11", "kms", "escrow", "[tasks]", "[tasks.topics]"];
    let mut texts = [String::new(), String::new()];
    for (section, keys) in reference() {
        let [minimal, full] = &mut texts;
        if without.contains(&section) {
            continue;
        }
        for text in [&mut *minimal, &mut *full] {
            if !section.is_empty() {
                writeln!(text, "[{section}]").unwrap();
            }
            match section {
                "" => *text += "identity = 'a.b'\n",
                "uplink" => *text += "host = 'h'\n",
                _ => {}
            }
        }
        for (key, default) in keys {
            if let Some(default) = default {
                writeln!(full, "{key} = {default}").unwrap();
            }
        }
    }
    let [minimal, full] = texts.map(|text| read(&text).unwrap());
    assert_eq!(shown(&minimal), shown(&full));

    let minimal = "[[tasks]]\nname = 'a'\nmodel = 'm'\n".to_owned();
    let mut full = minimal.clone();
    for (key, default) in &reference()["[tasks]"] {
        // It has a meaning with `trigger` only.
        if let Some(default) = default.filter(|_| *key != "max_age_ms") {
            writeln!(full, "{key} = {default}").unwrap();
        }
    }
    let [minimal, full] = [minimal, full]
        .map(|tasks| read(&format!("identity = 'a.b'\nuplink.host = 'h'\n{tasks}")).unwrap());
    assert_eq!(shown(&minimal), shown(&full));
}

/// A configuration without what depends on the file's lines.
fn shown(config: &Config) -> String {
    let mut text = String::new();
    for line in format!("{config:#?}").lines().filter(|line| !line.trim().starts_with("line: ")) {
        text += line;
        text += "\n";
    }
    text
}
