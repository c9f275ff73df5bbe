//! Bad input gets a typed error that names the value and the limit, before anything is changed.
//! (A missing bucket, wrong credentials and a wrong region: `remote_sdk.rs`.)

use std::path::Path;
use std::sync::Arc;

use crate::support::{Rig, assert_empty, both, paused, settled, submit};
use s3_writeback::config::ConfigErrors;
use s3_writeback::error::{Advice, Kind};
use s3_writeback::remote::validate::ValidationError;
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::{Condition, Config, Error, KeyPolicy, Lane, Options, UploadQueue};

/// Each knob, one step below and above what it may be; all at once, and nothing is made.
#[test]
fn every_knob_out_of_range_is_named_with_its_limits() {
    paused(async {
        let numbers = [
            "max_tasks",
            "max_bytes",
            "max_disk_bytes",
            "checkpoint_tasks",
            "checkpoint_bytes",
            "max_waiters",
            "max_loads",
            "workers",
            "prefix_share_percent",
            "segment_bytes",
            "multipart_threshold",
            "part_bytes",
            "part_concurrency",
            "min_rate_bytes",
            "crash_limit",
            "io_threads",
            "op_deadline_ms",
            "attempt_floor_ms",
            "retry_base_ms",
            "retry_cap_ms",
            "signature_lifetime_ms",
            "stall_after_ms",
        ];
        let zeros: String = numbers.map(|knob| format!(",\"{knob}\":0")).concat();
        let config: Config = serde_json::from_str(&format!("{{\"dir\":\"/q\"{zeros}}}")).unwrap();
        let rig = Rig {
            config,
            ..Rig::new()
        };
        let Err(Error::Config(ConfigErrors(faults))) = rig.try_open().await else {
            panic!("opened")
        };
        assert_eq!(faults.len(), numbers.len(), "{faults:#?}");
        for (fault, knob) in faults.iter().zip(numbers) {
            let name = knob.trim_end_matches("_ms");
            assert!(fault.starts_with(&format!("{name} = 0")), "{fault}");
            assert!(fault.contains(" is not within "), "{fault}");
        }
        assert!(rig.fs.names(Path::new("/")).is_empty(), "nothing was made");

        let mut config = Config::new("/q");
        config.inline_bytes = 2 << 20;
        config.max_tasks = u64::MAX;
        config.shutdown_within = std::time::Duration::MAX;
        let faults = config.validate().unwrap_err().0;
        assert_eq!(faults.len(), 3, "{faults:?}");
    });
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for dir in [file.join("queue"), file.clone(), "/proc/queue".into()] {
        let remote = Arc::new(SimRemote::new());
        let refused = UploadQueue::builder(Config::new(&dir), remote)
            .open()
            .wait();
        let Err(error) = refused else {
            panic!("{} was opened", dir.display())
        };
        assert!(matches!(error, Error::Directory { .. }), "{error:?}");
        assert_eq!(error.kind(), Kind::Local);
        assert!(
            error.to_string().contains(&dir.display().to_string()),
            "{error}"
        );
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
}

#[test]
fn an_unknown_version_is_named_with_those_that_are_read() {
    both(async |rig| {
        let queue = rig.open().await;
        settled(&submit(&queue, "k", "x").await).await;
        queue.shutdown().await.unwrap();
        drop(queue);
        let path = Path::new("/q/IDENTITY");
        let mut bytes = rig.fs.peek(path).unwrap();
        (bytes[8], bytes[12]) = (9, 8);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..60]) as u32;
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        rig.fs.poke(path, bytes);
        let before = rig.fs.names(Path::new("/q/segments"));
        let error = rig.try_open().await.unwrap_err();
        let Error::Version {
            path: named,
            found,
            newest,
            ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((named.as_path(), *found, *newest), (path, 9, 1));
        assert_eq!(rig.fs.names(Path::new("/q/segments")), before);
    });
}

#[test]
fn what_s3_or_the_queue_must_refuse_is_refused_at_submit() {
    both(async |rig| {
        let queue = rig.open().await;
        let before = queue.snapshot().journal.next_location;
        for key in ["", "a\u{0}b", "../up", &"k".repeat(1025)] {
            for result in [
                queue.submit(key, "x", Options::default()).await,
                queue.delete(key, Options::default()).await,
            ] {
                assert!(
                    matches!(result, Err(Error::Refused(_))),
                    "{key:?}: {result:?}"
                );
            }
            let read = queue.get(key, None).await;
            assert!(matches!(read, Err(Error::Refused(_))), "{key:?}: {read:?}");
        }
        let long = queue
            .submit("k".repeat(1025), "x", Options::default())
            .await
            .unwrap_err();
        assert!(
            matches!(
                &long,
                Error::Refused(ValidationError::KeyTooLong {
                    bytes: 1025,
                    limit: 1024,
                    ..
                })
            ),
            "{long:?}"
        );
        assert_eq!(
            (long.kind(), long.advice()),
            (Kind::InvalidInput, Advice::Stop)
        );

        let metadata = |name: &str, value: String| {
            let mut options = Options::default();
            options.headers.metadata.insert(name.to_owned(), value);
            options
        };
        let bad = [
            metadata("large", "v".repeat(3000)),
            metadata("sp ace", "v".to_owned()),
            metadata("write-id", "ours".to_owned()),
        ];
        for options in bad {
            let result = queue.submit("k", "x", options).await;
            assert!(matches!(result, Err(Error::Refused(_))), "{result:?}");
        }
        let contradictions = [
            Options {
                lane: Some(Lane::Load),
                ..Options::default()
            },
            Options {
                tag: "t".repeat(257),
                ..Options::default()
            },
            Options {
                coalesce: true,
                policy: KeyPolicy::WriteOnce,
                ..Options::default()
            },
        ];
        for options in contradictions {
            let result = queue.submit("k", "x", options).await;
            assert!(
                matches!(result, Err(Error::InvalidInput { .. })),
                "{result:?}"
            );
        }
        let if_absent = Options {
            condition: Some(Condition::IfAbsent { same_is_ok: false }),
            ..Options::default()
        };
        let result = queue.delete("k", if_absent).await;
        assert!(
            matches!(result, Err(Error::InvalidInput { .. })),
            "{result:?}"
        );

        let elsewhere = Rig::new();
        let other = elsewhere.open().await;
        let theirs = submit(&other, "k", "x").await;
        let after = Options {
            after: vec![theirs],
            ..Options::default()
        };
        let result = queue.submit("k", "x", after).await;
        assert!(
            matches!(result, Err(Error::ForeignReceipt(_))),
            "{result:?}"
        );
        other.shutdown().await.unwrap();

        assert_eq!(
            queue.snapshot().journal.next_location,
            before,
            "nothing was written"
        );
        assert_empty(&queue);
        queue.shutdown().await.unwrap();
    });
}
