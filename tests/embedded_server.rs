//! Whether the embedded S3 server is one: through the real SDK, and over raw HTTP where the SDK
//! will not misbehave enough.

#[path = "embedded_server/auth.rs"]
mod auth;
#[path = "embedded_server/directory.rs"]
mod directory;
#[path = "embedded_server/faults.rs"]
mod faults;
#[path = "embedded_server/integrity.rs"]
mod integrity;
#[path = "embedded_server/listing.rs"]
mod listing;
#[path = "embedded_server/multipart.rs"]
mod multipart;
#[path = "embedded_server/objects.rs"]
mod objects;
#[path = "embedded_server/races.rs"]
mod races;
#[path = "embedded_server/support.rs"]
mod support;
