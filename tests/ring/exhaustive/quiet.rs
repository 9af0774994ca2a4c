//! Private memory that prints nothing of its content, so that a printed ring shows only the ring's own state.

use std::fmt;
use std::sync::Arc;

use narrows::internal::memory::{Heap, Memory, forward_memory};

#[derive(Clone)]
pub(crate) struct Quiet(pub(crate) Arc<Heap>);

impl fmt::Debug for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mem")
    }
}

impl Memory for Quiet {
    forward_memory! {
        self => self.0;
        slots, arena, load_slot, store_slot, load, store, set_close_reason, load_flag, store_flag, take_flag, fence,
        copy_in, copy_out, wait, back_off, wake, has_expired,
    }
}
