//! Which rows of which chunks a selection is.

use crate::blocks::{Places, group_rows};
use crate::error::Result;
use crate::format::memory;
use crate::store::Array;

/// A chunk's rows, and the rows of the result they go to.
pub(crate) struct Segment {
    pub(crate) part: usize,
    /// The chunk's place along the rows of its part.
    pub(crate) group: usize,
    /// Row within the chunk, row of the result; in order of the latter.
    pub(crate) picks: Picks,
}

pub(crate) enum Picks {
    /// Rows `first..first + n` of the chunk to consecutive rows of the result.
    Run { first: usize, n: usize },
    /// Rows of the chunk, one by one.
    List(Vec<u32>),
}

impl Picks {
    pub(crate) fn len(&self) -> usize {
        match self {
            Picks::Run { n, .. } => *n,
            Picks::List(list) => list.len(),
        }
    }

    pub(crate) fn get(&self, i: usize) -> usize {
        match self {
            Picks::Run { first, .. } => first + i,
            Picks::List(list) => list[i] as usize,
        }
    }
}

impl Array {
    /// A segment for each chunk that a range of rows touches, in order.
    pub(crate) fn segments_of_range(&self, start: usize, stop: usize) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for (part, bounds) in self.starts.windows(2).enumerate() {
            let (mut row, end) = (start.max(bounds[0]), stop.min(bounds[1]));
            let chunk = self.parts[part].meta.chunk[0];
            // Metadata may speak of more chunks than can be listed.
            let more = if row < end { (end - row).div_ceil(chunk) + 1 } else { 0 };
            memory::reserve(&mut segments, more, "a list of chunks")?;
            while row < end {
                let (group, first) = ((row - bounds[0]) / chunk, (row - bounds[0]) % chunk);
                let n = (chunk - first).min(end - row);
                segments.push(Segment { part, group, picks: Picks::Run { first, n } });
                row += n;
            }
        }
        Ok(segments)
    }

    /// A segment for each chunk that rows of a list touch, and the places in the list they have.
    pub(crate) fn segments_of_list(&self, list: &[i64]) -> (Vec<Segment>, Vec<Places>) {
        let starts = &self.starts;
        // The number of the first chunk of each part, to count chunks through.
        let mut bases = vec![0usize];
        for (part, bounds) in self.parts.iter().zip(starts.windows(2)) {
            bases.push(bases[bases.len() - 1] + (bounds[1] - bounds[0]).div_ceil(part.meta.chunk[0]));
        }
        let (mut segments, mut orders) = (Vec::new(), Vec::new());
        for run in group_rows(list, |row| {
            let part = starts.partition_point(|s| *s <= row) - 1;
            let chunk = self.parts[part].meta.chunk[0];
            let within = row - starts[part];
            (bases[part] + within / chunk, within % chunk)
        }) {
            let part = bases.partition_point(|b| *b <= run.group) - 1;
            segments.push(Segment { part, group: run.group - bases[part], picks: Picks::List(run.picks) });
            orders.push(run.positions);
        }
        (segments, orders)
    }
}
