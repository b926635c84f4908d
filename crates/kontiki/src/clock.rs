//! Time, as the node sees it: a monotonic clock, and a way to wait for it.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use kontiki_raft::Timestamp;
use tokio::time::Instant;

/// A future in a box, so that traits with asynchronous methods can be trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A monotonic clock. What it says has nothing to do with the time of day.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time. Never goes back.
    fn now(&self) -> Timestamp;

    /// Waits until [`now`](Self::now) has reached `at`. Late is safe, early is a waste.
    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()>;
}

/// The clock of the operating system, counted from when this value was made.
#[derive(Clone, Debug)]
pub struct MonotonicClock {
    start: Instant,
}

impl MonotonicClock {
    /// Starts to count.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Timestamp {
        Timestamp(0) + self.start.elapsed()
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        let at = self.start + Duration::from_nanos(at.get());
        Box::pin(tokio::time::sleep_until(at))
    }
}
