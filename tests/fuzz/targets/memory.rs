//! An allocator that knows how much of the heap a thread has taken, so that a target can be held to
//! a bound: a length that a peer only claims must not be allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // Both without a destructor, so that they can be used whenever memory is.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Runs `work` and returns the most bytes that it held at once, beyond what was held before. Only
/// what this thread allocates is counted.
pub fn peak_of(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    let outer = PEAK.replace(before);
    work();
    let peak = PEAK.get();
    PEAK.set(outer.max(peak));
    usize::try_from(peak - before).unwrap_or_default()
}

struct Counting;

fn note(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches no memory
// but the two thread-local numbers, which are never allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size().cast_signed());
        // SAFETY: the caller's promises are the ones that are needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}
