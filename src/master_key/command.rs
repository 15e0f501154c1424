//! `fieldcrypt.master_key_command`: what a command prints, for key management services.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::Error;
use crate::pg::{background, exit, transaction};
use crate::settings;

const TICK: Duration = Duration::from_millis(50);

/// Runs the command and reads what it prints into `buffer`. Its standard error goes where the
/// server's goes. When the time is up, the statement is cancelled, or the server is gone, the whole process group dies.
pub fn read(buffer: &mut [u8]) -> Result<usize, Error> {
    let command = settings::master_key_command().ok_or(Error::NoMasterKey)?;
    let deadline = Instant::now() + settings::master_key_command_timeout();
    let child = exit::shell_command(OsStr::from_bytes(command))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("can't be run ({})", error.kind())))?;
    let mut running = Running { child, done: false };
    let _also_at_exit = exit::Watch::over(running.child.id());
    let length = running.output(buffer, deadline)?;
    running.finish(deadline)?;
    Ok(length)
}

/// A child that does not outlive its reader: an error or a cancel unwinds through `drop`. The end of
/// the session does not, and is watched for.
struct Running {
    child: Child,
    done: bool,
}

impl Running {
    fn output(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<usize, Error> {
        let mut stdout =
            self.child.stdout.take().ok_or_else(|| failed("gives no output".into()))?;
        let mut length = 0;
        while length < buffer.len() {
            wait_readable(&stdout, deadline)?;
            match stdout.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(format!("can't be read ({})", error.kind()))),
            }
        }
        Ok(length)
    }

    fn finish(&mut self, deadline: Instant) -> Result<(), Error> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.done = true;
                    return match status.code() {
                        Some(0) => Ok(()),
                        Some(code) => Err(failed(format!("failed with exit code {code}"))),
                        None => Err(failed("was killed by a signal".into())),
                    };
                }
                Ok(None) => pause(deadline)?,
                Err(error) => {
                    return Err(failed(format!("can't be waited for ({})", error.kind())));
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            exit::kill_group(self.child.id());
            let _ = self.child.wait();
        }
    }
}

fn wait_readable(stdout: &impl AsFd, deadline: Instant) -> Result<(), Error> {
    loop {
        check_time(deadline)?;
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        let mut descriptors = [PollFd::new(stdout, PollFlags::IN)];
        match poll(&mut descriptors, Some(&tick)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(failed(format!("can't be waited for ({error})"))),
        }
    }
}

fn pause(deadline: Instant) -> Result<(), Error> {
    check_time(deadline)?;
    std::thread::sleep(Duration::from_millis(2));
    Ok(())
}

fn check_time(deadline: Instant) -> Result<(), Error> {
    exit::with_the_postmaster();
    transaction::check_for_interrupts();
    if background::is_stopping() {
        return Err(failed("was ended, since the server stops".into()));
    }
    if Instant::now() >= deadline {
        return Err(failed("did not finish in fieldcrypt.master_key_command_timeout".into()));
    }
    Ok(())
}

fn failed(reason: String) -> Error {
    Error::MasterKeySource {
        problem: format!("fieldcrypt.master_key_command {reason}"),
        hint: "Run it by hand as the server's user; it must print the key to standard output and exit with 0.",
    }
}
