//! UNSAFE: the heap of this program, with every byte counted: what is allocated, the most that ever was, and the largest piece.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;

// Numbers that belong to nothing else.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does all of it. `realloc` is the trait's own, which comes to these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promise is that of this one, too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above, and `at` came from there.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Bytes that are allocated.
pub fn now() -> usize {
    NOW.load(Relaxed)
}

/// The same; and from here on the most of it is kept, and the largest piece.
pub fn mark() -> usize {
    let now = now();
    MOST.store(now, Relaxed);
    LARGEST.store(0, Relaxed);
    now
}

/// The most that was allocated at a time since the mark.
pub fn most() -> usize {
    MOST.load(Relaxed)
}

/// The most that was asked for at once since the mark.
pub fn largest() -> usize {
    LARGEST.load(Relaxed)
}
