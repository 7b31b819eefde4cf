//! What is fed hostile bytes, and how much memory it may take. The fuzzer and the test of the corpus
//! (actstore-core/tests/corpus.rs) both run it.

pub mod input;
pub mod meter;
pub mod store;
pub mod targets;
