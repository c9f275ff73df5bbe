use super::*;
use crate::testing::server::MAX_RULES;

fn put(key: &str) -> Target {
    Target {
        operation: Operation::PutObject,
        bucket: Some("b".into()),
        key: Some(key.into()),
    }
}

fn statuses(plan: &FaultPlan, key: &str, n: usize) -> Vec<u16> {
    (0..n)
        .map(|_| match plan.decide(&put(key)).verdict.map(|v| v.action) {
            Some(Action::Respond { status, .. }) => status,
            None => 0,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn skip_then_times_then_the_next_rule() {
    let plan = FaultPlan::default();
    let first = plan.add(FaultRule::slow_down().skip(1).times(2));
    plan.add(FaultRule::internal_error().times(2));
    assert_eq!(statuses(&plan, "k", 6), [500, 503, 503, 500, 0, 0]);
    assert_eq!(plan.applied(first), Some(2));
}

#[test]
fn rules_match_by_operation_and_key() {
    let plan = FaultPlan::default();
    plan.add(FaultRule::respond(400, "A").on(Operation::GetObject));
    plan.add(FaultRule::respond(401, "B").key("a"));
    plan.add(FaultRule::respond(402, "C").prefix("ab"));
    assert_eq!(statuses(&plan, "a", 1), [401]);
    assert_eq!(statuses(&plan, "abc", 1), [402]);
    assert_eq!(statuses(&plan, "b", 1), [0]);
    let list = Target {
        operation: Operation::ListObjectsV2,
        bucket: Some("b".into()),
        key: None,
    };
    assert!(!plan.decide(&list).is_fault());
    plan.hang_all();
    assert!(plan.decide(&list).is_fault());
}

#[test]
fn delays_add_up_with_what_follows() {
    let plan = FaultPlan::default();
    plan.add(FaultRule::new(Action::Delay(Duration::from_millis(1))));
    plan.add(FaultRule::new(Action::IgnoreConditions));
    plan.add(FaultRule::slow_down());
    plan.add(FaultRule::new(Action::Delay(Duration::from_millis(2))));
    let decision = plan.decide(&put("k"));
    assert_eq!(decision.delays.len(), 1);
    assert!(decision.ignore_conditions);
    assert!(matches!(
        decision.verdict,
        Some(Verdict {
            action: Action::Respond { status: 503, .. },
            ..
        })
    ));
}

#[test]
fn removing_releases_and_the_plan_is_bounded() {
    let plan = FaultPlan::default();
    let id = plan.hang_all();
    let held = plan.decide(&put("k")).verdict.unwrap().removed;
    assert!(!held.is_cancelled());
    assert!(plan.remove(id));
    assert!(!plan.remove(id));
    assert!(held.is_cancelled());
    plan.hang_all();
    let held = plan.decide(&put("k")).verdict.unwrap().removed;
    for _ in 0..MAX_RULES {
        plan.add(FaultRule::slow_down());
    }
    assert!(held.is_cancelled());
    plan.clear();
    assert!(!plan.decide(&put("k")).is_fault());
}
