//! What the bytes on disk mean: Zarr v3 metadata, shards, codecs, records. No files are opened here.

pub mod blosc;
pub mod codec;
pub mod huffman;
pub mod json;
pub mod layout;
pub mod memory;
pub mod record;
pub mod shard;
pub mod zarr;
pub mod zstd_frame;
