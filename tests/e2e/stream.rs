//! One long TCP connection that is checked to the last byte: the host sends, the guest echoes, the host compares.
//!
//! The connection lives in the switch's network namespace, so it takes the observer's way to the guest. What is sent is
//! a sequence that both threads can make for themselves: a byte lost, doubled, changed or moved shows at its offset.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{anyhow, bail, ensure, Context, Result};

use crate::netns::{address, NetNs};
use crate::tcp::wait_listening;
use crate::vm::Vm;
use crate::wait;

const PORT: u16 = 9100;
/// What is written and compared at a time.
const CHUNK: usize = 16 << 10;
/// How long the sender rests after a chunk: the guest has other things to do as well, and should not only queue.
const REST: Duration = Duration::from_millis(10);
/// For the last bytes to come back on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The connection under way.
pub struct Stream {
    socket: TcpStream,
    progress: Arc<Progress>,
    writer: Option<JoinHandle<Result<()>>>,
    reader: Option<JoinHandle<Result<()>>>,
}

/// Shared by the two threads and their owner. Plain counts and a plain flag, which publish no other data: relaxed.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    sent: AtomicU64,
    back: AtomicU64,
}

impl Stream {
    /// Starts the echo in guest `vm` and the two threads of the host.
    pub fn start(ns: &NetNs, vm: &Vm) -> Result<Self> {
        vm.spawn("echo", &format!("nc -l -p {PORT} -e cat"))?;
        wait_listening(vm, PORT)?;
        let socket = ns.connect(format!("{}:{PORT}", address(vm.spec.id)).parse()?)?;
        let progress = Arc::new(Progress::default());
        let thread = |work: fn(TcpStream, &Progress) -> Result<()>| -> Result<_> {
            let (socket, progress) = (socket.try_clone()?, Arc::clone(&progress));
            Ok(Some(std::thread::spawn(move || work(socket, &progress))))
        };
        Ok(Stream {
            writer: thread(write)?,
            reader: thread(read)?,
            socket,
            progress,
        })
    }

    /// Bytes that came back as they were sent.
    pub fn echoed(&self) -> u64 {
        self.progress.back.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` more than now have come back.
    pub fn wait_more(&mut self, bytes: u64, limit: Duration) -> Result<()> {
        let goal = self.echoed() + bytes;
        wait::until_true(&format!("{bytes} more bytes of the TCP stream"), limit, || {
            for (thread, what) in [(&mut self.reader, "receive"), (&mut self.writer, "send")] {
                if thread.as_ref().is_some_and(JoinHandle::is_finished) {
                    join(thread).context(what)?;
                    bail!("the TCP stream ended");
                }
            }
            Ok(self.progress.back.load(Ordering::Relaxed) >= goal)
        })
    }

    /// Ends the stream in order: every byte that was sent has come back, and then its end. Returns how many.
    pub fn finish(mut self) -> Result<u64> {
        self.progress.stop.store(true, Ordering::Relaxed);
        let both = [&mut self.writer, &mut self.reader];
        for (thread, what) in both.into_iter().zip(["send", "receive"]) {
            wait::until_true("the TCP stream to end", PATIENCE, || {
                Ok(thread.as_ref().is_none_or(JoinHandle::is_finished))
            })?;
            join(thread).context(what)?;
        }
        let (sent, back) = (self.progress.sent.load(Ordering::Relaxed), self.echoed());
        ensure!(sent == back, "TCP stream: {sent} bytes sent, {back} came back");
        Ok(back)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Wakes both threads, wherever they wait.
        self.progress.stop.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(Shutdown::Both);
        for thread in [&mut self.writer, &mut self.reader] {
            let _ = join(thread);
        }
    }
}

fn join(thread: &mut Option<JoinHandle<Result<()>>>) -> Result<()> {
    thread.take().map_or(Ok(()), |thread| {
        thread.join().map_err(|_| anyhow!("the thread panicked"))?
    })
}

fn write(mut socket: TcpStream, progress: &Progress) -> Result<()> {
    let (mut sequence, mut chunk) = (Sequence::new(), vec![0; CHUNK]);
    while !progress.stop.load(Ordering::Relaxed) {
        sequence.fill(&mut chunk);
        socket.write_all(&chunk)?;
        progress.sent.fetch_add(CHUNK as u64, Ordering::Relaxed);
        std::thread::sleep(REST);
    }
    Ok(socket.shutdown(Shutdown::Write)?)
}

fn read(mut socket: TcpStream, progress: &Progress) -> Result<()> {
    let (mut sequence, mut wanted, mut chunk) = (Sequence::new(), vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let length = match socket.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        sequence.fill(&mut wanted[..length]);
        let offset = progress.back.load(Ordering::Relaxed);
        let same = wanted[..length]
            .iter()
            .zip(&chunk[..length])
            .take_while(|(a, b)| a == b);
        let same = same.count();
        ensure!(
            same == length,
            "byte {} of the TCP stream is not what was sent",
            offset + same as u64
        );
        progress.back.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// Bytes without a pattern that a shift could hide behind (xorshift64), the same for every reader.
struct Sequence {
    state: u64,
    left: u32,
}

impl Sequence {
    fn new() -> Self {
        Sequence {
            state: 0x9e37_79b9_7f4a_7c15,
            left: 0,
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.left == 0 {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.left = 8;
            }
            self.left -= 1;
            *byte = (self.state >> (8 * self.left) & 255) as u8;
        }
    }
}
