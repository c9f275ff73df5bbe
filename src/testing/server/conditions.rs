//! Conditions of reads and writes, as pure functions.

use s3s::dto::ETagCondition;

use super::error::StoreError;

/// One `If-Match` or `If-None-Match`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tag {
    /// `*`.
    Any,
    /// An entity tag, without quotes.
    Is(String),
}

impl Tag {
    pub fn from_header(condition: ETagCondition) -> Self {
        match condition {
            ETagCondition::Any => Self::Any,
            ETagCondition::ETag(tag) => Self::Is(tag.value().to_owned()),
        }
    }

    fn matches(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Is(tag) => tag == etag,
        }
    }
}

/// The conditions of a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WriteConditions {
    pub if_match: Option<Tag>,
    pub if_none_match: Option<Tag>,
}

impl WriteConditions {
    /// What S3 refuses whatever the state is.
    pub fn validate(&self) -> Result<(), StoreError> {
        if matches!(self.if_none_match, Some(Tag::Is(_))) {
            return Err(StoreError::NotImplemented(
                "If-None-Match takes only * on a write",
            ));
        }
        if self.if_match.is_some() && self.if_none_match.is_some() {
            return Err(StoreError::NotImplemented(
                "If-Match and If-None-Match on one write",
            ));
        }
        Ok(())
    }

    /// Whether a write may replace what is there (`current`, its entity tag).
    pub fn check(&self, current: Option<&str>) -> Result<(), StoreError> {
        match (&self.if_match, current) {
            (Some(_), None) => return Err(StoreError::NoSuchKey),
            (Some(tag), Some(etag)) if !tag.matches(etag) => {
                return Err(StoreError::PreconditionFailed("If-Match"));
            }
            _ => {}
        }
        match (&self.if_none_match, current) {
            (Some(tag), Some(etag)) if tag.matches(etag) => {
                Err(StoreError::PreconditionFailed("If-None-Match"))
            }
            _ => Ok(()),
        }
    }
}

/// The conditions of a read. Times are seconds since the Unix epoch, as HTTP has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ReadConditions {
    pub if_match: Option<Tag>,
    pub if_none_match: Option<Tag>,
    pub if_modified_since: Option<i64>,
    pub if_unmodified_since: Option<i64>,
}

impl ReadConditions {
    /// Whether a read of this version goes on (RFC 9110, section 13.2.2).
    pub fn check(&self, etag: &str, modified: i64) -> Result<(), StoreError> {
        match &self.if_match {
            Some(tag) if !tag.matches(etag) => {
                return Err(StoreError::PreconditionFailed("If-Match"));
            }
            None if self
                .if_unmodified_since
                .is_some_and(|since| modified > since) =>
            {
                return Err(StoreError::PreconditionFailed("If-Unmodified-Since"));
            }
            _ => {}
        }
        match &self.if_none_match {
            Some(tag) if tag.matches(etag) => Err(StoreError::NotModified),
            None if self
                .if_modified_since
                .is_some_and(|since| modified <= since) =>
            {
                Err(StoreError::NotModified)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(tag: &str) -> Option<Tag> {
        Some(Tag::Is(tag.to_owned()))
    }

    fn code(result: Result<(), StoreError>) -> &'static str {
        match result {
            Ok(()) => "go",
            Err(StoreError::NoSuchKey) => "404",
            Err(StoreError::PreconditionFailed(_)) => "412",
            Err(StoreError::NotModified) => "304",
            Err(StoreError::NotImplemented(_)) => "501",
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn writes() {
        let any = || Some(Tag::Any);
        let table = [
            (None, None, None, "go"),
            (None, None, Some("a"), "go"),
            (None, any(), None, "go"),
            (None, any(), Some("a"), "412"),
            (is("a"), None, None, "404"),
            (is("a"), None, Some("a"), "go"),
            (is("a"), None, Some("b"), "412"),
            (any(), None, None, "404"),
            (any(), None, Some("b"), "go"),
        ];
        for (if_match, if_none_match, current, expected) in table {
            let conditions = WriteConditions {
                if_match,
                if_none_match,
            };
            assert_eq!(code(conditions.validate()), "go");
            assert_eq!(
                code(conditions.check(current)),
                expected,
                "{conditions:?} {current:?}"
            );
        }
        let both = WriteConditions {
            if_match: is("a"),
            if_none_match: any(),
        };
        assert_eq!(code(both.validate()), "501");
        let not = WriteConditions {
            if_match: None,
            if_none_match: is("a"),
        };
        assert_eq!(code(not.validate()), "501");
    }

    #[test]
    fn reads() {
        let none = ReadConditions::default;
        let table = [
            (none(), "go"),
            (
                ReadConditions {
                    if_match: is("e"),
                    ..none()
                },
                "go",
            ),
            (
                ReadConditions {
                    if_match: is("x"),
                    ..none()
                },
                "412",
            ),
            (
                ReadConditions {
                    if_none_match: is("e"),
                    ..none()
                },
                "304",
            ),
            (
                ReadConditions {
                    if_none_match: is("x"),
                    ..none()
                },
                "go",
            ),
            (
                ReadConditions {
                    if_modified_since: Some(99),
                    ..none()
                },
                "go",
            ),
            (
                ReadConditions {
                    if_modified_since: Some(100),
                    ..none()
                },
                "304",
            ),
            (
                ReadConditions {
                    if_unmodified_since: Some(99),
                    ..none()
                },
                "412",
            ),
            (
                ReadConditions {
                    if_unmodified_since: Some(100),
                    ..none()
                },
                "go",
            ),
            // The entity tag wins over the time.
            (
                ReadConditions {
                    if_match: is("e"),
                    if_unmodified_since: Some(99),
                    ..none()
                },
                "go",
            ),
            (
                ReadConditions {
                    if_none_match: is("x"),
                    if_modified_since: Some(100),
                    ..none()
                },
                "go",
            ),
        ];
        for (conditions, expected) in table {
            assert_eq!(code(conditions.check("e", 100)), expected, "{conditions:?}");
        }
    }
}
