//! Child processes that cannot outlive the harness: each asks the kernel to be killed when its parent dies (so even
//! `kill -9` of the harness leaves nothing), and each is killed by its pid and reaped when its owner is dropped.
//!
//! The kernel ties that wish to the *thread* that forked, so children are started from the main thread only.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use rustix::process::{kill_process, Pid, Signal};

use crate::wait;

/// A process that runs beside the harness, its output in a file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with stdout and stderr appended to `log`, and nothing to read.
    pub fn spawn(name: &str, command: Command, log: &Path) -> Result<Self> {
        Self::spawn_with(name, command, log, Stdio::null())
    }

    /// Starts `command` as [`Process::spawn`] does, and returns the pipe to its stdin.
    pub fn spawn_piped(name: &str, command: Command, log: &Path) -> Result<(Self, ChildStdin)> {
        let mut process = Self::spawn_with(name, command, log, Stdio::piped())?;
        let stdin = process.child.stdin.take().context("no pipe")?;
        Ok((process, stdin))
    }

    fn spawn_with(name: &str, mut command: Command, log: &Path, stdin: Stdio) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        tie_to_harness(&mut command);
        let child = command
            .stdin(stdin)
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;
        Ok(Process {
            name: name.into(),
            child,
            log: log.into(),
        })
    }

    /// Process id; the only handle by which anything is ever ended.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status once it has ended.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails, with the last lines it printed, when it is no longer running.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.exited()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended ({status}); it printed last:\n{}",
                self.name,
                tail(&self.log, 8)
            ),
        }
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until(&what, limit, || self.exited())
    }

    /// `kill -9` and reap.
    pub fn kill_9(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// All it has printed so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has already ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does something while a process is stopped. It goes on also where that fails.
pub fn stopped<T>(pid: u32, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("no process")?;
    kill_process(pid, Signal::STOP)?;
    let done = meanwhile();
    kill_process(pid, Signal::CONT)?;
    done
}

/// What a finished command left.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs `command` to its end, whatever its exit status.
pub fn finish(mut command: Command, limit: Duration) -> Result<Finished> {
    let name = format!("{command:?}");
    tie_to_harness(&mut command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let ended = wait::until(&format!("{name} to end"), limit, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(Finished {
        status: ended?,
        stdout: collect(stdout),
        stderr: collect(stderr),
    })
}

/// Runs `command` and returns its standard output; anything but exit status 0 is an error with what it said.
pub fn run(command: Command, limit: Duration) -> Result<String> {
    let name = format!("{command:?}");
    let done = finish(command, limit)?;
    if !done.status.success() {
        bail!(
            "{name}: {}: {}{}",
            done.status,
            done.stderr.trim(),
            done.stdout.trim()
        );
    }
    Ok(done.stdout)
}

/// The last `count` lines of a file, for messages.
pub fn tail(path: &Path, count: usize) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Own process group (a Ctrl-C at the terminal is for the harness, which then stops its children in order) and death
/// with the harness.
fn tie_to_harness(command: &mut Command) {
    let harness = std::process::id();
    let tie = move || {
        // SAFETY: prctl with an integer option touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } == -1 {
            return Err(io::Error::last_os_error());
        }
        // The harness may have died between fork and prctl: then nobody would send the signal any more.
        // SAFETY: getppid touches no memory.
        if u32::try_from(unsafe { libc::getppid() }) != Ok(harness) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec `tie` makes system calls only: no allocation, no lock, no memory of the parent.
    unsafe { command.pre_exec(tie) };
    command.process_group(0);
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the output early; what came before it is still worth having.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn collect(reader: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader.and_then(|thread| thread.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
