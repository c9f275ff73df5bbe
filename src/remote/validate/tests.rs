use super::*;
use proptest::prelude::*;

#[test]
fn keys_have_1_to_1024_bytes_with_their_prefix() {
    assert_eq!(key("", ""), Err(ValidationError::KeyEmpty));
    assert_eq!(key("p", ""), Err(ValidationError::KeyEmpty));
    assert!(key("", &"k".repeat(1024)).is_ok());
    assert!(matches!(
        key("", &"k".repeat(1025)),
        Err(ValidationError::KeyTooLong {
            bytes: 1025,
            limit: 1024,
            ..
        })
    ));
    assert!(key("pp", &"k".repeat(1021)).is_ok());
    assert!(matches!(
        key("pp", &"k".repeat(1022)),
        Err(ValidationError::KeyTooLong { bytes: 1025, .. })
    ));
    // Bytes, not characters.
    assert!(key("", &"\u{20ac}".repeat(342)).is_err());
}

#[test]
fn keys_keep_what_s3_keeps() {
    for good in [
        "a",
        "/a",
        "a//b",
        "a/../b",
        "a/./b",
        "..a",
        "a b+c%20&\"<>'",
        "\u{1f600}",
        "a\tb",
    ] {
        assert_eq!(key("", good), Ok(()), "{good:?}");
    }
    for bad in ["..", "../a", "a/../../b", "./..", "/../a"] {
        assert!(
            matches!(key("", bad), Err(ValidationError::KeyClimbs { .. })),
            "{bad:?}"
        );
    }
    assert!(key("p", "../a").is_ok());
    for bad in ["\0", "a\u{1}", "a\u{1f}b", "a\u{fffe}"] {
        assert!(
            matches!(key("", bad), Err(ValidationError::KeyCharacter { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn prefixes_have_one_form() {
    assert_eq!(prefix("").as_deref(), Ok(""));
    assert_eq!(prefix("a/b/").as_deref(), Ok("a/b"));
    assert_eq!(prefix("a/b").as_deref(), Ok("a/b"));
    for bad in [
        "/",
        "/a",
        "a//b",
        "a//",
        "../a",
        "a/./b",
        "a\0",
        &"p".repeat(1023),
    ] {
        assert!(prefix(bad).is_err(), "{bad:?}");
    }
    assert!(prefix(&"p".repeat(1022)).is_ok());
}

#[test]
fn bucket_names() {
    for good in ["abc", "my-bucket.1", "a-b-s3alias", &"b".repeat(63)] {
        assert_eq!(bucket(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "ab",
        "Abc",
        "a_b",
        "-abc",
        "abc.",
        "a..b",
        "10.0.0.1",
        "a/b",
        &"b".repeat(64),
    ] {
        assert!(bucket(bad).is_err(), "{bad}");
    }
}

#[test]
fn sizes() {
    assert!(body(MAX_PUT_BYTES).is_ok());
    assert!(body(MAX_PUT_BYTES + 1).is_err());
    assert!(object(MAX_OBJECT_BYTES).is_ok());
    assert!(object(MAX_OBJECT_BYTES + 1).is_err());
    assert!(part(0, 1).is_err() && part(-1, 1).is_err() && part(10_001, 1).is_err());
    assert!(part(1, 1).is_ok() && part(10_000, MAX_PUT_BYTES).is_ok());
    assert!(range(0, 0).is_err() && range(u64::MAX, 1).is_err() && range(7, 1).is_ok());
}

fn with(name: &str, value: &str) -> ObjectHeaders {
    let mut headers = ObjectHeaders::default();
    headers.metadata.insert(name.to_owned(), value.to_owned());
    headers
}

#[test]
fn metadata_is_2_kib_with_the_write_id() {
    assert!(headers(&with("n", &"v".repeat(2047)), None).is_ok());
    assert!(matches!(
        headers(&with("n", &"v".repeat(2047)), Some("")),
        Err(ValidationError::MetadataTooLarge {
            bytes: 2056,
            limit: 2048
        })
    ));
    assert!(headers(&with("n", &"v".repeat(2048)), None).is_err());
}

#[test]
fn metadata_names_are_header_names_and_not_ours() {
    for bad in ["", "a b", "a:b", "\u{e9}", "write-id", "Write-ID", "a\n"] {
        let result = headers(&with(bad, "v"), None);
        assert!(
            matches!(result, Err(ValidationError::MetadataName { .. })),
            "{bad:?}"
        );
    }
    let mut twice = with("Name", "v");
    twice.metadata.insert("name".to_owned(), "w".to_owned());
    assert!(headers(&twice, None).is_err());
}

#[test]
fn values_survive_the_way() {
    for bad in ["\u{e9}", "a\nb", "a\r\nx-evil: 1", " a", "a ", "\0", "\x7f"] {
        let result = headers(&with("n", bad), None);
        assert!(
            matches!(result, Err(ValidationError::HeaderValue { .. })),
            "{bad:?}"
        );
        let set = |value: &str| Some(value.to_owned());
        let typed = ObjectHeaders {
            content_type: set(bad),
            ..ObjectHeaders::default()
        };
        assert!(headers(&typed, None).is_err(), "{bad:?}");
        assert!(
            headers(&ObjectHeaders::default(), Some(bad)).is_err(),
            "{bad:?}"
        );
    }
    assert!(headers(&with("n", "a b, c; d=\"e\""), Some("01-ab")).is_ok());
}

#[test]
fn a_kms_key_needs_kms() {
    let mut object = ObjectHeaders {
        sse_kms_key_id: Some("k".into()),
        ..Default::default()
    };
    assert!(headers(&object, None).is_err());
    object.server_side_encryption = Some("AES256".into());
    assert!(headers(&object, None).is_err());
    object.server_side_encryption = Some("aws:kms".into());
    assert!(headers(&object, None).is_ok());
    object.content_encoding = Some("gzip, aws-chunked".into());
    assert!(headers(&object, None).is_err());
}

proptest! {
    #[test]
    fn what_passes_is_within_every_limit(under in "[a-z/]{0,20}", name in "\\PC{0,400}") {
        if let Ok(under) = prefix(&under) && key(&under, &name).is_ok() {
            let full = join(&under, &name);
            prop_assert!((1..=MAX_KEY_BYTES).contains(&full.len()));
            prop_assert!(full.chars().all(in_xml));
            prop_assert!(full.strip_prefix(under.as_str()).is_some());
        }
    }

    #[test]
    fn an_error_never_carries_the_whole_value(name in "\\PC{1025,1200}") {
        let text = key("", &name).unwrap_err().to_string();
        prop_assert!(text.len() < 1024);
    }

    #[test]
    fn climbing_is_what_a_stack_of_segments_says(segments in proptest::collection::vec("(\\.\\.|\\.|a|)", 1..12)) {
        let mut depth = 0_i32;
        let mut climbed = false;
        for segment in &segments {
            match segment.as_str() {
                ".." => depth -= 1,
                "a" => depth += 1,
                _ => {}
            }
            climbed |= depth < 0;
        }
        prop_assert_eq!(climbs(&segments.join("/")), climbed);
    }
}
