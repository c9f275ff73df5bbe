//! Sending again, the other way, what a server refused as S3 has it: once, then it is known.
//!
//! Owns: which requests are sent again, and what that teaches. Which answers may be about that is
//! [`super::learnt`]'s.

use crate::remote::adapt::{Adaptation, Adaptations};
use crate::remote::{Class, ETag, RemoteError};

use super::S3Remote;
use super::builder::PayloadSigning;
use super::learnt::{Learnt, refuses_checksums, refuses_tag};
use super::wire::sent_tag;

/// What was learnt of the server; clones of a remote share it.
#[derive(Debug, Default)]
pub(super) struct Server {
    tags: Learnt,
    /// Checksums of objects and parts.
    checksums: Learnt,
    /// Checksums of uploads in parts.
    sums: Learnt,
}

/// How one request is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Way {
    /// Entity tags without quotes.
    bare: bool,
    /// No checksum with it.
    pub withheld: bool,
}

impl Way {
    pub fn tag(self, etag: &ETag) -> String {
        sent_tag(etag, self.bare)
    }

    /// What is said only where checksums are.
    pub fn summed<T>(self, value: T) -> Option<T> {
        (!self.withheld).then_some(value)
    }
}

/// Which request it is, as far as that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// A whole object.
    Object,
    /// A part.
    Part,
    /// The beginning or the completion of an upload in parts.
    Upload,
    /// A delete.
    Nothing,
}

impl Server {
    pub fn adaptations(&self) -> Adaptations {
        Adaptations {
            entity_tags: self.tags.now(),
            checksum_headers: self.checksums.now(),
            multipart_checksums: self.sums.now(),
            trailers: false,
        }
    }

    fn way(&self, of: Of) -> Way {
        let (checksums, sums) = (self.checksums.is_adapted(), self.sums.is_adapted());
        Way {
            bare: self.tags.is_adapted(),
            // Of one upload all requests say the same.
            withheld: checksums || (sums && matches!(of, Of::Part | Of::Upload)),
        }
    }

    fn checksums_of(&self, of: Of) -> Option<&Learnt> {
        match of {
            Of::Object | Of::Part => Some(&self.checksums),
            Of::Upload => Some(&self.sums),
            Of::Nothing => None,
        }
    }
}

impl S3Remote {
    /// Whether the bytes of a body are signed: where nothing else covers them, they are.
    pub(super) fn signing(&self, way: Way) -> PayloadSigning {
        match self.signing {
            PayloadSigning::OverPlainHttp if way.withheld => PayloadSigning::Always,
            signing => signing,
        }
    }

    /// Sends a request as this server wants it. While that is not known, what is refused in a way
    /// that may be about it is sent once more, the other way. `tag` is its `If-Match`, on `key`.
    pub(super) async fn adapting<T, F>(
        &self,
        of: Of,
        key: &str,
        tag: Option<&ETag>,
        once: impl Fn(Way) -> F,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        let server = &self.server;
        let mut way = server.way(of);
        let mut result = once(way).await;
        let checksums = server.checksums_of(of);
        if let (Some(checksums), Err(first)) = (checksums, &result)
            // Another request may have found out while this one was on its way.
            && checksums.now() != Adaptation::AsS3
            && !way.withheld
            && refuses_checksums(first)
        {
            let other = Way {
                withheld: true,
                ..way
            };
            let second = once(other).await;
            match &second {
                // It is about something else.
                Err(error) if refuses_checksums(error) => checksums.is_as_s3(),
                // It looked at more of the request than before.
                Err(error) if error.class != Class::Conflict => result = second,
                _ => {
                    checksums.adapt("no checksum headers", &self.bucket);
                    (way, result) = (other, second);
                }
            }
        }
        if let (Some(tag), Err(first)) = (tag, &result)
            && server.tags.now() != Adaptation::AsS3
            && !way.bare
            && tag.0 != "*"
            && refuses_tag(first)
            // Whether the condition is true is asked first: where it is not, that was the answer.
            && self.is_now(key, tag).await
        {
            let other = Way { bare: true, ..way };
            result = once(other).await;
            match &result {
                Ok(_) => server
                    .tags
                    .adapt("entity tags without quotes", &self.bucket),
                Err(error) if refuses_tag(error) => server.tags.is_as_s3(),
                Err(_) => {}
            }
            way = other;
        }
        if result.is_ok() {
            if let Some(checksums) = checksums.filter(|_| !way.withheld) {
                checksums.is_as_s3();
            }
            if tag.is_some() && !way.bare {
                server.tags.is_as_s3();
            }
        }
        result
    }

    /// Whether the key's object has this entity tag; no, where nobody can say.
    async fn is_now(&self, key: &str, tag: &ETag) -> bool {
        match self.head_object(key.to_owned()).await {
            Ok(Some(found)) => found.etag == *tag,
            _ => false,
        }
    }
}
