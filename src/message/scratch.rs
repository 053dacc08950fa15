//! Memory for the notes that archiving makes while it goes through a vector or a map.
//!
//! The notes hold addresses of this process, so they are never kept in the destination. They are on
//! an arena of the thread's own, which is made once and reused; a message that needs none does not
//! touch it.
//!
//! Unsafe code: the arena leaves its thread-local while it is in use, and the handle that allocates
//! from it borrows it from beside it in the same struct, for which Rust has no lifetime.
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;

use rkyv::ser::Allocator;
use rkyv::ser::allocator::{Arena, ArenaHandle};

use super::codec::CodecError;

thread_local! {
    /// The arena while nobody uses it. Archiving within archiving makes another one.
    static ARENA: Cell<Option<Box<Arena>>> = const { Cell::new(None) };
}

/// The thread's arena, taken when something is first allocated and given back at the end.
#[derive(Default)]
pub struct Scratch(Option<Taken>);

/// # Invariant
///
/// `arena` came from `Box::leak`, is owned by this struct, and is used by nothing but `handle`.
struct Taken {
    handle: ArenaHandle<'static>,
    arena: NonNull<Arena>,
}

impl Scratch {
    #[cold]
    #[inline(never)]
    fn take() -> Taken {
        let kept = ARENA.try_with(Cell::take).ok().flatten();
        let arena = NonNull::from(Box::leak(kept.unwrap_or_default()));
        // SAFETY: the box was just leaked, so the arena is valid and nothing else refers to it. The
        // borrow is not used after the arena was given back, see `drop`.
        let borrowed: &'static mut Arena = unsafe { &mut *arena.as_ptr() };
        Taken {
            handle: borrowed.acquire(),
            arena,
        }
    }
}

impl Drop for Scratch {
    #[inline]
    fn drop(&mut self) {
        // The handle, which has nothing to drop, ends here.
        if let Some(Taken { handle: _, arena }) = self.0.take() {
            // SAFETY: `arena` came from a leaked box and is owned here (invariant); the only borrow
            // of it was the handle, which is not used again.
            let arena = unsafe { Box::from_raw(arena.as_ptr()) };
            // While the thread ends, there is nothing to give it back to, and it is freed.
            let _ = ARENA.try_with(move |kept| kept.set(Some(arena)));
        }
    }
}

// SAFETY: what is asked of an `Allocator` is asked of the `ArenaHandle` that answers. It is the same
// one from the first allocation until the scratch is dropped, and moving the scratch does not move
// the memory it hands out, which is in blocks of the arena.
unsafe impl Allocator<CodecError> for Scratch {
    #[inline]
    unsafe fn push_alloc(&mut self, layout: Layout) -> Result<NonNull<[u8]>, CodecError> {
        let taken = self.0.get_or_insert_with(Self::take);
        // SAFETY: the caller promises what `push_alloc` asks for.
        unsafe { taken.handle.push_alloc(layout) }
    }

    #[inline]
    unsafe fn pop_alloc(&mut self, ptr: NonNull<u8>, layout: Layout) -> Result<(), CodecError> {
        match &mut self.0 {
            // SAFETY: the caller promises that `ptr` was allocated here with `layout`, and last.
            Some(taken) => unsafe { taken.handle.pop_alloc(ptr, layout) },
            None => Ok(()),
        }
    }
}
