//! Health: thresholds, a look at where the master key lies, the library's version. The checks are SQL, in `sql/health*.sql`.

mod hours;
mod settings;
mod source;
pub mod version;

pub use settings::{hours, init};
pub use source::weaknesses;
