//! What was found out about relations, for as long as no catalog has changed.

use std::cell::RefCell;
use std::rc::Rc;
use std::thread::LocalKey;

use pgrx::pg_sys::Oid;

use super::invalidations;

/// What is known of some relations, the last of each.
pub struct KnownRelations<T: ?Sized>(Vec<Known<T>>);

struct Known<T: ?Sized> {
    relation: Oid,
    /// As of when it is known.
    generation: u64,
    facts: Rc<T>,
}

/// Relations that are known at a time.
const MOST: usize = 64;

impl<T: ?Sized> KnownRelations<T> {
    /// Of none.
    #[expect(clippy::new_without_default, reason = "only ever a constant")]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// What is known of a relation, else what `look_up` finds, which is kept. `let_go` gets what is not kept any more.
    pub fn of<E>(
        all: &'static LocalKey<RefCell<Self>>,
        relation: Oid,
        look_up: impl FnOnce() -> Result<Rc<T>, E>,
        let_go: impl FnMut(Rc<T>),
    ) -> Result<Rc<T>, E> {
        // Before it is looked up: what changes meanwhile is looked up again.
        let generation = invalidations::any_generation();
        let is_it =
            |known: &&Known<T>| known.relation == relation && known.generation == generation;
        let found = all.with_borrow(|all| all.0.iter().rfind(is_it).map(|it| Rc::clone(&it.facts)));
        if let Some(facts) = found {
            return Ok(facts);
        }
        let facts = look_up()?;
        let gone = all.with_borrow_mut(|all| {
            let mut gone: Vec<_> =
                all.0.extract_if(.., |known| known.generation != generation).collect();
            if all.0.len() >= MOST {
                gone.append(&mut all.0);
            }
            all.0.push(Known { relation, generation, facts: Rc::clone(&facts) });
            gone
        });
        gone.into_iter().map(|known| known.facts).for_each(let_go);
        Ok(facts)
    }
}
