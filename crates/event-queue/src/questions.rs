//! Questions of a worker to the launcher, and its answers.

use crate::platform::{Mode, Platform};
use crate::queue::Queue;
use crate::sync::Ordering;

impl<P: Platform> Queue<'_, P> {
    /// The worker asks the launcher; gives the number of the question. `None` if it is too long.
    pub fn ask(self, question: &[u8]) -> Option<u64> {
        let slot = self.slot();
        let serial = self.still(Mode::Exclusive, || {
            slot.message.set(question).ok()?;
            Some(slot.asked.fetch_add(1, Ordering::AcqRel) + 1)
        });
        self.queues.wake_launcher();
        serial?
    }

    /// The question that has no answer yet.
    pub fn question(self) -> Option<(u64, Vec<u8>)> {
        let slot = self.slot();
        let open = || {
            let asked = slot.asked.load(Ordering::Acquire);
            (asked != slot.answered.load(Ordering::Acquire)).then_some(asked)
        };
        // The launcher looks at every queue whenever it wakes up, and mostly there is none.
        open()?;
        // A worker that has given up is followed by one that asks anew: number and text are of one question.
        self.still(Mode::Shared, || Some((open()?, slot.message.read())))?
    }

    /// The launcher's answer to a question, for the worker to read. One that is too long is an empty one.
    pub fn answer(self, serial: u64, answer: &[u8]) {
        let slot = self.slot();
        self.still(Mode::Exclusive, || {
            if slot.asked.load(Ordering::Acquire) == serial {
                if slot.message.set(answer).is_err() {
                    slot.message.clear();
                }
                slot.answered.store(serial, Ordering::Release);
            }
        });
        self.wake();
    }

    /// What the launcher answered to this question, if it has.
    pub fn answer_to(self, serial: u64) -> Option<Vec<u8>> {
        let slot = self.slot();
        if slot.answered.load(Ordering::Acquire) != serial {
            return None;
        }
        self.still(Mode::Shared, || slot.message.read())
    }
}
