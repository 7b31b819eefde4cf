//! Analyses, each a reducer of blocks or a search over them. They see [`crate::blocks`] alone, not where
//! the blocks come from.

pub mod histogram;
pub mod limits;
pub mod moments;
pub mod pool;
pub mod scan;
pub mod scorer;
pub mod search;
pub mod sequence;
pub mod summary;
mod tile;
pub mod topk;

pub use histogram::Histogram;
pub use limits::{Limits, limits};
pub use scan::{Block, Reducer, State, scan, state_of, take_state};
pub use scorer::{Combine, Metric, Queries};
pub use search::{Ask, Found, search};
pub use sequence::{ByExample, Examples, Fold};
pub use summary::Summarize;
