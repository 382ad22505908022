//! UNSAFE: what the processor offers beyond the language: prefetch, and a full barrier at its true price. Miri, which has
//! no processor, does without.

/// Bytes in a cache line.
pub(crate) const LINE: usize = 64;

/// Asks for the line at `ptr`, to read it soon. Any address will do: a prefetch never faults.
#[inline(always)]
pub(crate) fn prefetch_read<T>(ptr: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(ptr.cast());
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: a hint that touches neither memory nor flags.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) ptr.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = ptr;
}

/// Asks to own the line at `ptr`, to write it soon. Any address will do: a prefetch never faults.
#[inline(always)]
pub(crate) fn prefetch_write<T>(ptr: *mut T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint that touches neither memory nor flags; processors without it run it as a no-op.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) ptr.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: a hint that touches neither memory nor flags.
    unsafe {
        std::arch::asm!("prfm pstl1keep, [{}]", in(reg) ptr.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = ptr;
}

/// Orders every store before it ahead of every load after it.
///
/// On x86-64 a locked no-op on our own stack, which costs about half of the `mfence` that
/// `fence(SeqCst)` becomes: `mfence` waits for write-combining stores too, and there are none here.
#[inline(always)]
pub(crate) fn full_barrier() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: or-ing 0 into a word of the stack changes nothing but the flags, which are declared clobbered.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0");
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}
