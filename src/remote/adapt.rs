//! What a server needs otherwise than S3, as it is told.
//!
//! Owns: the names. When another way is tried is the production remote's (`s3/learnt.rs`).

use serde::{Deserialize, Serialize};

/// One thing that servers do in two ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adaptation {
    /// Nothing has shown yet which way this server has.
    #[default]
    Untried,
    /// As S3.
    AsS3,
    /// The other way: it was refused as S3 has it, and worked so.
    Adapted,
}

/// What a remote does for its server, as learnt since it was made. Not kept over a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Adaptations {
    /// Entity tags in conditions. S3 takes them in quotes; adapted, they are sent bare.
    pub entity_tags: Adaptation,
    /// Checksums of objects and parts. S3 takes a header; adapted, none is sent, and the bytes are
    /// covered by the request's signature alone (unless that was turned off).
    pub checksum_headers: Adaptation,
    /// Checksums of uploads in parts, said when one is begun and completed. Adapted, the server
    /// is told none, also not of the parts.
    pub multipart_checksums: Adaptation,
    /// Whether checksums go behind the body (`aws-chunked`). Never: they are known before.
    pub trailers: bool,
}
