//! The texts of serde's errors, without the values of the payload.

/// Returns the part of serde's error text that quotes no value of the payload. `None` if there is
/// no such part. Values must not get into logs, and may be megabytes long.
pub(crate) fn without_values(serde_text: &str) -> Option<String> {
    if quotes_no_value(serde_text) {
        return Some(serde_text.to_owned());
    }
    // Serde's text is `<problem>: <value>, expected <type>`: only the part after the value is kept.
    let (_, expected) = serde_text.rsplit_once(", expected ")?;
    Some(format!("expected {expected}"))
}

/// Returns `true` if serde's error text names only fields and types, and no value of the payload.
fn quotes_no_value(serde_text: &str) -> bool {
    const BEGINNINGS: [&str; 4] = [
        "missing field ",
        "duplicate field ",
        "data did not match any variant of untagged enum ",
        "no variant of enum ",
    ];
    // Serde buffers flattened fields in a type that has no 128-bit integers. These are the errors
    // of that type.
    const FLATTENED: [&str; 2] = ["i128 is not supported", "u128 is not supported"];
    let begins = |text: &&str| serde_text.starts_with(*text);
    BEGINNINGS.iter().any(begins) || FLATTENED.contains(&serde_text)
}
