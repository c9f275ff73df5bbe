//! Whether the embedded S3 server is one: through the real SDK, and over raw HTTP where the SDK
//! will not misbehave enough.

mod auth;
mod directory;
mod faults;
mod integrity;
mod listing;
mod multipart;
mod objects;
mod races;
mod support;
