//! Formats tables.

use unicode_width::UnicodeWidthStr;

use super::text;

/// The alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A table whose columns are as wide as their cells. Escapes the cells.
#[derive(Debug)]
pub(crate) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with these titles. A title that begins with `>` aligns its column to the
    /// right.
    pub(crate) fn new(titles: &[&str]) -> Self {
        let side = |title: &&str| match title.starts_with('>') {
            true => Side::Right,
            false => Side::Left,
        };
        let title = |title: &&str| title.trim_start_matches('>').to_owned();
        Self {
            sides: titles.iter().map(side).collect(),
            rows: vec![titles.iter().map(title).collect()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.sides.len());
        self.rows.push(cells.map(text::line).into());
    }

    /// Returns the lines of the table.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].width());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.sides.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for ((cell, side), width) in row.iter().zip(&self.sides).zip(&widths) {
                let space = " ".repeat(width - cell.width());
                let (before, after) = match side {
                    Side::Left => ("", space.as_str()),
                    Side::Right => (space.as_str(), ""),
                };
                line.extend([before, cell, after, "  "]);
            }
            line.truncate(line.trim_end().len());
            line
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_seen_of_their_cells() {
        let mut table = Table::new(&["NAME", ">LAG", "WHY"]);
        table.row(["漢字".into(), "7".into(), "a b".into()]);
        table.row(["e\u{301}".into(), "12345".into(), "\x1b[2J".into()]);
        let expected = [
            "NAME    LAG  WHY",
            "漢字      7  a b",
            "e\u{301}     12345  \\u{1b}[2J",
        ];
        assert_eq!(table.lines(), expected);
    }
}
