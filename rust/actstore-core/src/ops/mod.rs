//! Analyses, each a reducer of blocks or a search over them. They see [`crate::blocks`] alone, not where
//! the blocks come from.

pub mod limits;
pub mod scan;
pub mod scorer;
pub mod search;
mod tile;
pub mod topk;

pub use limits::{Limits, limits};
pub use scan::{Block, Reducer, State, scan, state_of, take_state};
pub use scorer::{Combine, Metric, Queries};
pub use search::{Ask, Found, search};
