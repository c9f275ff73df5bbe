//! Who may enter, and who is woken when.

use futures::FutureExt;

use super::*;

fn admission(tasks: u64, bytes: u64) -> Arc<Admission> {
    let max = Need {
        tasks,
        bytes,
        disk: u64::MAX,
        memory: u64::MAX,
    };
    Admission::new(
        max,
        Need {
            tasks: 2,
            bytes: 10,
            disk: 100,
            memory: u64::MAX,
        },
        Need {
            tasks: 3,
            bytes: 100,
            disk: 0,
            memory: u64::MAX,
        },
        100,
        "q".into(),
    )
}

fn bytes(bytes: u64) -> Need {
    Need {
        tasks: 1,
        bytes,
        disk: bytes,
        memory: 0,
    }
}

fn now(admission: &Arc<Admission>, pool: Pool, need: Need) -> Option<Result<Permit>> {
    admission.acquire(pool, Asker::Anyone, need).now_or_never()
}

fn used(admission: &Admission) -> Need {
    admission.usage().used
}

#[test]
fn b3_bytes_are_a_limit_of_their_own() {
    const MIB: u64 = 1 << 20;
    let admission = admission(1000, 64 * MIB);
    let taken: Vec<_> = (0..16)
        .map(|_| {
            now(&admission, Pool::Common, bytes(4 * MIB))
                .unwrap()
                .unwrap()
        })
        .collect();
    assert!(
        now(&admission, Pool::Common, bytes(4 * MIB)).is_none(),
        "the 17th waits"
    );
    assert!(matches!(
        admission.refusal(Pool::Common, bytes(4 * MIB)),
        Error::QueueFull { limit: Limit::Bytes, current, max, .. }
            if current == 64 * MIB && max == 64 * MIB
    ));
    assert!(matches!(
        now(&admission, Pool::Common, bytes(65 * MIB)),
        Some(Err(Error::TooLarge {
            limit: Limit::Bytes,
            ..
        }))
    ));
    assert_eq!(admission.pressure(), 100);
    drop(taken);
    assert_eq!(used(&admission), Need::default());
    assert_eq!(admission.pressure(), 0);
}

#[test]
fn first_come_first_served_also_for_the_large() {
    let admission = admission(10, 10);
    let held = now(&admission, Pool::Common, bytes(6)).unwrap().unwrap();
    let mut large = admission.acquire(Pool::Common, Asker::Anyone, bytes(8));
    assert!((&mut large).now_or_never().is_none());
    assert!(
        now(&admission, Pool::Common, bytes(1)).is_none(),
        "what fits does not pass what waits"
    );
    drop(held);
    let permit = (&mut large).now_or_never().unwrap().unwrap();
    assert_eq!(used(&admission).bytes, 8);
    drop(permit);
}

#[test]
fn a7_a_waiter_that_leaves_hands_on_what_it_was_granted() {
    let admission = admission(1, 10);
    let held = now(&admission, Pool::Common, bytes(1)).unwrap().unwrap();
    let mut first = admission.acquire(Pool::Common, Asker::Anyone, bytes(1));
    let mut second = admission.acquire(Pool::Common, Asker::Anyone, bytes(1));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    drop(held);
    // Granted to the first, which leaves without having looked.
    drop(first);
    let permit = (&mut second).now_or_never().expect("handed on").unwrap();
    drop(permit);
    assert_eq!(used(&admission), Need::default());
    assert_eq!(admission.usage().waiters, 0);
}

#[test]
fn a7_who_was_granted_room_and_has_not_looked_is_in_nobodys_way() {
    let admission = admission(2, 10);
    let held = [1, 2].map(|_| now(&admission, Pool::Common, bytes(1)).unwrap().unwrap());
    let mut granted = admission.acquire(Pool::Common, Asker::Anyone, bytes(1));
    assert!((&mut granted).now_or_never().is_none());
    drop(held);
    // There is room for one more, and nobody would wake it later.
    let newcomer = now(&admission, Pool::Common, bytes(1))
        .expect("there is room")
        .unwrap();
    let granted = (&mut granted).now_or_never().unwrap().unwrap();
    drop((newcomer, granted));
    assert_eq!(used(&admission), Need::default());
}

/// 256 submitters at once against a limit of 128, 10,000 rounds, on real threads: counted and
/// taken are one step. (GreptimeDB's first check and its insert were two.)
#[test]
fn b2_never_more_than_the_limit_are_in_10_000_rounds() {
    const ROUNDS: u64 = 10_000;
    let admission = admission(128, u64::MAX);
    let inside = std::sync::atomic::AtomicU64::new(0);
    let most = std::sync::atomic::AtomicU64::new(0);
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let permits: Vec<_> = (0..32)
                        .filter_map(|_| now(&admission, Pool::Common, bytes(1)))
                        .map(|permit| {
                            let before = inside.fetch_add(1, Ordering::SeqCst);
                            most.fetch_max(before + 1, Ordering::SeqCst);
                            permit.unwrap()
                        })
                        .collect();
                    inside.fetch_sub(permits.len() as u64, Ordering::SeqCst);
                    drop(permits);
                    barrier.wait();
                }
            });
        }
    });
    assert!(most.into_inner() <= 128);
    assert!(admission.usage().peak.tasks <= 128);
    assert_eq!(used(&admission), Need::default());
    assert_eq!(admission.usage().waiters, 0);
}

#[test]
fn d8_a_journal_that_failed_wakes_who_waits_with_the_cause() {
    let admission = admission(1, 10);
    let _held = now(&admission, Pool::Common, bytes(1)).unwrap().unwrap();
    for pool in [Pool::Common, Pool::Reserve] {
        let _reserve = [1, 2].map(|_| now(&admission, Pool::Reserve, bytes(1)));
        let mut waits = admission.acquire(pool, Asker::Holder, bytes(1));
        assert!((&mut waits).now_or_never().is_none());
        admission.fail("EIO");
        assert!(matches!(
            (&mut waits).now_or_never(),
            Some(Err(Error::JournalFailed(cause))) if cause == "EIO"
        ));
        admission.state.lock().failed = None;
    }
}

#[test]
fn the_reserve_is_never_lent_and_recovery_does_not_overdraw_it() {
    let admission = admission(1, 10);
    let recovered: Vec<_> = (0..10).map(|_| admission.recover(bytes(5))).collect();
    assert_eq!(used(&admission).tasks, 10);
    assert!(now(&admission, Pool::Common, bytes(1)).is_none());
    let reserve = now(&admission, Pool::Reserve, bytes(1)).unwrap().unwrap();
    assert_eq!(used(&admission).tasks, 10);
    drop(recovered);
    assert!(now(&admission, Pool::Common, bytes(1)).unwrap().is_ok());
    drop(reserve);
    assert_eq!(admission.usage().reserve_used, Need::default());
}

#[test]
fn d8_closing_wakes_who_waits_with_the_reason() {
    let admission = admission(1, 10);
    let _held = now(&admission, Pool::Common, bytes(1)).unwrap().unwrap();
    let mut anyone = admission.acquire(Pool::Common, Asker::Anyone, bytes(1));
    let mut holder = admission.acquire(Pool::Common, Asker::Holder, bytes(1));
    assert!((&mut anyone).now_or_never().is_none());
    assert!((&mut holder).now_or_never().is_none());
    admission.holders_only(Phase::Quiescing);
    assert!(matches!(
        (&mut anyone).now_or_never(),
        Some(Err(Error::ShuttingDown {
            phase: Phase::Quiescing
        }))
    ));
    assert!(
        (&mut holder).now_or_never().is_none(),
        "a holder may still wait"
    );
    admission.close(Phase::Draining);
    assert!(matches!(
        (&mut holder).now_or_never(),
        Some(Err(Error::ShuttingDown {
            phase: Phase::Draining
        }))
    ));
    assert_eq!(admission.usage().waiters, 0);
}

#[test]
fn the_line_itself_is_bounded() {
    let admission = admission(1, 10);
    let _held = now(&admission, Pool::Common, bytes(1)).unwrap().unwrap();
    let mut line: Vec<_> = (0..100)
        .map(|_| admission.acquire(Pool::Common, Asker::Anyone, bytes(1)))
        .collect();
    assert!(
        line.iter_mut()
            .all(|waiter| waiter.now_or_never().is_none())
    );
    assert!(matches!(
        now(&admission, Pool::Common, bytes(1)),
        Some(Err(Error::QueueFull {
            limit: Limit::Waiters,
            current: 100,
            max: 100,
            ..
        }))
    ));
}
