//! How large chunks and shards are made when the caller does not say.

/// Bytes of an inner chunk: long enough for one good entropy table, short enough for random rows.
const CHUNK: usize = 1 << 20;
/// Bytes of a shard before compression.
const SHARD: usize = 256 << 20;
/// Most inner chunks of a shard, so that its index stays small.
const SHARD_CHUNKS: usize = 1 << 16;

/// Rows of an inner chunk for rows of `row_bytes` in one layer.
pub fn chunk_rows(row_bytes: usize) -> usize {
    let rows = (CHUNK / row_bytes.max(1)).max(1);
    // A multiple of 16 keeps rows of any width aligned where the chunk is.
    if rows >= 32 { rows / 16 * 16 } else { rows }
}

/// Rows of a shard: a whole number of chunks.
pub fn shard_rows(row_bytes: usize, layers: usize, chunk_rows: usize) -> usize {
    let group = row_bytes.max(1).saturating_mul(layers.max(1)).saturating_mul(chunk_rows.max(1));
    let groups = (SHARD / group).min(SHARD_CHUNKS / layers.max(1)).max(1);
    chunk_rows * groups
}
