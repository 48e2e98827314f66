//! Tables as plain text and as Markdown.

use super::Section;

/// A table; its first column is names, the others are numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// What the columns are called.
    pub header: Vec<String>,
    /// Its rows, each with a cell for every column.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(header: impl IntoIterator<Item = impl ToString>) -> Self {
        Self { header: header.into_iter().map(|name| name.to_string()).collect(), rows: Vec::new() }
    }

    /// The table as a piece of a page.
    pub fn section(&self) -> Section {
        Section::Table { header: self.header.clone(), rows: self.rows.clone() }
    }

    /// Lines for a terminal: the first column to the left, the others to the right. Characters that are no line's stand as
    /// `\u{fffd}`.
    pub fn text(&self) -> String {
        let lines: Vec<Vec<String>> = self.lines().map(|line| line.iter().map(|cell| plain(cell)).collect()).collect();
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    /// A table of Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &Vec<String>| {
            let cells = cells.iter().map(|cell| plain(cell).replace('\\', "\\\\").replace('|', "\\|"));
            format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
        };
        let rule: Vec<&str> = (0..self.header.len()).map(|column| if column == 0 { "---" } else { "---:" }).collect();
        let rule = format!("| {} |\n", rule.join(" | "));
        let mut lines = self.lines().map(line);
        let header = lines.next().unwrap_or_default();
        header + &rule + &lines.collect::<String>()
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.header).chain(&self.rows)
    }
}

/// A cell on one line.
fn plain(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stay_in_their_columns() {
        let mut table = Table::new(["name", "value"]);
        table.rows.push(vec!["ä|b\n".into(), "0.5".into()]);
        table.rows.push(vec!["long name".into(), "12".into()]);
        assert_eq!(table.text(), "name       value\nä|b\u{fffd}         0.5\nlong name     12\n");
        let want = "| name | value |\n| --- | ---: |\n| ä\\|b\u{fffd} | 0.5 |\n| long name | 12 |\n";
        assert_eq!(table.markdown(), want);
        assert_eq!(Table::new(["a"]).text(), "a\n");
    }
}
