//! Checks that each public item has one path.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Collects the files of all modules below `src`, without those of the program.
fn module_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("bin") {
            module_files(&path, into);
        } else if path.ends_with("mod.rs") {
            into.push(path);
        }
    }
}

/// The names that a source text exports: those in its `pub use` declarations, and its public items.
fn exported(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for declaration in text.split("\npub use ").skip(1) {
        let declaration = declaration.split(';').next().unwrap();
        let paths = declaration.split(['{', '}', ',']).map(str::trim);
        let items = paths.filter(|path| !path.is_empty() && !path.ends_with("::"));
        names.extend(items.map(|path| path.rsplit("::").next().unwrap().to_owned()));
    }
    for keyword in ["struct", "enum", "trait", "type", "fn", "async fn"] {
        for item in text.split(&format!("\npub {keyword} ")).skip(1) {
            let end = item.find(|c: char| !c.is_alphanumeric() && c != '_');
            names.insert(item[..end.unwrap()].to_owned());
        }
    }
    names
}

#[test]
fn no_module_exports_an_item_of_the_root_again() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let root = exported(&fs::read_to_string(src.join("lib.rs")).unwrap());
    assert!(
        root.contains("Router") && root.contains("serve"),
        "{root:?}"
    );
    let mut files = Vec::new();
    module_files(&src, &mut files);
    assert!(files.len() > 10);
    let mut twice = Vec::new();
    for file in files {
        // The crate does not export these modules.
        if ["service", "payload"]
            .iter()
            .any(|it| file.starts_with(src.join(it)))
        {
            continue;
        }
        for name in exported(&fs::read_to_string(&file).unwrap()) {
            if root.contains(&name) {
                twice.push(format!("`{name}` in {}", file.display()));
            }
        }
    }
    assert!(twice.is_empty(), "these have a second path: {twice:#?}");
}
