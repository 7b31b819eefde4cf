//! Every chunk of every shard against its checksum.

use std::sync::Mutex;

use rayon::prelude::*;

use crate::error::{Error, Kind, Result};
use crate::format::codec::{self, Codec, Scratch};
use crate::format::shard::Span;
use crate::process::{Task, pool};
use crate::store::files::{self, COMMITS, TEMPORARY};
use crate::store::part::PartArray;
use crate::store::reader::{Reader, grid};
use crate::store::recovery;
use crate::store::shard_file::{Expected, OpenShard, read_index};

/// Something that is not as it was committed.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Damage {
    /// The array.
    pub array: String,
    /// The shard, along the rows.
    pub shard: usize,
    /// The chunk in it (rows, layer, dim); None when it is the shard itself.
    pub chunk: Option<[usize; 3]>,
    /// The kind of error that reading it gives.
    pub kind: &'static str,
    /// What is wrong.
    pub message: String,
}

/// What a walk over a store found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// Chunks looked at.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong with them.
    pub damaged: Vec<Damage>,
    /// What an interrupted writer left and the next one removes; nothing of it is committed.
    pub leftovers: Vec<String>,
}

impl Reader {
    /// Checks all chunks, on all threads. `strict` also lists what an interrupted write left.
    pub fn verify(&self, strict: bool, task: &Task) -> Result<Report> {
        let parts: Vec<PartArray> = self.arrays().iter().map(|name| self.part(name)).collect::<Result<_>>()?;
        let mut shards = Vec::new();
        let mut total = 0;
        for part in &parts {
            for index in grid(&part.meta)? {
                let found = std::fs::metadata(self.path().join(&part.name).join(part.meta.key(index)));
                // What is absent of a foreign array is not listed: its metadata may speak of millions.
                if part.record.is_some() || !found.as_ref().is_err_and(files::is_absent) {
                    total = found.map_or(0, |m| m.len()).saturating_add(total);
                    shards.push((part, index));
                }
            }
        }
        task.expect(total);
        let report = Mutex::new(Report::default());
        pool(task.threads)?
            .install(|| shards.par_iter().try_for_each(|(part, index)| verify_shard(part, *index, task, &report)))?;
        let mut report = report.into_inner().expect("no panic while held");
        report.damaged.sort_by(|a, b| (&a.array, a.shard, a.chunk).cmp(&(&b.array, b.shard, b.chunk)));
        if strict && let Some(record) = &self.view().record {
            for name in files::list(&self.path().join(COMMITS))? {
                if name.starts_with(TEMPORARY) {
                    report.leftovers.push(format!("{COMMITS}/{name}"));
                }
            }
            for path in recovery::orphans(self.path(), record)? {
                report.leftovers.push(path.strip_prefix(self.path()).unwrap_or(&path).display().to_string());
            }
        }
        Ok(report)
    }
}

/// Damage is reported; only a wish to stop and a compaction under way end the walk.
fn verify_shard(part: &PartArray, index: [usize; 3], task: &Task, report: &Mutex<Report>) -> Result<()> {
    let damage = |chunk: Option<[usize; 3]>, error: Error| -> Result<()> {
        let error = part.explain(error);
        if error.kind == Kind::Compacted {
            return Err(error);
        }
        let found = Damage {
            array: part.name.clone(),
            shard: index[0],
            chunk,
            kind: error.kind.name(),
            message: error.message,
        };
        report.lock().expect("no panic while held").damaged.push(found);
        Ok(())
    };
    task.check()?;
    let meta = &part.meta;
    let path = part.store.path.join(&part.name).join(meta.key(index));
    let expected = part.expected(index[0])?;
    let open = match OpenShard::open(&path, meta, &expected, false) {
        Ok(Some(open)) => open,
        Ok(None) if part.record.is_none() => return Ok(()),
        Ok(None) => return damage(None, Error::new(Kind::MissingShard, "the file is missing")),
        Err(error) => return damage(None, error),
    };
    if let Expected::Tail(_) = expected {
        // Our readers use the record, others the index.
        if let Err(error) = std::fs::File::open(&path)
            .map_err(|error| Error::io("open", &path, &error))
            .and_then(|file| read_index(&file, meta, open.length))
        {
            damage(None, error.at("the index"))?;
        }
    }
    let inner = meta.inner_grid();
    let (mut buffer, mut scratch) = (Vec::new(), Scratch::default());
    let sealed = meta.chain.codecs.last() == Some(&Codec::Crc32c);
    let (mut chunks, mut bytes) = (0, 0);
    for number in 0..open.spans.len() {
        task.check()?;
        if open.spans[number] == Span::ABSENT {
            continue;
        }
        let place = [number / (inner[1] * inner[2]), number / inner[2] % inner[1], number % inner[2]];
        let checked = open.chunk(number, &mut buffer).and_then(|chunk| {
            let chunk = chunk.unwrap_or_default();
            bytes += chunk.len() as u64;
            task.advance(chunk.len() as u64);
            // Without a checksum of its own a chunk is at least decoded.
            if sealed {
                codec::check(chunk).map(|_| ())
            } else {
                meta.chain.decode(chunk, meta.chunk_bytes(), meta.dtype.size(), &mut scratch).map(|_| ())
            }
        });
        if let Err(error) = checked {
            damage(Some(place), error)?;
        }
        chunks += 1;
    }
    task.advance(open.length.saturating_sub(bytes));
    let mut report = report.lock().expect("no panic while held");
    report.chunks += chunks;
    report.bytes += bytes;
    Ok(())
}
