//! One array being written: rows in, chunks encoded and put into a temporary shard, shards published.
//!
//! An append is staged first and applied once it cannot fail any more, so that a full disk leaves
//! the array as it was. Published bytes never move: a shard that grows is copied to a new file with
//! its chunks where they were, behind which the new ones go; a boundary chunk that was published
//! with few rows is written again and its old copy becomes a hole.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rayon::ThreadPool;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::format::blosc::Block;
use crate::format::record::{ArrayRecord, Chunk, Tail, end};
use crate::format::shard;
use crate::format::zarr::{self, ArrayMeta};
use crate::process::Task;
use crate::store::files;
use crate::store::pipeline::{self, Buffers};

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Raw chunks start at a multiple of this, so that they can be computed on where they are mapped.
pub const ALIGN: u64 = 64;
/// Bytes of full chunks that may wait for more to be encoded with them.
const WAITING: usize = 64 << 20;
/// Bytes of a shard after which the system is told to write them to the disk.
const WRITE_BACK: u64 = 32 << 20;

/// An array and what of it is not committed yet.
pub struct ArrayWriter {
    /// Its path below the store.
    pub name: String,
    store: PathBuf,
    meta: ArrayMeta,
    /// Its `zarr.json` as it is on disk: the shape is that of the last commit, or the one before.
    node: Value,
    /// Rows appended, and rows of the newest record.
    rows: u64,
    committed: u64,
    /// Rows behind the last full chunk, as they came.
    pending: Vec<u8>,
    /// Full shards since the last commit: their number, where they are, their sums.
    full: Vec<(u64, Shard, (u64, u32))>,
    tail: TailShard,
    /// Bytes put into shards since the last commit.
    fresh: u64,
}

/// The shard that chunks are added to.
#[derive(Clone)]
struct TailShard {
    number: u64,
    /// Full chunks, in order.
    chunks: Vec<Chunk>,
    /// Chunks of the rows that do not fill one, as last written.
    boundary: Vec<Chunk>,
    /// Where the next chunk may go.
    end: u64,
    shard: Option<Shard>,
}

impl TailShard {
    /// A shard with nothing in it.
    fn new(number: u64) -> Self {
        TailShard { number, chunks: Vec::new(), boundary: Vec::new(), end: 0, shard: None }
    }
}

/// A shard's file.
#[derive(Clone)]
enum Shard {
    /// Seen by readers: not to be written to.
    Published,
    /// Still under a temporary name.
    Temporary(Arc<Temporary>),
}

struct Temporary {
    path: PathBuf,
    file: File,
    /// The thread that writes it back, if one does, and whether that ever failed.
    write_back: Mutex<(Option<JoinHandle<bool>>, bool)>,
    /// The process it belongs to: a forked child does not remove it.
    pid: u32,
}

impl Temporary {
    /// Has the system write to the disk what there is so far, so that a commit does not wait for all.
    fn write_back(self: &Arc<Self>) {
        let mut state = self.write_back.lock().expect("no panic while held");
        if state.0.as_ref().is_none_or(JoinHandle::is_finished) {
            Self::join(&mut state);
            let file = self.file.try_clone();
            state.0 = file.ok().map(|file| std::thread::spawn(move || file.sync_data().is_ok()));
        }
    }

    fn join(state: &mut (Option<JoinHandle<bool>>, bool)) {
        if let Some(thread) = state.0.take() {
            state.1 |= !thread.join().unwrap_or(false);
        }
    }

    /// Makes it durable.
    fn sync(&self) -> Result<()> {
        let failed = {
            // The system tells of a failure once: it may have told the thread.
            let mut state = self.write_back.lock().expect("no panic while held");
            Self::join(&mut state);
            state.1
        };
        if failed {
            return Err(Error::new(Kind::Io, format!("cannot sync {}: writing back failed", self.path.display())));
        }
        self.file.sync_all().map_err(|error| Error::io("sync", &self.path, &error))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Published files were renamed away and are not there any more.
        if self.pid == std::process::id() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What an append will change, once every array has got this far.
pub struct Staged {
    rows: u64,
    pending: Pending,
    full: Vec<(u64, Shard, (u64, u32))>,
    tail: TailShard,
    fresh: u64,
}

enum Pending {
    /// More rows behind those there are.
    More(Vec<u8>),
    /// Others in their place.
    Only(Vec<u8>),
}

impl ArrayWriter {
    /// An array with `rows` committed as `record` says; `pending` are those behind its last full chunk.
    pub fn new(store: &Path, name: &str, node: Value, record: Option<&ArrayRecord>, pending: Vec<u8>) -> Result<Self> {
        let mut meta = ArrayMeta::parse(&node).map_err(|error| error.at(name))?;
        let rows = record.map_or(0, |r| r.rows);
        meta.shape[0] = rows as usize;
        let mut tail = TailShard::new(rows / meta.shard[0] as u64);
        if let Some(published) = record.and_then(|r| r.tail.as_ref()) {
            tail.chunks.clone_from(&published.chunks);
            tail.end = end(&tail.chunks);
            tail.shard = Some(Shard::Published);
            if !pending.is_empty() {
                tail.boundary = tail.chunks.split_off(tail.chunks.len() - meta.shape[1]);
            }
        }
        Ok(ArrayWriter {
            name: name.to_string(),
            store: store.to_path_buf(),
            meta,
            node,
            rows,
            committed: rows,
            pending,
            full: Vec::new(),
            tail,
            fresh: 0,
        })
    }

    /// The store's folder was renamed, and nothing is staged.
    pub fn moved(&mut self, store: &Path) {
        self.store = store.to_path_buf();
    }

    /// Its metadata, as on disk.
    pub fn node(&self) -> &Value {
        &self.node
    }

    /// Rows appended, committed or not.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The array's meta; its shape is that of the newest record.
    pub fn meta(&self) -> &ArrayMeta {
        &self.meta
    }

    /// Rows behind the last full chunk.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Bytes written since the last commit; bytes that a commit now would put into a shard that is not
    /// full, for the next one to copy.
    pub fn fresh_and_tail(&self) -> (u64, u64) {
        let pending = self.pending.len() as u64;
        (self.fresh + pending, self.tail.end + pending)
    }

    /// Whether a shard was filled since the last commit.
    pub fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Encodes and writes the full chunks that `rows` complete; nothing of the array changes yet. Until
    /// there are enough of them to keep all threads busy, they wait, unless `all` are wanted.
    pub fn stage(&self, rows: &[u8], all: bool, pool: &ThreadPool, buffers: &Buffers, task: &Task) -> Result<Staged> {
        let meta = &self.meta;
        let row = meta.row_bytes();
        let chunk_rows = meta.chunk[0];
        let before = self.pending.len() / row;
        let total = before + rows.len() / row;
        let enough =
            (4 * pool.current_num_threads()).div_ceil(meta.shape[1]).min((WAITING / (row * chunk_rows)).max(1));
        let groups = if all || total / chunk_rows >= enough { total / chunk_rows } else { 0 };
        let mut staged = Staged {
            rows: self.rows + (rows.len() / row) as u64,
            pending: Pending::Only(Vec::new()),
            full: Vec::new(),
            tail: self.tail.clone(),
            fresh: self.fresh,
        };
        if groups > 0 {
            staged.tail.boundary.clear();
            let layers = meta.shape[1];
            let produce = |i: usize, out: &mut Vec<u8>| {
                task.check()?;
                let (group, layer) = (i / layers, i % layers);
                self.encode(group * chunk_rows, chunk_rows, layer, rows, out)
            };
            let mut consume = |_: usize, bytes: &[u8]| self.put(&mut staged, bytes);
            let done = pipeline::ordered(pool, buffers, groups * layers, produce, &mut consume);
            if let Err(error) = done {
                self.give_back_room();
                return Err(error);
            }
        }
        let consumed = groups * chunk_rows;
        staged.pending = match consumed.checked_sub(before) {
            _ if groups == 0 => Pending::More(rows.to_vec()),
            Some(from_rows) => Pending::Only(rows[from_rows * row..].to_vec()),
            None => Pending::Only([&self.pending[consumed * row..], rows].concat()),
        };
        Ok(staged)
    }

    /// Makes a staged append real.
    pub fn apply(&mut self, staged: Staged) {
        self.rows = staged.rows;
        match staged.pending {
            Pending::More(rows) => self.pending.extend_from_slice(&rows),
            Pending::Only(rows) => self.pending = rows,
        }
        self.full.extend(staged.full);
        self.tail = staged.tail;
        self.fresh = staged.fresh;
    }

    /// Cuts what a failed append left behind the last chunk: a full disk needs it.
    pub fn give_back_room(&self) {
        if let Some(Shard::Temporary(temporary)) = &self.tail.shard {
            let _ = temporary.file.set_len(self.tail.end);
        }
    }

    /// The chunk of a layer that starts at row `first` of the pending rows followed by `rows`.
    fn encode(&self, first: usize, n: usize, layer: usize, rows: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let meta = &self.meta;
        let row = meta.row_bytes();
        let width = meta.shape[2] * meta.dtype.size();
        let before = self.pending.len() / row;
        let get = |r: usize| {
            let (source, r) =
                if first + r < before { (self.pending.as_slice(), first + r) } else { (rows, first + r - before) };
            &source[r * row + layer * width..][..width]
        };
        let block = Block {
            row: get,
            rows: n,
            row_bytes: width,
            chunk_rows: meta.chunk[0],
            size: meta.dtype.size(),
            float: meta.dtype.is_float(),
        };
        // Room for what coding can take at most, so that the buffer does not grow by copying.
        out.reserve(meta.chunk_bytes() * 21 / 16 + 4096);
        if meta.chain.is_raw() {
            block.write_raw(out);
        } else {
            SCRATCH.with_borrow_mut(|scratch| block.write(scratch, out))?;
        }
        let crc = crc32c::crc32c(out);
        out.extend_from_slice(&crc.to_le_bytes());
        Ok(())
    }

    /// Writes an encoded chunk behind the last; a shard that is full then gets its index.
    fn put(&self, staged: &mut Staged, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary(&mut staged.tail)?;
        let chunk = self.write_chunk(&temporary, staged.tail.end, bytes)?;
        staged.tail.end = chunk.0 + chunk.1;
        staged.tail.chunks.push(chunk);
        staged.fresh += chunk.1;
        if chunk.0 / WRITE_BACK != staged.tail.end / WRITE_BACK {
            temporary.write_back();
        }
        if staged.tail.chunks.len() == self.meta.chunks_per_shard() {
            let sums = self.write_seal(&temporary, &staged.tail.chunks, staged.tail.end)?;
            staged.full.push((staged.tail.number, Shard::Temporary(temporary), sums));
            staged.tail = TailShard::new(staged.tail.number + 1);
        }
        Ok(())
    }

    fn write_chunk(&self, temporary: &Temporary, end: u64, bytes: &[u8]) -> Result<Chunk> {
        let offset = if self.meta.chain.is_raw() { end.next_multiple_of(ALIGN) } else { end };
        let written = temporary.file.write_all_at(bytes, offset);
        written.map_err(|error| Error::io("write", &temporary.path, &error).at(format!("'{}'", self.name)))?;
        let crc = bytes.last_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
        Ok(Chunk(offset, bytes.len() as u64, crc))
    }

    fn write_seal(&self, temporary: &Temporary, chunks: &[Chunk], end: u64) -> Result<(u64, u32)> {
        let (bytes, seal) = shard::write_seal(chunks, self.meta.chunks_per_shard())?;
        let length = end + bytes.len() as u64;
        let written = temporary.file.write_all_at(&bytes, end).and_then(|()| temporary.file.set_len(length));
        written.map_err(|error| Error::io("write", &temporary.path, &error).at(format!("'{}'", self.name)))?;
        Ok((length, seal))
    }

    /// The tail's temporary file; made, with a copy of what readers see of the shard, if it has none.
    fn temporary(&self, tail: &mut TailShard) -> Result<Arc<Temporary>> {
        if let Some(Shard::Temporary(temporary)) = &tail.shard {
            return Ok(Arc::clone(temporary));
        }
        let path = files::temporary(&self.store);
        let file = files::create(&path)?;
        let temporary = Temporary { path, file, write_back: Mutex::default(), pid: std::process::id() };
        if tail.shard.is_some() {
            let from = self.shard_path(tail.number);
            let mut source = File::open(&from).map_err(|error| Error::io("open", &from, &error))?;
            let copied = std::io::copy(&mut std::io::Read::take(&mut source, tail.end), &mut &temporary.file);
            let copied = copied.map_err(|error| Error::io("copy", &from, &error))?;
            if copied != tail.end {
                return Err(Error::truncated(format!(
                    "{} has {copied} bytes, {} were committed",
                    from.display(),
                    tail.end
                )));
            }
        }
        let temporary = Arc::new(temporary);
        tail.shard = Some(Shard::Temporary(Arc::clone(&temporary)));
        Ok(temporary)
    }

    fn shard_path(&self, number: u64) -> PathBuf {
        self.store.join(&self.name).join(self.meta.key([number as usize, 0, 0]))
    }

    /// First half of a commit: everything that is not in a published shard is written, with its index,
    /// and durable. Fails without effect.
    pub fn seal(&mut self) -> Result<()> {
        for (_, shard, _) in &self.full {
            if let Shard::Temporary(temporary) = shard {
                temporary.sync()?;
            }
        }
        if self.rows == self.committed || (self.pending.is_empty() && self.tail.chunks.is_empty()) {
            return Ok(());
        }
        let sealed = self.seal_tail();
        if sealed.is_err() {
            self.give_back_room();
        }
        self.tail.boundary = sealed?;
        Ok(())
    }

    /// Writes the boundary chunks and the seal; the former.
    fn seal_tail(&mut self) -> Result<Vec<Chunk>> {
        let mut tail = self.tail.clone();
        let temporary = self.temporary(&mut tail)?;
        self.tail.shard = tail.shard;
        let n = self.pending.len() / self.meta.row_bytes();
        let mut boundary = Vec::new();
        let mut end = self.tail.end;
        let mut bytes = Vec::new();
        for layer in 0..if n > 0 { self.meta.shape[1] } else { 0 } {
            bytes.clear();
            self.encode(0, n, layer, &[], &mut bytes)?;
            let chunk = self.write_chunk(&temporary, end, &bytes)?;
            end = chunk.0 + chunk.1;
            boundary.push(chunk);
        }
        let all = [self.tail.chunks.as_slice(), &boundary].concat();
        self.write_seal(&temporary, &all, end)?;
        temporary.sync()?;
        Ok(boundary)
    }

    /// Second half: sealed shards get their names. Returns the folders whose entries changed.
    pub fn publish(&mut self) -> Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for i in 0..self.full.len() {
            let path = self.shard_path(self.full[i].0);
            if let Shard::Temporary(temporary) = &self.full[i].1 {
                folders.extend(rename(&self.store, &temporary.path, &path)?);
                self.full[i].1 = Shard::Published;
            }
        }
        if self.rows != self.committed
            && let Some(Shard::Temporary(temporary)) = &self.tail.shard
        {
            let temporary = Arc::clone(temporary);
            folders.extend(rename(&self.store, &temporary.path, &self.shard_path(self.tail.number))?);
            self.tail.shard = Some(Shard::Published);
            self.tail.end = end(&self.tail.chunks).max(end(&self.tail.boundary));
        }
        Ok(folders)
    }

    /// What the next record says of it; `all` for a checkpoint, given what was committed before.
    pub fn record(&self, before: Option<&ArrayRecord>, checkpoint: bool) -> ArrayRecord {
        let chunks = [self.tail.chunks.as_slice(), &self.tail.boundary].concat();
        let fresh = self.full.iter().map(|(number, _, sums)| (*number, vec![*sums]));
        let kept = before.filter(|_| checkpoint).map_or(&[][..], |b| &b.shards);
        ArrayRecord {
            metadata: zarr::checksum(&self.node),
            rows: self.rows,
            previous: before.map_or(0, |b| b.rows),
            shards: kept.iter().cloned().chain(fresh).collect(),
            tail: (!chunks.is_empty()).then_some(Tail { length: self.tail.end, chunks, compacted: None }),
        }
    }

    /// After the record: what was sealed is committed.
    pub fn committed(&mut self) {
        self.full.clear();
        self.fresh = 0;
        self.committed = self.rows;
        self.meta.shape[0] = self.rows as usize;
    }

    /// Lets the shape on disk follow the last commit; the folder to sync when it changed.
    pub fn roll_shape(&mut self) -> Result<Option<PathBuf>> {
        if self.node["shape"][0].as_u64() == Some(self.committed) {
            return Ok(None);
        }
        let before = std::mem::replace(&mut self.node["shape"][0], Value::from(self.committed));
        if let Err(error) = self.write_node() {
            self.node["shape"][0] = before;
            return Err(error);
        }
        Ok(Some(self.store.join(&self.name)))
    }

    /// Puts its `zarr.json` on disk.
    pub fn write_node(&self) -> Result<()> {
        files::replace(&self.store, &self.store.join(&self.name).join("zarr.json"), self.node.to_string().as_bytes())
    }
}

/// Renames a shard into place; the folders to sync.
pub fn rename(store: &Path, from: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let folder = to.parent().unwrap_or(store);
    let mut folders = files::create_folders(store, folder)?;
    fs::rename(from, to).map_err(|error| Error::io("rename", to, &error))?;
    folders.push(folder.to_path_buf());
    Ok(folders)
}
