//! Checks that every promise of the docs names a test, and that every test they name exists.

use std::{fs, path::Path};

/// The texts of a page that look like `path/to/file.rs::name_of_a_test`.
fn named(text: &str) -> Vec<(&str, &str)> {
    text.split('`')
        .filter_map(|code| code.split_once(".rs::"))
        .filter(|(_, name)| !name.contains(char::is_whitespace))
        .collect()
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    fs::read_to_string(path).expect("the page exists")
}

/// The entries of a page's lists, each with the lines that belong to it.
fn entries(page: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    let mut within = false;
    for line in page.lines() {
        if line.starts_with("- ") {
            entries.push(line.to_owned());
            within = true;
        } else if within && line.starts_with("  ") {
            entries
                .last_mut()
                .expect("an entry has begun")
                .push_str(line);
        } else {
            within = false;
        }
    }
    entries
}

#[test]
fn every_promise_names_a_test() {
    let page = page("guarantees.md");
    let promises = entries(&page);
    assert!(promises.len() > 50, "only {} were found", promises.len());
    for promise in promises {
        assert!(!named(&promise).is_empty(), "it names no test: {promise}");
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for name in [
        "guarantees.md",
        "durability.md",
        "layers.md",
        "own-transport.md",
        "protocol.md",
    ] {
        for (file, test) in named(&page(name)) {
            let source = fs::read_to_string(root.join(file).with_extension("rs"));
            let function = format!("fn {test}");
            let exists = source.is_ok_and(|source| {
                source.match_indices(&function).any(|(at, _)| {
                    matches!(
                        source.as_bytes().get(at + function.len()),
                        Some(b'(' | b'<')
                    )
                })
            });
            if !exists {
                missing.push(format!("{name}: {file}.rs::{test}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn promises_without_a_test_or_with_a_wrong_one_are_found() {
    let page =
        "- One.\n  `tests/a.rs::b`\n- Two,\n  without.\n\nNo entry.\n- Three. `x.rs::not a name`\n";
    let entries = entries(page);
    let found: Vec<_> = entries.iter().map(|entry| named(entry)).collect();
    assert_eq!(found, [vec![("tests/a", "b")], vec![], vec![]]);
}
