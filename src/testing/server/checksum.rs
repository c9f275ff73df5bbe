//! Checksums of objects and parts.
//!
//! Owns: the algorithms, and what a client may claim. s3s hands checksums over unverified, so
//! every one that is sent is verified here, before anything is stored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use s3s::crypto::{self, Checksum as _};
use serde::{Deserialize, Serialize};

use super::error::StoreError;

/// An algorithm that S3 knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub const ALL: [Self; 5] = [
        Self::Crc32,
        Self::Crc32c,
        Self::Crc64Nvme,
        Self::Sha1,
        Self::Sha256,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|a| a.name().eq_ignore_ascii_case(name))
    }

    /// The header or trailer that carries it.
    pub fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Whether parts can be summed up as one object (all CRCs can).
    pub fn can_be_full_object(self) -> bool {
        !matches!(self, Self::Sha1 | Self::Sha256)
    }

    pub fn hasher(self) -> Hasher {
        match self {
            Self::Crc32 => Hasher::Crc32(crypto::Crc32::new()),
            Self::Crc32c => Hasher::Crc32c(crypto::Crc32c::new()),
            Self::Crc64Nvme => Hasher::Crc64Nvme(crypto::Crc64Nvme::new()),
            Self::Sha1 => Hasher::Sha1(crypto::Sha1::new()),
            Self::Sha256 => Hasher::Sha256(crypto::Sha256::new()),
        }
    }

    /// The checksum of `bytes`, as it travels.
    pub fn of(self, bytes: &[u8]) -> String {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// A running checksum.
pub(super) enum Hasher {
    Crc32(crypto::Crc32),
    Crc32c(crypto::Crc32c),
    Crc64Nvme(crypto::Crc64Nvme),
    Sha1(crypto::Sha1),
    Sha256(crypto::Sha256),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32(h) => h.update(bytes),
            Self::Crc32c(h) => h.update(bytes),
            Self::Crc64Nvme(h) => h.update(bytes),
            Self::Sha1(h) => h.update(bytes),
            Self::Sha256(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> String {
        match self {
            Self::Crc32(h) => BASE64.encode(h.finalize()),
            Self::Crc32c(h) => BASE64.encode(h.finalize()),
            Self::Crc64Nvme(h) => BASE64.encode(h.finalize()),
            Self::Sha1(h) => BASE64.encode(h.finalize()),
            Self::Sha256(h) => BASE64.encode(h.finalize()),
        }
    }
}

/// A checksum that is kept with an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub algorithm: Algorithm,
    /// Base64; with `-N` behind it where it is a checksum of N checksums.
    pub value: String,
    /// Whether it is of the object's bytes, not of its parts' checksums.
    pub full_object: bool,
}

/// What a client claims about a body.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims {
    /// `Content-MD5`.
    pub md5: Option<String>,
    /// Every checksum sent, in a header or a trailer.
    pub checksums: Vec<(Algorithm, String)>,
}

impl Claims {
    /// Verifies the body; what to keep: the checksum that was sent, or the default one.
    ///
    /// `md5` is the body's.
    pub fn verify(
        &self,
        body: &[u8],
        md5: [u8; 16],
        default: Algorithm,
    ) -> Result<Stored, StoreError> {
        if let Some(claim) = &self.md5 {
            let claim = BASE64
                .decode(claim)
                .map_err(|_| StoreError::InvalidDigest("Content-MD5"))?;
            if claim.len() != 16 {
                return Err(StoreError::InvalidDigest("Content-MD5"));
            }
            if claim != md5 {
                return Err(StoreError::BadDigest("Content-MD5"));
            }
        }
        let mut checksums = self.checksums.iter();
        let claim = checksums.next();
        if checksums.any(|other| Some(other) != claim) {
            return Err(StoreError::InvalidRequest(
                "more than one x-amz-checksum- header".into(),
            ));
        }
        let Some((algorithm, claim)) = claim else {
            let value = default.of(body);
            return Ok(Stored {
                algorithm: default,
                value,
                full_object: true,
            });
        };
        check_form(*algorithm, claim)?;
        let value = algorithm.of(body);
        if value != *claim {
            return Err(StoreError::BadDigest(algorithm.name()));
        }
        Ok(Stored {
            algorithm: *algorithm,
            value,
            full_object: true,
        })
    }
}

/// Whether a claim can be a checksum at all.
fn check_form(algorithm: Algorithm, claim: &str) -> Result<(), StoreError> {
    match BASE64.decode(claim) {
        Ok(bytes) if bytes.len() == algorithm.len() => Ok(()),
        _ => Err(StoreError::InvalidRequest(format!(
            "value for {} is invalid",
            algorithm.header()
        ))),
    }
}

/// The checksum of the checksums of parts.
pub(super) fn composite<'a>(
    algorithm: Algorithm,
    parts: impl ExactSizeIterator<Item = &'a str>,
) -> String {
    let count = parts.len();
    let mut hasher = algorithm.hasher();
    for part in parts {
        hasher.update(&BASE64.decode(part).unwrap_or_default());
    }
    format!("{}-{count}", hasher.finish())
}

/// The MD5 of `bytes`.
pub(super) fn md5(bytes: &[u8]) -> [u8; 16] {
    crypto::Md5::checksum(bytes)
}

/// The entity tag of a multipart object, without quotes.
pub(super) fn multipart_etag<'a>(parts: impl ExactSizeIterator<Item = &'a [u8; 16]>) -> String {
    let count = parts.len();
    let mut hasher = crypto::Md5::new();
    for part in parts {
        hasher.update(part);
    }
    format!("{}-{count}", hex(&hasher.finalize()))
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            for digit in [byte >> 4, byte & 15] {
                out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogues: of the ASCII digits 1 to 9.
    #[test]
    fn known_values() {
        let table = [
            (Algorithm::Crc32, "cbf43926"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (
                Algorithm::Sha256,
                "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
            ),
        ];
        for (algorithm, expected) in table {
            let value = algorithm.of(b"123456789");
            assert_eq!(
                hex(&BASE64.decode(&value).unwrap()),
                expected,
                "{}",
                algorithm.name()
            );
            assert_eq!(check_form(algorithm, &value).ok(), Some(()));
        }
        assert_eq!(hex(&md5(b"123456789")), "25f9e794323b453885f5181f1b624d0b");
    }

    #[test]
    fn claims_are_verified() {
        let verify = |md5_claim: Option<&str>, checksums: &[(Algorithm, &str)]| {
            let claims = Claims {
                md5: md5_claim.map(str::to_owned),
                checksums: checksums
                    .iter()
                    .map(|(a, v)| (*a, (*v).to_owned()))
                    .collect(),
            };
            claims.verify(b"hello", md5(b"hello"), Algorithm::Crc64Nvme)
        };
        assert_eq!(verify(None, &[]).unwrap().algorithm, Algorithm::Crc64Nvme);
        let good = Algorithm::Crc32.of(b"hello");
        let bad = Algorithm::Crc32.of(b"hellp");
        assert_eq!(
            verify(None, &[(Algorithm::Crc32, &good)]).unwrap().value,
            good
        );
        // The same value in a header and a trailer is one claim.
        assert!(
            verify(
                None,
                &[(Algorithm::Crc32, &good), (Algorithm::Crc32, &good)]
            )
            .is_ok()
        );
        assert!(matches!(
            verify(None, &[(Algorithm::Crc32, &bad)]),
            Err(StoreError::BadDigest("CRC32"))
        ));
        assert!(matches!(
            verify(None, &[(Algorithm::Crc32, &good), (Algorithm::Crc32, &bad)]),
            Err(StoreError::InvalidRequest(_))
        ));
        assert!(matches!(
            verify(None, &[(Algorithm::Sha1, &good)]),
            Err(StoreError::InvalidRequest(_))
        ));
        let good = BASE64.encode(md5(b"hello"));
        let bad = BASE64.encode(md5(b"hellp"));
        assert!(verify(Some(&good), &[]).is_ok());
        assert!(matches!(
            verify(Some(&bad), &[]),
            Err(StoreError::BadDigest("Content-MD5"))
        ));
        assert!(matches!(
            verify(Some("x"), &[]),
            Err(StoreError::InvalidDigest(_))
        ));
        assert!(matches!(
            verify(Some("AAAA"), &[]),
            Err(StoreError::InvalidDigest(_))
        ));
    }

    #[test]
    fn a_multipart_etag_is_the_md5_of_md5s() {
        let parts = [md5(b"a"), md5(b"b")];
        let joined = [parts[0], parts[1]].concat();
        assert_eq!(
            multipart_etag(parts.iter()),
            format!("{}-2", hex(&md5(&joined)))
        );
    }
}
