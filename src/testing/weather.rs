//! Weather: what may happen to any request to a simulated S3, by chance.
//!
//! Owns: how likely what is, what S3 as a whole is like just now, and the count of what was met.
//! Does not own: carrying it out (that is [`super::remote`]), or when the weather changes (that is
//! the simulation's).
//!
//! 1. One seeded generator decides all of it, in the order of the requests.
//! 2. Whatever it decides is a [`Fault`] as a test could have scripted it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::remote::{Crc64, RemoteError};

use super::remote::{Call, Fault};

/// Of how many requests [`Odds`] are parts.
pub const OF: u32 = 10_000;

/// How likely each fault is: so many of [`OF`] requests meet it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Odds {
    /// 500, or a connection refused or reset before anything was sent.
    pub error: u32,
    /// 503 `SlowDown`.
    pub throttled: u32,
    /// The request takes effect, and its answer is lost.
    pub lost_reply: u32,
    /// The answer is lost, and the request never takes effect: who sent it cannot tell.
    pub lost_request: u32,
    /// Nothing is ever heard of it.
    pub hang: u32,
    /// It takes effect, and nothing is ever heard of it.
    pub hang_after: u32,
    /// Nothing is heard of it, and it takes effect when [`super::remote::SimRemote::land_one`] is
    /// called.
    pub late: u32,
    /// It takes up to half a minute.
    pub trickle: u32,
}

impl Odds {
    /// Some of everything, `worse` times as likely as now and then.
    #[must_use]
    pub fn stormy(worse: u32) -> Self {
        Self {
            error: 100 * worse,
            throttled: 50 * worse,
            lost_reply: 60 * worse,
            lost_request: 60 * worse,
            hang: 20 * worse,
            hang_after: 20 * worse,
            late: 30 * worse,
            trickle: 30 * worse,
        }
    }
}

/// What all of S3 is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Connections are refused.
    Refused,
    /// Connections are taken, and never answered.
    Hanging,
    /// 503 to everything.
    Throttled,
    /// The credentials are not good any more: 403.
    Credentials,
    /// It is full: 507 to what makes objects; what removes them makes room.
    Full,
    /// What writes or removes is refused, with a code that no table has.
    Unheard,
    /// What writes under every other key is denied: 403.
    Denied,
}

impl Outage {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Hanging,
        Self::Throttled,
        Self::Credentials,
        Self::Full,
        Self::Unheard,
        Self::Denied,
    ];
}

/// What happens to requests, by chance.
#[derive(Debug)]
pub struct Weather {
    rng: StdRng,
    /// The longest that a request takes where nothing is wrong; most take much less.
    pub latency: Duration,
    /// How likely what is.
    pub odds: Odds,
    /// What all of S3 is like, where it is not well.
    pub outage: Option<Outage>,
    met: BTreeMap<&'static str, u64>,
}

/// A request's lot: how long it is on its way, and what happens to it then.
#[derive(Debug, Default)]
pub(super) struct Lot {
    pub after: Duration,
    pub fault: Option<Fault>,
}

impl Lot {
    pub(super) const fn of(fault: Fault) -> Self {
        Self {
            after: Duration::ZERO,
            fault: Some(fault),
        }
    }
}

const TRICKLE: Duration = Duration::from_secs(30);

impl Weather {
    /// A fine day: a little latency and no fault.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            latency: Duration::from_millis(20),
            odds: Odds::default(),
            outage: None,
            met: BTreeMap::new(),
        }
    }

    /// All is well from here on.
    pub fn clear(&mut self) {
        self.odds = Odds::default();
        self.outage = None;
    }

    /// How often which fault was met.
    #[must_use]
    pub fn met(&self) -> &BTreeMap<&'static str, u64> {
        &self.met
    }

    pub(super) fn lot(&mut self, call: Call, key: &str) -> Lot {
        let longest = u64::try_from(self.latency.as_micros()).unwrap_or(u64::MAX);
        let longest = match self.rng.random_range(0..10) {
            0 => longest,
            _ => longest / 8,
        };
        let mut after = Duration::from_micros(self.rng.random_range(0..=longest));
        let mut chance = self.rng.random_range(0..OF);
        let operation = call.operation();
        let mut met = |name, fault: Option<Fault>| {
            *self.met.entry(name).or_default() += 1;
            fault
        };
        let mut falls_on = |odds: u32| match chance.checked_sub(odds) {
            Some(rest) => {
                chance = rest;
                false
            }
            None => true,
        };
        let odds = self.odds;
        let removes = matches!(call, Call::Delete | Call::AbortMultipart);
        let makes = !removes
            && !matches!(
                call,
                Call::Get | Call::Head | Call::List | Call::ListMultipart
            );
        let environment = |status, code| {
            Some(Fault::Error(RemoteError::environment(
                operation, status, code,
            )))
        };
        let fault = match self.outage {
            Some(Outage::Refused) => met(
                "refused",
                Some(Fault::Error(RemoteError::transient(operation))),
            ),
            Some(Outage::Hanging) => met("outage: hang", Some(Fault::Hang)),
            Some(Outage::Throttled) => met(
                "outage: throttled",
                Some(Fault::Error(RemoteError::throttled(operation))),
            ),
            Some(Outage::Credentials) => met("credentials", environment(403, "ExpiredToken")),
            Some(Outage::Full) if makes => met("full", environment(507, "XMinioStorageFull")),
            Some(Outage::Unheard) if makes || removes => {
                met("unheard", environment(507, "NothingThatAnyTableHas"))
            }
            Some(Outage::Denied) if makes && is_denied(key) => {
                met("denied", environment(403, "AccessDenied"))
            }
            Some(Outage::Full | Outage::Unheard | Outage::Denied) | None => {
                if falls_on(odds.error) {
                    met(
                        "error",
                        Some(Fault::Error(RemoteError::transient(operation))),
                    )
                } else if falls_on(odds.throttled) {
                    met(
                        "throttled",
                        Some(Fault::Error(RemoteError::throttled(operation))),
                    )
                } else if falls_on(odds.lost_reply) {
                    met(
                        "lost reply",
                        Some(Fault::LostReply(RemoteError::lost(operation))),
                    )
                } else if falls_on(odds.lost_request) {
                    met(
                        "lost request",
                        Some(Fault::Error(RemoteError::lost(operation))),
                    )
                } else if falls_on(odds.hang) {
                    met("hang", Some(Fault::Hang))
                } else if falls_on(odds.hang_after) {
                    met("hang after effect", Some(Fault::HangAfter))
                } else if falls_on(odds.late) {
                    met("late", Some(Fault::Late))
                } else if falls_on(odds.trickle) {
                    let most = u64::try_from(TRICKLE.as_millis()).unwrap_or(u64::MAX);
                    after += Duration::from_millis(self.rng.random_range(0..most));
                    met("trickle", None)
                } else {
                    None
                }
            }
        };
        Lot { after, fault }
    }
}

/// Every other key, by chance but always the same.
fn is_denied(key: &str) -> bool {
    Crc64::of(key.as_bytes()).0.is_multiple_of(2)
}
