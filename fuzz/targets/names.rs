//! Names, patterns of names, ids, and packed fields.
#![no_main]

use bytes::Bytes;
use campanile::{Name, fuzzing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (pattern, text) = input;
    // `reference_matches` is slow, so it gets only short inputs.
    if pattern.len() <= 12 && text.len() <= 16 {
        assert_eq!(
            fuzzing::matches(pattern, text),
            fuzzing::reference_matches(pattern, text)
        );
    } else {
        fuzzing::matches(pattern, text);
    }
    if let Some(id) = fuzzing::entry_id(text) {
        assert_eq!(fuzzing::entry_id(id.as_bytes()), Some(id));
    }
    if let Some(fields) = fuzzing::unpack(&Bytes::copy_from_slice(text)) {
        let length: usize = fields
            .iter()
            .map(|(field, value)| field.len() + value.len() + 2)
            .sum();
        assert!(length < text.len(), "each field has a head of its own");
    }
    let (Ok(prefix), Ok(name)) = (Name::from_utf8(pattern), Name::from_utf8(text)) else {
        return;
    };
    let escaped = fuzzing::escape(&name);
    assert!(fuzzing::matches(escaped.as_bytes(), name.as_bytes()));
    assert_eq!(
        fuzzing::matches(escaped.as_bytes(), prefix.as_bytes()),
        prefix == name
    );
    assert_eq!(
        fuzzing::fault(&name).is_none(),
        (1..=Name::MAX_LEN).contains(&name.len())
    );
    let joined = fuzzing::join(&prefix, &name);
    assert!(joined.starts_with(&*prefix) && joined.ends_with(&*name));
    let dot = !prefix.is_empty() && !name.is_empty();
    assert_eq!(joined.len(), prefix.len() + name.len() + usize::from(dot));
});
