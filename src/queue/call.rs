//! Calls: single requests of the checkpoint layer, each in a slot.
//!
//! Owns: their way to a worker. Does not own: what is asked, or what is done about the answer:
//! whoever makes a call waits for it, and tries again or does not.
//!
//! A call goes before all uploads, and the slot that is reserved for checkpoints takes it too: so
//! it is made as soon as any of those slots is free. One that nobody waits for any more is not made:
//! it would be the breaker's probe, and nobody hear its answer.

use std::sync::Weak;

use futures::future::BoxFuture;

use super::Queue;
use super::gate::Way;

/// One request; dropped unmade, whoever waits for it is told so.
pub(crate) struct Call {
    pub way: Way,
    pub made: BoxFuture<'static, ()>,
    /// Is gone with whoever waits for the answer.
    pub asker: Weak<()>,
}

impl Call {
    pub(super) fn is_wanted(&self) -> bool {
        self.asker.strong_count() > 0
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Call")
    }
}

/// Calls that may wait at one time: those who make them wait for their answers, and are few.
const MAX_CALLS: usize = 1024;

impl Queue {
    /// Puts a call into line; nothing, where nobody will take it any more.
    pub(crate) fn submit_call(&self, call: Call) {
        {
            let mut state = self.lock();
            if state.calls.len() >= MAX_CALLS {
                state.calls.retain(Call::is_wanted);
            }
            if !state.closed && state.calls.len() < MAX_CALLS {
                state.calls.push_back(call);
            }
        }
        self.changed();
    }

    /// Somebody else than the journal decides whose turn it is.
    pub(crate) fn is_no_copy(&self) {
        self.lock().moved = false;
    }

    /// Until it is `false` again nothing is sent but calls and loads: nobody knows yet whether
    /// this directory may.
    pub(crate) fn hold_sending(&self, hold: bool) {
        self.lock().unclaimed = hold;
        self.moved_on();
    }
}
