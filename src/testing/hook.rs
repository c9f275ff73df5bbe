//! What a test has done at the nth call: between the calls before it and the call itself.

use std::fmt;

/// Something that is done once, at a call.
pub(super) struct Hook<C> {
    /// The number of the call, from 1.
    at: u64,
    run: Box<dyn FnOnce(C) + Send>,
}

impl<C> Hook<C> {
    pub(super) fn new(at: u64, run: impl FnOnce(C) + Send + 'static) -> Self {
        let run = Box::new(run);
        Self { at, run }
    }

    /// Takes it out, if it is due at this call.
    pub(super) fn due(hook: &mut Option<Self>, call: u64) -> Option<Self> {
        hook.take_if(|hook| hook.at == call)
    }

    pub(super) fn run(self, call: C) {
        (self.run)(call);
    }
}

impl<C> fmt::Debug for Hook<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at call {}", self.at)
    }
}
