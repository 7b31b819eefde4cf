//! A selection of a stored array as the blocks that analyses see.

use std::ops::Range;
use std::sync::Arc;

use crate::blocks::{Blocks, Decoded, Places, Positions, Strided, check_float, choose_layers, room};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::format::{blosc, memory};
use crate::kernels;
use crate::selection::Rows;
use crate::store::array::{Array, Target, fill, with_buffers};
use crate::store::chunk::emit;
use crate::store::part::PartArray;
use crate::store::segments::{Picks, Segment};
use crate::store::shard_file::OpenShard;

/// Rows of layers of a stored array.
pub struct Selection<'a> {
    array: &'a Array,
    rows: Rows<'a>,
    layers: Vec<usize>,
    segments: Vec<Segment>,
    /// Positions of the rows of each segment.
    places: Vec<Places>,
}

impl<'a> Selection<'a> {
    /// `rows` of `layers` (positions; None for all).
    pub fn new(array: &'a Array, rows: Rows<'a>, layers: Option<&[usize]>) -> Result<Self> {
        check_float(array.meta().dtype)?;
        rows.check(array.rows())?;
        let layers = choose_layers(layers, array.meta().shape[1])?;
        let (segments, places) = match rows {
            Rows::Range(start, stop) => {
                let segments = array.segments_of_range(start, stop)?;
                let mut places = Vec::new();
                memory::reserve(&mut places, segments.len(), "a list of chunks")?;
                let mut next = 0;
                for segment in &segments {
                    places.push(Places::From(next));
                    next += segment.picks.len();
                }
                (segments, places)
            }
            Rows::List(list) => array.segments_of_list(list),
        };
        Ok(Selection { array, rows, layers, segments, places })
    }
}

impl Blocks for Selection<'_> {
    fn shape(&self) -> [usize; 3] {
        [self.rows.len(), self.layers.len(), self.array.meta().shape[2]]
    }

    fn groups(&self) -> usize {
        self.segments.len()
    }

    fn positions(&self, group: usize) -> Positions<'_> {
        self.places[group].of(self.segments[group].picks.len())
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
        let segment = &self.segments[group];
        let part = &self.array.parts[segment.part];
        let stored: Vec<usize> = layers.iter().map(|layer| self.layers[*layer]).collect();
        if part.meta.chunk[1] != 1 || part.meta.chunk[2] != part.meta.shape[2] {
            return assembled(part, segment, &stored, work);
        }
        // The shards are held here, so that what is decoded in place stays.
        let opened = stored.iter().map(|layer| part.shard(part.place(segment.group, *layer, 0).shard));
        let opened: Vec<Option<Arc<OpenShard>>> = opened.collect::<Result<_>>()?;
        with_buffers(stored.len(), |buffers| {
            let mut decoded = Vec::with_capacity(stored.len());
            for ((layer, open), buffers) in stored.iter().zip(&opened).zip(buffers) {
                let chunk = match open {
                    Some(open) => part.decode(open, part.place(segment.group, *layer, 0), buffers)?,
                    None => None,
                };
                decoded.push(Chunk { decoded: chunk, part, picks: &segment.picks });
            }
            let decoded: Vec<&dyn Decoded> = decoded.iter().map(|d| d as &dyn Decoded).collect();
            work(&decoded)
        })
    }
}

/// A chunk of ours, decoded.
struct Chunk<'a> {
    /// None where the fill value stands for it.
    decoded: Option<blosc::Decoded<'a>>,
    part: &'a PartArray,
    picks: &'a Picks,
}

impl Decoded for Chunk<'_> {
    fn floats<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        if let Some(floats) = self.in_place(range.clone()) {
            return floats;
        }
        let meta = &self.part.meta;
        let dim = meta.shape[2];
        let n = range.len() * dim;
        let floats = room(buffer, n);
        let mut out = &mut *floats;
        let Some(decoded) = &self.decoded else {
            self.part.fill(kernels::bytes_of(out), Dtype::Float32);
            return floats;
        };
        let mut at = range.start;
        while at < range.end {
            // Rows that follow one another go together.
            let first = self.picks.get(at);
            let run = match self.picks {
                Picks::Run { .. } => range.end - at,
                Picks::List(list) => {
                    list[at..range.end].iter().zip(first as u32..).take_while(|(row, next)| **row == *next).count()
                }
            };
            let (mine, rest) = out.split_at_mut(run * dim);
            emit(decoded, first * dim, run * dim, meta.dtype, kernels::bytes_of(mine), Dtype::Float32);
            out = rest;
            at += run;
        }
        floats
    }

    fn in_place(&self, range: Range<usize>) -> Option<&[f32]> {
        let meta = &self.part.meta;
        let (Some(blosc::Decoded::Elements(bytes)), Dtype::Float32, Picks::Run { first, .. }) =
            (&self.decoded, meta.dtype, self.picks)
        else {
            return None;
        };
        let row = meta.shape[2] * 4;
        kernels::as_floats(&bytes[(first + range.start) * row..(first + range.end) * row])
    }
}

/// Layers of a foreign array, whose chunks may cut the dims or hold several layers, put together first.
fn assembled(
    part: &PartArray,
    segment: &Segment,
    layers: &[usize],
    work: &mut dyn FnMut(&[&dyn Decoded]) -> Result<()>,
) -> Result<()> {
    let dim = part.meta.shape[2];
    let bytes = segment.picks.len().saturating_mul(dim).saturating_mul(4);
    let what = || format!("{} rows of a layer of '{}'", segment.picks.len(), part.name);
    let mut all = layers.iter().map(|_| memory::zeros(bytes, what())).collect::<Result<Vec<_>>>()?;
    with_buffers(1, |buffers| {
        layers.iter().zip(&mut all).try_for_each(|(layer, out)| {
            fill(part, segment, *layer, Dtype::Float32, &mut Target::Whole(out), &mut buffers[0])
        })
    })?;
    let rows = all.iter().map(|bytes| Strided { bytes, dtype: Dtype::Float32, dim, stride: dim * 4, picks: None });
    let rows: Vec<Strided<'_>> = rows.collect();
    let decoded: Vec<&dyn Decoded> = rows.iter().map(|d| d as &dyn Decoded).collect();
    work(&decoded)
}
