//! A page of pictures, tables and words: one HTML file that needs nothing else.

use super::escape;

/// A piece of a page.
#[derive(Debug, Clone, PartialEq)]
pub enum Section {
    /// A heading.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// A picture, as the plots of this module are drawn.
    Picture(String),
    /// A table; its first column is names, the others are numbers.
    Table {
        /// What the columns are called.
        header: Vec<String>,
        /// Its rows.
        rows: Vec<Vec<String>>,
    },
}

const STYLE: &str = "body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;max-width:60rem;margin:2rem auto;\
    padding:0 1rem;color:#1f2328;background:#fff}table{border-collapse:collapse;margin:1rem 0;display:block;\
    overflow-x:auto}th,td{padding:.25rem .6rem;border-bottom:1px solid #d8dee4;text-align:right;white-space:nowrap}\
    th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}\
    @media (prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}th,td{border-color:#2a313a}}";

/// A self-contained HTML page: no script, nothing that is fetched. Texts are escaped; pictures stand as they are.
pub fn page(title: &str, sections: &[Section]) -> String {
    let title = escape(title, LONGEST);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    for section in sections {
        html += &match section {
            Section::Heading(text) => format!("<h2>{}</h2>\n", escape(text, LONGEST)),
            Section::Text(text) => format!("<p>{}</p>\n", escape(text, LONGEST)),
            Section::Picture(svg) => format!("<figure>\n{svg}</figure>\n"),
            Section::Table { header, rows } => {
                let row = |cells: &[String], tag: &str| {
                    let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell, LONGEST)));
                    format!("<tr>{}</tr>\n", cells.collect::<String>())
                };
                let rows: String = rows.iter().map(|cells| row(cells, "td")).collect();
                format!("<table>\n<thead>\n{}</thead>\n<tbody>\n{rows}</tbody>\n</table>\n", row(header, "th"))
            }
        };
    }
    html + "</body>\n</html>\n"
}

/// The most characters of one text of a page.
const LONGEST: usize = 4000;

#[cfg(test)]
mod tests {
    use super::super::{Bar, StackedBars};
    use super::*;

    #[test]
    fn a_page_holds_its_sections_and_texts_cannot_leave_their_place() {
        let bar = Bar { name: "b".into(), values: vec![1.0], pale: false };
        let picture = StackedBars { bars: vec![bar], ..StackedBars::default() }.svg();
        let sections = [
            Section::Heading("a <heading>".into()),
            Section::Text("words & </p><script>".repeat(10)),
            Section::Picture(picture.clone()),
            Section::Table { header: vec!["name".into(), "MiB".into()], rows: vec![vec!["<b>".into(), "1".into()]] },
        ];
        let html = page("a \"title\"", &sections);
        assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
        assert!(html.contains(&picture) && html.contains("<td>&lt;b&gt;</td><td>1</td>"));
        assert!(html.contains("<h2>a &lt;heading&gt;</h2>") && html.contains("<h1>a &quot;title&quot;</h1>"));
        assert!(!html.contains("<script") && !html.contains("src=") && !html.contains("href="));
        for tag in ["p", "h1", "h2", "table", "thead", "tbody", "figure", "tr", "td", "th", "svg", "body"] {
            let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
