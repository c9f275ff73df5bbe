//! What goes wrong on the wire: rules, and which exchange meets one.
//!
//! Owns: the choice. Does not own: doing it ([`super::serve`]).
//!
//! An exchange is one request and its answer. Rules are asked in the order they were added; the
//! first that fits decides, and those after it are not asked (nor counted).
//!
//! Removing a rule ends every connection that it keeps waiting.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::http::RequestHead;
use crate::testing::rules::Rules;

/// What happens to an exchange. The server is behind the proxy: "the server has answered" says
/// that what was asked for was carried out, or refused, and that the client is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireFault {
    /// Reset (RST) when the request's head has come. The server sees nothing of it.
    ResetBeforeBody,
    /// Half of the request's body passes, then both sides are reset.
    ResetMidBody,
    /// The whole request passes and the server answers; the client gets a reset instead.
    ResetBeforeAnswer,
    /// The same, and the connection is closed (FIN).
    CloseBeforeAnswer,
    /// Half of the answer passes (of its body; of its head where it has none), then a close.
    HalfAnswer,
    /// Half open: from the request's head on nothing is read, sent or closed, until the rule is
    /// removed; then the connection is reset. The server sees nothing of it.
    HalfOpen,
    /// The whole request passes and the server answers; the client hears nothing, until the rule
    /// is removed; then the connection is reset.
    AnswerLost,
    /// The request goes on at so many bytes a second (0 counts as 1), head included.
    Trickle(u64),
    /// The answer comes at so many bytes a second (0 counts as 1), head included.
    TrickleAnswer(u64),
    /// A connection that has carried an exchange before, and has been idle since, is closed just
    /// when the next request arrives on it. The server sees nothing of that. The first exchange
    /// of a connection does not meet this rule.
    CloseIdle,
}

/// One rule. It applies to every exchange until told otherwise.
#[derive(Debug, Clone)]
#[must_use = "a rule does nothing until it is added to a plan"]
pub struct WireRule {
    fault: WireFault,
    method: Option<String>,
    target: Option<String>,
    skip: u64,
    times: Option<u64>,
}

impl WireRule {
    /// This, to every exchange, for ever.
    pub fn new(fault: WireFault) -> Self {
        Self {
            fault,
            method: None,
            target: None,
            skip: 0,
            times: None,
        }
    }

    /// Only for this HTTP method.
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only where path and query, as they are sent, contain this.
    pub fn target_contains(mut self, part: &str) -> Self {
        self.target = Some(part.to_owned());
        self
    }

    /// Lets the first `n` that fit pass.
    pub fn skip(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Applies to `n` exchanges, then no more.
    pub fn times(mut self, n: u64) -> Self {
        self.times = Some(n);
        self
    }

    /// Applies once.
    pub fn once(self) -> Self {
        self.times(1)
    }

    fn fits(&self, head: &RequestHead, is_reused: bool) -> bool {
        self.method
            .as_ref()
            .is_none_or(|method| *method == head.method)
            && self
                .target
                .as_ref()
                .is_none_or(|part| head.target.contains(part.as_str()))
            && (is_reused || self.fault != WireFault::CloseIdle)
    }
}

/// Names a rule of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WireRuleId(u64);

/// The faults of one proxy; cloned, it is the same plan. Rules can come and go at any time.
#[derive(Debug, Clone, Default)]
pub struct WirePlan {
    rules: Arc<Mutex<Rules<WireRule>>>,
}

/// What the plan says about one exchange.
#[derive(Debug)]
pub(super) struct Strike {
    pub fault: WireFault,
    pub removed: CancellationToken,
}

impl WirePlan {
    /// Adds a rule behind the others; of more than [`MAX_RULES`](crate::testing::server::MAX_RULES) the oldest
    /// goes.
    pub fn add(&self, rule: WireRule) -> WireRuleId {
        let (skip, times) = (rule.skip, rule.times);
        WireRuleId(self.rules.lock().add(rule, skip, times))
    }

    /// Removes a rule and ends what it keeps waiting; whether it was there.
    pub fn remove(&self, id: WireRuleId) -> bool {
        self.rules.lock().remove(id.0)
    }

    /// Removes all rules and ends everything they keep waiting.
    pub fn clear(&self) {
        self.rules.lock().clear();
    }

    /// How many exchanges a rule was applied to; `None` where it was removed.
    #[must_use]
    pub fn applied(&self, id: WireRuleId) -> Option<u64> {
        self.rules.lock().applied(id.0)
    }

    /// What happens to this exchange. Counts.
    pub(super) fn decide(&self, head: &RequestHead, is_reused: bool) -> Option<Strike> {
        let mut rules = self.rules.lock();
        let rule = rules.apply(|rule| rule.fits(head, is_reused)).next()?;
        Some(Strike {
            fault: rule.rule.fault,
            removed: rule.removed.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::http::request_head;
    use super::*;
    use crate::testing::server::MAX_RULES;

    fn head(line: &str) -> RequestHead {
        request_head(format!("{line} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_decides_and_counts() {
        let plan = WirePlan::default();
        let puts = WireRule::new(WireFault::ResetMidBody)
            .method("PUT")
            .skip(1)
            .times(1);
        let puts = plan.add(puts);
        let parts = WireRule::new(WireFault::HalfOpen).target_contains("uploadId=");
        let parts = plan.add(parts);
        let decide = |line: &str, reused| plan.decide(&head(line), reused).map(|s| s.fault);
        assert_eq!(
            decide("PUT /b/k?uploadId=7", false),
            Some(WireFault::HalfOpen)
        );
        assert_eq!(decide("PUT /b/k", false), Some(WireFault::ResetMidBody));
        assert_eq!(decide("PUT /b/k", false), None);
        assert_eq!(decide("GET /b/k", false), None);
        assert_eq!(
            (plan.applied(puts), plan.applied(parts)),
            (Some(1), Some(1))
        );
    }

    #[test]
    fn an_idle_connection_is_one_that_was_used() {
        let plan = WirePlan::default();
        plan.add(WireRule::new(WireFault::CloseIdle).once());
        assert!(plan.decide(&head("GET /"), false).is_none());
        assert!(plan.decide(&head("GET /"), true).is_some());
        assert!(plan.decide(&head("GET /"), true).is_none());
    }

    #[test]
    fn removing_ends_what_waits_and_the_plan_is_bounded() {
        let plan = WirePlan::default();
        let id = plan.add(WireRule::new(WireFault::HalfOpen));
        let removed = plan.decide(&head("GET /"), false).unwrap().removed;
        assert!(plan.remove(id) && !plan.remove(id) && removed.is_cancelled());
        plan.add(WireRule::new(WireFault::HalfOpen));
        let removed = plan.decide(&head("GET /"), false).unwrap().removed;
        for _ in 0..MAX_RULES {
            plan.add(WireRule::new(WireFault::AnswerLost));
        }
        assert!(removed.is_cancelled());
        plan.clear();
        assert!(plan.decide(&head("GET /"), false).is_none());
    }
}
