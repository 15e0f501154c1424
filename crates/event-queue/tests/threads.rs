//! Threads in the place of processes, as they happen to meet: what loom's few steps are too short for.

#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::{Server, latch};

const APP: u32 = 5;
const ALL: u64 = u64::MAX;
const EVENTS: u16 = if cfg!(miri) { 20 } else { 20_000 };

#[test]
fn each_event_is_read_once_or_counted() {
    let server = Server::new(1, 100);
    let (server, are_done) = (&server, &AtomicBool::new(false));
    server.own(APP);
    let (taken, read, told) = thread::scope(|scope| {
        let sessions = [0u16, 1, 2].map(|session| {
            scope.spawn(move || {
                let known = Default::default();
                let names = (0..EVENTS).map(|event| [session, event]);
                let taken = |name: &[u16; 2]| {
                    // Of different lengths, so that the ring is met at all places.
                    let record = format!("{} {}", name[0], name[1]);
                    server.queues().append(APP, &known, record.as_bytes())
                };
                names.filter(taken).collect::<BTreeSet<_>>()
            })
        });
        let worker = scope.spawn(move || {
            let queue = server.own(APP);
            assert!(queue.enter_worker(7, latch(1)));
            let (mut read, mut told) = (Vec::new(), 0);
            loop {
                let is_last = are_done.load(Ordering::Acquire);
                let (records, end) = queue.records(queue.tail(), 40);
                let (overflowed, _) = queue.gaps();
                read.extend(records);
                told += overflowed;
                queue.written(end, overflowed, 0, 1);
                if is_last && !queue.has_work() {
                    queue.leave_worker(false, 1);
                    return (read, told);
                }
                thread::yield_now();
            }
        });
        let taken = sessions.map(|session| session.join().unwrap());
        are_done.store(true, Ordering::Release);
        let (read, told) = worker.join().unwrap();
        (taken.into_iter().flatten().collect::<BTreeSet<_>>(), read, told)
    });
    assert_eq!(told + taken.len() as u64, 3 * u64::from(EVENTS));
    let read: Vec<[u16; 2]> = read
        .iter()
        .map(|record| {
            let text = str::from_utf8(record).unwrap();
            let (session, event) = text.split_once(' ').unwrap();
            [session.parse().unwrap(), event.parse().unwrap()]
        })
        .collect();
    // What one session appended stays in its order.
    for session in 0..3 {
        assert!(read.iter().filter(|name| name[0] == session).is_sorted());
    }
    assert_eq!(read.len(), taken.len());
    assert_eq!(read.into_iter().collect::<BTreeSet<_>>(), taken);
    let queue = server.own(APP);
    assert_eq!(queue.records(queue.tail(), ALL).0.len(), 0);
}
