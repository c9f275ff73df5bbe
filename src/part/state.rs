//! The state word of one part: everything that is decided about it at one instant.
//!
//! Owns: the 32 bits and the moves between them, as pure functions. Does not own: who waits
//! (`wait.rs`), the bytes (`cache.rs`) or where the image is (`header.rs`).
//!
//! ```text
//! bit   0-2    3     4      5        6       7       8         9    10-11 12-14    15      16-23   24-31
//!       status dirty intent unsynced differs waiters exclusive sole usage captures closing sharers pins
//! ```
//!
//! | move | from | to | refused where |
//! |---|---|---|---|
//! | [`lock`](Word::lock) | any status | a holder more | another holder's mode conflicts, somebody waits, a count is full |
//! | [`unlock`](Word::unlock) | held | a holder less | |
//! | [`load`](Word::load) | `NotLoaded` | `Loading` | any other status |
//! | [`loaded`](Word::loaded) | `Loading` | `Loaded` | any other: the load is void |
//! | [`load_failed`](Word::load_failed) | `Loading` | `NotLoaded` | the same |
//! | [`evict`](Word::evict) | `Loaded` | `Evicting` | held, waited for, dirty, an intent open, a capture in flight |
//! | [`evicted`](Word::evicted) | `Evicting` | `NotLoaded` | any other |
//! | [`evict_undone`](Word::evict_undone) | `Evicting` | `Loaded` | any other |
//! | [`open_intent`](Word::open_intent) | `Zero`, `NotLoaded`, `Loaded` | the same, intent on | any other |
//! | [`dirtied`](Word::dirtied) | `Loaded`, intent on | dirty | any other |
//! | [`filled`](Word::filled) | `Zero`, `Loading`, intent on | `Loaded`, dirty | any other |
//! | [`captured`](Word::captured) | `Loaded`, dirty | dirty off, a capture more | not dirty, or seven in flight |
//! | [`close_intent`](Word::close_intent) | not dirty, all captures in S3 | intent off | any other |
//! | [`capture_ended`](Word::capture_ended) | a capture in flight | a capture less; failed: dirty on | |
//! | [`close`](Word::close) | any status | no new pins: somebody waits for it `Sole` | |
//! | [`cut`](Word::cut) | held `Sole` | `Zero`, nothing but the bits of who waits | not held `Sole` |
//!
//! A part is *clean* when it is not dirty, has no intent open and no capture in flight: only a
//! clean part is evicted. The count of captures is a count, and not a flag: with two in flight,
//! the end of the first says nothing about the second. (In OrioleDB it was a flag.)

use crate::sync::{AtomicU32, Ordering};

/// What a lock on a part lets its holder rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// The part stays here. Conflicts with no other mode, `Exclusive` included: holders order
    /// their own reads and writes.
    Pin,
    /// Nobody has it `Exclusive`.
    Shared,
    /// Nobody else has it `Shared` or `Exclusive`.
    Exclusive,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pin => "Pin",
            Self::Shared => "Shared",
            Self::Exclusive => "Exclusive",
        })
    }
}

/// What is asked of a word: a mode, or all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Mode(Mode),
    /// Nobody else at all: what cutting a part off needs.
    Sole,
}

impl Want {
    /// The mode; `None` of who wants all of it.
    pub(crate) const fn mode(self) -> Option<Mode> {
        match self {
            Self::Mode(mode) => Some(mode),
            Self::Sole => None,
        }
    }

    /// Whether a holder of `self` keeps `other` out.
    pub(crate) fn conflicts_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Sole, _) | (_, Self::Sole) => true,
            (Self::Mode(Mode::Pin), _) | (_, Self::Mode(Mode::Pin)) => false,
            (Self::Mode(Mode::Exclusive), _) | (_, Self::Mode(Mode::Exclusive)) => true,
            (Self::Mode(Mode::Shared), Self::Mode(Mode::Shared)) => false,
        }
    }
}

/// Where the bytes of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Status {
    /// Nowhere: it reads as zeros.
    Zero,
    /// In S3, or in an image that was here and is checked before it is used.
    NotLoaded,
    /// On their way.
    Loading,
    /// Here.
    Loaded,
    /// Here, and going.
    Evicting,
}

/// Why a word could not be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// By a holder, or by those who came first.
    Conflict,
    /// The count of holders in that mode is at its most.
    Full,
}

/// The most pins, and the most sharers, of one part.
pub const MAX_HOLDERS: u32 = 255;
/// The most captures of one part in flight.
pub(crate) const MAX_CAPTURES: u32 = 7;

const DIRTY: u32 = 1 << 3;
const INTENT: u32 = 1 << 4;
const UNSYNCED: u32 = 1 << 5;
const DIFFERS: u32 = 1 << 6;
const WAITERS: u32 = 1 << 7;
const EXCLUSIVE: u32 = 1 << 8;
const SOLE: u32 = 1 << 9;
const USAGE: u32 = 1 << 10;
const USAGE_MAX: u32 = 3;
const CAPTURE: u32 = 1 << 12;
const CLOSING: u32 = 1 << 15;
const SHARER: u32 = 1 << 16;
const PIN: u32 = 1 << 24;

/// One value of a state word.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Word(u32);

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.status())?;
        for (bit, name) in [
            (DIRTY, "dirty"),
            (INTENT, "intent"),
            (UNSYNCED, "unsynced"),
            (DIFFERS, "differs"),
            (WAITERS, "waiters"),
            (EXCLUSIVE, "exclusive"),
            (SOLE, "sole"),
            (CLOSING, "closing"),
        ] {
            if self.has(bit) {
                write!(f, " {name}")?;
            }
        }
        write!(
            f,
            " captures {} sharers {} pins {}",
            self.captures(),
            self.sharers(),
            self.pins()
        )
    }
}

impl Word {
    /// No bytes here and no image: what a part is at first.
    pub(crate) const ZERO: Self = Self(0);

    const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    const fn with(self, bit: u32, on: bool) -> Self {
        Self(if on { self.0 | bit } else { self.0 & !bit })
    }

    pub(crate) const fn status(self) -> Status {
        match self.0 & 7 {
            0 => Status::Zero,
            1 => Status::NotLoaded,
            2 => Status::Loading,
            3 => Status::Loaded,
            _ => Status::Evicting,
        }
    }

    pub(crate) const fn with_status(self, status: Status) -> Self {
        Self(self.0 & !7 | status as u32)
    }

    pub(crate) const fn is_dirty(self) -> bool {
        self.has(DIRTY)
    }

    /// An intent is open, and durable.
    pub(crate) const fn has_intent(self) -> bool {
        self.has(INTENT)
    }

    /// The bytes here are not known to survive a power cut.
    pub(crate) const fn is_unsynced(self) -> bool {
        self.has(UNSYNCED)
    }

    pub(crate) const fn with_unsynced(self, on: bool) -> Self {
        self.with(UNSYNCED, on)
    }

    /// The entry is not the one that the last committed checkpoint names.
    pub(crate) const fn differs(self) -> bool {
        self.has(DIFFERS)
    }

    pub(crate) const fn with_differs(self, on: bool) -> Self {
        self.with(DIFFERS, on)
    }

    pub(crate) const fn has_waiters(self) -> bool {
        self.has(WAITERS)
    }

    pub(crate) const fn with_waiters(self, on: bool) -> Self {
        self.with(WAITERS, on)
    }

    pub(crate) const fn captures(self) -> u32 {
        self.0 / CAPTURE % 8
    }

    pub(crate) const fn sharers(self) -> u32 {
        self.0 / SHARER % 256
    }

    pub(crate) const fn pins(self) -> u32 {
        self.0 / PIN
    }

    pub(crate) const fn is_exclusive(self) -> bool {
        self.has(EXCLUSIVE)
    }

    /// Somebody waits for it `Sole`: it is pinned no more.
    pub(crate) const fn is_closing(self) -> bool {
        self.has(CLOSING)
    }

    pub(crate) const fn close(self, on: bool) -> Self {
        self.with(CLOSING, on)
    }

    pub(crate) const fn is_sole(self) -> bool {
        self.has(SOLE)
    }

    /// Somebody holds it, in whatever mode.
    pub(crate) const fn is_held(self) -> bool {
        self.pins() + self.sharers() > 0 || self.is_exclusive() || self.is_sole()
    }

    /// Neither dirty, nor with an intent open, nor with a capture in flight.
    pub(crate) const fn is_clean(self) -> bool {
        !self.is_dirty() && !self.has_intent() && self.captures() == 0
    }

    /// Locks it; `first` says that the asker is the first of those who wait.
    #[inline]
    pub(crate) const fn lock(self, want: Want, first: bool) -> Result<Self, Blocked> {
        if self.is_sole() {
            return Err(Blocked::Conflict);
        }
        let used = if self.0 / USAGE % 4 < USAGE_MAX {
            Self(self.0 + USAGE)
        } else {
            self
        };
        match want {
            // Not behind those who wait for other modes: a pin conflicts with none of them.
            Want::Mode(Mode::Pin) if self.is_closing() && !first => Err(Blocked::Conflict),
            Want::Mode(Mode::Pin) if self.pins() == MAX_HOLDERS => Err(Blocked::Full),
            Want::Mode(Mode::Pin) => Ok(Self(used.0 + PIN)),
            _ if self.has_waiters() && !first => Err(Blocked::Conflict),
            Want::Mode(Mode::Shared) if self.is_exclusive() => Err(Blocked::Conflict),
            Want::Mode(Mode::Shared) if self.sharers() == MAX_HOLDERS => Err(Blocked::Full),
            Want::Mode(Mode::Shared) => Ok(Self(used.0 + SHARER)),
            Want::Mode(Mode::Exclusive) if self.is_exclusive() || self.sharers() > 0 => {
                Err(Blocked::Conflict)
            }
            Want::Mode(Mode::Exclusive) => Ok(used.with(EXCLUSIVE, true)),
            Want::Sole if self.is_held() => Err(Blocked::Conflict),
            Want::Sole => Ok(self.with(SOLE, true)),
        }
    }

    /// A holder goes.
    #[inline]
    pub(crate) fn unlock(self, want: Want) -> Self {
        match want {
            Want::Mode(Mode::Pin) => {
                assert!(self.pins() > 0, "unpinned, and not pinned: {self:?}");
                Self(self.0 - PIN)
            }
            Want::Mode(Mode::Shared) => {
                assert!(self.sharers() > 0, "unlocked, and not locked: {self:?}");
                Self(self.0 - SHARER)
            }
            Want::Mode(Mode::Exclusive) => {
                assert!(self.is_exclusive(), "unlocked, and not locked: {self:?}");
                self.with(EXCLUSIVE, false)
            }
            Want::Sole => {
                assert!(self.is_sole(), "given back, and not held: {self:?}");
                self.with(SOLE, false)
            }
        }
    }

    pub(crate) fn load(self) -> Option<Self> {
        (self.status() == Status::NotLoaded).then(|| self.with_status(Status::Loading))
    }

    pub(crate) fn loaded(self) -> Option<Self> {
        (self.status() == Status::Loading)
            .then(|| self.with_status(Status::Loaded).with_unsynced(true))
    }

    pub(crate) fn load_failed(self) -> Option<Self> {
        (self.status() == Status::Loading).then(|| self.with_status(Status::NotLoaded))
    }

    /// Takes its bytes out of use, if nobody has a use for them.
    pub(crate) fn evict(self) -> Option<Self> {
        let idle = !self.is_held() && !self.has_waiters();
        (self.status() == Status::Loaded && idle && self.is_clean())
            .then(|| self.with_status(Status::Evicting))
    }

    pub(crate) fn evicted(self) -> Option<Self> {
        (self.status() == Status::Evicting)
            .then(|| self.with_status(Status::NotLoaded).with_unsynced(false))
    }

    /// It stays after all.
    pub(crate) fn evict_undone(self) -> Option<Self> {
        (self.status() == Status::Evicting).then(|| self.with_status(Status::Loaded))
    }

    /// The clock's hand passes: a little less in use; `None` where it was in no use.
    pub(crate) const fn aged(self) -> Option<Self> {
        if (self.0 / USAGE).is_multiple_of(4) {
            None
        } else {
            Some(Self(self.0 - USAGE))
        }
    }

    pub(crate) fn open_intent(self) -> Option<Self> {
        matches!(
            self.status(),
            Status::Zero | Status::NotLoaded | Status::Loaded
        )
        .then(|| self.with(INTENT, true))
    }

    /// About to be written to: under the latch, before the first byte.
    pub(crate) fn dirtied(self) -> Option<Self> {
        (self.status() == Status::Loaded && self.has_intent())
            .then(|| self.with(DIRTY, true).with_unsynced(true))
    }

    /// Its first bytes were written, over zeros or in place of a load: under the latch, after the
    /// last of them. Before that nothing here can be captured, so dirty need not come first.
    pub(crate) fn filled(self) -> Option<Self> {
        let may = matches!(self.status(), Status::Zero | Status::Loading) && self.has_intent();
        may.then(|| {
            self.with_status(Status::Loaded)
                .with(DIRTY, true)
                .with_unsynced(true)
        })
    }

    /// Its bytes were copied: under the latch.
    pub(crate) fn captured(self) -> Option<Self> {
        let may = self.status() == Status::Loaded && self.is_dirty();
        (may && self.captures() < MAX_CAPTURES).then(|| Self(self.with(DIRTY, false).0 + CAPTURE))
    }

    /// Nothing was written that S3 does not have: `uploaded` captures are still counted, and all of
    /// them are in S3. With another in flight it stays open: that one may fail, and the part is
    /// dirty then.
    pub(crate) fn close_intent(self, uploaded: u32) -> Option<Self> {
        (!self.is_dirty() && self.captures() == uploaded).then(|| self.with(INTENT, false))
    }

    /// A capture came back; one that failed leaves the part dirty.
    pub(crate) fn capture_ended(self, failed: bool) -> Self {
        assert!(self.captures() > 0, "no capture is in flight: {self:?}");
        let less = Self(self.0 - CAPTURE);
        if failed { less.with(DIRTY, true) } else { less }
    }

    /// It is behind the end of its file: nothing of it is left but those who wait, who are told,
    /// and that the last checkpoint may have more.
    pub(crate) fn cut(self) -> Option<Self> {
        let left = WAITERS | CLOSING | SOLE | DIFFERS;
        self.is_sole()
            .then(|| Self(self.0 & left).with_status(Status::Zero))
    }
}

/// A state word that is shared.
#[derive(Debug)]
pub(crate) struct AtomicWord(AtomicU32);

impl AtomicWord {
    pub(crate) fn new(word: Word) -> Self {
        Self(AtomicU32::new(word.0))
    }

    #[inline]
    pub(crate) fn get(&self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    /// The last that anybody made of it: whoever moves it after this has seen all that was done
    /// before. (What [`get`](Self::get) gives may be older.)
    pub(crate) fn look(&self) -> Word {
        self.set(|word| word)
    }

    /// Moves it, or says why not. The move is applied to the value it was decided on.
    #[inline]
    pub(crate) fn change<E>(
        &self,
        decide: impl Fn(Word) -> Result<Word, E>,
    ) -> Result<(Word, Word), E> {
        let mut old = self.0.load(Ordering::Acquire);
        loop {
            let new = decide(Word(old))?;
            match self
                .0
                .compare_exchange_weak(old, new.0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok((Word(old), new)),
                Err(now) => old = now,
            }
        }
    }

    /// Makes a move where it is allowed; what the word was before and is now.
    pub(crate) fn make(&self, by: impl Fn(Word) -> Option<Word>) -> Option<(Word, Word)> {
        self.change(|word| by(word).ok_or(())).ok()
    }

    /// Makes a move that is always allowed.
    #[inline]
    pub(crate) fn set(&self, to: impl Fn(Word) -> Word) -> Word {
        match self.change::<std::convert::Infallible>(|word| Ok(to(word))) {
            Ok((_, now)) => now,
            Err(never) => match never {},
        }
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHARED: Want = Want::Mode(Mode::Shared);
    const EXCL: Want = Want::Mode(Mode::Exclusive);
    const PINNED: Want = Want::Mode(Mode::Pin);

    #[test]
    fn a_pin_conflicts_with_nothing_but_the_end_of_the_part() {
        let word = Word::ZERO.lock(EXCL, false).unwrap();
        let word = word.with_waiters(true);
        assert_eq!(word.lock(PINNED, false).unwrap().pins(), 1);
        assert_eq!(word.lock(SHARED, false), Err(Blocked::Conflict));
        let sole = Word::ZERO.lock(Want::Sole, false).unwrap();
        assert_eq!(sole.lock(PINNED, true), Err(Blocked::Conflict));
        let pinned = Word::ZERO.lock(PINNED, false).unwrap();
        assert_eq!(pinned.lock(Want::Sole, true), Err(Blocked::Conflict));
    }

    #[test]
    fn a_full_count_of_holders_says_so() {
        let mut word = Word::ZERO;
        for _ in 0..MAX_HOLDERS {
            word = word.lock(SHARED, false).unwrap();
            word = word.lock(PINNED, false).unwrap();
        }
        assert_eq!(word.lock(SHARED, false), Err(Blocked::Full));
        assert_eq!(word.lock(PINNED, false), Err(Blocked::Full));
        for _ in 0..MAX_HOLDERS {
            word = word.unlock(SHARED).unlock(PINNED);
        }
        assert!(!word.is_held());
    }

    #[test]
    fn two_captures_in_flight_are_two() {
        let word = Word::ZERO.open_intent().unwrap();
        let word = word.filled().unwrap().captured().unwrap();
        let word = word.dirtied().unwrap().captured().unwrap();
        assert_eq!(word.captures(), 2);
        let word = word.capture_ended(false);
        assert_eq!(word.evict(), None, "one is in flight");
        assert_eq!(word.close_intent(0), None, "it may fail");
        let word = word.capture_ended(false).close_intent(0).unwrap();
        assert_eq!(word.evict().unwrap().status(), Status::Evicting);
    }

    /// Every move, as a number.
    fn make(word: Word, step: u8) -> Option<Word> {
        match step {
            0 => word.lock(PINNED, false).ok(),
            1 => word.lock(SHARED, false).ok(),
            2 => word.lock(EXCL, true).ok(),
            3 => word.lock(Want::Sole, true).ok(),
            4 => (word.pins() > 0).then(|| word.unlock(PINNED)),
            5 => (word.sharers() > 0).then(|| word.unlock(SHARED)),
            6 => word.is_exclusive().then(|| word.unlock(EXCL)),
            7 => word.is_sole().then(|| word.unlock(Want::Sole)),
            8 => word.load(),
            9 => word.loaded(),
            10 => word.load_failed(),
            11 => word.evict(),
            12 => word.evicted(),
            13 => word.open_intent(),
            14 => word.dirtied(),
            15 => word.filled(),
            16 => word.captured(),
            17 => word.close_intent(0),
            18 => (word.captures() > 0).then(|| word.capture_ended(false)),
            19 => (word.captures() > 0).then(|| word.capture_ended(true)),
            20 => word.cut(),
            21 => word.aged(),
            _ => Some(word.with_waiters(step == 22)),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_order_of_moves_breaks_what_a_word_promises(
            steps in proptest::collection::vec(0_u8..24, 1..400)
        ) {
            let mut word = Word::ZERO;
            for step in steps {
                let before = word;
                if let Some(next) = make(word, step) {
                    word = next;
                }
                // A dirty part has an intent: its bytes are the truth after a crash.
                prop_assert!(!word.is_dirty() || word.has_intent(), "{word:?}");
                // What is being loaded or evicted has nothing that could be lost.
                if matches!(word.status(), Status::Loading | Status::Evicting) {
                    prop_assert!(!word.is_dirty() && word.captures() == 0, "{word:?}");
                }
                // Nobody beside a sole holder, nor beside an exclusive one but pins.
                prop_assert!(!(word.is_sole() && word.pins() + word.sharers() > 0), "{word:?}");
                prop_assert!(!(word.is_exclusive() && word.sharers() > 0), "{word:?}");
                // Bytes go only where nobody needs them.
                if before.status() == Status::Loaded && word.status() != Status::Loaded {
                    prop_assert!(before.is_sole() || (!before.is_held() && before.is_clean()));
                }
            }
        }
    }
}
