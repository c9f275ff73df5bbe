//! Keeping a checkpoint that somebody reads who does not own the prefix.
//!
//! Owns: which checkpoint that is, and the pin that keeps it. Does not own: what is read, or what
//! is deleted (`gc.rs`).
//!
//! 1. The pin is written first, and only then is it looked whether `head` still lists the
//!    checkpoint: who deletes changes `head` first and looks for pins then. One of the two sees
//!    the other.
//! 2. A pin has a life; it is renewed by who reads, and what is older by the server's dates is
//!    nobody's.
//! 3. Nothing but pins is written: a reader fences nobody.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::time::millis;

use super::frame::Object;
use super::head::{self, Listed};
use super::request::Requests;

/// A pin as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pin {
    pub listed: Listed,
    pub ttl_ms: u64,
}

/// How a checkpoint is chosen.
pub(crate) async fn choose(
    requests: &Requests,
    number: Option<u64>,
    until: Instant,
) -> Result<Listed> {
    let found = head::read(requests, until).await?;
    let head = found.map(|found| found.head).unwrap_or_default();
    let chosen = match number {
        None => head.latest(),
        Some(number) => head.checkpoints.iter().find(|one| one.number == number),
    };
    chosen.cloned().ok_or_else(|| Error::NoSuchCheckpoint {
        number,
        listed: head.numbers().into_iter().collect(),
    })
}

/// Clocks differ.
const SLACK: Duration = Duration::from_secs(600);

/// A pin that somebody has while he reads.
#[derive(Debug)]
pub(crate) struct Held {
    requests: Requests,
    key: String,
}

impl Held {
    /// Pins a checkpoint that is to be read until `until`, however long that takes.
    pub(crate) async fn take(
        requests: &Requests,
        number: Option<u64>,
        until: Instant,
    ) -> Result<(Self, Listed)> {
        let listed = choose(requests, number, until).await?;
        let ttl = until.saturating_duration_since(Instant::now()) + SLACK;
        let (held, again) = Self::pin(requests, &listed, ttl, until).await?;
        if again != listed {
            held.give_back(until).await;
            return Err(Error::HeadChanged);
        }
        Ok((held, listed))
    }

    /// Pins a checkpoint; which one `head` lists under its number then.
    pub(super) async fn pin(
        requests: &Requests,
        listed: &Listed,
        ttl: Duration,
        until: Instant,
    ) -> Result<(Self, Listed)> {
        let held = Self {
            requests: requests.clone(),
            key: format!("pins/{:016x}", requests.random.u64()),
        };
        held.put(listed, ttl, until).await?;
        // Whoever took it off the list before looks for pins after.
        match choose(requests, Some(listed.number), until).await {
            Ok(again) => Ok((held, again)),
            Err(error) => {
                held.give_back(until).await;
                Err(error)
            }
        }
    }

    /// Writes it, or writes it anew.
    pub(super) async fn put(&self, listed: &Listed, ttl: Duration, until: Instant) -> Result<()> {
        let pin = Pin {
            listed: listed.clone(),
            ttl_ms: millis(ttl),
        };
        let body = Object::Pin.seal(&pin).into();
        self.requests.put(&self.key, &body, until).await?;
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The request's: then it stays until it expires.
    pub(super) async fn delete(&self, until: Instant) -> Result<()> {
        Ok(self.requests.delete(&self.key, until).await?)
    }

    pub(crate) async fn give_back(self, until: Instant) {
        if let Err(error) = self.delete(until).await {
            tracing::debug!(%error, pin = %self.key, "stays until it expires");
        }
    }
}
