//! The table's promises, without a journal, a clock or a runtime.

use std::time::Duration;

use super::*;

fn task(id: u64, key: &str) -> Task {
    Task {
        id: TaskId(id),
        key: Arc::from(key),
        lane: Lane::Foreground,
        policy: KeyPolicy::WriteOnce,
        action: Action::Upload,
        condition: None,
        coalesce: false,
        after: Vec::new(),
        tag: String::new(),
        headers: Arc::default(),
        len: 1,
        checksum: Some(Crc64(id)),
        memory: None,
        permit: None,
        cell: Cell::new(),
        superseded: Vec::new(),
        cover: TaskId(id),
        since: Instant::now(),
        durable: true,
        status: Status::Waiting,
        failures: 0,
        failed_before: 0,
        attempts: 0,
        last_error: None,
        parked_ms: 0,
        history: Vec::new(),
        crashes: 0,
        sent: false,
        suspect: false,
        aside: false,
        multipart: None,
    }
}

fn generation(id: u64) -> Task {
    Task {
        policy: KeyPolicy::Rewritable,
        coalesce: true,
        durable: false,
        ..task(id, "k")
    }
}

fn take(table: &mut Table) -> Option<u64> {
    let now = Instant::now();
    while table.next_due().is_some_and(|due| due <= now) {
        table.wake_first();
    }
    let task = table.take(Slot::General, now)?;
    task.sent = true;
    Some(task.id.0)
}

fn uploaded() -> Settlement {
    Settlement::Deleted
}

fn ids(ids: &[u64]) -> Vec<TaskId> {
    ids.iter().copied().map(TaskId).collect()
}

#[test]
fn one_task_a_key_in_order_of_submission() {
    let mut table = Table::new(9);
    for (id, key) in [(1, "a"), (2, "a"), (3, "b"), (4, "a")] {
        table.insert(task(id, key));
    }
    assert_eq!(
        (take(&mut table), take(&mut table), take(&mut table)),
        (Some(1), Some(3), None)
    );
    table.end(TaskId(1), uploaded());
    assert_eq!((take(&mut table), take(&mut table)), (Some(2), None));
    table.retry(
        TaskId(2),
        Instant::now() + Duration::from_secs(9),
        Some("e".to_owned()),
    );
    assert_eq!(take(&mut table), None, "a task in back-off holds its key");
    table.end(TaskId(2), Settlement::Cancelled);
    assert_eq!(take(&mut table), Some(4));
}

#[test]
fn nothing_runs_before_it_is_durable() {
    let mut table = Table::new(9);
    table.insert(Task {
        durable: false,
        ..task(1, "a")
    });
    table.insert(Task {
        durable: false,
        ..task(2, "b")
    });
    assert_eq!(take(&mut table), None);
    let (told, _) = table.durable(TaskId(1));
    assert_eq!(told.len(), 1);
    assert_eq!((take(&mut table), take(&mut table)), (Some(1), None));
}

#[test]
fn a_dependent_starts_after_all_that_it_is_after() {
    let mut table = Table::new(9);
    for id in [1, 2] {
        table.insert(task(id, &format!("sst/{id}")));
    }
    table.insert(Task {
        after: ids(&[1, 2]),
        ..task(3, "manifest")
    });
    assert_eq!(
        (take(&mut table), take(&mut table), take(&mut table)),
        (Some(1), Some(2), None)
    );
    table.end(TaskId(2), uploaded());
    assert_eq!(take(&mut table), None);
    table.end(TaskId(1), uploaded());
    assert_eq!(take(&mut table), Some(3));
}

#[test]
fn e37_a_dependency_that_will_never_be_in_s3_quarantines_what_is_after_it() {
    for settlement in [Settlement::PreconditionFailed, Settlement::Cancelled] {
        let mut table = Table::new(9);
        table.insert(task(1, "sst"));
        table.insert(Task {
            after: ids(&[1]),
            ..task(2, "manifest")
        });
        table.insert(Task {
            after: ids(&[2]),
            ..task(3, "pointer")
        });
        let ended = table.end(TaskId(1), settlement).unwrap();
        assert_eq!(ended.orphaned, ids(&[2]));
        assert_eq!(
            table.cause_of(TaskId(2)),
            Some(Cause::Dependency(TaskId(1)))
        );
        assert_eq!(
            table.counts(),
            [1, 0, 0, 0, 1],
            "what is after a quarantined task is parked"
        );
        let ended = table.end(TaskId(2), Settlement::Cancelled).unwrap();
        assert_eq!(
            ended.orphaned,
            ids(&[3]),
            "purged: what is after it goes the same way"
        );
    }
}

#[test]
fn e28_what_is_after_a_quarantined_task_is_parked_and_follows_its_replay() {
    let admission = super::super::admission::Admission::new(
        super::super::admission::Need {
            tasks: 9,
            bytes: 9,
            disk: 9,
            memory: 9,
        },
        super::super::admission::Need::default(),
        super::super::admission::Need::default(),
        9,
        "q".into(),
    );
    let mut table = Table::new(9);
    table.insert(task(1, "sst"));
    table.insert(Task {
        after: ids(&[1]),
        ..task(2, "manifest")
    });
    assert_eq!(take(&mut table), Some(1));
    let told = table
        .quarantine(TaskId(1), Cause::Panicked("p".to_owned()))
        .unwrap();
    assert_eq!(told.cells.len(), 1);
    assert_eq!(take(&mut table), None);
    assert!(!table.can_move(Instant::now() + Duration::from_secs(999), false, false));
    let permit = admission.recover(super::super::admission::Need::default());
    let (cell, _) = table
        .replay(TaskId(1), permit, Instant::now(), |_| false)
        .unwrap();
    assert!(
        !Arc::ptr_eq(&cell, &told.cells[0]),
        "a replay is answered on its own"
    );
    assert_eq!((take(&mut table), take(&mut table)), (Some(1), None));
    table.end(TaskId(1), uploaded());
    assert_eq!(take(&mut table), Some(2));
}

#[test]
fn b5_generations_that_wait_are_one_task_in_the_place_of_the_first() {
    let mut table = Table::new(9);
    let cells: Vec<_> = (1..=1000)
        .map(|id| {
            let task = generation(id);
            let cell = Arc::clone(&task.cell);
            table.insert(task);
            cell
        })
        .collect();
    table.durable(TaskId(1));
    table.insert(task(2000, "other"));
    let (_, superseded) = table.durable(TaskId(1000));
    assert_eq!(superseded.len(), 999);
    assert_eq!(table.len(), 2);
    assert_eq!(
        table.first_open(),
        Some(TaskId(1)),
        "a drain of 1 waits for its heir"
    );
    assert_eq!(table.resolve(TaskId(1)), Some(TaskId(1000)));
    assert_eq!(take(&mut table), Some(1000), "it has the first one's place");
    let ended = table.end(TaskId(1000), uploaded()).unwrap();
    assert_eq!(ended.cells.len(), 1000);
    assert!(
        cells
            .iter()
            .all(|cell| ended.cells.iter().any(|c| Arc::ptr_eq(c, cell)))
    );
    assert_eq!(table.resolve(TaskId(1)), None);
}

#[test]
fn e10_an_earlier_upload_is_superseded_only_by_one_that_is_durable() {
    let mut table = Table::new(9);
    table.insert(generation(1));
    table.durable(TaskId(1));
    table.insert(generation(2));
    assert_eq!(table.len(), 2, "2 is not durable: 1 is still owed");
    let (_, superseded) = table.durable(TaskId(2));
    let superseded: Vec<_> = superseded.into_iter().map(|task| task.id).collect();
    assert_eq!(superseded, ids(&[1]));
}

#[test]
fn what_was_sent_or_has_relations_is_not_superseded() {
    let mut table = Table::new(9);
    table.insert(generation(1));
    table.durable(TaskId(1));
    assert_eq!(take(&mut table), Some(1));
    table.insert(generation(2));
    assert!(table.durable(TaskId(2)).1.is_empty());
    // K1, B after K1, then K2.
    table.insert(Task {
        after: ids(&[2]),
        ..task(3, "b")
    });
    table.insert(generation(4));
    assert!(
        table.durable(TaskId(4)).1.is_empty(),
        "what something is after is not superseded"
    );
    table.end(TaskId(1), uploaded());
    assert_eq!(take(&mut table), Some(2));
    table.end(TaskId(2), uploaded());
    assert_eq!((take(&mut table), take(&mut table)), (Some(4), Some(3)));
}

#[test]
fn c2_suspects_run_alone_one_at_a_time() {
    let mut table = Table::new(9);
    for id in 1..=4 {
        table.insert(Task {
            suspect: id > 2,
            sent: id > 2,
            ..task(id, &format!("{id}"))
        });
    }
    assert_eq!((take(&mut table), take(&mut table)), (Some(3), None));
    table.retry(
        TaskId(3),
        Instant::now() + Duration::from_secs(1),
        Some("e".to_owned()),
    );
    assert_eq!(
        (take(&mut table), take(&mut table)),
        (Some(4), None),
        "then the other suspect"
    );
    table.end(TaskId(4), uploaded());
    assert_eq!((take(&mut table), take(&mut table)), (Some(1), Some(2)));
}

#[test]
fn submits_that_are_taken_back_leave_nothing_in_the_lanes() {
    let mut table = Table::new(9);
    for id in 1..=10_000 {
        table.insert(task(id, "p/x"));
        table.end(TaskId(id), Settlement::Cancelled);
    }
    assert!(table.void_entries <= 65);
    assert_eq!((table.len(), table.keys.len(), table.open.len()), (0, 0, 0));
}

fn delete(id: u64, key: &str) -> Task {
    Task {
        action: Action::Delete,
        ..task(id, key)
    }
}

fn take_delete(table: &mut Table) -> Option<u64> {
    table.take_delete(Instant::now()).map(|task| task.id.0)
}

#[test]
fn a_delete_goes_before_its_turn_but_not_before_its_keys() {
    let mut table = Table::new(2);
    table.insert(task(1, "p/a"));
    for (id, key) in [(2, "p/a"), (3, "p/b"), (4, "p/c"), (5, "p/d")] {
        table.insert(delete(id, key));
    }
    assert_eq!(
        take_delete(&mut table),
        Some(3),
        "not before its key's upload"
    );
    assert_eq!(take_delete(&mut table), Some(4));
    // What is aside has nothing of the prefix's share, and gives none back.
    assert_eq!((take(&mut table), take(&mut table)), (Some(1), Some(5)));
    assert_eq!((take_delete(&mut table), take(&mut table)), (None, None));
    table.end(TaskId(3), Settlement::Deleted);
    table.put_back(TaskId(4), Some("refused".to_owned()));
    assert_eq!(take(&mut table), None, "the share is used up");
    assert_eq!(take_delete(&mut table), Some(4));
    table.retry(TaskId(4), Instant::now(), Some("lost".to_owned()));
    assert_eq!(take_delete(&mut table), None, "in back-off");
    table.end(TaskId(1), uploaded());
    assert_eq!((take(&mut table), take(&mut table)), (Some(2), None));
    table.end(TaskId(5), Settlement::Deleted);
    assert_eq!(take_delete(&mut table), Some(4));
    for id in [2, 4] {
        table.end(TaskId(id), Settlement::Deleted);
    }
    assert_eq!(table.counts(), [0; 5]);
    assert!(table.deletes.is_empty());
}

#[test]
fn a_suspect_is_not_taken_before_its_turn() {
    let mut table = Table::new(9);
    table.insert(Task {
        suspect: true,
        ..delete(1, "a")
    });
    table.insert(delete(2, "b"));
    assert_eq!(take_delete(&mut table), Some(2));
    assert_eq!(take_delete(&mut table), None);
    assert_eq!(take(&mut table), None, "alone, or not at all");
    table.end(TaskId(2), Settlement::Deleted);
    assert_eq!(take(&mut table), Some(1));
    table.insert(delete(3, "c"));
    assert_eq!(take_delete(&mut table), None, "it runs alone");
}
