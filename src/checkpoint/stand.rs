//! What this directory stands on: the checkpoint that its files follow, and the epoch it has.
//!
//! Owns: the record of it in the journal, and what is decided from it and from `head` about whose
//! turn it is. Does not own: the requests (`claim.rs`, `commit.rs`).
//!
//! 1. The id of a claim, and of a commit, is on record before its PUT: after a crash our own is
//!    told from somebody else's.
//! 2. A directory goes on only from the checkpoint that is the latest: everything else would undo
//!    what was committed since.
//! 3. An epoch that another has claimed since is taken back only where the caller says so.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Standing};
use crate::journal::{Append, Journal, Location, Payload, RecoveredOwner};
use crate::part::record::{decode, encode, kind};
use crate::sync::Mutex;

use super::head::{Head, Listed};
use super::manifest::Stranded;

/// The slot of the one note that its owner has.
const SLOT: u8 = 1;

/// A checkpoint that files follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Base {
    pub listed: Listed,
    /// What the journal has up to here is in it.
    pub upto: Location,
}

/// What a directory knows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stand {
    /// The checkpoint it stands on.
    pub base: Option<Base>,
    /// One that it was about to commit.
    pub attempt: Option<Base>,
    /// The epoch that it held last.
    pub held: Option<u64>,
    /// Write ids of the claims that it was about to make since it held one last, and of that: any
    /// of them may land yet.
    pub claims: Vec<u128>,
    /// What owners before may have uploaded and never committed.
    pub stranded: Vec<Stranded>,
    /// Another has claimed the prefix since.
    pub fenced: bool,
}

/// Whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    /// What it stands on, with an attempt that went through.
    pub base: Option<Base>,
    /// The epoch to claim.
    pub epoch: u64,
}

fn standing(listed: &Listed) -> Standing {
    Standing {
        number: listed.number,
        write_id: listed.write_id,
    }
}

/// Claims that are remembered: those before them have long expired.
const MAX_CLAIMS: usize = 1000;

impl Stand {
    /// It is about to make a claim.
    pub(crate) fn claims(&mut self, write_id: u128) {
        if self.claims.len() >= MAX_CLAIMS {
            self.claims.remove(0);
        }
        self.claims.push(write_id);
    }

    /// Whether it ever owned the prefix: then it opens without being told by S3 that it still
    /// does.
    pub(crate) fn has_owned(&self) -> bool {
        self.held.is_some()
    }

    /// Whether the last claim was this directory's.
    pub(crate) fn holds(&self, head: &Head) -> bool {
        self.held == Some(head.epoch) || self.claims.contains(&head.write_id)
    }

    /// Decides by what was found.
    ///
    /// # Errors
    /// [`Error::Diverged`], [`Error::TakeOverNeeded`].
    pub(crate) fn turn(&self, found: Option<&Head>, take_over: bool) -> Result<Turn> {
        let latest = found.and_then(Head::latest);
        let is = |base: &Option<Base>| base.as_ref().map(|base| &base.listed) == latest;
        let base = if is(&self.base) {
            self.base.clone()
        } else if self.attempt.is_some() && is(&self.attempt) {
            self.attempt.clone()
        } else {
            return Err(Error::Diverged {
                ours: self.base.as_ref().map(|base| standing(&base.listed)),
                theirs: latest.map(standing),
            });
        };
        let Some(head) = found else {
            return Ok(Turn { base, epoch: 1 });
        };
        if (!self.holds(head) || self.fenced) && !take_over {
            return Err(Error::TakeOverNeeded {
                held: self.held,
                found: head.epoch,
                owner: head.owner.clone(),
            });
        }
        let Some(epoch) = head.epoch.checked_add(1) else {
            return Err(Error::InvalidInput {
                what: "epoch",
                value: head.epoch.to_string(),
                limit: "the last that there is was claimed".to_owned(),
            });
        };
        Ok(Turn { base, epoch })
    }
}

/// What a directory's records say of its checkpoints and its turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct InspectedStand {
    /// The checkpoint that its files follow.
    pub checkpoint: Option<u64>,
    /// When that was drawn, in milliseconds since the Unix epoch, by its owner's clock.
    pub checkpoint_unix_ms: Option<u64>,
    /// One that it was about to commit: it may be in S3.
    pub attempt: Option<u64>,
    /// The epoch that it held last.
    pub epoch: Option<u64>,
    /// Another has claimed the prefix since.
    pub fenced: bool,
}

/// Reads the record of it, and changes nothing; `None` where it cannot be read.
pub(crate) fn inspect(owner: &RecoveredOwner) -> Option<InspectedStand> {
    let stand = read(owner)?;
    let base = stand.base.map(|base| base.listed);
    Some(InspectedStand {
        checkpoint: base.as_ref().map(|listed| listed.number),
        checkpoint_unix_ms: base.map(|listed| listed.unix_ms),
        attempt: stand.attempt.map(|attempt| attempt.listed.number),
        epoch: stand.held,
        fenced: stand.fenced,
    })
}

fn read(owner: &RecoveredOwner) -> Option<Stand> {
    let note = owner.notes.iter().find(|note| note.slot == SLOT);
    decode(note.map_or(&owner.head, |note| &note.head))
}

/// What is on record of it.
#[derive(Debug)]
pub(crate) struct Stands {
    state: Mutex<(Stand, Option<Location>)>,
}

impl Stands {
    /// Of what the journal has.
    pub(crate) fn new(found: Option<&RecoveredOwner>) -> Result<Self> {
        let Some(owner) = found else {
            return Ok(Self {
                state: Mutex::new((Stand::default(), None)),
            });
        };
        let stand = read(owner).ok_or_else(|| {
            Error::Damaged("what the directory stands on cannot be read".to_owned())
        })?;
        Ok(Self {
            state: Mutex::new((stand, Some(owner.location))),
        })
    }

    pub(crate) fn now(&self) -> Stand {
        self.state.lock().0.clone()
    }

    /// Changes it, durably.
    pub(crate) async fn change(
        &self,
        journal: &Journal,
        change: impl FnOnce(&mut Stand),
    ) -> Result<()> {
        let location = {
            let (stand, owner) = &mut *self.state.lock();
            change(stand);
            match *owner {
                Some(at) => {
                    journal.append(Append::note(kind::STAND, at, SLOT, encode(stand)).vital())?
                }
                None => {
                    let begin = Append::begin(kind::STAND, encode(stand), Payload::None);
                    let at = journal.append(begin.vital())?;
                    *owner = Some(at);
                    at
                }
            }
        };
        Ok(journal.wait_durable(location).await?)
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use super::*;

    fn listed(number: u64) -> Listed {
        Listed {
            number,
            epoch: 1,
            write_id: u128::from(number) + 100,
            unix_ms: 0,
        }
    }

    fn base(number: u64) -> Option<Base> {
        Some(Base {
            listed: listed(number),
            upto: 0,
        })
    }

    fn head(epoch: u64, upto: u64) -> Head {
        Head {
            epoch,
            owner: "them".to_owned(),
            write_id: 9,
            checkpoints: (1..=upto).map(listed).collect(),
        }
    }

    /// E2, E40: whose turn it is follows from what a directory stands on, and from who came since.
    #[test]
    fn a_directory_goes_on_only_from_the_latest_checkpoint_and_is_asked_for_what_is_anothers() {
        let stand = Stand {
            base: base(10),
            held: Some(3),
            ..Stand::default()
        };
        let turn = |stand: &Stand, head: &Head, over| stand.turn(Some(head), over);
        assert_eq!(turn(&stand, &head(3, 10), false).unwrap().epoch, 4);
        // Another has claimed it, and committed nothing.
        let error = turn(&stand, &head(4, 10), false).unwrap_err();
        assert!(
            matches!(
                error,
                Error::TakeOverNeeded {
                    held: Some(3),
                    found: 4,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(turn(&stand, &head(4, 10), true).unwrap().epoch, 5);
        // And then something: no saying so helps.
        for over in [false, true] {
            let error = turn(&stand, &head(4, 11), over).unwrap_err();
            assert!(matches!(error, Error::Diverged { .. }), "{error}");
        }
        // Its own commit, whose reply never came.
        let mut stand = stand;
        stand.attempt = base(11);
        assert_eq!(turn(&stand, &head(3, 11), false).unwrap().base, base(11));
        assert_eq!(turn(&stand, &head(3, 10), false).unwrap().base, base(10));
        // Its own claim, likewise.
        stand.claims = vec![8, 9];
        assert_eq!(turn(&stand, &head(7, 10), false).unwrap().epoch, 8);
        stand.fenced = true;
        assert!(turn(&stand, &head(3, 10), false).is_err());
        assert!(turn(&stand, &head(3, 10), true).is_ok());
        // An empty directory and an empty prefix, one of them, or neither.
        let empty = Stand::default();
        assert_eq!(empty.turn(None, false).unwrap().epoch, 1);
        assert!(matches!(
            turn(&empty, &head(1, 0), false),
            Err(Error::TakeOverNeeded { .. })
        ));
        assert!(turn(&empty, &head(1, 0), true).is_ok());
        assert!(matches!(
            turn(&empty, &head(1, 1), true),
            Err(Error::Diverged { .. })
        ));
        assert!(matches!(
            stand.turn(None, true),
            Err(Error::Diverged { theirs: None, .. })
        ));
    }
}
