//! Atomics, and the barriers that processes share: the only place that names raw atomics.
//!
//! Everything above uses these names, so that under `--cfg loom` the same code runs in the model
//! checker.
//!
//! Unsafe code is needed for an instruction that the standard library does not name.
#![allow(unsafe_code)]

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// Loads a word that the other side publishes with Release.
///
/// The memory of a peer is mapped read-only, where the standard library vouches for relaxed
/// loads; a relaxed load and a fence order what follows at least as an acquire load does, and
/// compile to the same instruction on x86-64.
#[inline(always)]
pub(crate) fn load_acquire(word: &AtomicU64) -> u64 {
    // The weaker of the two, and far quicker to explore than a fence.
    #[cfg(loom)]
    return word.load(Ordering::Acquire);
    #[cfg(not(loom))]
    {
        let value = word.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }
}

/// [`load_acquire`] for 32 bits.
#[inline(always)]
pub(crate) fn load_acquire_u32(word: &AtomicU32) -> u32 {
    #[cfg(loom)]
    return word.load(Ordering::Acquire);
    #[cfg(not(loom))]
    {
        let value = word.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }
}

/// Has a cache line fetched that will be written soon, and so taken from other cores.
#[inline(always)]
pub(crate) fn prefetch_to_write<T>(place: *const T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: a hint, which accesses nothing and faults for no address; processors without the
    // instruction take it for one that does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) place, options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = place;
}

/// Has a cache line fetched that will be read soon.
#[inline(always)]
pub(crate) fn prefetch_to_read<T>(place: *const T) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: a hint, which accesses nothing and faults for no address.
    unsafe {
        std::arch::asm!("prefetcht0 [{}]", in(reg) place, options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    let _ = place;
}

/// The cheap half of a store-load barrier whose dear half is [`heavy_barrier`].
///
/// A thread that does *store; `light_barrier(true)`; load* and one that does *store;
/// `heavy_barrier`; load* cannot both miss the other's store: the heavy half makes every running
/// thread of a registered process pass a full fence, and a thread that is not running passed one
/// when it was switched out. With `asymmetric == false` it is a full fence by itself.
#[inline(always)]
pub(crate) fn light_barrier(asymmetric: bool) {
    #[cfg(not(loom))]
    if asymmetric {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        return;
    }
    #[cfg(loom)]
    let _ = asymmetric;
    fence(Ordering::SeqCst);
}

/// The dear half: see [`light_barrier`]. Costs microseconds where the peer uses the cheap half.
#[cold]
pub(crate) fn heavy_barrier(asymmetric: bool) {
    fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    if asymmetric {
        crate::sys::membarrier::global_expedited();
        fence(Ordering::SeqCst);
    }
    #[cfg(loom)]
    let _ = asymmetric;
}

/// Runs a model in every order that its threads can take, and with every value that a load can see.
///
/// Where that is too much, `switches` bounds how often a thread is interrupted while it could go
/// on: nearly every fault of such protocols shows with two or three.
#[cfg(all(test, loom))]
pub(crate) fn explore(switches: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // `LOOM_MAX_PREEMPTIONS` overrides this, to look further.
    builder.preemption_bound = builder.preemption_bound.or(switches);
    builder.max_branches = 10_000;
    builder.check(model);
}
