//! All orders in which the processes of a server can meet, as far as a few steps of two or three of them go.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p fieldcrypt-event-queue --test loom`

#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;

use fieldcrypt_event_queue::{Queue, Status};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use loom::thread;
use support::{Server, latch};

const APP: u32 = 5;
const OTHER: u32 = 6;
const LAUNCHER: usize = 1;
const WORKER: usize = 2;
const ALL: u64 = u64::MAX;

/// Tries all orders with at most so many moments at which a process is interrupted, besides those at which
/// it waits.
fn every_order(interruptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(model);
}

/// Starts a process of the server.
fn process<R: 'static>(
    server: &Arc<Server>,
    work: impl FnOnce(&Server) -> R + 'static,
) -> thread::JoinHandle<R> {
    let server = server.clone();
    thread::spawn(move || work(&server))
}

fn of_app(server: &Server, work: impl FnOnce(Queue<'_, &Server>)) {
    if let Some(queue) = server.queues().of_database(APP) {
        work(queue);
    }
}

fn want_worker(server: &Server) {
    server.queues().want_worker(APP, &Default::default());
}

fn append(server: &Server, database: u32, record: &[u8]) -> bool {
    server.queues().append(database, &Default::default(), record)
}

/// By the worker beside the session that writes it, and by the postmaster when a session was killed at any step of
/// writing: no server can be made to stop at each of them, so the steps are tried here.
#[test]
fn a_record_is_seen_whole_or_not_at_all() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        // What lies in the ring already, and is read.
        let queue = server.own(APP);
        assert!(append(&server, APP, &[9]));
        queue.written(queue.head(), 0, 0, 1);

        let session = process(&server, |server| assert!(append(server, APP, &[7, 8])));
        let queue = server.own(APP);
        let (records, end) = queue.records(queue.tail(), ALL);
        if !records.is_empty() {
            assert_eq!(records, [[7, 8]]);
            assert_eq!(end, queue.tail() + 6);
        }
        session.join().unwrap();
        assert_eq!(server.own(APP).records(queue.tail(), ALL).0, [[7, 8]]);
    });
}

#[test]
fn nothing_is_lost_or_read_twice() {
    every_order(2, || {
        let server = Arc::new(Server::new(1, 8));
        let sessions = [1, 2].map(|byte| {
            process(&server, move |server| append(server, APP, &[byte]).then_some(byte))
        });
        let mut seen = Vec::new();
        if let Some(queue) = server.queues().of_database(APP) {
            for now in 1..3 {
                let (records, end) = queue.records(queue.tail(), ALL);
                seen.extend(records);
                queue.written(end, 0, 0, now);
            }
        }
        let taken: BTreeSet<u8> =
            sessions.into_iter().filter_map(|session| session.join().unwrap()).collect();
        let queue = server.own(APP);
        seen.extend(queue.records(queue.tail(), ALL).0);
        assert_eq!(seen.len(), taken.len(), "{seen:?}");
        assert_eq!(seen.concat().into_iter().collect::<BTreeSet<u8>>(), taken);
        assert_eq!(queue.status().queued, taken.len() as u64);
        assert_eq!(queue.gaps().0, 2 - taken.len() as u64);
    });
}

#[test]
fn what_finds_no_room_is_counted_once() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        server.own(APP);
        let sessions =
            [1, 2].map(|byte| process(&server, move |server| append(server, APP, &[byte])));
        let queue = server.own(APP);
        let (records, end) = queue.records(queue.tail(), ALL);
        let (told, _) = queue.gaps();
        queue.written(end, told, 0, 1);
        let taken =
            sessions.map(|session| session.join().unwrap()).iter().filter(|is| **is).count();
        let left = queue.records(queue.tail(), ALL).0;
        assert_eq!(records.len() + left.len(), taken);
        assert_eq!(told + queue.gaps().0, 2 - taken as u64);
        assert_eq!(queue.status().overflowed, 2 - taken as u64);
    });
}

#[test]
fn rows_are_sealed_or_a_worker_is_wanted() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        server.own(APP);
        let rows = Arc::new(AtomicU64::new(0));
        let sessions = [(); 2].map(|()| {
            let rows = rows.clone();
            process(&server, move |server| {
                rows.fetch_add(1, Ordering::Relaxed);
                want_worker(server);
            })
        });
        let queue = server.own(APP);
        queue.take_wanted();
        let sealed = rows.load(Ordering::Relaxed);
        for session in sessions {
            session.join().unwrap();
        }
        assert!(sealed == 2 || queue.has_work());
    });
}

#[test]
fn a_second_look_is_had_or_still_to_come() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        server.own(APP);
        let restored = Arc::new(AtomicU64::new(0));
        let session = {
            let restored = restored.clone();
            process(&server, move |server| {
                restored.store(1, Ordering::Relaxed);
                server.own(APP).look_again(7);
            })
        };
        let queue = server.own(APP);
        queue.take_wanted();
        let seen = restored.load(Ordering::Relaxed);
        session.join().unwrap();
        assert!(seen == 1 || queue.is_to_be_looked_at(7));
        assert!(!queue.is_to_be_looked_at(6));
    });
}

/// What a session says of its database, each of which asks for a worker.
const NEEDS: [fn(&Server); 2] = [|server| server.own(APP).append(&[1]).unwrap(), want_worker];

/// A worker that has nothing left to do leaves; a session needs one; the launcher, whom both may have woken,
/// looks after the queue.
fn needs_beside_a_leaving_worker(need: fn(&Server)) {
    every_order(3, move || {
        let server = Arc::new(Server::new(1, 8));
        server.queues().enter_launcher(1, latch(LAUNCHER));
        let queue = server.own(APP);
        assert!(queue.expect_worker() && queue.enter_worker(2, latch(WORKER)));

        let session = process(&server, need);
        let worker = process(&server, |server| {
            let queue = server.own(APP);
            if !queue.has_work() {
                queue.leave_worker(false, 1);
            }
        });
        launcher_looks(&server);
        session.join().unwrap();
        worker.join().unwrap();
        // The old worker goes on; or a new one is being started; or the launcher is about to look.
        assert!(server.own(APP).worker() != 0 || launcher_looks(&server));
    });
}

#[test]
fn an_event_beside_a_leaving_worker_gets_a_new_one() {
    needs_beside_a_leaving_worker(NEEDS[0]);
}

#[test]
fn a_wish_beside_a_leaving_worker_gets_a_new_one() {
    needs_beside_a_leaving_worker(NEEDS[1]);
}

/// If it was woken. Whether it asks for a worker.
fn launcher_looks(server: &Server) -> bool {
    let queue = server.own(APP);
    server.is_woken(LAUNCHER) && queue.worker() == 0 && queue.has_work() && queue.expect_worker()
}

/// What a session needs beside a worker, or a launcher, that has just come is seen by it, or wakes it.
#[test]
fn a_need_beside_who_comes_is_seen_or_wakes() {
    for need in NEEDS {
        every_order(3, move || {
            let server = Arc::new(Server::new(1, 8));
            server.own(APP);
            let session = process(&server, need);
            let queue = server.own(APP);
            assert!(queue.enter_worker(2, latch(WORKER)));
            let is_seen = queue.has_work();
            session.join().unwrap();
            assert!(is_seen || server.is_woken(WORKER));
        });
        every_order(3, move || {
            let server = Arc::new(Server::new(1, 8));
            server.own(APP);
            let session = process(&server, need);
            server.queues().enter_launcher(1, latch(LAUNCHER));
            let is_seen = server.own(APP).has_work();
            session.join().unwrap();
            assert!(is_seen || server.is_woken(LAUNCHER));
        });
    }
}

#[test]
fn there_are_never_two_workers() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        server.own(APP);
        let working = Arc::new(AtomicI32::new(0));
        let workers = [2, 3].map(|number| {
            let working = working.clone();
            process(&server, move |server| {
                let queue = server.own(APP);
                if queue.enter_worker(number, latch(WORKER)) {
                    assert_eq!(working.fetch_add(1, Ordering::Relaxed), 0);
                    assert_eq!(queue.worker(), number);
                    working.fetch_sub(1, Ordering::Relaxed);
                    queue.leave_worker(false, 1);
                }
            })
        });
        // The last launcher asked for the first of them, this one takes it for missing and asks for the other.
        let queue = server.own(APP);
        queue.expect_worker();
        queue.miss_worker(1);
        queue.expect_worker();
        for worker in workers {
            worker.join().unwrap();
        }
        assert!(queue.worker() <= 0);
    });
}

#[test]
fn an_answer_is_to_the_question_that_was_asked() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        let queue = server.own(APP);
        // This worker dies.
        queue.ask(b"a").unwrap();

        let launcher = process(&server, |server| {
            let queue = server.own(APP);
            if let Some((serial, question)) = queue.question() {
                assert_eq!(
                    (serial, &*question),
                    if serial == 1 { (1, &b"a"[..]) } else { (2, &b"b"[..]) }
                );
                queue.answer(serial, &question.to_ascii_uppercase());
            }
        });
        let serial = queue.ask(b"b").unwrap();
        if let Some(answer) = queue.answer_to(serial) {
            assert_eq!(answer, b"B");
        }
        launcher.join().unwrap();
        match queue.question() {
            Some((asked, question)) => {
                assert_eq!((asked, &*question), (serial, &b"b"[..]));
                assert_eq!(queue.answer_to(serial), None);
            }
            None => assert_eq!(queue.answer_to(serial).unwrap(), b"B"),
        }
    });
}

/// The only queue is idle; a database that has none takes it, while a session of the old one uses it.
#[test]
fn a_queue_that_changes_hands_takes_no_event_along() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        server.own(APP);
        let newcomer = process(&server, |server| append(server, OTHER, &[2]));
        let (is_taken, has_moved) = (append(&server, APP, &[1]), newcomer.join().unwrap());
        assert_ne!(is_taken, has_moved);
        let queue = server.own(if is_taken { APP } else { OTHER });
        assert_eq!(queue.records(queue.tail(), ALL).0, [if is_taken { [1] } else { [2] }]);
        assert_eq!(server.queues().without_queue(), 1);
    });
}

#[test]
fn a_queue_that_changes_hands_takes_no_wish_along() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        server.own(APP);
        let newcomer = process(&server, |server| {
            server.queues().own(OTHER, &Default::default());
        });
        want_worker(&server);
        newcomer.join().unwrap();
        // It came too late, or the queue, which is idle, was taken back.
        assert!(server.own(APP).has_work());
    });
}

/// What somebody says of a database while its queue becomes another's is not said of the other.
#[test]
fn a_queue_that_changes_hands_is_spoken_to_as_whose_it_was() {
    let words: [fn(&Server); 7] = [
        |server| server.queues().yield_until(APP, 9),
        |server| of_app(server, |queue| queue.database_dropped()),
        |server| of_app(server, |queue| queue.set_problem(Some("!"))),
        |server| of_app(server, |queue| queue.look_again(9)),
        |server| {
            of_app(server, |queue| {
                queue.quiet_since(Some(9));
            });
        },
        |server| of_app(server, |queue| queue.checkpoint_stored(9, 9)),
        |server| of_app(server, |queue| queue.written(0, 0, 0, 9)),
    ];
    for say in words {
        every_order(3, move || {
            let server = Arc::new(Server::new(1, 8));
            server.own(APP);
            let newcomer = process(&server, |server| {
                server.own(OTHER);
            });
            say(&server);
            newcomer.join().unwrap();
            let queue = server.own(OTHER);
            assert!(!queue.is_dropped() && !queue.has_work() && !queue.is_to_be_looked_at(9));
            assert_eq!(queue.yielding_until(), 0);
            assert_eq!(queue.quiet_since(Some(5)), Some(5));
            assert_eq!(queue.sealed_until(), 0);
            assert_eq!(queue.status(), Status { bytes: 8, ..Status::default() });
        });
    }
}

/// The launcher gives the queue of a dropped database away, of which somebody else has taken hold.
#[test]
fn a_queue_that_changes_hands_is_not_given_away() {
    every_order(3, || {
        let server = Arc::new(Server::new(1, 8));
        let queue = server.own(APP);
        queue.database_dropped();
        let newcomer = process(&server, |server| assert!(append(server, OTHER, &[1])));
        queue.written(queue.head(), 0, 0, 1);
        queue.end();
        newcomer.join().unwrap();
        let queue = server.queues().of_database(OTHER).unwrap();
        assert_eq!(queue.records(queue.tail(), ALL).0, [[1]]);
    });
}

/// Events of one database never get to a worker in another.
#[test]
fn a_queue_with_a_worker_does_not_change_hands() {
    for is_expected in [false, true] {
        every_order(3, move || {
            let server = Arc::new(Server::new(1, 8));
            server.own(APP);
            let newcomer = process(&server, |server| {
                server.queues().own(OTHER, &Default::default());
            });
            let queue = || server.queues().of_index(0).unwrap();
            let is_expected = is_expected && queue().expect_worker();
            let worker = queue();
            let is_worker = worker.enter_worker(2, latch(WORKER));
            newcomer.join().unwrap();
            if is_worker {
                assert_eq!(queue().database(), worker.database());
            } else {
                assert!(!is_expected && queue().worker() == 0);
            }
        });
    }
}
