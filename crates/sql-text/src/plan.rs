//! What auto_explain writes.

use crate::mask::{mask, mask_tokens};
use crate::messages::VALUE;
use crate::text::{OutOfMemory, Text};

/// What stands for a plan that can't be masked.
const HIDDEN: &[u8] =
    b"(hidden by fieldcrypt.redact_logs; with auto_explain.log_format = text it is masked)";

/// Labels of lines whose numbers say how a plan ran, not what it looks for.
const MEASURES: [&[u8]; 31] = [
    b"Buffers:",
    b"I/O Timings:",
    b"WAL:",
    b"Sort Method:",
    b"Full-sort Groups:",
    b"Pre-sorted Groups:",
    b"Rows Removed by",
    b"Heap Fetches:",
    b"Heap Blocks:",
    b"Buckets:",
    b"Batches:",
    b"Memory Usage:",
    b"Disk Usage:",
    b"Planned Partitions:",
    b"Workers Planned:",
    b"Workers Launched:",
    b"Worker ",
    b"Single Copy:",
    b"Hits:",
    b"Subplans Removed:",
    b"Settings:",
    b"JIT:",
    b"Functions:",
    b"Options:",
    b"Timing:",
    b"Planning",
    b"Execution Time:",
    b"Query Identifier:",
    b"Trigger ",
    b"SubPlan ",
    b"InitPlan ",
];

/// How a plan begins that can be masked.
const QUERY: &[u8] = b"Query Text: ";

/// Masks the literals of a plan in text form, with the query before it, if that is the client's statement: any other may
/// have been put together from values. Of that only the begin need be known. Other forms are hidden.
pub fn mask_plan(
    plan: &[u8],
    client: &[u8],
    is_cut_off: bool,
    out: &mut Text,
) -> Result<(), OutOfMemory> {
    let Some(query) = plan.strip_prefix(QUERY) else { return out.push(HIDDEN) };
    if query.starts_with(b"\"") {
        return out.push(HIDDEN);
    }
    let is_own = |rest: &[u8]| is_cut_off || matches!(rest, [] | [b'\n', ..]);
    if !query.strip_prefix(client).is_some_and(is_own) {
        out.push(QUERY)?;
        return out.push(VALUE);
    }
    // Strings first, over all lines: a string may hold what looks like a line of the plan.
    let mut without_strings = Text::new();
    mask_tokens(plan, false, &mut without_strings)?;
    let mut is_query = true;
    for (number, line) in without_strings.as_bytes().split(|byte| *byte == b'\n').enumerate() {
        if number > 0 {
            out.push(b"\n")?;
        }
        let content = line.trim_ascii_start();
        match rposition(line, b"  (cost=").or_else(|| rposition(line, b" (actual ")) {
            // The line of a node: names, then what it costs.
            Some(at) => {
                is_query = false;
                mask(line.get(..at).unwrap_or_default(), out)?;
                out.push(line.get(at..).unwrap_or_default())?;
            }
            None if !is_query && MEASURES.iter().any(|label| content.starts_with(label)) => {
                out.push(line)?
            }
            None => mask(line, out)?,
        }
    }
    Ok(())
}

fn rposition(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).rposition(|window| window == part)
}
