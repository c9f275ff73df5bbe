//! What is in a directory is there after a restart.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use aws_sdk_s3::primitives::ByteStream;
use s3_writeback::testing::S3Server;

use super::listing::odd_keys;
use super::multipart::{create, of, part};
use super::support::{BUCKET, KEY, SECRET, at_once, client, is, refusal};

async fn open(dir: &std::path::Path) -> S3Server {
    S3Server::builder()
        .credentials(KEY, SECRET)
        .bucket(BUCKET)
        .dir(dir)
        .start()
        .await
        .unwrap()
}

/// All files of a directory.
fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = open(dir.path()).await;
    let sdk = client(&server);
    for key in odd_keys() {
        for body in ["an earlier version", key.as_str()] {
            let body = ByteStream::from(body.as_bytes().to_vec());
            let put = sdk
                .put_object()
                .bucket(BUCKET)
                .key(&key)
                .metadata("write-id", "w");
            put.body(body).send().await.unwrap();
        }
    }
    sdk.put_object()
        .bucket(BUCKET)
        .key("gone")
        .send()
        .await
        .unwrap();
    sdk.delete_object()
        .bucket(BUCKET)
        .key("gone")
        .send()
        .await
        .unwrap();
    let id = create(&sdk, "multi").await;
    part(&sdk, "multi", &id, 1, "an earlier version").await;
    let one = part(&sdk, "multi", &id, 1, "aaaa").await;
    let upload = dir
        .path()
        .join("buckets")
        .join(BUCKET)
        .join("uploads")
        .join(&id);
    assert_eq!(
        files(&upload).len(),
        2,
        "the upload itself and one version of its part"
    );
    let given_up = create(&sdk, "given up").await;
    part(&sdk, "given up", &given_up, 1, "x").await;
    let abort = sdk.abort_multipart_upload().bucket(BUCKET).key("given up");
    abort.upload_id(given_up).send().await.unwrap();
    let before = server.objects(BUCKET);
    server.stop().await;
    drop(server);

    let server = open(dir.path()).await;
    let sdk = client(&server);
    assert_eq!(server.objects(BUCKET), before);
    assert_eq!(server.uploads(BUCKET), [("multi".to_owned(), id.clone())]);
    for key in odd_keys() {
        let get = sdk
            .get_object()
            .bucket(BUCKET)
            .key(&key)
            .send()
            .await
            .unwrap();
        assert_eq!(get.metadata().unwrap()["write-id"], "w");
        assert_eq!(get.body.collect().await.unwrap().to_vec(), key.as_bytes());
    }
    let complete = sdk
        .complete_multipart_upload()
        .bucket(BUCKET)
        .key("multi")
        .upload_id(&id);
    complete.multipart_upload(of(&[one])).send().await.unwrap();
    assert_eq!(server.object(BUCKET, "multi").unwrap(), "aaaa");
    // One file an object, one for the bucket, one for the lock: nothing is left behind.
    assert_eq!(files(dir.path()).len(), odd_keys().len() + 1 + 2);
    drop(server);
    let server = open(dir.path()).await;
    assert!(server.uploads(BUCKET).is_empty());
    assert_eq!(server.object(BUCKET, "multi").unwrap(), "aaaa");
}

#[tokio::test]
async fn a_refused_write_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let server = open(dir.path()).await;
    let sdk = client(&server);
    server.insert(BUCKET, "k", "there".into()).unwrap();
    let before = files(dir.path()).len();
    // Refused early, and (most of them) at the last moment.
    let put = |key: &str| {
        let body = ByteStream::from(vec![b'x'; 100_000]);
        sdk.put_object()
            .bucket(BUCKET)
            .key(key)
            .if_none_match("*")
            .body(body)
            .send()
    };
    assert_eq!(refusal(put("k").await), is(412, "PreconditionFailed"));
    let results = at_once(&server, (0..16).map(|_| put("new")).collect()).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(files(dir.path()).len(), before + 1);
}

#[tokio::test]
async fn a_directory_has_one_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = open(dir.path()).await;
    let second = S3Server::builder().dir(dir.path()).start().await;
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    drop(server);
    open(dir.path()).await;
}

#[tokio::test]
async fn what_a_killed_write_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).await);
    std::fs::write(dir.path().join("tmp/17"), "half an object").unwrap();
    let upload = dir
        .path()
        .join("buckets")
        .join(BUCKET)
        .join("uploads/unfinished");
    std::fs::create_dir_all(&upload).unwrap();
    let server = open(dir.path()).await;
    assert!(server.objects(BUCKET).is_empty());
    assert!(server.uploads(BUCKET).is_empty());
    assert!(!upload.exists());
    assert!(!dir.path().join("tmp/17").exists());
}

#[tokio::test]
async fn names_of_buckets_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["..", "../x", "a/b", ""] {
        let server = S3Server::builder()
            .dir(dir.path())
            .bucket(name)
            .start()
            .await;
        assert_eq!(
            server.unwrap_err().kind(),
            std::io::ErrorKind::InvalidInput,
            "{name}"
        );
    }
}

/// The example, as a process: killed, it loses nothing that it acknowledged.
#[tokio::test]
async fn the_example_says_where_it_listens_and_survives_a_kill() {
    // Built by `cargo test` beside this test: target/debug/deps/.. /examples.
    let test = std::env::current_exe().unwrap();
    let example = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/s3_server");
    if !example.exists() {
        eprintln!(
            "skipped: {} is not built (cargo build --example s3_server)",
            example.display()
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spawn = || {
        let mut child = Command::new(&example)
            .args([
                "--listen",
                "127.0.0.1:0",
                "--access-key",
                KEY,
                "--secret-key",
                SECRET,
            ])
            .args(["--bucket", BUCKET, "--dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let endpoint = line
            .strip_prefix("listening on http://")
            .unwrap()
            .to_owned();
        (child, endpoint, lines)
    };
    let (mut child, endpoint, _) = spawn();
    let raw = super::support::Raw::new("PUT", "/bucket/k", b"acknowledged");
    let sent = |endpoint: String, raw: super::support::Raw| async move {
        raw.send_to(endpoint.parse().unwrap()).await
    };
    assert_eq!(sent(endpoint, raw).await.status, 200);
    child.kill().unwrap();
    child.wait().unwrap();
    let (mut child, endpoint, mut lines) = spawn();
    let raw = super::support::Raw::new("GET", "/bucket/k", b"");
    assert_eq!(sent(endpoint, raw).await.body, "acknowledged");
    // SIGTERM ends it cleanly, and it has said nothing else.
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(child.wait().unwrap().success());
    assert!(lines.next().is_none());
}
