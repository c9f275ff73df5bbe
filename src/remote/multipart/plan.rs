//! How an object is cut into parts: a pure function of its size.

use serde::{Deserialize, Serialize};

use crate::remote::validate::{self, MAX_PARTS, MAX_PUT_BYTES, MIN_PART_BYTES, ValidationError};

/// Part sizes are whole multiples of this, so that reads stay aligned.
const GRAIN: u64 = 1 << 20;

/// An object cut into equal parts, the last one shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartPlan {
    total: u64,
    part_size: u64,
}

impl PartPlan {
    /// Cuts `total` bytes into parts of about `wanted` bytes: larger where there would be more
    /// than 10,000 of them. An empty object is one empty part.
    ///
    /// # Errors
    /// [`ValidationError::PartSize`] where `wanted` is less than 5 MiB or more than 5 GiB;
    /// [`ValidationError::ObjectTooLarge`].
    pub fn for_size(total: u64, wanted: u64) -> Result<Self, ValidationError> {
        if !(MIN_PART_BYTES..=MAX_PUT_BYTES).contains(&wanted) {
            return Err(ValidationError::PartSize {
                bytes: wanted,
                min: MIN_PART_BYTES,
                max: MAX_PUT_BYTES,
            });
        }
        validate::object(total)?;
        let least = total.div_ceil(MAX_PARTS).next_multiple_of(GRAIN);
        Ok(Self {
            total,
            part_size: wanted.max(least),
        })
    }

    /// The size of the object in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The size of every part but the last, in bytes.
    #[must_use]
    pub fn part_size(&self) -> u64 {
        self.part_size
    }

    /// How many parts: 1 to 10,000.
    #[must_use]
    pub fn parts(&self) -> i32 {
        let parts = self.total.div_ceil(self.part_size).max(1);
        i32::try_from(parts).unwrap_or(i32::MAX)
    }

    /// First byte and length of part `number`, counted from 1; `None` where there is none.
    #[must_use]
    pub fn range(&self, number: i32) -> Option<(u64, u64)> {
        if number < 1 || number > self.parts() {
            return None;
        }
        let first = u64::try_from(number - 1)
            .ok()?
            .checked_mul(self.part_size)?;
        Some((first, self.part_size.min(self.total.checked_sub(first)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::validate::MAX_OBJECT_BYTES;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        let parts = |total, wanted| PartPlan::for_size(total, wanted).map(|plan| plan.parts());
        assert_eq!(parts(0, MIN_PART_BYTES), Ok(1));
        assert_eq!(parts(MIN_PART_BYTES, MIN_PART_BYTES), Ok(1));
        assert_eq!(parts(MIN_PART_BYTES + 1, MIN_PART_BYTES), Ok(2));
        assert_eq!(
            parts(MIN_PART_BYTES * MAX_PARTS, MIN_PART_BYTES),
            Ok(10_000)
        );
        assert!(parts(MAX_OBJECT_BYTES, MIN_PART_BYTES).is_ok_and(|parts| parts <= 10_000));
        assert!(parts(MAX_OBJECT_BYTES + 1, MIN_PART_BYTES).is_err());
        assert!(parts(1, MIN_PART_BYTES - 1).is_err());
        assert!(parts(1, MAX_PUT_BYTES + 1).is_err());
        let empty = PartPlan::for_size(0, MIN_PART_BYTES).unwrap();
        assert_eq!(
            (empty.range(0), empty.range(1), empty.range(2)),
            (None, Some((0, 0)), None)
        );
    }

    proptest! {
        #[test]
        fn parts_cover_the_object_within_the_limits(
            total in prop_oneof![0..=MAX_OBJECT_BYTES, 0_u64..1 << 28],
            wanted in MIN_PART_BYTES..=MAX_PUT_BYTES,
        ) {
            let plan = PartPlan::for_size(total, wanted).unwrap();
            prop_assert!((1..=10_000).contains(&plan.parts()));
            let mut at = 0;
            for number in 1..=plan.parts() {
                let (first, length) = plan.range(number).unwrap();
                prop_assert_eq!(first, at);
                prop_assert!(length <= MAX_PUT_BYTES);
                prop_assert!(length >= MIN_PART_BYTES || number == plan.parts());
                at += length;
            }
            prop_assert_eq!(at, total);
        }
    }
}
