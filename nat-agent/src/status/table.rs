//! Columns of text, as wide as their widest cell.

use std::io::{self, Write};

/// A column's heading, and on which side its cells are flush.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    heading: &'static str,
    right: bool,
}

/// A column of words.
pub const fn left(heading: &'static str) -> Column {
    Column {
        heading,
        right: false,
    }
}

/// A column of numbers.
pub const fn right(heading: &'static str) -> Column {
    Column {
        heading,
        right: true,
    }
}

/// Writes a table. The rows are made twice, once to be measured, rather than
/// kept: there may be hundreds of thousands.
///
/// # Errors
/// The writer's.
pub fn write<const N: usize>(
    out: &mut impl Write,
    columns: &[Column; N],
    rows: impl Iterator<Item = [String; N]> + Clone,
) -> io::Result<()> {
    let mut widths = columns.map(|column| column.heading.chars().count());
    for row in rows.clone() {
        for (width, cell) in widths.iter_mut().zip(&row) {
            *width = cell.chars().count().max(*width);
        }
    }
    line(
        out,
        columns,
        &widths,
        &columns.map(|column| column.heading.to_owned()),
    )?;
    for row in rows {
        line(out, columns, &widths, &row)?;
    }
    Ok(())
}

fn line(
    out: &mut impl Write,
    columns: &[Column],
    widths: &[usize],
    cells: &[String],
) -> io::Result<()> {
    let mut line = String::new();
    for ((column, width), cell) in columns.iter().zip(widths).zip(cells) {
        let width = *width;
        if column.right {
            line.push_str(&format!("{cell:>width$}  "));
        } else {
            line.push_str(&format!("{cell:<width$}  "));
        }
    }
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["a".to_owned(), "1".to_owned()],
            ["wörter".to_owned(), "12345".to_owned()],
        ];
        let mut out = Vec::new();
        write(&mut out, &[left("NAME"), right("PORT")], rows.into_iter()).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME     PORT\na           1\nwörter  12345\n"
        );
    }
}
