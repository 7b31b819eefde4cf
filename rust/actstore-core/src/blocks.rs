//! What analyses see of activations: runs of rows that are decoded together, wherever they lie.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kernels;
use crate::selection::Rows;

/// Rows of some layers, in groups that are decoded at once (a chunk of each layer). Rows are numbered
/// as they stand in the selection (positions) and in the array that it is of (rows).
pub trait Blocks: Sync {
    /// Rows, layers, dim.
    fn shape(&self) -> [usize; 3];

    /// How many groups the rows come in. Each row is in one; groups follow one another in the array.
    fn groups(&self) -> usize;

    /// The positions of the rows of a group.
    fn positions(&self, group: usize) -> Positions<'_>;

    /// The row of the array at a position.
    fn row(&self, position: usize) -> usize;

    /// Decodes layers of a group, and has `work` look at them: one [`Decoded`] for each.
    fn with_group(
        &self,
        group: usize,
        layers: &[usize],
        work: &mut dyn FnMut(&[&dyn Decoded]) -> Result<()>,
    ) -> Result<()>;
}

/// A group's rows of one layer, decoded as far as is needed to take runs of them.
pub trait Decoded {
    /// Rows `range` of the group as float32 `[rows, dim]`: as they lie where they are that already,
    /// else converted into `buffer`.
    fn floats<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32];

    /// The same rows where they are float32 in memory already: what is asked for soon may be fetched.
    fn in_place(&self, range: Range<usize>) -> Option<&[f32]>;
}

/// Room for floats in a buffer, from the start of a cache line: loops that take a line of each row would
/// else take half of two, and fetch both again for the other halves.
pub fn room(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    const LINE: usize = 64;
    let spare = LINE / size_of::<f32>();
    if buffer.len() < n + spare {
        buffer.resize(n + spare, 0.0);
    }
    let first = buffer.as_ptr().align_offset(LINE).min(spare);
    &mut buffer[first..first + n]
}

/// Positions of rows in a selection.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// From the first, so many.
    Run(usize, usize),
    /// These.
    List(&'a [usize]),
}

impl<'a> Positions<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Positions::Run(_, n) => *n,
            Positions::List(list) => list.len(),
        }
    }

    /// Whether none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The i-th.
    pub fn get(&self, i: usize) -> usize {
        match self {
            Positions::Run(first, _) => first + i,
            Positions::List(list) => list[i],
        }
    }

    /// Some of them.
    pub fn slice(&self, range: Range<usize>) -> Positions<'a> {
        match self {
            Positions::Run(first, _) => Positions::Run(first + range.start, range.len()),
            Positions::List(list) => Positions::List(&list[range]),
        }
    }
}

/// Takes rows out of elements that lie in rows of `stride` bytes, as float32.
pub struct Strided<'a> {
    /// The first element of the first row, and on.
    pub bytes: &'a [u8],
    /// Their type.
    pub dtype: Dtype,
    /// Elements of a row.
    pub dim: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Which rows; None for all.
    pub picks: Option<&'a [u32]>,
}

impl Decoded for Strided<'_> {
    fn floats<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        if let Some(floats) = self.in_place(range.clone()) {
            return floats;
        }
        let row = self.dim * self.dtype.size();
        let n = range.len() * self.dim;
        let whole = self.picks.is_none() && self.stride == row;
        let out = room(buffer, n);
        if whole {
            kernels::convert(
                &self.bytes[range.start * row..range.end * row],
                self.dtype,
                kernels::bytes_of(out),
                Dtype::Float32,
            );
        } else if row > 0 {
            for (i, out) in range.zip(out.chunks_exact_mut(self.dim)) {
                let i = self.picks.map_or(i, |picks| picks[i] as usize);
                let bytes = &self.bytes[i * self.stride..i * self.stride + row];
                kernels::convert(bytes, self.dtype, kernels::bytes_of(out), Dtype::Float32);
            }
        }
        out
    }

    fn in_place(&self, range: Range<usize>) -> Option<&[f32]> {
        let row = self.dim * 4;
        if self.picks.is_some() || self.stride != row || self.dtype != Dtype::Float32 {
            return None;
        }
        kernels::as_floats(&self.bytes[range.start * row..range.end * row])
    }
}

/// An array in memory, `[rows, layers, dim]`, and a selection of it.
pub struct Dense<'a> {
    bytes: &'a [u8],
    dtype: Dtype,
    shape: [usize; 3],
    rows: Rows<'a>,
    layers: Vec<usize>,
    /// Rows of the array that make a group.
    span: usize,
    /// Of a list: its groups.
    lists: Vec<PickedRows>,
}

/// Rows of a list that lie in one group.
#[derive(Debug)]
pub struct PickedRows {
    /// The number of the group among all there could be.
    pub group: usize,
    /// The rows, counted within the group, ascending.
    pub picks: Vec<u32>,
    /// Their positions in the list.
    pub positions: Places,
}

/// Positions of picked rows.
#[derive(Debug)]
pub enum Places {
    /// From this on: the list is in order.
    From(usize),
    /// These.
    List(Vec<usize>),
}

impl Places {
    /// Of `n` rows.
    pub fn of(&self, n: usize) -> Positions<'_> {
        match self {
            Places::From(first) => Positions::Run(*first, n),
            Places::List(list) => Positions::List(list),
        }
    }
}

/// Sorts rows into groups; `place` gives a row's group and its place in that, both growing with the row.
pub fn group_rows(list: &[i64], mut place: impl FnMut(usize) -> (usize, usize)) -> Vec<PickedRows> {
    let mut groups: Vec<PickedRows> = Vec::new();
    if list.is_sorted() {
        // Most lists are, and need no positions of their own.
        for (position, row) in list.iter().enumerate() {
            let (group, within) = place(*row as usize);
            match groups.last_mut() {
                Some(last) if last.group == group => last.picks.push(within as u32),
                _ => groups.push(PickedRows { group, picks: vec![within as u32], positions: Places::From(position) }),
            }
        }
        return groups;
    }
    let places = list.iter().enumerate().map(|(position, row)| {
        let (group, within) = place(*row as usize);
        (group, within as u32, position)
    });
    let mut places: Vec<(usize, u32, usize)> = places.collect();
    places.sort_unstable();
    let groups = places.chunk_by(|a, b| a.0 == b.0).map(|run| PickedRows {
        group: run[0].0,
        picks: run.iter().map(|p| p.1).collect(),
        positions: Places::List(run.iter().map(|p| p.2).collect()),
    });
    groups.collect()
}

impl<'a> Dense<'a> {
    /// Bytes of float32 that a group of one layer comes to.
    const GROUP: usize = 4 << 20;

    /// A selection of `bytes`, which are `shape` elements of `dtype` in C order.
    pub fn new(
        bytes: &'a [u8],
        dtype: Dtype,
        shape: [usize; 3],
        rows: Rows<'a>,
        layers: Option<&[usize]>,
    ) -> Result<Self> {
        check_float(dtype)?;
        if bytes.len() != shape.iter().product::<usize>() * dtype.size() {
            return Err(Error::shape(format!("{} bytes are not {shape:?} of {}", bytes.len(), dtype.name())));
        }
        rows.check(shape[0])?;
        let layers = choose_layers(layers, shape[1])?;
        let span = (Self::GROUP / (4 * shape[2].max(1))).max(1);
        let lists = match rows {
            Rows::Range(..) => Vec::new(),
            Rows::List(list) => group_rows(list, |row| (row / span, row % span)),
        };
        Ok(Dense { bytes, dtype, shape, rows, layers, span, lists })
    }
}

/// An error unless elements of a type are computed on.
pub fn check_float(dtype: Dtype) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(Error::invalid(format!("an array of {}: float types are computed on", dtype.name())))
}

/// The layers' positions, all of them unless some are given.
pub fn choose_layers(layers: Option<&[usize]>, there: usize) -> Result<Vec<usize>> {
    let Some(layers) = layers else { return Ok((0..there).collect()) };
    match layers.iter().find(|layer| **layer >= there) {
        Some(layer) => Err(Error::invalid(format!("layer position {layer} of {there}"))),
        None => Ok(layers.to_vec()),
    }
}

impl Blocks for Dense<'_> {
    fn shape(&self) -> [usize; 3] {
        [self.rows.len(), self.layers.len(), self.shape[2]]
    }

    fn groups(&self) -> usize {
        match self.rows {
            Rows::Range(start, stop) => stop.saturating_sub(start).div_ceil(self.span),
            Rows::List(_) => self.lists.len(),
        }
    }

    fn positions(&self, group: usize) -> Positions<'_> {
        match self.rows {
            Rows::Range(start, stop) => {
                let first = group * self.span;
                Positions::Run(first, self.span.min(stop - start - first))
            }
            Rows::List(_) => self.lists[group].positions.of(self.lists[group].picks.len()),
        }
    }

    fn row(&self, position: usize) -> usize {
        self.rows.get(position)
    }

    fn with_group(
        &self,
        group: usize,
        layers: &[usize],
        work: &mut dyn FnMut(&[&dyn Decoded]) -> Result<()>,
    ) -> Result<()> {
        let [_, n_layers, dim] = self.shape;
        let row = dim * self.dtype.size();
        let (first, picks) = match self.rows {
            Rows::Range(start, _) => (start + group * self.span, None),
            Rows::List(_) => (self.lists[group].group * self.span, Some(&self.lists[group].picks[..])),
        };
        let decoded: Vec<Strided<'_>> = layers
            .iter()
            .map(|layer| Strided {
                bytes: &self.bytes[(first * n_layers + self.layers[*layer]) * row..],
                dtype: self.dtype,
                dim,
                stride: n_layers * row,
                picks,
            })
            .collect();
        let decoded: Vec<&dyn Decoded> = decoded.iter().map(|d| d as &dyn Decoded).collect();
        work(&decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dense_array_gives_each_row_once_in_any_selection() {
        let shape = [700usize, 3, 1000];
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let list: Vec<i64> = (0..900).map(|i| (i * 7919) % 700).collect();
        let sorted: Vec<i64> = (0..900).map(|i| i * 7 / 9).collect();
        for rows in [Rows::Range(13, 699), Rows::List(&list), Rows::List(&sorted), Rows::Range(5, 5), Rows::List(&[])] {
            let source = Dense::new(&bytes, Dtype::Float32, shape, rows, Some(&[2, 0])).unwrap();
            let mut seen = vec![0; rows.len()];
            for group in 0..source.groups() {
                let positions = source.positions(group);
                source
                    .with_group(group, &[1], &mut |decoded| {
                        let mut buffer = Vec::new();
                        for (i, row) in decoded[0].floats(0..positions.len(), &mut buffer).chunks(1000).enumerate() {
                            let position = positions.get(i);
                            seen[position] += 1;
                            assert_eq!(row[3], values[source.row(position) * 3000 + 3]);
                        }
                        Ok(())
                    })
                    .unwrap();
            }
            assert!(seen.iter().all(|n| *n == 1));
        }
    }
}
