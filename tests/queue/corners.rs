//! Corners that a sceptic found: each a promise that held in the middle and not at the edge.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::lives::{End, Lives};
use crate::support::{Rig, both, paused, roomy, settled, spawn, submit, with_a_real_limit};
use s3_writeback::error::Limit;
use s3_writeback::io::Io;
use s3_writeback::journal::fs::{Fs, FsFile, FsLock, OpenMode, OsFs, Stat};
use s3_writeback::remote::{ETag, Effect, RemoteError};
use s3_writeback::testing::fs::{Call as FsCall, EIO, Fault as FsFault, SimFs};
use s3_writeback::testing::remote::{Call, Fault, SimRemote};
use s3_writeback::{
    Body, Cause, Condition, Config, Error, KeyPolicy, Lane, Options, PauseWhat, Receipt, RunOn,
    Settlement, UploadQueue,
};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Notify;
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const MIB: u64 = 1 << 20;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Bodies from 5 MiB go up in parts of that size.
fn in_parts(config: &mut Config) {
    config.multipart_threshold = 5 * MIB;
    config.part_bytes = 5 * MIB;
    config.segment_bytes = 1 << 20;
}

fn bytes(mib: usize) -> Vec<u8> {
    vec![7; mib << 20]
}

fn rewritable() -> Options {
    Options {
        policy: KeyPolicy::Rewritable,
        ..Options::default()
    }
}

/// A lease: an object with the same bytes is somebody else's.
fn lease() -> Options {
    Options {
        condition: Some(Condition::IfAbsent { same_is_ok: false }),
        ..Options::default()
    }
}

fn refused() -> Fault {
    Fault::Error(RemoteError::permanent("PutObject", 400, "InvalidArgument"))
}

/// Makes a file on the simulated disk, durably.
fn file(fs: &SimFs, path: &str, body: &[u8]) -> Box<dyn FsFile> {
    let path = Path::new(path);
    let dir = path.parent().expect("a directory");
    fs.create_dir_all(dir).unwrap();
    let file = fs.open(path, OpenMode::CreateNew).unwrap();
    file.write_all_at(body, 0).unwrap();
    file.sync_all().unwrap();
    fs.sync_dir(dir).unwrap();
    fs.sync_dir(Path::new("/")).unwrap();
    file
}

/// A queue over real files, on threads of its own.
fn open_real(config: &Config, remote: &SimRemote) -> s3_writeback::Result<UploadQueue> {
    UploadQueue::builder(config.clone(), Arc::new(remote.clone()))
        .open()
        .wait()
}

/// One thread's worth of a runtime, for the I/O of a queue.
fn pool() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime")
}

/// Real files, of which those of the journal's payloads are opened for reading only while a gate
/// is open.
#[derive(Debug, Default)]
struct GatedReads {
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    waiting: usize,
}

impl GatedReads {
    fn close(&self, closed: bool) {
        self.gate.lock().unwrap().closed = closed;
        self.changed.notify_all();
    }

    /// Until somebody waits at the gate.
    fn until_waited_at(&self) {
        let gate = self.gate.lock().unwrap();
        let waited_at = self.changed.wait_while(gate, |gate| gate.waiting == 0);
        drop(waited_at.unwrap());
    }

    fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        self.changed.notify_all();
        gate = self.changed.wait_while(gate, |gate| gate.closed).unwrap();
        gate.waiting -= 1;
    }
}

impl Fs for GatedReads {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Box<dyn FsFile>> {
        if mode == OpenMode::Read && path.components().any(|part| part.as_os_str() == "payload") {
            self.pass();
        }
        OsFs.open(path, mode)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        OsFs.lock(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        OsFs.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<OsString>> {
        OsFs.read_dir(path)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        OsFs.stat(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsFs.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsFs.link(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        OsFs.unlink(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsFs.sync_dir(path)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        OsFs.free_space(path)
    }
}

/// Two processes take one lease with the same bytes, and the second one's first try fails without
/// an effect: there is one winner.
#[test]
fn a_lease_has_one_winner_though_the_bytes_are_equal() {
    both(async |rig| {
        let mut other = Rig::new();
        other.remote = rig.remote.clone();
        other.config.seed = Some(8);
        let (one, two) = (rig.open().await, other.open().await);
        let first = one.submit("lease", "held", lease()).await.unwrap();
        assert!(settled(&first).await.is_in_s3());
        let failed = RemoteError::transient("PutObject").with_effect(Effect::NotApplied);
        rig.remote
            .once(Some(Call::Put), Some("lease"), Fault::Error(failed));
        let second = two.submit("lease", "held", lease()).await.unwrap();
        assert_eq!(settled(&second).await, Settlement::PreconditionFailed);
    });
}

/// The same where the body goes up in parts and the object is nobody's.
#[test]
fn a_lease_in_parts_is_not_won_over_an_object_with_equal_bytes() {
    both(async |mut rig| {
        in_parts(&mut rig.config);
        rig.remote.plant("lease", bytes(6));
        let queue = rig.open().await;
        let receipt = queue.submit("lease", bytes(6), lease()).await.unwrap();
        assert_eq!(settled(&receipt).await, Settlement::PreconditionFailed);
    });
}

/// Somebody else has written a rewritable key since we did: our DELETE leaves it alone.
#[test]
fn a_delete_leaves_an_object_that_somebody_else_wrote() {
    both(async |rig| {
        let queue = rig.open().await;
        let put = queue.submit("k", "ours", rewritable()).await.unwrap();
        assert!(settled(&put).await.is_in_s3());
        rig.remote.plant("k", "somebody else's");
        let delete = queue.delete("k", rewritable()).await.unwrap();
        let told = settled(&delete).await;
        assert!(
            matches!(
                told,
                Settlement::Quarantined(Cause::ForeignWrite { found: Some(_) })
            ),
            "{told:?}"
        );
        assert_eq!(rig.remote.object("k").unwrap(), "somebody else's");
    });
}

/// A completion gets no answer, and then the borrowed file is found changed: the completion may
/// still take effect, so a later DELETE waits until it cannot.
#[test]
fn a_completion_given_up_is_remembered_though_its_file_changed() {
    both(async |mut rig| {
        in_parts(&mut rig.config);
        let source = file(&rig.fs, "/e/f", &bytes(6));
        rig.remote
            .once(Some(Call::CompleteMultipart), Some("k"), Fault::Hang);
        let down = RemoteError::transient("AbortMultipartUpload");
        rig.remote
            .always(Some(Call::AbortMultipart), None, Fault::Error(down));
        let queue = rig.open().await;
        let body = Body::Borrow("/e/f".into());
        let receipt = queue.submit("k", body, rewritable()).await.unwrap();
        let completes = |remote: &SimRemote| remote.count(Call::CompleteMultipart, "k") > 0;
        rig.remote.wait_for(completes).await;
        let sent = Instant::now();
        source.write_all_at(b"changed", 0).unwrap();
        let told = settled(&receipt).await;
        assert!(
            matches!(told, Settlement::Quarantined(Cause::SourceChanged(_))),
            "{told:?}"
        );
        assert!(queue.snapshot().outstanding > 0);
        queue.purge(receipt.task()).unwrap();
        let delete = queue.delete("k", rewritable()).await.unwrap();
        assert_eq!(settled(&delete).await, Settlement::Deleted);
        assert!(sent.elapsed() >= rig.config.signature_lifetime);
    });
}

/// The journal's disk fails, then two tasks are taken back: nobody is told so, the second call
/// errs, and the next life uploads both.
#[test]
fn cancelled_is_not_told_when_it_cannot_go_on_record() {
    for workers in [16, 1] {
        let lives = Lives::of(Rig::with(|config| config.workers = workers));
        lives.live(End::Kill, async |queue| {
            queue.pause(PauseWhat::Uploads);
            let (a, b) = (submit(queue, "a", "x").await, submit(queue, "b", "x").await);
            b.durable().await.unwrap();
            lives.rig.fs.fail(FsFault {
                call: Some(FsCall::Write),
                after: 0,
                errno: EIO,
                forever: true,
            });
            // Whether it can go on record is found out on the way.
            let _ = queue.cancel(a.task());
            assert_ne!(settled(&a).await, Settlement::Cancelled);
            let late = queue.cancel(b.task());
            assert!(matches!(late, Err(Error::JournalFailed(_))), "{late:?}");
            assert_ne!(b.settlement(), Some(Settlement::Cancelled));
        });
        lives.live(End::Clean, async |queue| {
            assert_eq!(queue.pending().len(), 2);
            queue.drain().await.unwrap();
        });
        assert_eq!(lives.rig.remote.keys(), ["a", "b"]);
    }
}

/// What is thrown away after the end could not go on record: the call errs, and the task is in
/// quarantine after the next open.
#[test]
fn a_purge_after_the_end_errs_and_purges_nothing() {
    both(async |rig| {
        rig.remote.once(Some(Call::Put), Some("a"), refused());
        let queue = rig.open().await;
        let receipt = submit(&queue, "a", "x").await;
        settled(&receipt).await;
        assert!(queue.shutdown().await.unwrap().sealed);
        let purged = queue.purge(receipt.task());
        assert!(
            matches!(purged, Err(Error::ShuttingDown { .. })),
            "{purged:?}"
        );
        drop(queue);
        let again = rig.open().await;
        let [left] = &again.quarantined()[..] else {
            panic!("{:?}", again.quarantined());
        };
        assert_eq!(left.task, receipt.task());
    });
}

/// An adopted file is durable, then the power is cut: its old name does not come back, for whoever
/// writes it anew would write into our body; and the body goes up.
#[test]
fn the_old_name_of_an_adopted_file_does_not_come_back() {
    for seed in 0..12 {
        let lives = Lives::of(Rig::new());
        drop(file(&lives.rig.fs, "/e/segment", b"acknowledged"));
        lives.live(End::PowerCut(seed), async |queue| {
            queue.pause(PauseWhat::Uploads);
            let body = Body::Adopt("/e/segment".into());
            let receipt = queue.submit("k", body, Options::default()).await.unwrap();
            receipt.durable().await.unwrap();
        });
        let old = lives.rig.fs.peek(Path::new("/e/segment"));
        assert!(old.is_none(), "seed {seed}");
        lives.live(End::Clean, async |queue| queue.drain().await.unwrap());
        assert_eq!(lives.rig.remote.object("k").unwrap(), "acknowledged");
    }
}

/// Two crashes leave two notes of unfinished uploads on a key, and the aborts of those come slowly
/// while the body goes up again: it goes up all the same.
#[test]
fn aborts_of_earlier_lives_leave_a_body_that_goes_up_alone() {
    for workers in [16, 1] {
        let lives = Lives::of(Rig::with(|config| {
            in_parts(config);
            config.part_concurrency = 1;
            config.workers = workers;
        }));
        let remote = &lives.rig.remote;
        remote.always(Some(Call::UploadPart), None, Fault::Hang);
        remote.always(Some(Call::ListMultipart), None, Fault::Hang);
        for _ in 0..2 {
            lives.live(End::Kill, async |queue| {
                let before = remote.count(Call::UploadPart, "k");
                if queue.pending().is_empty() {
                    let body = bytes(30);
                    let receipt = queue.submit("k", body, Options::default()).await.unwrap();
                    receipt.durable().await.unwrap();
                }
                remote
                    .wait_for(|remote| remote.count(Call::UploadPart, "k") > before)
                    .await;
            });
        }
        remote.heal();
        for slow in [2500, 4700] {
            let slow = Fault::Delay(Duration::from_millis(slow));
            remote.once(Some(Call::ListMultipart), None, slow);
        }
        remote.always(Some(Call::UploadPart), None, Fault::Delay(secs(1)));
        lives.live(End::Clean, async |queue| {
            let pending = queue.pending();
            assert_eq!(pending.len(), 1);
            let told = settled(&pending[0].receipt).await;
            assert!(told.is_in_s3(), "{told:?}");
            assert!(queue.quarantined().is_empty());
        });
    }
}

/// A shutdown may have any deadline, the longest too.
#[test]
fn a_shutdown_within_for_ever_is_sealed() {
    both(async |rig| {
        let queue = rig.open().await;
        let receipt = submit(&queue, "a", "x").await;
        let report = queue.shutdown().within(Duration::MAX).await.unwrap();
        assert!(report.sealed, "{report:?}");
        assert!(settled(&receipt).await.is_in_s3());
        drop(queue);
        rig.open().await;
    });
}

/// The runtime that drives the queue is gone before the shutdown: it says so, and does not wait.
#[test]
fn a_shutdown_on_a_runtime_that_is_gone_is_reported() {
    with_a_real_limit(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // Its coordinator may not have been looked at once.
        let queue = runtime.block_on(Rig::new().open());
        drop(runtime);
        let ended = queue.shutdown().within(Duration::from_millis(200)).wait();
        let report = ended.unwrap();
        assert!(!report.sealed, "{report:?}");
        assert!(report.seal_error.is_some());
    });
}

/// Many lives in one process, ended in order or dropped: nothing of them is left that holds the
/// file system.
#[test]
fn nothing_is_left_of_lives_that_are_over() {
    with_a_real_limit(|| {
        let fs: Arc<dyn Fs> = Arc::new(OsFs);
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("q"));
        config.segment_bytes = 64 * 1024;
        let pool = pool();
        for life in 0..20 {
            let queue = UploadQueue::builder(config.clone(), Arc::new(SimRemote::new()))
                .file_system(Arc::clone(&fs), Io::pool(pool.handle().clone(), 2))
                .open()
                .wait()
                .unwrap();
            let key = format!("k{life}");
            queue
                .submit(key, "x", Options::default())
                .wait()
                .unwrap()
                .durable()
                .wait()
                .unwrap();
            if life % 2 == 0 {
                assert!(queue.shutdown().wait().unwrap().sealed);
            }
        }
        while Arc::strong_count(&fs) > 1 {
            std::thread::yield_now();
        }
    });
}

/// A queue is dropped, or given no time, with a request in flight, on a machine that is busy: its
/// directory is free again.
#[test]
fn the_directory_is_free_again_on_a_busy_machine() {
    with_a_real_limit(|| {
        std::thread::scope(|threads| {
            for _ in 0..6 {
                threads.spawn(|| {
                    for life in 0..12 {
                        dropped_in_flight(life % 2 == 0);
                    }
                });
            }
        });
    });
}

fn dropped_in_flight(shut_down: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path().join("q"));
    config.segment_bytes = 64 * 1024;
    let remote = SimRemote::new();
    remote.always(Some(Call::Put), None, Fault::Hang);
    let queue = open_real(&config, &remote).unwrap();
    let receipt = queue.submit("k", "x", Options::default()).wait().unwrap();
    receipt.durable().wait().unwrap();
    if shut_down {
        queue.shutdown().within(Duration::ZERO).wait().unwrap();
    }
    drop(queue);
    while let Err(error) = open_real(&config, &remote) {
        assert!(matches!(error, Error::DirectoryInUse { .. }), "{error}");
    }
}

/// A worker hangs in a read of a body when the shutdown is over: the journal is sealed, for its
/// disk answers otherwise, and no request goes out when the read comes back.
#[test]
fn nothing_is_sent_after_the_end_beside_a_slow_local_read() {
    with_a_real_limit(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("q"));
        config.segment_bytes = 64 * 1024;
        let (fs, remote, pool) = (Arc::new(GatedReads::default()), SimRemote::new(), pool());
        fs.close(true);
        let queue = UploadQueue::builder(config, Arc::new(remote.clone()))
            .file_system(fs.clone(), Io::pool(pool.handle().clone(), 4))
            .open()
            .wait()
            .unwrap();
        let body = dir.path().join("body");
        std::fs::write(&body, bytes(1)).unwrap();
        let receipt = queue
            .submit("k", Body::Adopt(body), Options::default())
            .wait()
            .unwrap();
        fs.until_waited_at();
        let report = queue.shutdown().within(secs(1)).wait().unwrap();
        assert!(report.sealed, "{report:?}");
        assert_eq!(receipt.settlement(), Some(Settlement::Deferred));
        let before = remote.seen().len();
        fs.close(false);
        drop(queue);
        // Until the worker has come back and ended.
        while Arc::strong_count(&fs) > 1 {
            std::thread::yield_now();
        }
        assert_eq!(remote.seen().len(), before, "{:?}", remote.seen());
    });
}

/// Tasks that hang have all the slots that their prefix may have: one of lane `Checkpoint` under
/// the same prefix goes up at once, in its own.
#[test]
fn the_checkpoint_slot_is_nobodys_share() {
    for (workers, share) in [(1, 1), (16, 12)] {
        paused(async {
            let rig = Rig::with(|config| config.workers = workers);
            let queue = rig.open().await;
            for n in 0..workers {
                let key = format!("k{n}");
                rig.remote.always(Some(Call::Put), Some(&key), Fault::Hang);
                submit(&queue, &key, "x").await;
            }
            rig.remote
                .wait_for(|remote| remote.count(Call::Put, "k") >= share)
                .await;
            let began = Instant::now();
            let checkpoint = Options {
                lane: Some(Lane::Checkpoint),
                ..Options::default()
            };
            let receipt = queue.submit("checkpoint", "x", checkpoint).await.unwrap();
            assert!(settled(&receipt).await.is_in_s3());
            assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
        });
    }
}

/// The common room on disk is used up: what lane `Checkpoint` has of its own is there, and the
/// journal takes it.
#[test]
fn a_checkpoint_is_durable_though_the_common_disk_room_is_used_up() {
    roomy(async |mut rig| {
        rig.config.segment_bytes = 4096;
        rig.config.max_disk_bytes = 10 * 4096;
        rig.config.inline_bytes = 1024;
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let mut admitted = 0;
        let full = loop {
            let body = vec![0; 100];
            let next = queue.submit(format!("k{admitted}"), body, Options::default());
            match next.now() {
                Ok(receipt) => receipt.durable().await.unwrap(),
                Err(full) => break full,
            }
            admitted += 1;
        };
        assert!(
            matches!(
                full,
                Error::QueueFull {
                    limit: Limit::DiskBytes,
                    ..
                }
            ),
            "{full:?}"
        );
        let checkpoint = Options {
            lane: Some(Lane::Checkpoint),
            ..Options::default()
        };
        let receipt = queue.submit("checkpoint", vec![0; 100], checkpoint).await;
        receipt.unwrap().durable().await.unwrap();
    });
}

/// A read of S3 that shutdown cuts off is told that it was shutdown.
#[test]
fn a_read_cut_off_by_shutdown_is_told_so() {
    both(async |rig| {
        rig.remote.always(Some(Call::Get), None, Fault::Hang);
        let queue = rig.open().await;
        let read = spawn(queue.get("k", None).within(HOUR).into_future());
        rig.remote
            .wait_for(|remote| remote.count(Call::Get, "k") > 0)
            .await;
        queue.shutdown().within(secs(5)).await.unwrap();
        let told = read.await.unwrap();
        assert!(matches!(told, Err(Error::ShuttingDown { .. })), "{told:?}");
    });
}

/// Aborts of several uploads hang, and there is one worker: it uploads in between.
#[test]
fn aborts_that_hang_do_not_keep_an_upload_out() {
    paused(async {
        let rig = Rig::with(|config| {
            in_parts(config);
            config.workers = 1;
        });
        let queue = rig.open().await;
        let down = RemoteError::transient("UploadPart");
        rig.remote
            .always(Some(Call::UploadPart), None, Fault::Error(down));
        rig.remote
            .always(Some(Call::AbortMultipart), None, Fault::Hang);
        let mut receipts: Vec<Receipt> = Vec::new();
        for n in 0..6 {
            let key = format!("big/{n}");
            let submitted = queue.submit(key, bytes(6), Options::default()).await;
            receipts.push(submitted.unwrap());
        }
        tokio::time::sleep(5 * MINUTE).await;
        for receipt in &receipts {
            // Not while it is in flight.
            while queue.cancel(receipt.task()).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let began = Instant::now();
        let receipt = submit(&queue, "small", "x").await;
        assert!(settled(&receipt).await.is_in_s3());
        assert!(began.elapsed() < MINUTE, "{:?}", began.elapsed());
        assert!(rig.remote.count(Call::AbortMultipart, "big/") > 0);
    });
}

/// More reads than may wait are given up by their callers: the next one is taken.
#[test]
fn reads_that_nobody_waits_for_take_no_room() {
    both(async |mut rig| {
        rig.config.max_loads = 32;
        rig.remote.always(Some(Call::Get), None, Fault::Hang);
        let queue = rig.open().await;
        for n in 0..100 {
            // A whole object: an attempt at it may take minutes.
            let read = queue.get(format!("k{n}"), None);
            let given_up = read.within(Duration::from_millis(1)).await;
            assert!(
                matches!(given_up, Err(Error::TimedOut { .. })),
                "{given_up:?}"
            );
        }
        rig.remote.heal();
        rig.remote.plant("there", "x");
        assert_eq!(queue.get("there", None).await.unwrap(), "x");
    });
}

/// Uploads are paused: reading is not sending, and is answered at once.
#[test]
fn reads_are_answered_while_uploads_are_paused() {
    both(async |rig| {
        rig.remote.plant("k", "x");
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let read = queue.get("k", None).within(secs(1)).await;
        assert_eq!(read.unwrap(), "x");
    });
}

/// To wait for more room than there is would never end: it is an error of its own, at once.
#[test]
fn ready_for_more_than_the_queue_holds_is_too_large() {
    both(async |rig| {
        let queue = rig.open().await;
        for asked in [queue.ready(u64::MAX).now(), queue.ready(u64::MAX).await] {
            assert!(matches!(asked, Err(Error::TooLarge { .. })), "{asked:?}");
        }
    });
}

/// A directory or a pipe is handed over as a body: it is refused at once, and nothing is read.
#[test]
fn a_body_that_is_no_regular_file_is_refused() {
    with_a_real_limit(|| {
        paused(async {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("dir");
            std::fs::create_dir(&dir).unwrap();
            let pipe = parent.path().join("pipe");
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
            let mut config = Config::new(parent.path().join("q"));
            config.segment_bytes = 64 * 1024;
            let queue = UploadQueue::builder(config, Arc::new(SimRemote::new()))
                .run_on(RunOn::Handle(Handle::current()))
                .file_system(Arc::new(OsFs), Io::inline())
                .open()
                .await
                .unwrap();
            for path in [dir, pipe] {
                for body in [Body::Borrow(path.clone()), Body::Adopt(path.clone())] {
                    let refused = queue.submit("k", body, Options::default()).await;
                    assert!(
                        matches!(refused, Err(Error::InvalidInput { what: "path", .. })),
                        "{refused:?}"
                    );
                }
            }
            let report = queue.shutdown().await.unwrap();
            assert!(report.sealed, "{report:?}");
        });
    });
}

/// A path that is relative is the one that it is at submit: it is taken as absolute.
#[test]
fn a_relative_path_is_taken_as_absolute() {
    both(async |rig| {
        let absolute = std::env::current_dir().unwrap().join("e/f");
        let queue = rig.open().await;
        let body = || Body::Borrow("e/f".into());
        let missing = queue.submit("k", body(), Options::default()).await;
        let Err(Error::SourceMissing { path }) = missing else {
            panic!("{missing:?}");
        };
        assert_eq!(path, absolute);
        drop(file(&rig.fs, absolute.to_str().unwrap(), b"here"));
        let receipt = queue.submit("k", body(), Options::default()).await.unwrap();
        assert!(settled(&receipt).await.is_in_s3());
        assert_eq!(rig.remote.object("k").unwrap(), "here");
    });
}

/// A body is in S3, and gone here, between the moment when a read finds it and the one when it
/// opens its file: the read is answered from S3.
#[test]
fn a_read_does_not_fail_when_the_task_ends_meanwhile() {
    with_a_real_limit(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().join("q"));
        config.segment_bytes = 64 * 1024;
        let (fs, remote, pool) = (Arc::new(GatedReads::default()), SimRemote::new(), pool());
        let put = Arc::new(Notify::new());
        remote.once(Some(Call::Put), Some("k"), Fault::Gate(put.clone()));
        let queue = UploadQueue::builder(config, Arc::new(remote.clone()))
            .file_system(fs.clone(), Io::pool(pool.handle().clone(), 4))
            .open()
            .wait()
            .unwrap();
        let body = dir.path().join("body");
        std::fs::write(&body, bytes(1)).unwrap();
        let receipt = queue
            .submit("k", Body::Adopt(body), Options::default())
            .wait()
            .unwrap();
        // The worker has read the body.
        pool.block_on(remote.wait_for(|remote| remote.count(Call::Put, "k") > 0));
        fs.close(true);
        std::thread::scope(|threads| {
            let read = threads.spawn(|| queue.get("k", None).wait());
            fs.until_waited_at();
            put.notify_one();
            assert!(receipt.settled().wait().unwrap().is_in_s3());
            let payloads = dir.path().join("q/payload");
            while std::fs::read_dir(&payloads).unwrap().next().is_some() {
                std::thread::yield_now();
            }
            fs.close(false);
            assert_eq!(read.join().unwrap().unwrap(), bytes(1));
        });
    });
}

/// The same bytes are submitted while an adopted file with them is on its way into the journal:
/// they join it, as they do later.
#[test]
fn the_same_bytes_join_an_adopted_file_that_is_not_durable_yet() {
    both(async |rig| {
        for path in ["/e/1", "/e/2"] {
            drop(file(&rig.fs, path, b"hello"));
        }
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let adopt = |path: &str| Body::Adopt(path.into());
        let first = queue.submit("k", adopt("/e/1"), Options::default()).await;
        let first = first.unwrap();
        for again in [Body::from("hello"), adopt("/e/2"), Body::from("hello")] {
            let joined = queue.submit("k", again, Options::default()).await.unwrap();
            assert_eq!(joined.task(), first.task());
        }
        queue.resume(PauseWhat::Uploads);
        assert!(settled(&first).await.is_in_s3());
        assert_eq!(rig.fs.peek(Path::new("/e/2")).unwrap(), b"hello");
    });
}

/// An entity tag that no header can carry is refused at submit; one of any visible characters is
/// taken.
#[test]
fn an_entity_tag_that_no_header_can_carry_is_refused() {
    both(async |rig| {
        let queue = rig.open().await;
        let submit_if = async |tag: &str| {
            let condition = Some(Condition::IfMatch(ETag(tag.to_owned())));
            let options = Options {
                condition,
                ..Options::default()
            };
            queue.submit("k", "x", options).await
        };
        for tag in ["", "a\r\nx-evil: 1", "a b", "\u{7f}", &"x".repeat(1025)] {
            let refused = submit_if(tag).await;
            assert!(
                matches!(
                    refused,
                    Err(Error::InvalidInput {
                        what: "entity tag",
                        ..
                    })
                ),
                "{tag:?}: {refused:?}"
            );
        }
        let taken = submit_if("d41d8cd9-2").await.unwrap();
        assert_eq!(settled(&taken).await, Settlement::PreconditionFailed);
    });
}

/// A receipt says `Deferred`, and its task is pending again after the next open: a new task can be
/// after it, and goes up after it.
#[test]
fn a_receipt_of_an_earlier_life_orders_a_new_task() {
    roomy(async |rig| {
        rig.remote.always(Some(Call::Put), Some("sst"), Fault::Hang);
        let queue = rig.open().await;
        let earlier = submit(&queue, "sst", "x").await;
        queue.shutdown().within(secs(5)).await.unwrap();
        assert_eq!(settled(&earlier).await, Settlement::Deferred);
        drop(queue);
        let again = rig.open().await;
        let options = Options {
            after: vec![earlier],
            ..Options::default()
        };
        let manifest = again.submit("manifest", "x", options).await.unwrap();
        tokio::time::sleep(MINUTE).await;
        assert_eq!(rig.remote.count(Call::Put, "manifest"), 0);
        rig.remote.heal();
        assert!(settled(&manifest).await.is_in_s3());
        assert_eq!(rig.remote.keys(), ["manifest", "sst"]);
    });
}

/// A body that is kept here is followed by one that is only borrowed, whose file goes away: the
/// first goes up, for nobody else has it.
#[test]
fn a_body_kept_here_is_not_superseded_by_a_borrowed_one() {
    roomy(async |rig| {
        drop(file(&rig.fs, "/e/f", b"two"));
        let queue = rig.open().await;
        queue.pause(PauseWhat::Uploads);
        let coalescing = || Options {
            coalesce: true,
            ..rewritable()
        };
        let kept = queue.submit("k", "one", coalescing()).await.unwrap();
        kept.durable().await.unwrap();
        let body = Body::Borrow("/e/f".into());
        let borrowed = queue.submit("k", body, coalescing()).await.unwrap();
        borrowed.durable().await.unwrap();
        rig.fs.unlink(Path::new("/e/f")).unwrap();
        queue.resume(PauseWhat::Uploads);
        assert!(settled(&kept).await.is_in_s3());
        let told = settled(&borrowed).await;
        assert!(
            matches!(told, Settlement::Quarantined(Cause::SourceMissing(_))),
            "{told:?}"
        );
        assert_eq!(rig.remote.object("k").unwrap(), "one");
    });
}

/// The directory is unlocked, and may be somebody else's: it is not said to be ours any more.
#[test]
fn a_directory_is_not_adopted_after_the_end() {
    both(async |rig| {
        let queue = rig.open().await;
        queue.shutdown().await.unwrap();
        rig.fs.start_log();
        let adopted = queue.adopt().await;
        assert!(
            matches!(adopted, Err(Error::ShuttingDown { .. })),
            "{adopted:?}"
        );
        assert!(rig.fs.take_log().is_empty());
    });
}

/// A directory that is no journal's has files where a journal keeps its own: it is refused, and
/// they are left alone.
#[test]
fn a_directory_with_files_that_are_not_ours_is_left_alone() {
    for name in ["payload", "staging"] {
        let parent = tempfile::tempdir().unwrap();
        let precious = parent.path().join(name).join("precious");
        std::fs::create_dir(parent.path().join(name)).unwrap();
        std::fs::write(&precious, "x").unwrap();
        let opened = open_real(&Config::new(parent.path()), &SimRemote::new());
        let Err(error) = opened else {
            panic!("{name}: opened");
        };
        assert!(matches!(error, Error::Directory { .. }), "{error:?}");
        assert_eq!(std::fs::read(&precious).unwrap(), b"x");
    }
}
