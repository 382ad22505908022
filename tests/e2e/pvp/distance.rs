//! How far apart the poll thread's core and the guest's are: what a packet costs is, more than anything else, cache
//! lines on their way from one to the other, and a machine that is itself a guest is moved about by its host. Samples
//! are comparable only if both were taken at one distance.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The poll thread's core, and that of the guest's end.
const CORES: [usize; 2] = [0, 1];
/// Times that the line goes there and back before the clock is read.
const ROUNDS: u32 = 50;
/// Such batches. Others run on these cores, too: the median is of one that nobody interrupted.
const BATCHES: usize = 200;
/// How much distances may differ and still be called one.
const TOLERANCE: u32 = 2;

/// A cache line of its own.
#[repr(align(128))]
struct Ball(AtomicU32);

/// How long a cache line takes from one core to the other.
pub fn measure() -> Duration {
    let ball = Ball(AtomicU32::new(0));
    let rounds = ROUNDS * u32::try_from(BATCHES).unwrap_or(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(CORES[1]);
            for round in 0..rounds {
                ball.pass(2 * round + 1);
            }
        });
        let batches = scope.spawn(|| {
            stay_on(CORES[0]);
            let mut batches: Vec<Duration> = (0..rounds)
                .step_by(ROUNDS as usize)
                .map(|first| {
                    let start = Instant::now();
                    for round in first..first + ROUNDS {
                        ball.pass(2 * round);
                    }
                    start.elapsed()
                })
                .collect();
            batches.sort();
            batches[BATCHES / 2] / (2 * ROUNDS)
        });
        batches.join().unwrap_or_default()
    })
}

/// Whether all of these are one distance, give or take.
pub fn are_alike(distances: impl Iterator<Item = Duration> + Clone) -> bool {
    let (least, greatest) = (distances.clone().min(), distances.max());
    greatest.unwrap_or_default() < TOLERANCE * least.unwrap_or_default()
}

impl Ball {
    /// Waits for `count`, and makes it the next number.
    fn pass(&self, count: u32) {
        // Relaxed: a line on its way, with nothing behind it.
        while self.0.load(Ordering::Relaxed) != count {
            std::hint::spin_loop();
        }
        self.0.store(count + 1, Ordering::Relaxed);
    }
}

/// Binds the calling thread to the guest's core.
pub fn stay_beside_the_poll_thread() {
    stay_on(CORES[1]);
}

/// Leaves the poll thread's core to it alone: for as long as this is held, the calling thread and all that it starts are
/// on the guest's. A poll thread goes where Open vSwitch puts it.
pub struct Aside(libc::cpu_set_t);

impl Aside {
    pub fn step() -> Aside {
        // SAFETY: an empty set is all zeros, and the kernel writes within it.
        let before = unsafe {
            let mut before: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of_val(&before), &mut before);
            before
        };
        stay_on(CORES[1]);
        Aside(before)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // SAFETY: the kernel only reads the set.
        unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), &self.0) };
    }
}

/// Binds the calling thread to a core. Where that fails, threads are where they are.
fn stay_on(core: usize) {
    // SAFETY: an empty set is all zeros, and the kernel only reads it.
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut cores);
        libc::sched_setaffinity(0, size_of_val(&cores), &cores);
    }
}
