//! The types of other crates in public signatures. With each of them the crate's version becomes a part of
//! ours: a new major version of it is one of ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

/// The crates whose types may be public, besides the standard library.
const ALLOWED: &[(&str, &[&str])] = &[
    ("bytes", &["Bytes"]),
    ("futures_core", &["Stream"]),
    ("http", &[]), // any
    ("http_body", &[]),
    ("prost", &["Message"]),
    ("redis", &["Client"]), // of `Redis::from_client` alone
    ("schemars", &["JsonSchema"]),
    ("serde_core", &[]),
    ("tokio", &["Instant"]),
    ("tokio_util", &["CancellationToken"]),
    ("tower_layer", &["Layer"]),
    ("tower_service", &["Service"]),
];

/// Describes the crate as JSON. The format is not stable, but this compiler's is known.
fn described() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("target/features");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "rustdoc",
        "--quiet",
        "--package",
        "campanile",
        "--lib",
        "--all-features",
    ]);
    cargo.arg("--target-dir").arg(&target).current_dir(&root);
    cargo.args(["--", "-Z", "unstable-options", "--output-format", "json"]);
    let status = cargo.env("RUSTC_BOOTSTRAP", "1").status();
    assert!(status.expect("cargo runs").success());
    let json = fs::read(target.join("doc/campanile.json")).expect("the description");
    serde_json::from_slice(&json).expect("JSON")
}

/// Finds the ids of types and traits in a part of a description.
fn ids(part: &Value, found: &mut BTreeSet<u64>) {
    match part {
        Value::Object(fields) => {
            for (field, value) in fields {
                if matches!(&**field, "resolved_path" | "trait") {
                    found.extend(value["id"].as_u64());
                }
                ids(value, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| ids(value, found)),
        _ => {}
    }
}

/// Returns the part of an item that users see. `None` if they see nothing of it.
fn public(item: &Value) -> Option<Value> {
    let is_public = matches!(item["visibility"].as_str(), Some("public" | "default"));
    let (kind, inner) = item["inner"].as_object()?.iter().next()?;
    match &**kind {
        _ if !is_public || item["crate_id"] != 0 => None,
        "module" => None,
        "impl" if inner["is_synthetic"] == true || !inner["blanket_impl"].is_null() => None,
        "impl" => Some(serde_json::json!([
            { "trait": inner["trait"] },
            inner["for"],
            inner["generics"]
        ])),
        "use" => Some(serde_json::json!({ "trait": { "id": inner["id"] } })),
        _ => Some(inner.clone()),
    }
}

#[test]
#[ignore = "documents the library once more, which takes minutes: run it with --ignored when dependencies change"]
fn only_types_of_allowed_crates_are_public() {
    let described = described();
    let items = described["index"].as_object().expect("items");
    let mut foreign = BTreeMap::<String, BTreeSet<String>>::new();
    for item in items.values() {
        let mut found = BTreeSet::new();
        ids(&public(item).unwrap_or_default(), &mut found);
        for id in found {
            let path = &described["paths"][id.to_string()];
            let Some(number) = path["crate_id"].as_u64().filter(|it| *it != 0) else {
                continue;
            };
            let name = &described["external_crates"][number.to_string()]["name"];
            let name = name.as_str().expect("a name");
            let path = path["path"].as_array().expect("a path");
            let text = path
                .iter()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join("::");
            // The macro `pin_project` adds an implementation that is hidden from users.
            if !matches!(name, "std" | "core" | "alloc") && !text.contains("__private") {
                foreign.entry(name.to_owned()).or_default().insert(text);
            }
        }
    }
    assert!(foreign.contains_key("tower_service"), "nothing was found");
    for (name, types) in foreign {
        let allowed = ALLOWED.iter().find(|(allowed, _)| *allowed == name);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{name} is not allowed: {types:?}"));
        for path in types {
            let is_allowed = allowed.iter().any(|it| path.ends_with(&format!("::{it}")));
            assert!(allowed.is_empty() || is_allowed, "{path} is not allowed");
        }
    }
}
