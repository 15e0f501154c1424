//! What an encrypted value can't do. All of these are errors, and give nothing else: the functions of operators, casts and
//! aggregates, and the support functions which the planner asks about calls of them.

use std::convert::Infallible;

use crate::error::{Error, Misuse};

crate::pg::sql_functions! {
    plan_comparison(request: planner_request) -> internal;
    refuse_comparison(value: encrypted, other: any_encrypted) -> boolean;
    refuse_comparison_with_text(value: encrypted, other: text) -> boolean = refuse_comparison;
    refuse_comparison_of_text(other: text, value: encrypted) -> boolean = refuse_comparison;
    plan_match(request: planner_request) -> internal;
    refuse_match(value: encrypted, pattern: text) -> boolean;
    plan_member(request: planner_request) -> internal;
    refuse_member(value: encrypted, name: text) -> text;
    refuse_element(value: encrypted, place: integer) -> text = refuse_member;
    plan_order(request: planner_request) -> internal;
    refuse_order(greatest: encrypted, value: encrypted) -> encrypted;
    plan_text(request: planner_request) -> internal;
    refuse_text(value: encrypted) -> text;
    refuse_name(value: encrypted) -> name = refuse_text;
}

type Refused = Result<Infallible, Error>;

fn plan_comparison<R>(_: R) -> Refused {
    Err(Error::Misuse(Misuse::Comparison))
}

fn refuse_comparison<A, B>(_: A, _: B) -> Refused {
    Err(Error::Misuse(Misuse::Comparison))
}

fn plan_match<R>(_: R) -> Refused {
    Err(Error::Misuse(Misuse::Match))
}

fn refuse_match<A, B>(_: A, _: B) -> Refused {
    Err(Error::Misuse(Misuse::Match))
}

fn plan_member<R>(_: R) -> Refused {
    Err(Error::Misuse(Misuse::Member))
}

fn refuse_member<A, B>(_: A, _: B) -> Refused {
    Err(Error::Misuse(Misuse::Member))
}

fn plan_order<R>(_: R) -> Refused {
    Err(Error::Misuse(Misuse::Order))
}

fn refuse_order<A, B>(_: A, _: B) -> Refused {
    Err(Error::Misuse(Misuse::Order))
}

fn plan_text<R>(_: R) -> Refused {
    Err(Error::Misuse(Misuse::Text))
}

fn refuse_text<A>(_: A) -> Refused {
    Err(Error::Misuse(Misuse::Text))
}
