use super::wire::{sent_tag, url_decoded};
use super::*;
use bytes::Bytes;
use proptest::prelude::*;

#[test]
fn entity_tags_are_kept_bare_and_sent_quoted() {
    for sent in ["\"abc\"", "abc", "W/\"abc\""] {
        assert_eq!(unquoted(sent), ETag("abc".to_owned()));
    }
    let tag = ETag("abc".to_owned());
    assert_eq!(sent_tag(&tag, false), "\"abc\"");
    assert_eq!(sent_tag(&tag, true), "abc");
}

#[test]
fn checksums_go_there_and_back() {
    // The check value of CRC-64/NVME.
    let checksum = Crc64::of(b"123456789");
    assert_eq!(checksum, Crc64(0xae8b_1486_0a79_9888));
    assert_eq!(decoded(Some(&encoded(checksum))), Some(checksum));
    assert_eq!(decoded(Some("AAAAAAAAAAA=-3")), None);
    assert_eq!(decoded(Some("AAAA")), None);
    assert_eq!(decoded(None), None);
}

#[test]
fn sizes_of_ranges() {
    assert_eq!(total_of(Some("bytes 0-9/100")), Some(100));
    assert_eq!(total_of(Some("bytes 0-9/*")), None);
    let request = Request::new(Operation::GetObject);
    let body = Bytes::from_static(b"0123456789");
    let cut = |range, size, partial| of_range(request, body.clone(), range, size, partial);
    // The whole object came where a part was asked for.
    assert_eq!(cut((2, 3), 10, false).unwrap(), Bytes::from_static(b"234"));
    assert_eq!(cut((8, 100), 10, false).unwrap(), Bytes::from_static(b"89"));
    assert_eq!(cut((10, 1), 10, false).unwrap_err().status, Some(416));
    // A part came: it must be the part.
    assert!(cut((0, 10), 100, true).is_ok());
    assert!(cut((0, 11), 100, true).is_err());
    assert!(cut((95, 100), 100, true).is_err());
}

proptest! {
    #[test]
    fn url_encoding_of_listings_is_undone(key in "\\PC{0,40}") {
        let mut sent = String::new();
        for byte in key.bytes() {
            match byte {
                b'a'..=b'z' | b'/' => sent.push(char::from(byte)),
                b' ' => sent.push('+'),
                _ => sent.push_str(&format!("%{byte:02X}")),
            }
        }
        prop_assert_eq!(url_decoded(&sent), Some(key));
    }

    #[test]
    fn what_is_not_url_encoding_is_refused_or_read(text in "[%a-f0-9+]{0,20}") {
        let _ = url_decoded(&text);
    }
}
