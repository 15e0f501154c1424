//! Health: thresholds, and a look at where the master key lies. The checks are SQL, in `sql/health*.sql`.

mod hours;
mod settings;
mod source;

pub use settings::{hours, init};
pub use source::weaknesses;
