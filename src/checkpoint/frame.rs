//! Envelopes: what every format of this layer has around its bytes.
//!
//! Owns: magic, version, the oldest release that can read it, length and checksum, and what is
//! said where one of them is not right. Does not own: what is inside.
//!
//! An object of its own (`head`, a manifest, a pin) has 24 bytes before its payload; an image in a
//! pack, whose length and checksum are in its address, has four.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::part::header::crc32c;
use crate::part::record::{decode, encode};

/// The newest version of each format that this release writes, and reads.
const VERSION: u32 = 1;
/// The oldest release that can read what this one writes.
const MIN_READER: u32 = 1;
const ENVELOPE: usize = 24;

/// What an object of its own is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Object {
    Head,
    Manifest,
    Pin,
    /// A local file: the mark of a restore.
    Mark,
}

impl Object {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Head => b"S3WBHEAD",
            Self::Manifest => b"S3WBMANI",
            Self::Pin => b"S3WBPIN\0",
            Self::Mark => b"S3WBREST",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Manifest => "manifest",
            Self::Pin => "pin",
            Self::Mark => "mark of a restore",
        }
    }

    pub(crate) fn seal<T: Serialize>(self, value: &T) -> Vec<u8> {
        let payload = encode(value);
        let mut bytes = Vec::with_capacity(ENVELOPE + payload.len());
        bytes.extend_from_slice(self.magic());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&MIN_READER.to_le_bytes());
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&crc32c(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        bytes
    }

    pub(crate) fn open<T: DeserializeOwned>(self, key: &str, bytes: &[u8]) -> Result<T> {
        let bad = |what: &str| Error::ObjectDamaged {
            key: key.to_owned(),
            message: format!("{what}: no {} that can be used", self.name()),
        };
        let word = |at: usize| -> Result<u32> {
            let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
            Ok(u32::from_le_bytes(four.ok_or_else(|| bad("too short"))?))
        };
        if bytes.get(..8) != Some(&self.magic()[..]) {
            return Err(bad("another magic"));
        }
        check_version(key, word(8)?, word(12)?)?;
        let payload = &bytes[ENVELOPE.min(bytes.len())..];
        if payload.len() != word(16)? as usize {
            return Err(bad("another length"));
        }
        if crc32c(payload) != word(20)? {
            return Err(bad("a wrong checksum"));
        }
        decode(payload).ok_or_else(|| bad("not to be decoded"))
    }
}

fn check_version(key: &str, version: u32, min_reader: u32) -> Result<()> {
    if min_reader > VERSION {
        return Err(Error::Version {
            path: key.into(),
            found: version,
            oldest: MIN_READER,
            newest: VERSION,
        });
    }
    Ok(())
}

/// What an image of this layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    Page = 1,
    Root = 2,
    Node = 3,
}

impl Leaf {
    pub(crate) fn seal<T: Serialize>(self, value: &T) -> Vec<u8> {
        let mut bytes = vec![self as u8, 1, 1, 0];
        bytes.extend_from_slice(&encode(value));
        bytes
    }

    /// Opens one whose checksum is right.
    pub(crate) fn open<T: DeserializeOwned>(self, key: &str, bytes: &[u8]) -> Result<T> {
        let bad = |what: &str| Error::ObjectDamaged {
            key: key.to_owned(),
            message: format!("{what} where a {self:?} should be"),
        };
        let [kind, version, min_reader, _, payload @ ..] = bytes else {
            return Err(bad("too few bytes"));
        };
        if *kind != self as u8 {
            return Err(bad("something else"));
        }
        check_version(key, (*version).into(), (*min_reader).into())?;
        decode(payload).ok_or_else(|| bad("something that cannot be decoded"))
    }
}

#[cfg(all(test, not(loom_model), not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn whatever_byte_is_wrong_it_is_an_error_and_a_later_version_is_named() {
        let good = Object::Head.seal(&(7_u64, "text".to_owned()));
        let read = |bytes: &[u8]| Object::Head.open::<(u64, String)>("head", bytes);
        assert_eq!(read(&good).unwrap(), (7, "text".to_owned()));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            // The version is information as long as this release may read it.
            if !(8..12).contains(&at) {
                assert!(read(&bad).is_err(), "byte {at}");
            }
            assert!(read(&good[..at]).is_err(), "cut at {at}");
        }
        let mut later = good;
        later[8] = 9;
        later[12] = 2;
        let error = read(&later).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Version {
                    found: 9,
                    newest: 1,
                    ..
                }
            ),
            "{error}"
        );
        let page = Leaf::Page.seal(&3_u32);
        assert_eq!(Leaf::Page.open::<u32>("k", &page).unwrap(), 3);
        assert!(Leaf::Root.open::<u32>("k", &page).is_err());
        let mut later = page;
        later[2] = 2;
        assert!(matches!(
            Leaf::Page.open::<u32>("k", &later),
            Err(Error::Version { .. })
        ));
    }
}
