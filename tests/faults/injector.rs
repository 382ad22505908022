//! Makes system calls of the port fail, one at a time, in a process where all else goes on as ever.
//!
//! The thread that plays Open vSwitch's main thread puts itself under a seccomp filter that asks a supervisor about each of
//! its calls. Threads inherit filters: so the control thread and whatever it starts are under it, and front-ends, poll
//! threads and the test itself are not. It does not matter by which library a call is made.
//!
//! The supervisor answers while others hold locks, those of malloc among them: it allocates nothing and waits for nobody.

use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{channel, Sender};
use std::sync::OnceLock;
use std::thread;

use crate::calls::{Call, CALLS, OTHERS};

/// One call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which of [`CALLS`].
    pub call: usize,
    /// After how many that succeeded.
    pub after: u32,
    pub errno: i32,
}

/// What has been counted of each of [`CALLS`] since the last fault was armed.
static SEEN: [AtomicU32; CALLS.len()] = [const { AtomicU32::new(0) }; CALLS.len()];
static CALL: AtomicUsize = AtomicUsize::new(usize::MAX);
static AFTER: AtomicU32 = AtomicU32::new(0);
static ERRNO: AtomicI32 = AtomicI32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
/// A call that no table knows, or -1.
static UNKNOWN: AtomicI64 = AtomicI64::new(-1);

/// From now on this fault is there, or none. Counts anew.
pub fn arm(fault: Option<Fault>) {
    CALL.store(usize::MAX, SeqCst);
    FAILED.store(0, SeqCst);
    SEEN.iter().for_each(|seen| seen.store(0, SeqCst));
    if let Some(fault) = fault {
        AFTER.store(fault.after, SeqCst);
        ERRNO.store(fault.errno, SeqCst);
        CALL.store(fault.call, SeqCst);
    }
}

/// How many calls have failed since the fault was armed.
pub fn failed() -> u32 {
    FAILED.load(SeqCst)
}

/// How often each of [`CALLS`] was made since a fault, or none, was armed.
pub fn seen() -> Vec<u32> {
    SEEN.iter().map(|seen| seen.load(SeqCst)).collect()
}

/// The number of a call of which [`calls`] has nothing to say, if there was one.
pub fn unknown() -> Option<i64> {
    Some(UNKNOWN.load(SeqCst)).filter(|call| *call >= 0)
}

/// With which error a call fails; 0: it is made.
fn answer(data: &libc::seccomp_data) -> i32 {
    let number = i64::from(data.nr);
    let is_it = |call: &Call| call.number == number && (call.concerns)(&data.args);
    let Some(call) = CALLS.iter().position(is_it) else {
        // Of a call in the first table, another use.
        if CALLS.iter().all(|call| call.number != number) {
            UNKNOWN.store(number, SeqCst);
        }
        return 0;
    };
    let before = SEEN[call].fetch_add(1, SeqCst);
    if CALL.load(SeqCst) != call || AFTER.load(SeqCst) != before {
        return 0;
    }
    FAILED.fetch_add(1, SeqCst);
    ERRNO.load(SeqCst)
}

type Job = Box<dyn FnOnce() + Send>;

/// Does `job` on the thread that stands for Open vSwitch's main thread.
pub fn on_main<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    static MAIN: OnceLock<Sender<Job>> = OnceLock::new();
    let (give, done) = channel();
    let job = Box::new(move || {
        let _ = give.send(job());
    });
    MAIN.get_or_init(start).send(job).expect("the main thread lives");
    done.recv().expect("main does not panic")
}

/// Starts the main thread, which is supervised before it does anything.
fn start() -> Sender<Job> {
    static LISTENER: AtomicI32 = AtomicI32::new(0);
    thread::spawn(|| {
        while LISTENER.load(SeqCst) == 0 {
            thread::yield_now();
        }
        supervise(LISTENER.load(SeqCst));
    });
    let (jobs, inbox) = channel::<Job>();
    thread::spawn(move || {
        // From here on nothing is done without the supervisor, which has to know where it is asked first.
        LISTENER.store(put_under_filter(), SeqCst);
        inbox.iter().for_each(|job| job());
    });
    jobs
}

/// Has a supervisor asked about what this thread, and those it starts, want of the system. Returns where that hears them.
fn put_under_filter() -> i32 {
    let mut code = program();
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).expect("a short table"),
        filter: code.as_mut_ptr(),
    };
    // SAFETY: numbers only; it takes rights from this thread, and no memory.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let (mode, flags) = (
        libc::SECCOMP_SET_MODE_FILTER,
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    );
    // SAFETY: the kernel copies the program, which outlives the call.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    assert!(listener > 0, "no filter: {}", std::io::Error::last_os_error());
    i32::try_from(listener).expect("a descriptor")
}

/// The filter: what cannot fail is done, all else is asked for. Calls that nobody knows are among that.
fn program() -> Vec<libc::sock_filter> {
    let line = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a code"),
        jt: u8::try_from(jt).expect("a short table"),
        jf: 0,
        k,
    };
    // The number is what the kernel's description of a call begins with.
    let mut code = vec![line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    code.extend((0..OTHERS.len()).map(|at| {
        let number = u32::try_from(OTHERS[at].0).expect("a number");
        line(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            OTHERS.len() - at,
            number,
        )
    }));
    let end = [libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW];
    code.extend(end.map(|answer| line(libc::BPF_RET | libc::BPF_K, 0, answer)));
    code
}

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`.
const RECEIVE: libc::Ioctl = 0xc050_2100;
const SEND: libc::Ioctl = 0xc018_2101;
/// `_IOW('!', 4, u64)`, and whoever is answered goes on at once, on the same core.
const SET_FLAGS: libc::Ioctl = 0x4008_2104;
const SYNC_WAKE_UP: u64 = 1;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, as wide as the field it goes in.
const GOES_ON: u32 = 1;
const _: () =
    assert!(size_of::<libc::seccomp_notif>() == 0x50 && size_of::<libc::seccomp_notif_resp>() == 0x18);

fn supervise(listener: i32) -> ! {
    // Kernels before 6.6 do not know how to be quick, and are slow.
    // SAFETY: the argument is a number.
    unsafe { libc::ioctl(listener, SET_FLAGS, SYNC_WAKE_UP) };
    loop {
        // SAFETY: a seccomp_notif is numbers, and the kernel wants them zero.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one seccomp_notif.
        if unsafe { libc::ioctl(listener, RECEIVE, &raw mut asked) } != 0 {
            // Whoever asked was interrupted, and asks again.
            continue;
        }
        let errno = answer(&asked.data);
        let told = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: -errno,
            flags: if errno == 0 { GOES_ON } else { 0 },
        };
        // SAFETY: the kernel reads one seccomp_notif_resp.
        unsafe { libc::ioctl(listener, SEND, &raw const told) };
    }
}
