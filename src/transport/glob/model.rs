//! A simple and slow implementation of patterns, against which the tests compare the real one.

enum Part {
    /// Any number of bytes.
    Any,
    /// One of these bytes.
    One(Box<[bool; 256]>),
}

pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    fits(&parse(pattern), text)
}

fn fits(parts: &[Part], text: &[u8]) -> bool {
    match parts {
        [] => text.is_empty(),
        [Part::Any, rest @ ..] => (0..=text.len()).any(|taken| fits(rest, &text[taken..])),
        [Part::One(bytes), rest @ ..] => match text {
            [] => false,
            [byte, left @ ..] => bytes[usize::from(*byte)] && fits(rest, left),
        },
    }
}

fn parse(pattern: &[u8]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < pattern.len() {
        let mut bytes = [false; 256];
        match pattern[at] {
            b'*' => {
                parts.push(Part::Any);
                at += 1;
                continue;
            }
            b'?' => {
                bytes = [true; 256];
                at += 1;
            }
            b'[' => at = parse_class(pattern, at + 1, &mut bytes),
            b'\\' if at + 1 < pattern.len() => {
                bytes[usize::from(pattern[at + 1])] = true;
                at += 2;
            }
            literal => {
                bytes[usize::from(literal)] = true;
                at += 1;
            }
        }
        parts.push(Part::One(Box::new(bytes)));
    }
    parts
}

/// Parses the character class at this index, and returns the index after its end.
fn parse_class(pattern: &[u8], mut at: usize, bytes: &mut [bool; 256]) -> usize {
    let is_negated = pattern.get(at) == Some(&b'^');
    if is_negated {
        at += 1;
    }
    while at < pattern.len() {
        if pattern[at] == b'\\' && at + 1 < pattern.len() {
            bytes[usize::from(pattern[at + 1])] = true;
            at += 2;
        } else if pattern[at] == b']' {
            at += 1;
            break;
        } else if at + 2 < pattern.len() && pattern[at + 1] == b'-' {
            let (a, b) = (usize::from(pattern[at]), usize::from(pattern[at + 2]));
            bytes[a.min(b)..=a.max(b)].fill(true);
            at += 3;
        } else {
            bytes[usize::from(pattern[at])] = true;
            at += 1;
        }
    }
    if is_negated {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }
    at
}
