//! Redis glob patterns, by the rules of its `PSUBSCRIBE`
//! (<https://redis.io/docs/latest/commands/psubscribe/>): `?` is any byte, `*` any number of them,
//! `[abc]`, `[a-z]` and `[^a]` are classes, and a backslash takes away a byte's meaning.
//!
//! Whatever a pattern looks like it means something: a class that is not closed ends with the
//! pattern, and a backslash at its end is itself.

/// Whether `pattern` matches all of `text`. It takes at most `pattern.len() * text.len()` steps,
/// so that a hostile pattern cannot stall a worker.
pub(crate) fn matches(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // What follows the last `*`, and the text from where that `*` may swallow one byte more. Only
    // the last one ever needs another try: an earlier one could only move the same match further.
    let mut last_star: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            if rest.is_empty() {
                return true;
            }
            last_star = Some((rest, text));
            pattern = rest;
            continue;
        }
        let matched = match (pattern, text) {
            ([], []) => return true,
            ([], _) | (_, []) => None,
            (_, [byte, rest @ ..]) => one(pattern, *byte).map(|after| (after, rest)),
        };
        match (matched, last_star) {
            (Some(after), _) => (pattern, text) = after,
            (None, Some((after_star, [_, later @ ..]))) => {
                last_star = Some((after_star, later));
                (pattern, text) = (after_star, later);
            }
            (None, _) => return false,
        }
    }
}

/// Matches one byte against the first element of a pattern that is not empty and no `*`: what is
/// left of the pattern, or `None`.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'[', b'^', class @ ..] => {
            let (found, rest) = in_class(class, byte);
            (!found).then_some(rest)
        }
        [b'[', class @ ..] => {
            let (found, rest) = in_class(class, byte);
            found.then_some(rest)
        }
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// Whether the class holds the byte, and what of the pattern follows the class.
fn in_class(mut class: &[u8], byte: u8) -> (bool, &[u8]) {
    let mut found = false;
    loop {
        class = match class {
            [] => return (found, class),
            [b'\\', literal, rest @ ..] => {
                found |= *literal == byte;
                rest
            }
            [b']', rest @ ..] => return (found, rest),
            [from, b'-', to, rest @ ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                rest
            }
            [literal, rest @ ..] => {
                found |= *literal == byte;
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_redis() {
        let cases: [(&str, &[&str], &[&str]); 20] = [
            ("orders", &["orders"], &["order", "orders.", "Orders"]),
            ("*", &["a", "a.b"], &[]),
            ("orders.*", &["orders.", "orders.a.b"], &["orders"]),
            (
                "*.created",
                &["a.created", "a.created.created"],
                &["created"],
            ),
            ("a*b*c", &["abc", "a-b-b-c"], &["ab", "acb"]),
            ("**a**", &["a", "xax"], &["x"]),
            ("h?llo", &["hello", "h*llo"], &["hllo", "heello"]),
            ("h[ae]llo", &["hallo", "hello"], &["hillo", "hllo"]),
            ("h[^e]llo", &["hallo"], &["hello"]),
            ("[a-c]", &["a", "b", "c"], &["d", "-", ""]),
            ("[c-a]", &["a", "b", "c"], &["d"]),
            (r"[\]]", &["]"], &[r"\"]),
            (r"[\-a]", &["-", "a"], &["b"]),
            (r"\*", &["*"], &["a", r"\*"]),
            (r"a\", &[r"a\"], &["a"]),
            ("[ab", &["a", "b"], &["[ab", "c"]),
            ("[", &[], &["[", "a"]),
            ("[^", &["a", "["], &["", "ab"]),
            ("[]", &[], &["[]", "]"]),
            ("[a-]", &["a", "]", "^"], &["-", "b"]),
        ];
        for (pattern, yes, no) in cases {
            for text in yes {
                assert!(
                    matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
            for text in no {
                assert!(
                    !matches(pattern.as_bytes(), text.as_bytes()),
                    "{pattern} {text}"
                );
            }
        }
        assert!(matches(b"\xff?\x00", b"\xff\xfe\x00"), "bytes, not text");
    }

    #[test]
    fn a_hostile_pattern_does_not_stall() {
        let pattern = "*a".repeat(500);
        let text = "a".repeat(499) + &"b".repeat(100_000);
        assert!(!matches(pattern.as_bytes(), text.as_bytes()));
    }
}
