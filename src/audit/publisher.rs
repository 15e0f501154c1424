//! `fieldcrypt.audit_checkpoint_command`: takes checkpoints out of the reach of whoever has the server.

use std::ffi::OsStr;
use std::io::{Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::settings;
use crate::pg::audit_memory::Queue;
use crate::pg::{background, clock, exit, report};

/// How long a command may take before it is killed.
const LONGEST: i64 = 60_000_000;
/// How long the end of a worker waits for it.
const LAST_WAIT: i64 = 10_000_000;

/// Runs the command for one checkpoint after the other.
pub struct Publisher {
    running: Option<Running>,
    waiting: Option<(String, bool)>,
    last_at: i64,
    is_failing: bool,
}

struct Running {
    child: Child,
    since: i64,
    _also_at_exit: exit::Watch,
}

impl Publisher {
    /// Nothing is published yet.
    pub fn new() -> Self {
        Self { running: None, waiting: None, last_at: i64::MIN, is_failing: false }
    }

    /// Whether the last run failed.
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Publishes a checkpoint when its turn comes; a newer one takes the place of one that waits.
    pub fn publish(&mut self, queue: Queue, note: &str, at_once: bool) {
        if settings::checkpoint_command().is_some() {
            self.waiting = Some((note.to_owned(), at_once));
            self.look_after(queue);
        }
    }

    /// Takes notice of a command that has ended, and starts the next one if it is time.
    pub fn look_after(&mut self, queue: Queue) {
        self.reap(queue);
        let now = clock::now();
        let is_time = now.saturating_sub(self.last_at) >= settings::checkpoint_command_interval();
        if self.running.is_some() || !self.waiting.as_ref().is_some_and(|(_, now)| *now || is_time)
        {
            return;
        }
        if let (Some((note, _)), Some(command)) =
            (self.waiting.take(), settings::checkpoint_command())
        {
            self.last_at = now;
            match start(&command, &note) {
                Ok(child) => {
                    let watch = exit::Watch::over(child.id());
                    self.running = Some(Running { child, since: now, _also_at_exit: watch });
                }
                Err(error) => self.failed(queue, &format!("can't be run ({})", error.kind())),
            }
        }
    }

    /// Lets the last one finish.
    pub fn finish(mut self, queue: Queue) {
        let until = clock::now() + LAST_WAIT;
        if let Some((_, at_once)) = &mut self.waiting {
            *at_once = true;
        }
        while (self.running.is_some() || self.waiting.is_some()) && clock::now() < until {
            self.look_after(queue);
            background::nap(Duration::from_millis(20));
        }
    }

    fn reap(&mut self, queue: Queue) {
        let Some(mut running) = self.running.take() else { return };
        match running.child.try_wait() {
            Ok(None) if clock::now() - running.since < LONGEST => self.running = Some(running),
            Ok(None) => {
                exit::kill_group(running.child.id());
                let _ = running.child.wait();
                self.failed(queue, "did not finish in a minute");
            }
            Ok(Some(status)) if status.success() => {
                if std::mem::take(&mut self.is_failing) {
                    queue.set_problem(None);
                }
            }
            Ok(Some(status)) => self.failed(queue, &format!("failed ({status})")),
            Err(error) => self.failed(queue, &format!("can't be waited for ({})", error.kind())),
        }
    }

    fn failed(&mut self, queue: Queue, how: &str) {
        self.is_failing = true;
        let problem = format!("fieldcrypt.audit_checkpoint_command {how}");
        report::log(&format!("pg_fieldcrypt: {problem}"));
        queue.set_problem(Some(&problem));
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            exit::kill_group(running.child.id());
            let _ = running.child.wait();
        }
    }
}

/// The checkpoint is a file without a name, so that nobody waits for a command that reads slowly.
fn start(command: &[u8], note: &str) -> std::io::Result<Child> {
    let mut input = std::fs::File::from(rustix::fs::memfd_create(
        "checkpoint",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    input.write_all(note.as_bytes())?;
    input.rewind()?;
    Command::new("/bin/sh")
        .arg("-c")
        .arg(OsStr::from_bytes(command))
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
}
