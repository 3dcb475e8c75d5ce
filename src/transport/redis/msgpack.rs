//! Decodes entries whose fields a script has packed into one value. Scripts pack fields because a
//! script cannot pass thousands of arguments to a command.

use bytes::Bytes;

/// The name of the field that contains the packed fields.
const PACKED_FIELD: &str = "~f";

/// Replaces the field `~f` by the fields that are packed in its value. If the value is malformed,
/// returns `fields` unchanged.
pub(super) fn with_unpacked_fields(mut fields: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Bytes)> {
    let Some(at) = fields.iter().position(|(field, _)| field == PACKED_FIELD) else {
        return fields;
    };
    if let Some(inner) = unpack(&fields[at].1) {
        fields.remove(at);
        fields.extend(inner);
    }
    fields
}

/// Decodes a MessagePack array of byte strings, as written by `cmsgpack.pack` of Redis's Lua.
/// `None` if it is malformed.
/// <https://github.com/msgpack/msgpack/blob/master/spec.md>
pub(super) fn unpack(blob: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut at = 0;
    let count = match read_number(blob, &mut at, 1)? {
        head @ 0x90..=0x9f => head & 0x0f,
        0xdc => read_number(blob, &mut at, 2)?,
        0xdd => read_number(blob, &mut at, 4)?,
        _ => return None,
    };
    let mut fields = Vec::new();
    for _ in 0..count / 2 {
        fields.push((read_string(blob, &mut at)?, read_string(blob, &mut at)?));
    }
    (at == blob.len() && count % 2 == 0).then_some(fields)
}

/// Reads a string at `at`, and moves `at` behind it.
fn read_string(blob: &Bytes, at: &mut usize) -> Option<Bytes> {
    let length = match read_number(blob, at, 1)? {
        head @ 0xa0..=0xbf => head & 0x1f,
        0xc4 | 0xd9 => read_number(blob, at, 1)?,
        0xc5 | 0xda => read_number(blob, at, 2)?,
        0xc6 | 0xdb => read_number(blob, at, 4)?,
        _ => return None,
    };
    let end = at.checked_add(length).filter(|&end| end <= blob.len())?;
    let text = blob.slice(*at..end);
    *at = end;
    Some(text)
}

/// Reads a big-endian number of `size` bytes at `at`, and moves `at` behind it.
fn read_number(blob: &Bytes, at: &mut usize, size: usize) -> Option<usize> {
    let end = *at + size;
    let digits = blob.get(*at..end)?;
    *at = end;
    Some(
        digits
            .iter()
            .fold(0, |sum, &digit| sum << 8 | usize::from(digit)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_blob_gives_back_its_fields_and_a_broken_one_stays() {
        let long = "v".repeat(300);
        let mut blob = b"\x94\xa1a\xa0\xd9\x02bb\xda\x01\x2c".to_vec();
        blob.extend_from_slice(long.as_bytes());
        let blob = Bytes::from(blob);
        let fields = with_unpacked_fields(vec![
            ("~o".into(), "1-1".into()),
            ("~f".into(), blob.clone()),
        ]);
        assert_eq!(
            fields,
            [
                (Bytes::from("~o"), Bytes::from("1-1")),
                ("a".into(), "".into()),
                ("bb".into(), long.into()),
            ]
        );
        for end in 0..blob.len() {
            let broken = vec![(Bytes::from("~f"), blob.slice(..end))];
            assert_eq!(with_unpacked_fields(broken.clone()), broken);
        }
    }

    /// Encodes as `cmsgpack.pack` does.
    fn pack(fields: &[(Bytes, Bytes)]) -> Bytes {
        let count = 2 * fields.len();
        let mut blob = match count {
            0..=15 => vec![0x90 | count as u8],
            16..=0xffff => [&[0xdc], &(count as u16).to_be_bytes()[..]].concat(),
            _ => [&[0xdd], &(count as u32).to_be_bytes()[..]].concat(),
        };
        for text in fields.iter().flat_map(|(field, value)| [field, value]) {
            let length = text.len();
            match length {
                0..=31 => blob.push(0xa0 | length as u8),
                32..=0xff => blob.extend([0xd9, length as u8]),
                0x100..=0xffff => {
                    blob.push(0xda);
                    blob.extend((length as u16).to_be_bytes());
                }
                _ => {
                    blob.push(0xdb);
                    blob.extend((length as u32).to_be_bytes());
                }
            }
            blob.extend_from_slice(text);
        }
        blob.into()
    }

    fn any_fields() -> impl Strategy<Value = Vec<(Bytes, Bytes)>> {
        let text = prop_oneof![
            8 => prop::collection::vec(any::<u8>(), 0..40),
            1 => (0..70_000usize).prop_map(|length| vec![b'x'; length]),
        ]
        .prop_map(Bytes::from);
        prop::collection::vec((text.clone(), text), 0..20)
    }

    #[test]
    fn a_blob_of_thousands_of_fields_is_read() {
        for count in [7, 8, 32_767, 32_768] {
            let fields = vec![(Bytes::from("a"), Bytes::from("b")); count];
            assert_eq!(unpack(&pack(&fields)), Some(fields));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn packed_fields_are_unpacked_and_a_part_of_them_is_refused(
            fields in any_fields(),
            end in any::<prop::sample::Index>(),
        ) {
            let blob = pack(&fields);
            prop_assert_eq!(unpack(&blob.slice(..end.index(blob.len()))), None);
            prop_assert_eq!(unpack(&blob), Some(fields));
        }

        #[test]
        fn a_blob_of_any_bytes_stays_or_is_read(head in 0x90..=0xdfu8, rest: Vec<u8>) {
            let blob = Bytes::from([&[head], &rest[..]].concat());
            let fields = vec![(Bytes::from(PACKED_FIELD), blob)];
            let read = with_unpacked_fields(fields.clone());
            prop_assert!(read == fields || read.iter().all(|(field, _)| field.len() <= rest.len()));
        }
    }
}
