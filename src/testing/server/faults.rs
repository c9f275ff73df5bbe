//! The fault plan: what goes wrong, for which request, how often.
//!
//! Owns: rules, and which of them a request meets. Does not own: doing it (that is
//! [`super::front`]).
//!
//! Rules are asked in the order they were added. Delays, and what a server does otherwise than S3,
//! add up; the first matching rule of another kind decides, and the ones after it are not asked (nor
//! counted).
//!
//! Removing a rule releases every request that it keeps waiting.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::operation::{Operation, Target};
use crate::testing::rules::Rules;

/// Which keys a rule is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyMatch {
    /// Every request, also those without a key.
    #[default]
    Any,
    /// Exactly this key.
    Exact(String),
    /// Keys that start with this.
    Prefix(String),
}

impl KeyMatch {
    fn matches(&self, key: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(wanted) => key == Some(wanted),
            Self::Prefix(prefix) => key.is_some_and(|k| k.starts_with(prefix.as_str())),
        }
    }
}

/// Whether a fault strikes before or after the request takes effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum When {
    /// The request changes nothing (unless the fault lets it go on later).
    #[default]
    BeforeEffect,
    /// The request has taken effect; only the answer is lost or replaced.
    AfterEffect,
}

/// When a late request takes effect. Cloned, it is the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    pub(super) open: CancellationToken,
    pub(super) discard: CancellationToken,
    pub(super) client_gone: bool,
}

impl Gate {
    /// A gate that the test opens.
    #[must_use]
    pub fn new() -> Self {
        Self {
            open: CancellationToken::new(),
            discard: CancellationToken::new(),
            client_gone: false,
        }
    }

    /// A gate that opens for each request as soon as its client has gone (or by [`Gate::open`]).
    #[must_use]
    pub fn when_client_gone() -> Self {
        Self {
            client_gone: true,
            ..Self::new()
        }
    }

    /// Lets every request behind it take effect, now and from now on. Their conditions are
    /// evaluated only then.
    pub fn open(&self) {
        self.open.cancel();
    }

    /// Throws every request behind it away, now and from now on.
    pub fn discard(&self) {
        self.discard.cancel();
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// What goes wrong.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Action {
    /// The request waits this long before anything else happens to it.
    Delay(Duration),
    /// An error response.
    Respond {
        /// The HTTP status.
        status: u16,
        /// S3's code in the body; an empty one leaves the body empty too.
        code: String,
        /// `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// Status 200, and an `<Error>` with this code as the body.
    ErrorIn200(String),
    /// No answer. Once the rule is removed, the request goes on as if nothing had been.
    Hang,
    /// As `Hang`, and the body is not read either: the client's send stalls.
    HangUnread,
    /// The request is accepted, never answered, and takes effect when the gate opens. Removing
    /// the rule resets the connection; the request stays behind its gate.
    Late(Gate),
    /// The connection is reset (RST).
    Reset,
    /// The connection is closed (FIN) without an answer.
    Close,
    /// The connection is closed in the middle of the answer: half its body where it has one,
    /// half a status line where not. Always after the effect.
    CutAnswer,
    /// `If-Match` and `If-None-Match` of a write are accepted and ignored.
    IgnoreConditions,
    /// What says a checksum in a header is answered 501 `NotImplemented`.
    RefuseChecksums,
    /// An `If-Match` in quotes never holds; a bare one is looked at. As some servers have it.
    BareTags,
}

/// One rule of a plan. It applies to every request until told otherwise.
#[derive(Debug, Clone)]
pub struct FaultRule {
    operation: Option<Operation>,
    key: KeyMatch,
    skip: u64,
    times: Option<u64>,
    when: When,
    action: Action,
}

impl FaultRule {
    /// A rule that does this to every request, for ever, before the effect.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self {
            operation: None,
            key: KeyMatch::Any,
            skip: 0,
            times: None,
            when: When::BeforeEffect,
            action,
        }
    }

    /// An error response with this status and code.
    #[must_use]
    pub fn respond(status: u16, code: &str) -> Self {
        Self::new(Action::Respond {
            status,
            code: code.to_owned(),
            retry_after: None,
        })
    }

    /// 503 `SlowDown`.
    #[must_use]
    pub fn slow_down() -> Self {
        Self::respond(503, "SlowDown")
    }

    /// 500 `InternalError`.
    #[must_use]
    pub fn internal_error() -> Self {
        Self::respond(500, "InternalError")
    }

    /// No answer until the rule is removed.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(Action::Hang)
    }

    /// A connection reset.
    #[must_use]
    pub fn reset() -> Self {
        Self::new(Action::Reset)
    }

    /// An effect that comes late, when the gate opens.
    #[must_use]
    pub fn late(gate: &Gate) -> Self {
        Self::new(Action::Late(gate.clone()))
    }

    /// Only for this operation.
    #[must_use]
    pub fn on(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Only for exactly this key.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.key = KeyMatch::Exact(key.to_owned());
        self
    }

    /// Only for keys that start with this.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.key = KeyMatch::Prefix(prefix.to_owned());
        self
    }

    /// Lets the first `n` matching requests pass.
    #[must_use]
    pub fn skip(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Applies to `n` requests, then no more.
    #[must_use]
    pub fn times(mut self, n: u64) -> Self {
        self.times = Some(n);
        self
    }

    /// Applies once.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Strikes after the effect instead of before it.
    #[must_use]
    pub fn after_effect(mut self) -> Self {
        self.when = When::AfterEffect;
        self
    }

    /// Adds `Retry-After: seconds` to an error response.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        if let Action::Respond { retry_after, .. } = &mut self.action {
            *retry_after = Some(seconds);
        }
        self
    }

    fn matches(&self, target: &Target) -> bool {
        self.operation.is_none_or(|o| o == target.operation)
            && self.key.matches(target.key.as_deref())
    }
}

/// Names a rule of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleId(u64);

/// The faults of one server; cloned, it is the same plan. Rules can come and go at any time.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    rules: Arc<Mutex<Rules<FaultRule>>>,
}

impl FaultPlan {
    /// Adds a rule behind the others; of more than [`MAX_RULES`](super::MAX_RULES) the oldest goes.
    pub fn add(&self, rule: FaultRule) -> RuleId {
        let (skip, times) = (rule.skip, rule.times);
        RuleId(self.rules.lock().add(rule, skip, times))
    }

    /// Removes a rule and releases what it keeps waiting; whether it was there.
    pub fn remove(&self, id: RuleId) -> bool {
        self.rules.lock().remove(id.0)
    }

    /// Removes all rules and releases everything they keep waiting.
    pub fn clear(&self) {
        self.rules.lock().clear();
    }

    /// How many requests a rule was applied to; `None` where it was removed.
    #[must_use]
    pub fn applied(&self, id: RuleId) -> Option<u64> {
        self.rules.lock().applied(id.0)
    }

    /// Hangs every request, before its effect.
    pub fn hang_all(&self) -> RuleId {
        self.add(FaultRule::hang())
    }

    /// 503 `SlowDown` to every request.
    pub fn slow_down_all(&self) -> RuleId {
        self.add(FaultRule::slow_down())
    }

    /// What happens to this request. Counts.
    pub(super) fn decide(&self, target: &Target) -> Decision {
        let mut decision = Decision::default();
        for rule in self.rules.lock().apply(|rule| rule.matches(target)) {
            match &rule.rule.action {
                Action::Delay(time) => decision.delays.push((*time, rule.removed.clone())),
                Action::IgnoreConditions => decision.ignore_conditions = true,
                Action::RefuseChecksums => decision.refuse_checksums = true,
                Action::BareTags => decision.bare_tags = true,
                action => {
                    decision.verdict = Some(Verdict {
                        action: action.clone(),
                        when: rule.rule.when,
                        removed: rule.removed.clone(),
                    });
                    break;
                }
            }
        }
        decision
    }
}

/// What the plan says about one request.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// To wait for, one after the other; each ends early when its rule is removed.
    pub delays: Vec<(Duration, CancellationToken)>,
    pub ignore_conditions: bool,
    pub refuse_checksums: bool,
    pub bare_tags: bool,
    pub verdict: Option<Verdict>,
}

impl Decision {
    pub fn is_fault(&self) -> bool {
        !self.delays.is_empty()
            || self.ignore_conditions
            || self.refuse_checksums
            || self.bare_tags
            || self.verdict.is_some()
    }
}

#[derive(Debug, Clone)]
pub(super) struct Verdict {
    pub action: Action,
    pub when: When,
    pub removed: CancellationToken,
}

#[cfg(test)]
mod tests;
