//! The tenant of a transaction.

use crate::error::{Error, Report};
use crate::pg::{report, security, transaction};
use crate::settings;

crate::pg::sql_functions! {
    lock_tenant(name: text!) -> void;
}

fn lock_tenant(name: &[u8]) -> Result<(), Error> {
    security::refuse_for_planted_code()?;
    settings::lock_tenant(name)?;
    if transaction::ends_with_statement() {
        report::warn(&Report::new(
            b"25P01",
            "there is no transaction block: the tenant is locked until this statement is committed, with the pipeline that it is part of".into(),
            "BEGIN first, or lock it in the function that uses it.",
        ));
    }
    Ok(())
}
