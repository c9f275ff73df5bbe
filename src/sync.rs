//! The locks of this crate, in one place.
//!
//! They are `parking_lot`'s. Built with `--cfg shuttle` they are those of the model checker, which
//! decides at every one of them which thread or task goes on: see `queue/interleavings.rs`.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard};

#[cfg(shuttle)]
pub(crate) use model::{Mutex, MutexGuard};

#[cfg(shuttle)]
mod model {
    use std::sync::PoisonError;

    pub(crate) use shuttle::sync::MutexGuard;

    /// As `parking_lot`'s: a panic of who holds it does not poison it.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
