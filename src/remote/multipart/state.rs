//! What is known of one upload in parts, kept between attempts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::PartPlan;
use crate::remote::{Crc64, PartInfo};

/// The most uploads of one object that are left to be aborted; at that many no new one is begun.
pub(super) const MAX_ABANDONED: usize = 8;

/// What is known of one upload in parts. It survives a failed (or dropped) attempt; the next one
/// goes on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultipartUploadState {
    pub(super) plan: PartPlan,
    pub(super) upload_id: Option<String>,
    /// Whether the journal has the upload id.
    pub(super) journaled: bool,
    pub(super) done: BTreeMap<i32, PartInfo>,
    /// How often the server refused the parts it had acknowledged.
    pub(super) refused: u32,
    /// Uploads given up and not known to be aborted.
    pub(super) abandoned: Vec<String>,
    /// Whether an upload may have been started whose id never arrived.
    pub(super) strays: bool,
}

impl MultipartUploadState {
    /// Nothing done yet.
    #[must_use]
    pub fn new(plan: PartPlan) -> Self {
        Self {
            plan,
            upload_id: None,
            journaled: false,
            done: BTreeMap::new(),
            refused: 0,
            abandoned: Vec::new(),
            strays: false,
        }
    }

    /// How the object is cut.
    #[must_use]
    pub fn plan(&self) -> PartPlan {
        self.plan
    }

    /// The current upload, if one was started.
    #[must_use]
    pub fn upload_id(&self) -> Option<&str> {
        self.upload_id.as_deref()
    }

    /// How many parts the server has acknowledged.
    #[must_use]
    pub fn parts_done(&self) -> usize {
        self.done.len()
    }

    /// All uploads that the server may have, when no more is made of them.
    pub(crate) fn into_aborts(mut self) -> Vec<String> {
        self.restart(true);
        self.abandoned
    }

    /// Uploads given up and not known to be aborted: see [`abort`](super::abort).
    #[must_use]
    pub fn abandoned(&self) -> &[String] {
        &self.abandoned
    }

    /// Whether an upload may have been started whose id never arrived: only
    /// [`abort_all`](super::abort_all) finds it.
    #[must_use]
    pub fn may_have_strays(&self) -> bool {
        self.strays
    }

    /// The object is made: the current upload is no more. What was given up on the way is kept.
    pub(crate) fn finished(&mut self) {
        self.restart(false);
    }

    /// Starts over. An upload that the server still has is remembered, to be aborted.
    pub(super) fn restart(&mut self, exists: bool) {
        self.done.clear();
        self.journaled = false;
        if let Some(id) = self.upload_id.take()
            && exists
        {
            self.abandoned.push(id);
        }
    }

    /// The checksum of the whole object, from those of its parts; `None` unless all are done.
    pub(super) fn combined(&self) -> Option<Crc64> {
        let mut whole = 0_u64;
        for number in 1..=self.plan.parts() {
            let (_, length) = self.plan.range(number)?;
            let part = self.done.get(&number)?.checksum.0;
            whole = if number == 1 {
                part
            } else {
                let algorithm = crc_fast::CrcAlgorithm::Crc64Nvme;
                crc_fast::checksum_combine(algorithm, whole, part, length)
            };
        }
        Some(Crc64(whole))
    }
}
