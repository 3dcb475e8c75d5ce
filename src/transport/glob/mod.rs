//! Redis's glob patterns, as `PSUBSCRIBE` matches them.
//!
//! <https://redis.io/docs/latest/commands/psubscribe/>. The documented part is `*`, `?`, `[abc]`,
//! `[^a]`, `[a-z]` and `\` to escape the next character. Redis does not document a class without
//! `]` or a range that runs backwards: the tests record how a server matches them.

#[cfg(any(test, fuzzing))]
pub(crate) mod model;

/// Returns `true` if the pattern matches the whole text, byte by byte.
///
/// On a mismatch, only the last `*` takes one more byte: more bytes for an earlier `*` never help.
/// So the time is at most proportional to the product of the two lengths.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut text_left) = (pattern, text);
    // The pattern after the last `*`, and the text against which it was last tried.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', after @ ..] = rest {
            rest = after;
            retry = Some((after, text_left));
            continue;
        }
        let step = match text_left {
            [] if rest.is_empty() => return true,
            [] => return false,
            [byte, after @ ..] => match_byte(rest, *byte).map(|rest| (rest, after)),
        };
        (rest, text_left) = match (step, &mut retry) {
            (Some(step), _) => step,
            (None, Some((after_star, from))) => {
                *from = &from[1..];
                (*after_star, *from)
            }
            (None, None) => return false,
        };
    }
}

/// Matches one byte against the start of a pattern. Returns the rest of the pattern; `None` if the
/// byte does not match.
fn match_byte(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (matched, rest) = match pattern {
        [] => return None,
        [b'?', rest @ ..] => (true, rest),
        [b'[', b'^', class @ ..] => {
            let (matched, rest) = match_class(class, byte);
            (!matched, rest)
        }
        [b'[', class @ ..] => match_class(class, byte),
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (*literal == byte, rest),
    };
    matched.then_some(rest)
}

/// Matches a byte against a character class, and returns the rest of the pattern. A class without
/// `]` ends with the pattern.
fn match_class(mut class: &[u8], byte: u8) -> (bool, &[u8]) {
    let mut matched = false;
    loop {
        let (hit, rest) = match class {
            [] => return (matched, class),
            [b'\\', literal, rest @ ..] => (*literal == byte, rest),
            [b']', rest @ ..] => return (matched, rest),
            [a, b'-', b, rest @ ..] => ((*a.min(b)..=*a.max(b)).contains(&byte), rest),
            [literal, rest @ ..] => (*literal == byte, rest),
        };
        matched |= hit;
        class = rest;
    }
}

/// Returns a pattern that matches only this text.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Patterns, texts that match, and texts that do not, as recorded on Redis 7.0.15.
    const RECORDED: &[(&str, &[&str], &[&str])] = &[
        ("a", &["a"], &["b", "aa", "A"]),
        ("*", &["a", "a.b", "*"], &[]),
        ("a*", &["a", "ab", "a*"], &["ba"]),
        ("*a", &["a", "aa", "ba"], &["ab"]),
        ("a*b*c", &["abc", "axbxc", "abbcc"], &["acb", "ab", "abcx"]),
        ("**a**", &["a", "xax"], &["b"]),
        ("a?", &["ab", "a?"], &["a", "abc"]),
        ("?*", &["a", "ab"], &[]),
        ("[abc]", &["a", "c"], &["d", "ab", "[abc]"]),
        ("[^a]", &["b", "^"], &["a"]),
        ("[a^]", &["a", "^"], &["b"]),
        ("[a-c]", &["a", "b", "c"], &["d", "-"]),
        ("[c-a]", &["a", "b", "c"], &["d", "-"]),
        ("[a-]", &["_", "]", "a", "^"], &["-", "b"]),
        ("[-a]", &["-", "a"], &["b"]),
        ("[]", &[], &["a", "]", "[]"]),
        ("[]a]", &[], &["a", "]", "a]"]),
        ("[^]", &["a", "]"], &["ab"]),
        ("[\\]]", &["]"], &["\\", "a"]),
        ("[\\a-c]", &["a", "-", "c"], &["b", "\\"]),
        ("[a", &["a"], &["b", "[a"]),
        ("[", &[], &["[", "a"]),
        ("[^", &["a", "["], &["ab"]),
        ("[a\\", &["a", "\\"], &["b"]),
        ("\\*", &["*"], &["a", "\\*"]),
        ("\\a", &["a"], &["\\a"]),
        ("a\\", &["a\\"], &["a"]),
        ("\\\\", &["\\"], &["\\\\"]),
        ("a]", &["a]"], &["a"]),
        ("\u{e4}?", &["\u{e4}b"], &["\u{e4}\u{e4}"]),
        ("??", &["\u{e4}", "ab"], &["a"]),
    ];

    #[test]
    fn patterns_match_what_they_match_on_a_server() {
        for (pattern, yes, no) in RECORDED {
            for text in *yes {
                let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
                assert!(
                    matches(pattern, text) && model::matches(pattern, text),
                    "{pattern:?} {text:?}"
                );
            }
            for text in *no {
                let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
                assert!(
                    !matches(pattern, text) && !model::matches(pattern, text),
                    "{pattern:?} {text:?}"
                );
            }
        }
    }

    #[test]
    fn no_pattern_takes_exponential_time() {
        let pattern = "a*".repeat(500) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(1024).as_bytes()));
    }

    proptest! {
        #[test]
        fn an_escaped_text_matches_itself_alone(
            text in r"[ab*?\[\]\\^-]{0,6}",
            other in r"[ab*?\[\]\\^-]{0,6}",
        ) {
            let pattern = escape(&text);
            prop_assert!(matches(pattern.as_bytes(), text.as_bytes()));
            prop_assert_eq!(matches(pattern.as_bytes(), other.as_bytes()), text == other);
        }

        #[test]
        fn a_pattern_matches_what_it_says(
            pattern in r"[ab*?\[\]\\^-]{0,8}",
            text in r"[ab*?\[\]\\^-]{0,8}",
        ) {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(pattern, text), model::matches(pattern, text));
        }

        #[test]
        fn any_bytes_are_a_pattern(pattern in any::<[u8; 6]>(), text in any::<[u8; 6]>()) {
            prop_assert_eq!(matches(&pattern, &text), model::matches(&pattern, &text));
        }
    }
}
