//! What the triggers of an enforced context ask about each row that is written: whether its values are authentic for
//! it. They say it by an error and never give anything else, so the condition of such a trigger is never met.

use pgrx::pg_sys::Datum;

use crate::error::Error;
use crate::pg::encoding;
use crate::pg::text_forms::AnyValue;
use crate::pg::triggers::TriggerCall;
use crate::{fields, usage};

crate::pg::sql_functions! {
    is_foreign(value: anything!, context: text, column_name: text!) -> boolean;
    is_changed_to_foreign(value: anything!, context: text, old_value: anything!, old_context: text,
                          column_name: text!) -> boolean;
    trigger refuse_foreign;
}

fn is_foreign(value: AnyValue, context: Option<&[u8]>, column: &[u8]) -> Result<bool, Error> {
    if value.is_null() {
        return Ok(false);
    }
    let context = context.ok_or(Error::ContextIsNull)?;
    value.visit_encrypted(&mut |bytes| {
        fields::verify_in_context(bytes, context).map_err(|error| {
            let error = match error {
                Error::NotAuthentic { key, .. }
                | Error::NotOfThisPlace { key, .. }
                | Error::NotInPlace(key) => {
                    Error::NotOfItsRow { key, column: encoding::lossy(column) }
                }
                other => other,
            };
            usage::decrypt_failed(bytes, error)
        })
    })?;
    Ok(false)
}

/// What was there before and is bound to the same is nobody's fault who writes another column, whatever became of it
/// or of its key.
fn is_changed_to_foreign(
    value: AnyValue,
    context: Option<&[u8]>,
    old: AnyValue,
    old_context: Option<&[u8]>,
    column: &[u8],
) -> Result<bool, Error> {
    if value.is_same(&old) && context == old_context {
        return Ok(false);
    }
    is_foreign(value, context, column)
}

/// Never called by its trigger, whose condition is never met.
fn refuse_foreign(trigger: &TriggerCall) -> Result<Option<Datum>, Error> {
    Ok(trigger.row_datum())
}
