//! Which rows are asked for.

use crate::error::{Error, Result};

/// Rows of an array.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// From the first to before the second.
    Range(usize, usize),
    /// These, in this order; repeats are allowed.
    List(&'a [i64]),
}

impl Rows<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Rows::Range(start, stop) => stop.saturating_sub(*start),
            Rows::List(list) => list.len(),
        }
    }

    /// Whether none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row at a position, which must be below [`Rows::len`].
    pub fn get(&self, position: usize) -> usize {
        match self {
            Rows::Range(start, _) => start + position,
            Rows::List(list) => list[position] as usize,
        }
    }

    /// An error unless all are below `rows`.
    pub fn check(&self, rows: usize) -> Result<()> {
        let wrong = match self {
            Rows::Range(start, stop) if start > stop || *stop > rows => Some(format!("rows {start}..{stop}")),
            Rows::Range(..) => None,
            Rows::List(list) => list
                .iter()
                .find(|row| usize::try_from(**row).map_or(true, |row| row >= rows))
                .map(|row| format!("row {row}")),
        };
        match wrong {
            None => Ok(()),
            Some(what) => Err(Error::invalid(format!("{what} of an array of {rows} rows"))),
        }
    }
}
