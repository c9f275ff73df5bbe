//! Making a checkpoint: from the line to `head`.
//!
//! Owns: the order of it. Does not own: the line and its list ([`crate::part::line`]), which pages
//! are new (`pages.rs`), the formats, or `head`.
//!
//! ```text
//! room to set images aside -> line -> list -> images, and sync -> pages, tree -> manifest -> head
//! ```
//!
//! 1. Nothing is waited for that the engine holds: not a lock, not a guard.
//! 2. The manifest names only what is in S3, and is visible only after all of it is.
//! 3. It is told only when the local disk has all that was written before its line, too.
//! 4. Whatever fails before `head` is changed leaves nothing but garbage, and the next checkpoint
//!    draws a line of its own.
//! 5. While nobody knows what became of a change of `head`, no other is made, and nothing that it
//!    names is deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Result};
use crate::mutant::{Mutant, is};
use crate::part::aside::AsideRoom;
use crate::part::epoch::Issued;
use crate::part::line::{FileRow, OpenLine};
use crate::queue::receipt::Receipt;

use super::frame::Object;
use super::head::{self, Change, Changed, Head, Listed};
use super::manifest::{self, MAX_META_BYTES, Manifest};
use super::pages::{Kept, build};
use super::stand::Base;
use super::turn::{Open, TurnOfHead};
use super::writer::{Writer, send_aside};
use super::{Checkpoint, Checkpointer, Meta};

/// A checkpoint that `head` does not have yet.
#[derive(Debug)]
pub(super) struct Pending {
    line: Arc<OpenLine>,
    base: Base,
    kept: Kept,
    told: Checkpoint,
    /// Records of files that it does not have any more.
    dropped: Vec<u64>,
    /// Its objects are not garbage.
    _issued: Vec<Arc<Issued>>,
}

impl Pending {
    pub(super) fn number(&self) -> u64 {
        self.told.number
    }
}

/// A checkpoint whose line is drawn.
struct Drawn {
    line: Arc<OpenLine>,
    number: u64,
    /// What it is written under.
    epoch: u64,
    /// The lowest name of an image that was on its way when the line was drawn.
    mark: Option<(u64, u32)>,
    /// Where the journal ended before that.
    upto: u64,
}

impl Checkpointer {
    /// Makes a checkpoint.
    pub(super) async fn make(
        self: &Arc<Self>,
        meta: Option<Meta>,
        after: &[Receipt],
        until: Instant,
    ) -> Result<Arc<Checkpoint>> {
        let epoch = self.ready(until).await?;
        let number = {
            let mut turn = self.head.lock().await;
            self.settle_head(&mut turn, until).await?;
            self.next_number(&mut turn, until).await?
        };
        let meta = timeout_at(until, self.meta(meta)).await;
        let slow = Error::WouldWait("what the engine's callback gives");
        let meta = meta.map_err(|_| self.timed_out(slow))??;
        let mark = self.parts.epochs.lowest_open();
        let upto = {
            let status = self.parts.queue().journal.status();
            status.next_location.saturating_sub(1)
        };
        let line = self.draw(until).await?;
        let drawn = Drawn {
            line: Arc::clone(&line),
            number,
            epoch,
            mark,
            upto,
        };
        // Whoever fenced the store while the line was being drawn did not see it.
        let made = match self.parts.fenced() {
            Some(error) => Err(error.clone()),
            None => self.follow(drawn, meta, after, until).await,
        };
        if let Err(error) = &made
            && !matches!(error, Error::CheckpointUnknown { .. })
        {
            tracing::warn!(number, %error, "no checkpoint");
            line.give_up(error.clone());
            self.parts.line.forget();
        }
        made
    }

    /// An epoch to write under.
    async fn ready(&self, until: Instant) -> Result<u64> {
        let parts = &self.parts;
        loop {
            if let Some(error) = parts.fenced() {
                return Err(error.clone());
            }
            parts.check_writes_of_ours()?;
            match parts.epoch_ready().await {
                Ok(epoch) => return Ok(epoch),
                Err(Error::Unclaimed) => {}
                Err(error) => return Err(error),
            }
            let claimed = self.claimed.until(|epoch| (*epoch != 0).then_some(()));
            tokio::select! {
                biased;
                claimed = timeout_at(until, claimed) => {
                    claimed.map_err(|_| Error::Unclaimed)?;
                }
                // It will never be claimed.
                error = parts.until_fenced() => return Err(error),
            }
        }
    }

    /// The number of the next checkpoint. One that was tried is not given again: what it left
    /// under its key stays what it is.
    async fn next_number(&self, turn: &mut TurnOfHead, until: Instant) -> Result<u64> {
        self.know(turn, until).await?;
        let latest = turn.known.as_ref().and_then(|found| found.head.latest());
        if !self.is_fencing() {
            self.follows(latest).await?;
        }
        let number = latest.map_or(0, |listed| listed.number).max(turn.tried) + 1;
        turn.tried = number;
        Ok(number)
    }

    /// Where nobody claims, whether this directory follows the latest checkpoint is looked at before
    /// each.
    async fn follows(&self, latest: Option<&Listed>) -> Result<()> {
        let mut head = Head::default();
        head.checkpoints.extend(latest.cloned());
        let base = self.stands.now().turn(Some(&head), true)?.base;
        if base != self.stands.now().base {
            let journal = &self.parts.queue().journal;
            self.stands
                .change(journal, |stand| stand.base = base)
                .await?;
        }
        Ok(())
    }

    /// What the engine wants to find with it: asked for just before the line is drawn, so that
    /// whatever it says was written is.
    async fn meta(&self, meta: Option<Meta>) -> Result<Vec<u8>> {
        let every = self.meta.clone();
        let ask = move || match (meta, every) {
            (Some(meta), _) => meta(),
            (None, Some(every)) => every(),
            (None, None) => Vec::new(),
        };
        let meta = self.parts.io().run(ask).await;
        let meta = meta.map_err(|error| Error::Runtime(format!("meta: {error}")))?;
        if meta.len() > MAX_META_BYTES {
            return Err(Error::InvalidInput {
                what: "meta of a checkpoint",
                value: format!("{} bytes", meta.len()),
                limit: format!("at most {MAX_META_BYTES} bytes"),
            });
        }
        Ok(meta)
    }

    /// Draws the line, with room for all that may have to be set aside.
    async fn draw(&self, until: Instant) -> Result<Arc<OpenLine>> {
        let path = self.parts.dir().join("lines").join("aside");
        let mut want = 0;
        loop {
            // A little more than there is: it grows while we look.
            want = want.max(self.parts.dirty.used().0 / 8 * 9);
            let (parts, at, memory) = (
                Arc::clone(&self.parts),
                path.clone(),
                self.config.aside_memory,
            );
            let late = Arc::new(AtomicBool::new(false));
            let is_late = Arc::clone(&late);
            let draw = move || {
                let room = AsideRoom::reserve(parts.fs(), &at, want, memory)?;
                let drawn = parts.draw(room);
                if let Ok(line) = &drawn
                    && is_late.load(Ordering::SeqCst)
                {
                    // Nobody waits for it any more.
                    parts.line.forget_one(line.number);
                }
                Ok::<_, std::io::Error>(drawn)
            };
            let drawn = timeout_at(until, self.parts.io().run(draw)).await;
            let Ok(drawn) = drawn else {
                late.store(true, Ordering::SeqCst);
                // It may have been drawn in this very moment.
                self.parts.line.forget();
                return Err(Error::WouldWait("the local disk"));
            };
            match drawn.and_then(|drawn| drawn) {
                Ok(Ok(line)) => {
                    crate::crash_point::crash_point("checkpoint.drawn");
                    return Ok(line);
                }
                Ok(Err(_short)) => want = want.max(4096) * 2,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                    return Err(Error::DiskFull { path });
                }
                Err(error) => return Err(Error::directory(path, &error)),
            }
        }
    }

    /// From the line to `head`.
    async fn follow(
        self: &Arc<Self>,
        drawn: Drawn,
        meta: Vec<u8>,
        after: &[Receipt],
        until: Instant,
    ) -> Result<Arc<Checkpoint>> {
        let Drawn {
            ref line,
            number,
            epoch,
            mark,
            upto,
        } = drawn;
        let parts = &self.parts;
        let unix_ms = self.clock.unix_ms();
        let (on, listing) = (Arc::clone(parts), Arc::clone(line));
        let listed = parts.io().run(move || on.list(&listing)).await;
        listed.map_err(|error| Error::Runtime(error.to_string()))?;
        parts.flusher.retry_now();

        let late = || {
            let images = line.owed();
            self.timed_out(Error::NotInS3 { images })
        };
        let images = async {
            while !line.settled().await? {
                send_aside(parts, line, self.config.pack_target()).await?;
            }
            Ok::<_, Error>(())
        };
        let ready = async { tokio::try_join!(images, self.sync(line)) };
        timeout_at(until, ready).await.map_err(|_| late())??;

        let dropped = parts.dropped_before(line.number);
        let kept = self.kept.lock().await.take();
        let mut kept = timeout_at(until, self.base(kept, until))
            .await
            .map_err(|_| late())??;
        let built = {
            let (on, line) = (Arc::clone(parts), Arc::clone(line));
            let built = parts.io().run(move || build(&on, &line)).await;
            built.map_err(|error| Error::Runtime(error.to_string()))??
        };
        // Everything that it is made of has been read.
        parts.line.close();
        let mut writer = Writer::new(parts, self.config.pack_target());
        for (_, gone) in &dropped {
            self.take_out(&mut kept, gone, until).await?;
        }
        for built in built {
            self.put(&mut kept, built, &mut writer, until).await?;
        }
        let tree = kept.store(&mut writer)?;
        let issued = tokio::select! {
            biased;
            sent = timeout_at(until, writer.upload()) => sent.map_err(|_| late())??,
            // Nothing is sent any more.
            error = line.given_up() => return Err(error),
        };

        let write_id = self.new_write_id();
        let listed = Listed {
            number,
            epoch,
            write_id,
            unix_ms,
        };
        let manifest = Manifest {
            number,
            epoch,
            write_id,
            unix_ms,
            previous: kept.base.as_ref().map(|listed| listed.number),
            tree,
            files: kept.files(),
            epochs: parts.epochs.table(),
            mark,
            stranded: self.stands.now().stranded,
            meta,
        };
        let body: bytes::Bytes = Object::Manifest.seal(&manifest).into();
        let key = manifest::key(number, epoch);
        let sent = async {
            if is(Mutant::HeadBeforeManifest) {
                let (on, key, body) = (Arc::clone(self), key.clone(), body.clone());
                let put = async move { drop(on.requests.put(&key, &body, until).await) };
                parts.spawn(put);
            } else {
                self.requests.put(&key, &body, until).await?;
            }
            for receipt in after {
                let left = until.saturating_duration_since(Instant::now());
                receipt.uploaded().within(left).await?;
            }
            Ok::<_, Error>(())
        };
        tokio::select! {
            biased;
            sent = sent => sent?,
            error = line.given_up() => return Err(error),
        }
        kept.base = Some(listed.clone());
        let pending = Pending {
            line: Arc::clone(line),
            base: Base { listed, upto },
            kept,
            told: Checkpoint::of(&manifest),
            dropped: dropped.into_iter().map(|(record, _)| record).collect(),
            _issued: issued,
        };
        self.commit(pending, until).await
    }

    /// Puts it into `head`.
    async fn commit(self: &Arc<Self>, pending: Pending, until: Instant) -> Result<Arc<Checkpoint>> {
        let journal = &self.parts.queue().journal;
        let attempt = pending.base.clone();
        self.stands
            .change(journal, |stand| stand.attempt = Some(attempt))
            .await?;
        crate::crash_point::crash_point("checkpoint.attempt");
        let mut turn = self.head.lock().await;
        self.settle_head(&mut turn, until).await?;
        let listed = pending.base.listed.clone();
        loop {
            self.know(&mut turn, until).await?;
            let found = turn.known.clone();
            let mut head = found
                .as_ref()
                .map_or_else(Head::default, |f| f.head.clone());
            self.check_owner(&head).await?;
            head.write_id = listed.write_id;
            if !self.is_fencing() {
                // Nobody owns it: who looks for garbage from outside is to know.
                head.epoch = 0;
            }
            head.checkpoints.push(listed.clone());
            self.retire(&mut head);
            let mut change = Change::new(head, found.as_ref(), self.is_fencing());
            match change.send(&self.requests, until).await {
                Changed::Ours(etag) => {
                    crate::crash_point::crash_point("checkpoint.head");
                    turn.known = Some(head::Found {
                        head: change.head,
                        etag,
                    });
                    let told = self.committed(pending).await;
                    crate::crash_point::crash_point("checkpoint.committed");
                    drop(turn);
                    // The engine may take its time: nobody else waits for it.
                    if timeout_at(until, self.tell(&told)).await.is_err() {
                        tracing::error!("the engine does not come back from on_checkpoint");
                    }
                    return Ok(told);
                }
                Changed::Lost => turn.known = None,
                Changed::Refused(error) => return Err(error.into()),
                Changed::Unknown(error) => {
                    turn.open = Some(Open {
                        change,
                        pending: Some(Box::new(pending)),
                    });
                    self.look.notify_one();
                    return Err(Error::CheckpointUnknown {
                        number: listed.number,
                        cause: Box::new(error),
                    });
                }
            }
        }
    }

    /// `head` has it.
    pub(super) async fn committed(&self, pending: Pending) -> Arc<Checkpoint> {
        let parts = &self.parts;
        let journal = &parts.queue().journal;
        let base = pending.base.clone();
        let noted = self.stands.change(journal, |stand| {
            stand.base = Some(base);
            stand.attempt = None;
        });
        if let Err(error) = noted.await {
            // That it was tried is on record: the next open finds it in `head`.
            tracing::warn!(%error, "a commit is not on record");
        }
        let (on, line) = (Arc::clone(parts), Arc::clone(&pending.line));
        let marked = parts.io().run(move || on.committed(&line)).await;
        if let Err(error) = marked {
            tracing::warn!(%error, "what was committed is listed again");
        }
        parts.forget_dropped(&pending.dropped);
        parts.line.forget();
        *self.kept.lock().await = Some(pending.kept);
        let told = Arc::new(pending.told);
        tracing::info!(number = told.number, files = told.files, "committed");
        self.counts.committed(told.number);
        self.last.change(|last| *last = Some(Arc::clone(&told)));
        told
    }

    /// Tells the engine of a checkpoint.
    pub(super) async fn tell(&self, told: &Arc<Checkpoint>) {
        if let Some(callback) = self.callback.clone() {
            let told = Arc::clone(told);
            let called = self.parts.io().run(move || callback(&told)).await;
            if let Err(error) = called {
                tracing::error!(%error, "the engine was not told of a checkpoint");
            }
        }
    }

    fn timed_out(&self, waiting_for: Error) -> Error {
        Error::TimedOut {
            waited: self.config.checkpoint_within,
            waiting_for: Box::new(waiting_for),
        }
    }

    /// Makes all that was written before the line durable here.
    async fn sync(&self, line: &OpenLine) -> Result<()> {
        for FileRow { file, .. } in line.files() {
            match self.parts.sync(&file).await {
                // It went meanwhile.
                Err(Error::Deleted { .. }) => (),
                synced => synced?,
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;

    use crate::io::Io;
    use crate::testing::fs::SimFs;
    use crate::testing::remote::SimRemote;
    use crate::{CheckpointOptions, FileId, FileOptions, PartStore, RunOn, StoreConfig};

    use super::*;

    /// Found by seed 1381 of the simulation: nobody gave that line up, and its images were never
    /// sent.
    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_drawn_behind_a_fence_is_given_up() {
        let mut config = StoreConfig::new("/q");
        config.queue.max_disk_bytes = 512 * 1024 * 1024;
        let store = PartStore::builder(config, Arc::new(SimRemote::new()))
            .run_on(RunOn::Handle(Handle::current()))
            .file_system(Arc::new(SimFs::new()), Io::inline())
            .open()
            .await
            .expect("opens");
        let options = FileOptions { part_bytes: 4096 };
        let file = store.create(FileId(1), options).await.expect("creates");
        file.write_at(&[7; 4096], 0).await.expect("writes");
        let parts = store.parts();
        let fence = Error::Fenced {
            ours: 1,
            theirs: 2,
            owner: "another".to_owned(),
        };
        let (fenced, by) = (Arc::clone(&parts), fence.clone());
        // Between the last look at the fence and the line.
        let options = CheckpointOptions::new().meta(move || {
            fenced.fence(&by);
            Vec::new()
        });
        let made = store.checkpoint(options).within(Duration::from_secs(1));
        let error = made.await.expect_err("is given up");
        assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
        assert!(parts.line.kept().is_none(), "it keeps nothing");
    }
}
