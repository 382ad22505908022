//! The system calls of a port's control path, and how each can fail. A call that is in neither table fails the tests: whoever
//! adds one says here how it can fail.

use libc::{
    EACCES, EAGAIN, EBUSY, ECONNABORTED, EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, EPERM,
    ETOOMANYREFS,
};

/// One kind of system call that can fail.
pub struct Call {
    pub name: &'static str,
    pub number: i64,
    /// Whether a call with these arguments is meant.
    pub concerns: fn(&[u64; 6]) -> bool,
    /// Errors that nobody is to notice: it is done again.
    pub passing: &'static [i32],
    /// Errors that may cost something, and then are told.
    pub refused: &'static [i32],
}

macro_rules! calls {
    ($($name:literal $number:ident $concerns:expr, passing $passing:expr, refused $refused:expr;)*) => {
        &[$(Call {
            name: $name,
            number: libc::$number,
            concerns: $concerns,
            passing: &$passing,
            refused: &$refused,
        }),*]
    };
}

/// What can fail.
#[rustfmt::skip] // one row a line
pub const CALLS: &[Call] = calls! {
    "socket"            SYS_socket            any,          passing [],              refused [EMFILE, ENFILE, ENOBUFS];
    "bind"              SYS_bind              any,          passing [],              refused [EACCES, ENOMEM, ENOSPC];
    "listen"            SYS_listen            any,          passing [],              refused [EACCES];
    "accept"            SYS_accept4           any,          passing [EINTR],         refused [EMFILE, ENFILE, ENOMEM, ECONNABORTED];
    "connect"           SYS_connect           any,          passing [],              refused [EACCES, EAGAIN, ENOMEM];
    "recvmsg"           SYS_recvmsg           any,          passing [EINTR, EAGAIN], refused [ENOMEM];
    "sendmsg"           SYS_sendmsg           any,          passing [EINTR, EAGAIN], refused [ENOMEM, ETOOMANYREFS];
    "epoll_create"      SYS_epoll_create1     any,          passing [],              refused [EMFILE, ENOMEM];
    "epoll_ctl(ADD)"    SYS_epoll_ctl         adds,         passing [],              refused [ENOMEM, ENOSPC];
    "epoll_pwait"       SYS_epoll_pwait       any,          passing [EINTR],         refused [];
    "eventfd"           SYS_eventfd2          any,          passing [],              refused [EMFILE, ENOMEM];
    "inotify_init"      SYS_inotify_init1     any,          passing [],              refused [EMFILE, ENOMEM];
    "inotify_add_watch" SYS_inotify_add_watch any,          passing [],              refused [ENOSPC, ENOMEM];
    "memfd_create"      SYS_memfd_create      any,          passing [],              refused [EMFILE, ENOMEM];
    "ftruncate"         SYS_ftruncate         any,          passing [],              refused [EINTR, ENOSPC];
    "fcntl(DUPFD)"      SYS_fcntl             duplicates,   passing [],              refused [EMFILE];
    "fcntl(ADD_SEALS)"  SYS_fcntl             seals,        passing [],              refused [EBUSY, EPERM];
    "mmap"              SYS_mmap              maps,         passing [],              refused [ENOMEM, EAGAIN];
    "mremap"            SYS_mremap            doubles,      passing [],              refused [ENOMEM];
    "madvise"           SYS_madvise           advises,      passing [],              refused [EAGAIN];
    "fstat"             SYS_fstat             any,          passing [],              refused [ENOMEM];
    "statx"             SYS_statx             any,          passing [],              refused [EACCES, ENOMEM];
    "stat"              SYS_newfstatat        any,          passing [],              refused [EACCES, ENOMEM];
    "readlink"          SYS_readlink          any,          passing [],              refused [ENOMEM];
    "fstatfs"           SYS_fstatfs           any,          passing [],              refused [ENOMEM];
    "openat"            SYS_openat            any,          passing [],              refused [EACCES, EMFILE, ENFILE, ENOMEM, ENOSPC];
    "open"              SYS_open              any,          passing [],              refused [EACCES, EMFILE, ENFILE, ENOMEM];
    "unlink"            SYS_unlink            any,          passing [],              refused [EACCES, EBUSY];
    "chmod"             SYS_fchmodat          any,          passing [],              refused [EPERM, EIO];
    "chown"             SYS_fchownat          any,          passing [],              refused [EPERM, EIO];
    "userfaultfd"       SYS_userfaultfd       any,          passing [],              refused [EMFILE, ENOMEM, EPERM];
    "ioctl"             SYS_ioctl             registers,    passing [],              refused [ENOMEM];
    "clone"             SYS_clone3            any,          passing [],              refused [EAGAIN];
    "read"              SYS_read              is_not_event, passing [EINTR, EAGAIN], refused [EIO];
    "write"             SYS_write             is_not_event, passing [EINTR],         refused [EIO, ENOSPC];
    "ppoll"             SYS_ppoll             any,          passing [EINTR],         refused [ENOMEM];
    "getsockopt"        SYS_getsockopt        any,          passing [],              refused [ENOMEM];
    "move_pages"        SYS_move_pages        any,          passing [],              refused [ENOMEM, EPERM];
    "get_mempolicy"     SYS_get_mempolicy     any,          passing [],              refused [ENOMEM, EPERM];
};

/// What is not made to fail, and why.
#[rustfmt::skip] // one row a line
pub const OTHERS: &[(i64, &str)] = &[
    (libc::SYS_brk,               "malloc: Rust ends the process that has no memory"),
    (libc::SYS_mprotect,          "malloc and threads' stacks"),
    (libc::SYS_inotify_rm_watch,  "the watch is gone, whatever it says"),
    (libc::SYS_munmap,            "takes whole mappings away, for which the kernel needs no memory"),
    (libc::SYS_close,             "the descriptor is gone, whatever it says"),
    (libc::SYS_futex,             "locks"),
    (libc::SYS_sched_yield,       "gives the processor away"),
    (libc::SYS_clock_nanosleep,   "waits"),
    (libc::SYS_faccessat2,        "looks for the reason of an error"),
    (libc::SYS_getsockname,       "says what a descriptor is, and needs nothing for that"),
    (libc::SYS_gettid,            "says what is known"),
    (libc::SYS_geteuid,           "says what is known"),
    (libc::SYS_sched_getaffinity, "says what is known"),
    (libc::SYS_getcpu,            "says what is known"),
    (libc::SYS_lseek,             "says what is known"),
    (libc::SYS_getrandom,         "seeds of hash tables, for which Rust has a second way"),
    (libc::SYS_prctl,             "a thread's name"),
    (libc::SYS_sigaltstack,       "a thread that Rust's standard library starts in a program of Rust's"),
    (libc::SYS_rt_sigprocmask,    "a thread starts"),
    (libc::SYS_rt_sigaction,      "could only fail if it were asked wrongly"),
    (libc::SYS_rt_sigreturn,      "a signal handler ends"),
    (libc::SYS_set_robust_list,   "a thread starts"),
    (libc::SYS_rseq,              "a thread starts"),
    (libc::SYS_exit,              "a thread ends"),
    (libc::SYS_exit_group,        "the process ends"),
];

fn any(_: &[u64; 6]) -> bool {
    true
}

/// The other operations find what they need in place, and cannot fail.
fn adds(args: &[u64; 6]) -> bool {
    args[1] == libc::EPOLL_CTL_ADD as u64
}

fn duplicates(args: &[u64; 6]) -> bool {
    args[1] == libc::F_DUPFD_CLOEXEC as u64
}

fn seals(args: &[u64; 6]) -> bool {
    args[1] == libc::F_ADD_SEALS as u64
}

/// Mappings of files, of threads' stacks, and over others. The rest is malloc's, and that of the standard library's stacks
/// for signals, which a program has that Rust started.
fn maps(args: &[u64; 6]) -> bool {
    let [protection, flags] = [args[2], args[3]].map(|bits| i32::try_from(bits).unwrap_or(0));
    let is_stack = flags & libc::MAP_STACK != 0 && protection == libc::PROT_NONE;
    flags & libc::MAP_ANONYMOUS == 0 || flags & libc::MAP_FIXED != 0 || is_stack
}

/// Mappings of what is mapped elsewhere, too. The rest is malloc's.
fn doubles(args: &[u64; 6]) -> bool {
    args[1] == 0
}

/// Anything but that pages are not needed, which malloc says.
fn advises(args: &[u64; 6]) -> bool {
    args[2] != libc::MADV_DONTNEED as u64
}

/// UFFDIO_REGISTER and UFFDIO_UNREGISTER, which split mappings. What else is asked of a userfaultfd needs no memory.
fn registers(args: &[u64; 6]) -> bool {
    [0xc020_aa00, 0x8010_aa01].contains(&args[1])
}

/// An eventfd takes and gives its eight bytes, or says EAGAIN, which is not an error. The kernel says of it that it is no
/// kind of file at all.
fn is_not_event(args: &[u64; 6]) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    let fd = i32::try_from(args[0]).unwrap_or(-1);
    // SAFETY: fstat writes one struct stat, for which there is room; zeroes are a value of it, should it write none.
    let stat = unsafe {
        libc::fstat(fd, stat.as_mut_ptr());
        stat.assume_init()
    };
    stat.st_mode & libc::S_IFMT != 0
}
