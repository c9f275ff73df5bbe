//! What a journal is opened with.
//!
//! Owns: the knobs, their defaults, units and limits. Does not own: what they mean for a running
//! journal (`room.rs` for space, `recovery.rs` for damage).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::JournalError;
use super::frame;

/// What open does where a record that was acknowledged cannot be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnDamage {
    /// Keep the damaged bytes under `damage/`, report them, and recover everything else.
    #[default]
    Recover,
    /// Refuse to open, and change nothing at all.
    Refuse,
}

/// Options of a [`Journal`](super::Journal).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalOptions {
    /// The journal's directory; it is made (0700) where it is missing. No default that is useful.
    pub dir: PathBuf,
    /// Bytes of one segment file. Default 64 MiB, from 4 KiB to 1 GiB, rounded up to 4 KiB. The
    /// journal keeps at least one segment more than it writes to, so that a full disk never
    /// stops a task from ending.
    pub segment_bytes: u64,
    /// Payloads of at most this many bytes live in the record, larger ones in a file of their
    /// own. Default 64 KiB, at most 16 MiB, and at most a quarter of a segment.
    pub inline_bytes: u64,
    /// Bytes that one group commit carries at most (one record is always carried). Default 8 MiB.
    pub group_bytes: u64,
    /// Bytes of head that the record which ends a task may have: room for one is kept for every
    /// live task. Default 256, at most 4 KiB.
    pub end_head_bytes: u32,
    /// Bytes that the directory may take. Default: no limit but the disk. New tasks wait when it
    /// is reached; ending tasks, and the least the journal needs to stand (four segments), are
    /// not refused by it.
    pub disk_limit: u64,
    /// What to do about damage. Default: recover.
    pub on_damage: OnDamage,
    /// Seed of the journal's random numbers (segment ids, staging names). Default: from the
    /// operating system. Simulations set it, another one for every open.
    pub seed: Option<u64>,
    /// Count the opens in which the process dies: whoever opens says [`opened`] when it has
    /// recovered. Default: off.
    ///
    /// [`opened`]: super::Journal::opened
    pub count_opens: bool,
    /// Host name and process id to write into `LOCK`, as information for the next process that
    /// finds it taken. Default: this machine's and this process's.
    pub holder: Option<String>,
}

/// The smallest segment.
pub const MIN_SEGMENT_BYTES: u64 = 4 * 1024;
/// The largest segment.
pub const MAX_SEGMENT_BYTES: u64 = 1024 * 1024 * 1024;

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            segment_bytes: 64 * 1024 * 1024,
            inline_bytes: 64 * 1024,
            group_bytes: 8 * 1024 * 1024,
            end_head_bytes: 256,
            disk_limit: u64::MAX,
            on_damage: OnDamage::Recover,
            seed: None,
            count_opens: false,
            holder: None,
        }
    }
}

impl JournalOptions {
    /// The defaults, in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            ..Self::default()
        }
    }

    /// Checks the limits and rounds.
    ///
    /// # Errors
    /// [`JournalError::Options`], naming the option and its limit.
    pub(crate) fn checked(mut self) -> Result<Self, JournalError> {
        let refuse = |text: String| Err(JournalError::Options(text));
        if self.dir.as_os_str().is_empty() {
            return refuse("dir: is empty".into());
        }
        if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&self.segment_bytes) {
            return refuse(format!(
                "segment_bytes: {} is not in {MIN_SEGMENT_BYTES}..={MAX_SEGMENT_BYTES}",
                self.segment_bytes
            ));
        }
        if self.inline_bytes > 16 * 1024 * 1024 {
            return refuse(format!(
                "inline_bytes: {} is over 16 MiB",
                self.inline_bytes
            ));
        }
        if self.end_head_bytes > 4096 {
            return refuse(format!(
                "end_head_bytes: {} is over 4096",
                self.end_head_bytes
            ));
        }
        self.segment_bytes = self.segment_bytes.next_multiple_of(4096);
        self.group_bytes = self.group_bytes.clamp(4096, 64 * 1024 * 1024);
        // An End must fit many times into the smallest segment.
        let most = (self.segment_bytes / 8).saturating_sub(frame::HEADER_BYTES as u64);
        self.end_head_bytes = self
            .end_head_bytes
            .min(u32::try_from(most).unwrap_or(u32::MAX));
        Ok(self)
    }

    /// Payloads of up to this many bytes live in the record.
    pub(crate) fn inline_limit(&self) -> u64 {
        self.inline_bytes.min(self.segment_bytes / 4)
    }
}
