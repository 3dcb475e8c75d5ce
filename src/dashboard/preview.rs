//! Shows texts and payloads that senders chose. Their length is bounded, and control characters are
//! escaped.

use std::fmt::Write as _;

/// The maximum number of bytes of a payload that are shown.
pub(super) const MAX_SHOWN: usize = 64 << 10;
/// The maximum number of bytes that are shown as hexadecimal numbers.
const MAX_HEX: usize = 4 << 10;

/// A part of a payload that can be shown.
#[derive(Debug, PartialEq)]
pub(super) struct Preview {
    /// The format: `JSON`, `text`, `bytes`, or `empty`.
    pub(super) format: &'static str,
    pub(super) text: String,
    /// `true` if only the beginning of the payload is shown.
    pub(super) is_cut: bool,
}

impl Preview {
    pub(super) fn of(payload: &[u8]) -> Self {
        let preview = |format, text, is_cut| Self {
            format,
            text,
            is_cut,
        };
        if payload.is_empty() {
            return preview("empty", String::new(), false);
        }
        if payload.len() <= MAX_SHOWN
            && serde_json::from_slice::<serde::de::IgnoredAny>(payload).is_ok()
            && let Some(pretty) = std::str::from_utf8(payload).ok().and_then(indented)
        {
            return preview("JSON", escaped(&pretty, true), false);
        }
        let is_cut = payload.len() > MAX_SHOWN;
        let part = &payload[..payload.len().min(MAX_SHOWN)];
        let valid = match std::str::from_utf8(part) {
            Ok(text) => Some(text),
            // The cut may be within a character, so the incomplete character is left out.
            Err(error) if is_cut && error.valid_up_to() + 4 > part.len() => {
                std::str::from_utf8(&part[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        match valid {
            Some(text) => preview("text", escaped(text, true), is_cut),
            None => {
                let shown = &payload[..payload.len().min(MAX_HEX)];
                preview("bytes", hex(shown), shown.len() < payload.len())
            }
        }
    }
}

/// Indents valid JSON, and changes nothing else: the order of keys and the digits of numbers stay.
/// `None` if the result is too long.
fn indented(json: &str) -> Option<String> {
    let mut text = String::with_capacity(2 * json.len());
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    let new_line = |text: &mut String, depth: usize| {
        text.push('\n');
        text.extend(std::iter::repeat_n("  ", depth));
    };
    let mut chars = json.chars().peekable();
    while let Some(char) = chars.next() {
        if text.len() > 4 * MAX_SHOWN {
            return None;
        }
        if in_string {
            text.push(char);
            in_string = is_escaped || char != '"';
            is_escaped = !is_escaped && char == '\\';
            continue;
        }
        match char {
            ' ' | '\t' | '\r' | '\n' => {}
            '{' | '[' => {
                text.push(char);
                // An empty object or array stays on one line.
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = chars.next_if(|next| matches!(next, '}' | ']')) {
                    text.push(end);
                } else {
                    depth += 1;
                    new_line(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut text, depth);
                text.push(char);
            }
            ',' => {
                text.push(char);
                new_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ => {
                in_string = char == '"';
                text.push(char);
            }
        }
    }
    Some(text)
}

/// Formats bytes in lines of sixteen: the position, the hexadecimal numbers, and the ASCII
/// characters.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, row) in bytes.chunks(16).enumerate() {
        let _ = write!(text, "{:06x} ", index * 16);
        for byte in row {
            let _ = write!(text, " {byte:02x}");
        }
        let gap = 3 * (16 - row.len()) + 2;
        let _ = write!(text, "{:gap$}", "");
        for byte in row {
            let is_shown = byte.is_ascii_graphic() || *byte == b' ';
            text.push(if is_shown { char::from(*byte) } else { '.' });
        }
        text.push('\n');
    }
    text
}

/// Returns one line of text, with escapes in place of control characters.
pub(super) fn line(text: &str) -> String {
    escaped(text, false)
}

/// Returns bytes as one line of text. Bytes that are not UTF-8 are replaced.
pub(super) fn lossy_line(bytes: &[u8]) -> String {
    line(&String::from_utf8_lossy(bytes))
}

/// Returns the first `max` characters of a text as one line, with `…` if there are more.
pub(super) fn excerpt(text: &str, max: usize) -> String {
    let mut shown: String = text.chars().take(max + 1).collect();
    if shown.chars().count() > max {
        shown.pop();
        shown.push('…');
    }
    line(&shown)
}

/// Escapes control characters and invisible characters. If `keep_newlines` is set, line feeds and
/// tabs stay.
fn escaped(text: &str, keep_newlines: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        let is_kept = keep_newlines && matches!(char, '\n' | '\t');
        // These characters are invisible. Some change the direction of the text around them.
        let is_hidden = matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if (char.is_control() && !is_kept) || is_hidden {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_and_text_and_bytes_are_shown_as_such() {
        let json = Preview::of(br#"{"a":[1]}"#);
        assert_eq!((json.format, json.text.lines().count()), ("JSON", 5));
        let json = Preview::of(br#"{"b" : 1e99999,"a":"x, \\\"{y","a":[ ],"c":{}}"#).text;
        let expected =
            "{\n  \"b\": 1e99999,\n  \"a\": \"x, \\\\\\\"{y\",\n  \"a\": [],\n  \"c\": {}\n}";
        assert_eq!(json, expected);
        let nested = "[".repeat(120) + &"1,".repeat(20_000) + "1" + &"]".repeat(120);
        assert_eq!(
            Preview::of(nested.as_bytes()).format,
            "text",
            "it would be too long"
        );
        assert_eq!(Preview::of(b"a\x1b[2J\n").text, "a\\u{1b}[2J\n");
        let bytes = Preview::of(b"\xff\x00A");
        assert_eq!(bytes.format, "bytes");
        assert!(
            bytes.text.starts_with("000000  ff 00 41 "),
            "{}",
            bytes.text
        );
        assert!(bytes.text.ends_with("..A\n"), "{}", bytes.text);
        assert_eq!(Preview::of(b"").format, "empty");
    }

    #[test]
    fn a_preview_is_bounded_and_never_cut_within_a_character() {
        let long = "ä".repeat(MAX_SHOWN);
        for shift in 0..2 {
            let preview = Preview::of(&long.as_bytes()[2 * shift..]);
            assert_eq!((preview.format, preview.is_cut), ("text", true));
            assert!(preview.text.len() <= MAX_SHOWN);
        }
        let shifted = format!("a{long}");
        assert_eq!(Preview::of(shifted.as_bytes()).format, "text");
        assert!(Preview::of(&[0xff; 5 << 20]).text.len() < 80 << 10);
    }

    #[test]
    fn a_line_has_no_control_characters_and_an_excerpt_ends_with_dots() {
        assert_eq!(line("a\nb\u{202e}c"), "a\\nb\\u{202e}c");
        assert_eq!(excerpt("abcdef", 3), "abc…");
        assert_eq!(excerpt("abc", 3), "abc");
    }
}
