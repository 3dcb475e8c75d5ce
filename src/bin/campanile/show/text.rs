//! Text that is safe to show on a terminal.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use campanile::message::EscapedText;

/// Formats bytes as one line of text, escaped as in the library's logs.
pub(crate) fn line(bytes: impl AsRef<[u8]>) -> String {
    EscapedText::bytes(bytes.as_ref())
        .at_most(usize::MAX)
        .to_string()
}

/// Formats a fact on one line: a title, and a value that is escaped as by [`line`].
pub(crate) fn fact(title: &str, value: &str) -> String {
    format!("{title:<10}{}", line(value))
}

/// Formats bytes as several lines of text, escaped as by [`line`], except that line breaks and tabs
/// stay.
pub(crate) fn block(bytes: impl AsRef<[u8]>) -> String {
    let pieces = bytes
        .as_ref()
        .split_inclusive(|byte| b"\n\t".contains(byte));
    let shown = pieces.map(|piece| match piece {
        [text @ .., end @ (b'\n' | b'\t')] => line(text) + if *end == b'\n' { "\n" } else { "\t" },
        text => line(text),
    });
    shown.collect()
}

/// Formats at most `max_len` bytes as one line of text. If `bytes` is longer, adds its length.
pub(crate) fn excerpt(bytes: &[u8], max_len: usize) -> String {
    EscapedText::bytes(bytes).at_most(max_len).to_string()
}

/// Formats a time in UTC with milliseconds. A time out of range, which a sender may choose, becomes
/// `?`.
pub(crate) fn time(time: SystemTime) -> String {
    let mut shown = String::new();
    let is_after_epoch = time.duration_since(UNIX_EPOCH).is_ok();
    if is_after_epoch && write!(shown, "{}", humantime::format_rfc3339_millis(time)).is_ok() {
        return shown;
    }
    "?".into()
}

/// Formats a duration in its two largest units: `1h 5m`, `2m 3s`, `250ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let coarse = match duration.as_secs() {
        0 => Duration::from_millis(duration.subsec_millis().into()),
        seconds @ 1..60 => Duration::from_secs(seconds),
        seconds @ 60..3_600 => Duration::from_secs(seconds),
        seconds @ 3_600..86_400 => Duration::from_secs(seconds / 60 * 60),
        seconds => Duration::from_secs(seconds / 3_600 * 3_600),
    };
    humantime::format_duration(coarse).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_move_the_cursor_are_escaped() {
        assert_eq!(
            line("\x1b[2J\x07\r\n\t\0\x7f"),
            r"\u{1b}[2J\u{7}\r\n\t\0\u{7f}"
        );
        // U+009B begins a control sequence on a terminal. The others change the direction of
        // writing.
        assert_eq!(
            line("\u{9b}2J\u{202e}\u{2066}"),
            r"\u{9b}2J\u{202e}\u{2066}"
        );
        assert_eq!(line(b"a\x9b\xffb\xc3"), r"a\x9b\xffb\xc3");
    }

    #[test]
    fn printable_characters_stay() {
        let text = r#"{"größe": "7 \" 漢字 🔔", 'x': "e\u0301"}"#;
        assert_eq!(line(text), text);
        assert_eq!(line("e\u{301}"), "e\u{301}");
    }

    #[test]
    fn a_block_keeps_its_lines_and_nothing_else() {
        assert_eq!(
            block("{\n\t\"a\": 1\r\n}\x1b"),
            "{\n\t\"a\": 1\\r\n}\\u{1b}"
        );
    }

    #[test]
    fn an_excerpt_ends_between_two_characters_and_says_how_much_there_is() {
        assert_eq!(excerpt(b"12345", 5), "12345");
        assert_eq!(excerpt("1234ä".as_bytes(), 5), "1234… (6 bytes)");
        assert_eq!(excerpt("12🔔4".as_bytes(), 5), "12… (7 bytes)");
        assert_eq!(excerpt(&[0x80; 9], 5), r"\x80\x80\x80\x80\x80… (9 bytes)");
    }

    #[test]
    fn any_time_is_shown() {
        let at = |milliseconds| UNIX_EPOCH + Duration::from_millis(milliseconds);
        assert_eq!(time(at(1_795_430_237_570)), "2026-11-23T10:37:17.570Z");
        assert_eq!(time(UNIX_EPOCH - Duration::from_secs(1)), "?");
        assert_eq!(time(at(u64::MAX / 8)), "?");
    }

    #[test]
    fn a_longer_duration_is_shown_in_larger_units() {
        for (milliseconds, shown) in [
            (0, "0s"),
            (250, "250ms"),
            (2_345, "2s"),
            (62_345, "1m 2s"),
            (3_662_345, "1h 1m"),
            (90_061_001, "1day 1h"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), shown);
        }
    }
}
