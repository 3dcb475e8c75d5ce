//! Makes text from senders safe for logs, terminals and spans.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
};

/// Displays text from senders as one line that is safe in logs and on terminals.
///
/// Senders choose names, header values and payloads, and handlers quote them in their errors. Such
/// text may contain a line break that forges a log line, an escape character that moves the cursor,
/// or a character that reverses the writing direction to hide text. Such characters are escaped as
/// in Rust, and bytes that are not UTF-8 as `\xff`. Backslashes and quotes are not escaped, so JSON
/// stays readable.
///
/// Text longer than the limit is cut between two characters, and the length of the whole text is
/// appended. So a long text cannot fill the disk.
///
/// ```
/// use campanile::message::EscapedText;
///
/// assert_eq!(EscapedText::new("a\n\x1b[2J").to_string(), r"a\n\u{1b}[2J");
/// assert_eq!(EscapedText::new("orders.create").at_most(6).to_string(), "orders… (13 bytes)");
/// ```
#[derive(Clone, Copy)]
pub struct EscapedText<'a> {
    bytes: &'a [u8],
    max: usize,
}

impl<'a> EscapedText<'a> {
    /// The default limit, in bytes of the text before it is escaped.
    pub const MAX_LEN: usize = 256;

    /// Shows a text.
    pub fn new(text: &'a str) -> Self {
        Self::bytes(text.as_bytes())
    }

    /// Shows bytes, which need not be UTF-8.
    pub fn bytes(bytes: &'a [u8]) -> Self {
        let max = Self::MAX_LEN;
        Self { bytes, max }
    }

    /// Sets the limit, in bytes of the text before it is escaped.
    #[must_use]
    pub fn at_most(self, max: usize) -> Self {
        Self { max, ..self }
    }

    /// Returns the line as a string. Borrows the text if it is printable ASCII within the limit.
    pub fn text(&self) -> Cow<'a, str> {
        let is_printable = |byte: &u8| matches!(byte, b' '..=b'~');
        match std::str::from_utf8(self.bytes) {
            Ok(text) if text.len() <= self.max && text.as_bytes().iter().all(is_printable) => {
                Cow::Borrowed(text)
            }
            _ => Cow::Owned(self.to_string()),
        }
    }
}

impl fmt::Display for EscapedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes.len() <= self.max {
            return escape(self.bytes, f);
        }
        // Cuts before a character. A UTF-8 character has at most four bytes, so a character starts
        // at the limit or at one of the three positions before it. Bytes that are not UTF-8 may
        // have no such position, and are cut at the limit.
        let end = (self.max.saturating_sub(3)..=self.max)
            .rev()
            .find(|&end| self.bytes[end] & 0b1100_0000 != 0b1000_0000)
            .unwrap_or(self.max);
        escape(&self.bytes[..end], f)?;
        write!(f, "… ({} bytes)", self.bytes.len())
    }
}

impl fmt::Debug for EscapedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn escape(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let unescaped = |c: char| matches!(c, '\\' | '"' | '\'');
    for chunk in bytes.utf8_chunks() {
        for piece in chunk.valid().split_inclusive(unescaped) {
            let end = piece.trim_end_matches(unescaped).len();
            for c in piece[..end].escape_debug() {
                f.write_char(c)?;
            }
            f.write_str(&piece[end..])?;
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn characters_that_move_a_cursor_or_turn_the_writing_direction_are_escaped() {
        let line = |text: &str| EscapedText::new(text).to_string();
        assert_eq!(
            line("\x1b[2J\x07\r\n\t\0\x7f"),
            r"\u{1b}[2J\u{7}\r\n\t\0\u{7f}"
        );
        assert_eq!(
            line("\u{9b}2J\u{202e}\u{2066}"),
            r"\u{9b}2J\u{202e}\u{2066}"
        );
        assert_eq!(
            EscapedText::bytes(b"a\x9b\xffb\xc3").to_string(),
            r"a\x9b\xffb\xc3"
        );
    }

    #[test]
    fn printable_text_stays_as_it_is() {
        let text = r#"{"größe": "7 \" 漢字 🔔", 'x': "e\u0301"}"#;
        assert_eq!(EscapedText::new(text).to_string(), text);
        assert_eq!(EscapedText::new("e\u{301}").to_string(), "e\u{301}");
        assert!(matches!(
            EscapedText::new("a b").text(),
            Cow::Borrowed("a b")
        ));
    }

    #[test]
    fn text_over_the_limit_is_cut_between_two_characters_with_its_length() {
        let cut = |bytes: &[u8]| EscapedText::bytes(bytes).at_most(5).to_string();
        assert_eq!(cut(b"12345"), "12345");
        assert_eq!(cut("1234ä".as_bytes()), "1234… (6 bytes)");
        assert_eq!(cut("12🔔4".as_bytes()), "12… (7 bytes)");
        assert_eq!(cut(&[0x80; 9]), r"\x80\x80\x80\x80\x80… (9 bytes)");
    }

    proptest! {
        #[test]
        fn any_bytes_become_one_bounded_line(bytes: Vec<u8>, max in 0..64usize) {
            let shown = EscapedText::bytes(&bytes).at_most(max);
            let line = shown.to_string();
            prop_assert!(!line.chars().any(char::is_control));
            // Escapes have at most six characters for each byte, such as `\u{1b}`. The text that
            // follows a cut, `… (N bytes)`, has at most 32 bytes.
            prop_assert!(line.len() <= 6 * max + 32, "{}", line.len());
            prop_assert_eq!(shown.text().into_owned(), line);
        }
    }
}
