//! One process after the other: what a queue takes, gives, counts and forgets.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::VecDeque;

use fieldcrypt_event_queue::{MESSAGE, Queues, Refused, Status};
use proptest::prelude::*;
use support::{Server, latch};

const APP: u32 = 5;
const OTHER: u32 = 6;
const ALL: u64 = u64::MAX;
const LAUNCHER: usize = 1;
const WORKER: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    /// Reads up to so many bytes, and tells of the gaps.
    Work(u64),
    /// Reads, and fails.
    Fail(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Append),
        2 => (0..100u64).prop_map(Step::Work),
        1 => (0..100u64).prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_queue_gives_what_it_took_in_order(room in 8usize..150, steps in steps()) {
        let server = Server::new(2, room);
        let (queue, _) = (server.own(APP), server.own(OTHER));
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let size = |records: &VecDeque<Vec<u8>>| records.iter().map(|one| one.len() as u64 + 4).sum();
        let (mut queued, mut gap, mut overflowed) = (0, 0, 0);
        for step in steps {
            let used: u64 = size(&model);
            match step {
                Step::Append(record) => {
                    if used + record.len() as u64 + 4 > room as u64 {
                        gap += 1;
                        overflowed += 1;
                        prop_assert_eq!(queue.append(&record), Err(Refused::Full));
                    } else {
                        queued += 1;
                        prop_assert_eq!(queue.append(&record), Ok(()));
                        model.push_back(record);
                    }
                }
                Step::Fail(bytes) => {
                    let (records, _) = queue.records(queue.tail(), bytes);
                    prop_assert!(records.iter().eq(model.iter().take(records.len())));
                }
                Step::Work(bytes) => {
                    let (records, end) = queue.records(queue.tail(), bytes);
                    prop_assert_eq!(records.is_empty(), model.is_empty() || bytes == 0);
                    for record in records {
                        prop_assert_eq!(Some(record), model.pop_front());
                    }
                    prop_assert_eq!(queue.gaps(), (gap, 0));
                    queue.will_commit(end);
                    queue.written(end, gap, 0, 1);
                    gap = 0;
                }
            }
            let status = queue.status();
            prop_assert_eq!(status.used, size(&model));
            prop_assert_eq!((status.queued, status.overflowed), (queued, overflowed));
            prop_assert_eq!(queue.has_events(), !model.is_empty());
            prop_assert_eq!(queue.has_work(), !model.is_empty() || gap > 0);
        }
        let other = server.own(OTHER);
        prop_assert_eq!(other.records(other.tail(), ALL), (vec![], 0));
        prop_assert!(!other.has_work());
    }
}

#[test]
fn a_fresh_queue_is_nobodys_and_empty() {
    let server = Server::new(2, 64);
    for queue in server.queues().all() {
        assert_eq!(queue.database(), 0);
        assert_eq!(queue.status(), Status { bytes: 64, ..Status::default() });
        assert!(!queue.has_work() && !queue.has_events() && !queue.is_dropped());
        assert_eq!((queue.worker(), queue.not_before(), queue.yielding_until()), (0, 0, 0));
        assert_eq!(queue.question(), None);
    }
    assert!(server.queues().of_database(APP).is_none());
    assert!(server.queues().own(0, &Default::default()).is_none());
}

/// Every field of what is kept differs from a fresh queue's, so that none can be forgotten here.
#[test]
fn the_next_database_finds_nothing_of_the_last_one() {
    let kept = |server: &Server| server.slot(0).split_once("kept:").unwrap().1.to_owned();
    let server = Server::new(1, 64);
    let fresh = kept(&server);

    let queue = server.own(APP);
    assert_eq!(queue.append(&[0; 100]), Err(Refused::Full));
    queue.append(b"event").unwrap();
    queue.enter_worker(7, latch(WORKER));
    queue.ask(b"question").unwrap();
    queue.written(queue.head(), 0, 0, 7);
    queue.want_worker().unwrap();
    queue.look_again(7);
    queue.quiet_since(Some(7));
    queue.checkpoint_stored(7, 7);
    queue.set_problem(Some("problem"));
    assert!(queue.is_news(7) && !queue.is_news(7));
    queue.database_dropped();
    queue.leave_worker(true, 7);
    server.queues().yield_until(APP, 7);
    server.queues().begin([(APP, 7)]);

    let used = kept(&server);
    for nothing in [": 0,", ": false", ": []"] {
        assert!(!used.contains(nothing), "a field that this test does not use: {used}");
    }
    queue.end();
    let queue = server.own(OTHER);
    assert_eq!(kept(&server), fresh);
    assert_eq!(queue.status(), Status { bytes: 64, ..Status::default() });
    assert_eq!(queue.records(queue.tail(), ALL).0.len(), 0);
    assert_eq!(queue.question(), None);
    assert!(!queue.has_work());
}

#[test]
fn a_queue_in_use_stays_whose_it_is() {
    type Use = (&'static str, fn(&Server));
    let uses: [Use; 5] = [
        ("an event", |server| server.own(APP).append(b"event").unwrap()),
        ("a gap", |server| {
            server.own(APP).append(&[0; 100]).unwrap_err();
        }),
        ("rows", |server| server.own(APP).want_worker().unwrap()),
        ("a worker to come", |server| assert!(server.own(APP).expect_worker())),
        ("a worker", |server| assert!(server.own(APP).enter_worker(7, latch(WORKER)))),
    ];
    for (what, use_it) in uses {
        let server = Server::new(1, 64);
        use_it(&server);
        assert!(server.queues().own(OTHER, &Default::default()).is_none(), "{what}");
        assert_eq!(server.own(APP).database(), APP);
    }
    let server = Server::new(1, 64);
    server.own(APP);
    assert!(server.queues().own(OTHER, &Default::default()).is_some());
    assert!(server.queues().of_database(APP).is_none());
}

#[test]
fn an_event_without_a_queue_is_counted_and_nothing_else_is() {
    let server = Server::new(1, 64);
    server.own(APP).append(b"event").unwrap();
    let queues = server.queues();
    assert!(queues.own(OTHER, &Default::default()).is_none());
    queues.want_worker(OTHER, &Default::default());
    assert_eq!(queues.without_queue(), 0);
    assert!(!queues.append(OTHER, &Default::default(), b"event"));
    assert_eq!(queues.without_queue(), 1);
    // A process without a database has no log.
    assert!(!queues.append(0, &Default::default(), b"event"));
    assert_eq!(queues.without_queue(), 1);
}

#[test]
fn a_process_that_knows_its_queue_is_told_that_it_has_moved() {
    let server = Server::new(1, 64);
    let (queues, known) = (server.queues(), Default::default());
    assert!(queues.append(APP, &known, b"one"));
    let queue = server.own(APP);
    queue.written(queue.head(), 0, 0, 1);
    server.own(OTHER);
    assert_eq!(queue.append(b"two"), Err(Refused::Moved));
    assert_eq!(queue.records(queue.tail(), ALL).0.len(), 0);
    // It takes it back, since it is idle.
    assert!(queues.append(APP, &known, b"two"));
    assert_eq!(server.own(APP).records(queue.tail(), ALL).0, [b"two"]);
}

#[test]
fn after_a_crash_the_gaps_and_the_rows_are_told_of() {
    let server = Server::new(2, 64);
    server.queues().begin([(APP, 3), (OTHER, 0), (7, 9)]);
    let (one, other) = (server.own(APP), server.own(OTHER));
    assert_eq!((one.gaps(), other.gaps()), ((0, 3), (0, 0)));
    assert!(one.has_work() && other.has_work());
    assert!(one.take_wanted() && other.take_wanted());
    assert!(one.has_work() && !other.has_work());
    one.written(0, 0, 3, 1);
    assert!(!one.has_work());
}

#[test]
fn the_worker_is_woken_when_it_may_sleep_and_when_it_is_high_time() {
    let server = Server::new(1, 64);
    server.queues().enter_launcher(1, latch(LAUNCHER));
    let queue = server.own(APP);
    let wakes = |who| {
        queue.append(&[0; 12]).unwrap();
        server.is_woken(who)
    };
    assert!(wakes(LAUNCHER), "the first event");
    assert!(queue.enter_worker(7, latch(WORKER)));
    assert!(!wakes(WORKER), "the second");
    assert!(wakes(WORKER), "half the room is taken");
    assert!(!wakes(WORKER), "the last that finds room");
    queue.append(&[]).unwrap_err();
    assert!(server.is_woken(WORKER), "there is no room");
    assert!(!server.is_woken(LAUNCHER));
    queue.leave_worker(false, 1);
    assert!(server.is_woken(LAUNCHER), "the worker left");
    server.queues().leave_launcher();
    server.queues().wake_launcher();
    assert!(!server.is_woken(LAUNCHER), "nobody is there");
}

#[test]
fn workers_that_fail_wait_longer_each_time() {
    let server = Server::new(1, 64);
    let queue = server.own(APP);
    for seconds in [1, 2, 4, 8, 16, 32, 32] {
        assert!(queue.expect_worker() && !queue.expect_worker());
        assert!(queue.enter_worker(7, latch(WORKER)) && !queue.enter_worker(8, latch(WORKER)));
        queue.take_wanted();
        queue.leave_worker(true, 100);
        assert_eq!(queue.not_before(), 100 + seconds * 1_000_000);
        assert!(queue.has_work(), "what it was to seal is left");
    }
    queue.expect_worker();
    queue.miss_worker(100);
    assert_eq!((queue.worker(), queue.not_before()), (0, 32_000_100));
    queue.written(queue.head(), 0, 0, 1);
    queue.leave_worker(false, 100);
    assert_eq!(queue.not_before(), 0);
}

#[test]
fn only_the_last_question_is_answered() {
    let server = Server::new(1, 64);
    server.queues().enter_launcher(1, latch(LAUNCHER));
    let queue = server.own(APP);
    assert_eq!(queue.ask(&vec![b'a'; MESSAGE + 1]), None);
    assert_eq!(queue.question(), None);

    let first = queue.ask(b"first").unwrap();
    assert!(server.is_woken(LAUNCHER));
    let second = queue.ask(&vec![b'b'; MESSAGE]).unwrap();
    assert_eq!(queue.question(), Some((second, vec![b'b'; MESSAGE])));
    queue.answer(first, b"late");
    assert_eq!((queue.answer_to(first), queue.answer_to(second)), (None, None));
    queue.answer(second, b"answer");
    assert_eq!(queue.answer_to(second).as_deref(), Some(&b"answer"[..]));
    assert_eq!((queue.question(), queue.answer_to(first)), (None, None));

    let third = queue.ask(b"third").unwrap();
    queue.answer(third, &vec![b'c'; MESSAGE + 1]);
    assert_eq!(
        queue.answer_to(third),
        Some(vec![]),
        "an answer that is too long, not the question"
    );
}

#[test]
fn problems_are_cut_between_letters() {
    let server = Server::new(1, 64);
    let queue = server.own(APP);
    queue.set_problem(Some(&format!("a{}", "é".repeat(200))));
    assert_eq!(queue.status().problem, Some(format!("a{}", "é".repeat(127))));
    queue.set_problem(None);
    assert_eq!(queue.status().problem, None);
}

#[test]
fn checkpoints_that_shrink_are_noticed() {
    let server = Server::new(1, 64);
    let queue = server.own(APP);
    queue.checkpoint_stored(7, 1);
    queue.checkpoint_stored(3, 2);
    let status = queue.status();
    assert_eq!((status.checkpoint_size, status.checkpoint_at, queue.sealed_until()), (3, 2, 7));
    queue.forget_sealed();
    assert_eq!(queue.sealed_until(), 0);
}

#[test]
fn quiet_begins_when_it_is_seen_first() {
    let server = Server::new(1, 64);
    let queue = server.own(APP);
    assert_eq!(queue.quiet_since(Some(5)), Some(5));
    assert_eq!(queue.quiet_since(Some(9)), Some(5));
    assert_eq!(queue.quiet_since(None), None);
    assert_eq!(queue.quiet_since(Some(9)), Some(9));
}

#[test]
fn queues_of_no_server_are_none() {
    let server = Server::new(0, 64);
    assert_eq!(Queues::all(server.queues()).count(), 0);
    assert!(server.queues().own(APP, &Default::default()).is_none());
    assert!(server.queues().of_index(0).is_none());
    assert!(!server.queues().append(APP, &Default::default(), b"event"));
}
