use super::*;
use crate::queue::admission::Admission;
use crate::queue::record::encode;
use crate::queue::task::{Borrowed, KeyPolicy};
use crate::remote::ObjectHeaders;

const EACH: Need = Need {
    tasks: 1,
    bytes: 10,
    disk: 100,
    memory: 0,
};

fn admission() -> Arc<Admission> {
    let max = Need {
        tasks: 1,
        ..Need::default()
    };
    Admission::new(max, max, max, 1, "dir".into())
}

/// A backlog of tasks 10, 20, ... with these hashes.
fn backlog(admission: &Arc<Admission>, hashes: &[u32]) -> Backlog {
    let mut backlog = Backlog::with_capacity(hashes.len());
    let mut room = Need::default();
    for (at, hash) in hashes.iter().enumerate() {
        backlog.push(TaskId(10 * (at as u64 + 1)), *hash);
        room = room.plus(EACH);
    }
    backlog.complete(admission.recover(room));
    backlog
}

fn ids(ids: impl IntoIterator<Item = TaskId>) -> Vec<u64> {
    ids.into_iter().map(|id| id.0).collect()
}

fn task(change: impl FnOnce(&mut TaskRecord)) -> Vec<u8> {
    let mut record = TaskRecord {
        key: "k".to_owned(),
        lane: Lane::Foreground,
        policy: KeyPolicy::WriteOnce,
        action: ActionRecord::Upload,
        condition: None,
        coalesce: false,
        after: Vec::new(),
        tag: String::new(),
        headers: ObjectHeaders::default(),
        len: 1,
        checksum: None,
    };
    change(&mut record);
    encode(&record)
}

#[test]
fn what_has_to_be_known_before_its_turn_becomes_a_task_at_once() {
    let of = |head: &[u8]| label(kind::TASK, head);
    let plain = of(&task(|_| ()));
    assert_eq!(plain, hash_of("k"));
    assert_ne!(plain, of(&task(|task| task.key = "l".to_owned())));
    assert_eq!(plain, of(&task(|task| task.action = ActionRecord::Delete)));
    assert_eq!(plain, of(&task(|task| task.lane = Lane::Background)));
    assert_eq!(of(&task(|task| task.lane = Lane::Checkpoint)), 0);
    assert_eq!(of(&task(|task| task.after = vec![3])), 0);
    let borrowed = Borrowed {
        path: "p".to_owned(),
        len: 1,
        modified_ns: 0,
        inode: 1,
    };
    let borrows = task(|task| task.action = ActionRecord::UploadBorrowed(borrowed));
    assert_eq!(of(&borrows), 0);
    assert_eq!(of(b""), 0, "a record that cannot be read");
    assert_eq!(label(kind::OUTSTANDING, &task(|_| ())), 0);
}

#[test]
fn they_come_in_order_and_each_takes_its_room_with_it() {
    let admission = admission();
    let mut backlog = backlog(&admission, &[7, 8, 9]);
    let used = || admission.usage().used;
    assert_eq!((used().tasks, used().bytes, used().disk), (3, 30, 300));
    assert_eq!(ids(backlog.next(2)), [10, 20]);
    assert_eq!(backlog.first(), Some(TaskId(10)));
    let (permit, cell) = backlog.take(TaskId(20), EACH).unwrap();
    assert!(cell.is_none());
    assert!(backlog.take(TaskId(20), EACH).is_none(), "it came already");
    assert!(!backlog.contains(TaskId(20)));
    assert_eq!(used().tasks, 3, "its room went with it");
    drop(permit);
    assert_eq!((used().tasks, used().bytes, used().disk), (2, 20, 200));
    assert_eq!((backlog.len(), ids(backlog.next(9))), (2, vec![10, 30]));
    drop(backlog.take(TaskId(10), EACH));
    assert_eq!(backlog.first(), Some(TaskId(30)));
    drop(backlog.take(TaskId(30), EACH));
    assert!(backlog.is_empty() && backlog.first().is_none());
    assert_eq!(used(), Need::default());
    assert!(backlog.take(TaskId(30), EACH).is_none());
}

#[test]
fn of_one_key_none_comes_before_an_earlier_one() {
    let mut backlog = backlog(&admission(), &[5, 7, 7, 5, 7]);
    assert!(backlog.take(TaskId(50), EACH).is_none());
    assert!(backlog.take(TaskId(30), EACH).is_none());
    assert_eq!(ids(backlog.on_key(7)), [20, 30, 50]);
    assert_eq!(ids(backlog.with_those_before(TaskId(30), 9)), [20, 30]);
    assert!(ids(backlog.on_key(6)).is_empty());
    assert!(backlog.take(TaskId(20), EACH).is_some());
    assert_eq!(ids(backlog.on_key(7)), [30, 50]);
    assert!(backlog.take(TaskId(40), EACH).is_none(), "another key's");
    assert!(backlog.take(TaskId(30), EACH).is_some());
    assert!(backlog.take(TaskId(50), EACH).is_some());
    assert_eq!(ids(backlog.next(9)), [10, 40]);
    assert!(ids(backlog.with_those_before(TaskId(50), 9)).is_empty());
}

#[test]
fn so_many_come_in_as_there_is_room_for() {
    let came = |active, delayed, all| Came {
        active,
        delayed,
        all,
    };
    let some = backlog(&admission(), &[1]);
    // Until half of them are through, none; then in bulk.
    assert_eq!(some.wanted(10, came(10, 0, 10)), 0);
    assert_eq!(some.wanted(10, came(6, 0, 6)), 0);
    assert_eq!(some.wanted(10, came(5, 0, 5)), 5);
    assert_eq!(some.wanted(1, came(1, 0, 1)), 0);
    // Those that wait, or back off, take no others' turns, up to a point.
    assert_eq!(some.wanted(10, came(2, 20, 32)), 8);
    assert_eq!(some.wanted(10, came(2, 20, 39)), 1);
    assert_eq!(some.wanted(10, came(2, 30, 40)), 0);
    // What all of them wait for may be behind them.
    assert_eq!(some.wanted(10, came(0, 0, 500)), 10);
    assert_eq!(Backlog::default().wanted(10, came(0, 0, 0)), 0);
}

#[test]
fn what_cannot_be_read_stays_and_says_why() {
    let mut backlog = backlog(&admission(), &[1, 2]);
    backlog.failed(TaskId(10), "gone".to_owned());
    backlog.failed(TaskId(15), "not here".to_owned());
    assert_eq!(backlog.unread().collect::<Vec<_>>(), [(TaskId(10), "gone")]);
    let cell = backlog.cell(TaskId(10));
    let (_, told) = backlog.take(TaskId(10), EACH).unwrap();
    assert!(Arc::ptr_eq(&cell, &told.unwrap()));
    assert_eq!(backlog.unread().count(), 0);
    let cell = backlog.cell(TaskId(20));
    let (left, cells, permit) = backlog.close();
    assert!(left == 1 && Arc::ptr_eq(&cells[0], &cell) && permit.is_some());
    assert!(backlog.is_empty());
}

#[test]
fn an_entry_takes_few_bytes() {
    assert_eq!(size_of::<Entry>(), 16);
}
