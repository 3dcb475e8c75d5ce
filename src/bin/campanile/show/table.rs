//! Formats tables.

use unicode_width::UnicodeWidthStr;

use super::text;

/// The alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alignment {
    Left,
    Right,
}

/// A table whose columns are as wide as their widest cells. Escapes the cells.
#[derive(Debug)]
pub(crate) struct Table {
    alignments: Vec<Alignment>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with these titles. A title that begins with `>` aligns its column to the
    /// right.
    pub(crate) fn new(titles: &[&str]) -> Self {
        let alignment = |title: &&str| match title.starts_with('>') {
            true => Alignment::Right,
            false => Alignment::Left,
        };
        let title = |title: &&str| title.trim_start_matches('>').to_owned();
        Self {
            alignments: titles.iter().map(alignment).collect(),
            rows: vec![titles.iter().map(title).collect()],
        }
    }

    pub(crate) fn add_row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.alignments.len());
        self.rows.push(cells.map(text::line).into());
    }

    /// Returns the lines of the table.
    pub(crate) fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].width());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.alignments.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for ((cell, alignment), width) in row.iter().zip(&self.alignments).zip(&widths) {
                let space = " ".repeat(width - cell.width());
                let (before, after) = match alignment {
                    Alignment::Left => ("", space.as_str()),
                    Alignment::Right => (space.as_str(), ""),
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
    fn columns_are_as_wide_as_the_visible_text_of_their_cells() {
        let mut table = Table::new(&["NAME", ">LAG", "WHY"]);
        table.add_row(["漢字".into(), "7".into(), "a b".into()]);
        table.add_row(["e\u{301}".into(), "12345".into(), "\x1b[2J".into()]);
        let expected = [
            "NAME    LAG  WHY",
            "漢字      7  a b",
            "e\u{301}     12345  \\u{1b}[2J",
        ];
        assert_eq!(table.lines(), expected);
    }
}
