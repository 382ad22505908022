//! UNSAFE: memory that its owner takes away.
//!
//! Whoever holds a file that is mapped here can cut it short, and an access beyond its end is a SIGBUS, the end of a
//! process that does not expect one. Here it is the end of that front-end's connection: the signal handler puts empty
//! memory in the place of the mapping and returns, so that the access goes on; the mapping [is lost](Watch::is_lost);
//! and whoever listens to [`news`] is told. A page of a guest's that the machine's memory lost (`BUS_MCEERR_AR`) is the same.
//!
//! The handler takes no lock and allocates nothing: it may have interrupted anything. Other SIGBUS go where they went before.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::event::{eventfd, EventfdFlags};

// ---- what is watched ----

/// A mapping that may be lost without harm, until dropped.
#[derive(Debug)]
pub(super) struct Watch(&'static Slot);

/// The place of one mapping, or of none.
#[derive(Debug)]
struct Slot {
    /// Where the mapping starts; 0: there is none.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

/// Slots, which never go away: as many as were ever needed at once.
struct Block {
    slots: [Slot; 64],
    next: AtomicPtr<Block>,
}

static SLOTS: Block = Block::new();

/// Held by who changes what is watched. The handler only reads.
static REGISTRAR: Mutex<()> = Mutex::new(());

impl Watch {
    /// Watches the `len` bytes at `start`, a mapping of the caller's, readable and writable, that lives longer than this.
    ///
    /// # Errors
    ///
    /// What the system says to a signal handler.
    pub(super) fn on(start: *mut u8, len: usize) -> io::Result<Self> {
        install()?;
        let _guard = REGISTRAR.lock();
        let slot = free_slot();
        slot.lost.store(false, Ordering::Relaxed);
        // Release, both: see Slot::holds. The handler finds the slot whole or not at all.
        slot.len.store(len, Ordering::Release);
        slot.start.store(start.addr(), Ordering::Release);
        Ok(Self(slot))
    }

    /// Whether an access found the file gone. What is there since then is empty memory of our own.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _guard = REGISTRAR.lock();
        // Release: whoever finds a new length in this slot finds no mapping, or the new one.
        self.0.start.store(0, Ordering::Release);
    }
}

impl Slot {
    const fn new() -> Self {
        Self {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// The mapping that `address` is in, if it is this one: where it starts, and its length.
    fn holds(&self, address: usize) -> Option<(usize, usize)> {
        let start = self.start.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Acquire);
        let inside = start != 0 && address.wrapping_sub(start) < len;
        // Start and length of two mappings, if the slot changes hands just now, are none.
        (inside && self.start.load(Ordering::Acquire) == start).then_some((start, len))
    }
}

impl Block {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; 64],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Block> {
        // SAFETY: only `free_slot` writes it, with a block that lives forever.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    std::iter::successors(Some(&SLOTS), |block| block.next()).flat_map(|block| &block.slots)
}

/// A slot without a mapping. Under the registrar's lock.
fn free_slot() -> &'static Slot {
    let is_free = |slot: &&Slot| slot.start.load(Ordering::Relaxed) == 0;
    if let Some(slot) = slots().find(is_free) {
        return slot;
    }
    let block: &'static Block = Box::leak(Box::new(Block::new()));
    let [slot, ..] = &block.slots;
    let mut last = &SLOTS;
    while let Some(next) = last.next() {
        last = next;
    }
    last.next
        .store(ptr::from_ref(block).cast_mut(), Ordering::Release);
    slot
}

// ---- news ----

/// Written to when a mapping is lost. Never read here: it is to be watched for edges.
static NEWS: OnceLock<OwnedFd> = OnceLock::new();
/// The same for the handler.
static NEWS_FD: AtomicI32 = AtomicI32::new(-1);

/// An eventfd that is written to whenever a mapping of this process is lost. Nobody reads it: watch it for edges.
///
/// # Errors
///
/// What the system says to one more descriptor.
pub fn news() -> io::Result<BorrowedFd<'static>> {
    let _guard = REGISTRAR.lock();
    if NEWS.get().is_none() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        NEWS_FD.store(NEWS.get_or_init(|| fd).as_raw_fd(), Ordering::Release);
    }
    NEWS.get().map(AsFd::as_fd).ok_or(io::ErrorKind::NotFound.into())
}

// ---- the handler ----

/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Puts empty memory of our own in the place of a mapping. Who has a pointer into it may go on using it.
///
/// # Errors
///
/// The system's refusal; the mapping is as it was.
///
/// # Safety
///
/// `start..start + len` is a mapping of the caller's, readable and writable, whose bytes may change at any time.
pub(super) unsafe fn put_empty(start: *mut u8, len: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: replaces exactly that mapping, by one of the same length and protection.
    if unsafe { libc::mmap(start.cast(), len, protection, flags, -1, 0) } == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // What is written there now was for the guest: it stays out of core dumps as what was there before did.
    // SAFETY: advice on the mapping made just now; it changes no byte.
    unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTDUMP) };
    Ok(())
}

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let error = *INSTALLED.get_or_init(|| {
        // SAFETY: all zeros is a sigaction: no flags, nothing blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: asks what SIGBUS does now, into a struct of ours.
        if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut action) } != 0 {
            return io::Error::last_os_error().raw_os_error();
        }
        BEFORE.get_or_init(|| action);
        action.sa_sigaction = (on_sigbus as Handler) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the handler is one for SA_SIGINFO, and does nothing that is not allowed in one.
        if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
            return io::Error::last_os_error().raw_os_error();
        }
        None
    });
    error.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a siginfo, of which SIGBUS has the address unless somebody sent it (code <= 0).
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let is_fault = code > 0;
    if !(is_fault && survive(address)) {
        pass_on(signal, is_fault, info, context);
    }
}

/// Replaces the mapping that `address` is in. Says whether there is one and it could.
fn survive(address: usize) -> bool {
    let found = slots().find_map(|slot| slot.holds(address).map(|range| (slot, range)));
    let Some((slot, (start, len))) = found else {
        return false;
    };
    // SAFETY: errno is this thread's own; who is interrupted must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: whose access this is holds the mapping, which is watched: it is there, and a peer's to change.
    // Two threads may do this at once: then what the first wrote meanwhile is lost too.
    let replaced = unsafe { put_empty(ptr::without_provenance_mut(start), len) }.is_ok();
    if replaced {
        slot.lost.store(true, Ordering::Release);
        tell(NEWS_FD.load(Ordering::Acquire));
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    replaced
}

fn tell(news: RawFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: writes eight bytes of ours to a descriptor that is never closed, or to -1.
    unsafe { libc::write(news, one.as_ptr().cast(), one.len()) };
}

/// A SIGBUS that is none of ours.
fn pass_on(signal: c_int, is_fault: bool, info: *mut libc::siginfo_t, context: *mut c_void) {
    let before = BEFORE
        .get()
        .map_or((libc::SIG_DFL, 0), |b| (b.sa_sigaction, b.sa_flags));
    match before {
        (libc::SIG_DFL | libc::SIG_IGN, _) => {
            // A fault comes again as soon as this returns, and then ends the process where it happened.
            // SAFETY: signal() and raise() are allowed in a handler.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        (handler, flags) if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with this flag it is such a function, and it gets what it would have got.
            unsafe { std::mem::transmute::<usize, Handler>(handler)(signal, info, context) }
        }
        (handler, _) => {
            // SAFETY: without it, it is such a function.
            unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal) }
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests;
