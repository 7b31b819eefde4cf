//! Analyses, each a reducer of blocks or a search over them. They see [`crate::blocks`] alone, not where
//! the blocks come from.

pub mod covariance;
pub mod cross;
pub mod fold;
pub mod gather;
pub mod histogram;
pub mod limits;
pub mod maxsim;
pub mod moments;
mod panels;
pub mod pool;
pub mod scan;
pub mod scorer;
pub mod search;
pub mod sequence;
pub mod summary;
mod tile;
pub mod topk;

pub use covariance::Covariance;
pub use gather::{Gatherer, gather};
pub use histogram::Histogram;
pub use limits::{Limits, limits};
pub use maxsim::maxsim;
pub use scan::{Block, Reducer, State, scan, state_of, take_state};
pub use scorer::{Combine, Metric, Queries};
pub use search::{Ask, Found, search};
pub use sequence::{ByExample, Examples, Fold};
pub use summary::Summarize;
