//! Multipart uploads.

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use s3_writeback::testing::S3Server;
use s3s::crypto::{Checksum as _, Crc64Nvme, Md5, Sha256};

use super::support::{BUCKET, KEY, SECRET, client, hex, is, refusal, server};

async fn small_parts() -> S3Server {
    S3Server::builder()
        .credentials(KEY, SECRET)
        .bucket(BUCKET)
        .min_part_bytes(4)
        .start()
        .await
        .unwrap()
}

pub async fn create(client: &Client, key: &str) -> String {
    let create = client
        .create_multipart_upload()
        .bucket(BUCKET)
        .key(key)
        .metadata("write-id", "w");
    let created = create
        .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
        .send()
        .await
        .unwrap();
    created.upload_id().unwrap().to_owned()
}

pub async fn part(
    client: &Client,
    key: &str,
    id: &str,
    number: i32,
    body: &'static str,
) -> CompletedPart {
    let part = client
        .upload_part()
        .bucket(BUCKET)
        .key(key)
        .upload_id(id)
        .part_number(number)
        .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
        .body(ByteStream::from_static(body.as_bytes()))
        .send()
        .await
        .unwrap();
    assert_eq!(
        part.checksum_crc64_nvme().unwrap(),
        BASE64.encode(Crc64Nvme::checksum(body.as_bytes()))
    );
    CompletedPart::builder()
        .part_number(number)
        .set_e_tag(part.e_tag().map(str::to_owned))
        .set_checksum_crc64_nvme(part.checksum_crc64_nvme().map(str::to_owned))
        .build()
}

pub fn of(parts: &[CompletedPart]) -> CompletedMultipartUpload {
    CompletedMultipartUpload::builder()
        .set_parts(Some(parts.to_vec()))
        .build()
}

#[tokio::test]
async fn an_object_is_made_of_parts() {
    let server = small_parts().await;
    let client = client(&server);
    let id = create(&client, "k").await;
    // Out of order, and one of them twice.
    let three = part(&client, "k", &id, 3, "c").await;
    part(&client, "k", &id, 1, "wrong").await;
    let one = part(&client, "k", &id, 1, "aaaa").await;
    let two = part(&client, "k", &id, 2, "bbbbb").await;
    let list = client.list_parts().bucket(BUCKET).key("k").upload_id(&id);
    let listed = list.clone().max_parts(2).send().await.unwrap();
    let sizes: Vec<_> = listed
        .parts()
        .iter()
        .map(|p| (p.part_number(), p.size()))
        .collect();
    assert_eq!(sizes, [(Some(1), Some(4)), (Some(2), Some(5))]);
    assert_eq!(listed.is_truncated(), Some(true));
    let marker = listed.next_part_number_marker().unwrap();
    let listed = list.part_number_marker(marker).send().await.unwrap();
    assert_eq!(listed.parts().len(), 1);
    assert_eq!(listed.is_truncated(), Some(false));
    let uploads = client
        .list_multipart_uploads()
        .bucket(BUCKET)
        .prefix("k")
        .send()
        .await
        .unwrap();
    assert_eq!(uploads.uploads()[0].upload_id(), Some(id.as_str()));
    assert!(server.object(BUCKET, "k").is_none());

    let body = b"aaaabbbbbc";
    let checksum = BASE64.encode(Crc64Nvme::checksum(body));
    let complete = || {
        client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("k")
            .upload_id(&id)
            .checksum_type(ChecksumType::FullObject)
            .multipart_upload(of(&[one.clone(), two.clone(), three.clone()]))
    };
    let wrong = BASE64.encode(Crc64Nvme::checksum(b"other"));
    let refused = complete().checksum_crc64_nvme(wrong).send().await;
    assert_eq!(refusal(refused), is(400, "BadDigest"));
    let refused = complete().mpu_object_size(11).send().await;
    assert_eq!(refusal(refused), is(400, "InvalidRequest"));
    let done = complete()
        .checksum_crc64_nvme(&checksum)
        .mpu_object_size(10)
        .send()
        .await
        .unwrap();
    let md5s: Vec<u8> = [&b"aaaa"[..], b"bbbbb", b"c"]
        .into_iter()
        .flat_map(Md5::checksum)
        .collect();
    let etag = format!("\"{}-3\"", hex(&Md5::checksum(&md5s)));
    assert_eq!(done.e_tag(), Some(etag.as_str()));
    assert_eq!(done.checksum_crc64_nvme(), Some(checksum.as_str()));
    assert_eq!(server.object(BUCKET, "k").unwrap(), &body[..]);
    assert!(server.uploads(BUCKET).is_empty());
    let head = client.head_object().bucket(BUCKET).key("k");
    let head = head
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .unwrap();
    assert_eq!(head.e_tag(), Some(etag.as_str()));
    assert_eq!(head.checksum_crc64_nvme(), Some(checksum.as_str()));
    assert_eq!(head.checksum_type(), Some(&ChecksumType::FullObject));
    assert_eq!(head.metadata().unwrap()["write-id"], "w");
    // The upload is gone, for everyone.
    assert_eq!(refusal(complete().send().await), is(404, "NoSuchUpload"));
}

#[tokio::test]
async fn composite_checksums() {
    let server = small_parts().await;
    let client = client(&server);
    let create = client.create_multipart_upload().bucket(BUCKET).key("k");
    let id = create
        .checksum_algorithm(ChecksumAlgorithm::Sha256)
        .send()
        .await
        .unwrap();
    let id = id.upload_id().unwrap();
    let mut parts = Vec::new();
    for (number, body) in [(1, "aaaa"), (2, "b")] {
        let upload = client.upload_part().bucket(BUCKET).key("k").upload_id(id);
        let part = upload
            .part_number(number)
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .body(ByteStream::from_static(body.as_bytes()))
            .send()
            .await
            .unwrap();
        parts.push(
            CompletedPart::builder()
                .part_number(number)
                .set_e_tag(part.e_tag().map(str::to_owned))
                .set_checksum_sha256(part.checksum_sha256().map(str::to_owned))
                .build(),
        );
    }
    let complete = client
        .complete_multipart_upload()
        .bucket(BUCKET)
        .key("k")
        .upload_id(id);
    let done = complete.multipart_upload(of(&parts)).send().await.unwrap();
    let joined = [Sha256::checksum(b"aaaa"), Sha256::checksum(b"b")].concat();
    let expected = format!("{}-2", BASE64.encode(Sha256::checksum(&joined)));
    assert_eq!(done.checksum_sha256(), Some(expected.as_str()));
    let get = client
        .get_object()
        .bucket(BUCKET)
        .key("k")
        .checksum_mode(ChecksumMode::Enabled);
    let get = get.send().await.unwrap();
    assert_eq!(get.checksum_type(), Some(&ChecksumType::Composite));
    assert_eq!(get.body.collect().await.unwrap().to_vec(), b"aaaab");
}

#[tokio::test]
async fn what_is_refused_leaves_the_upload_as_it_was() {
    let server = small_parts().await;
    let client = client(&server);
    let id = create(&client, "k").await;
    let one = part(&client, "k", &id, 1, "aaaa").await;
    let two = part(&client, "k", &id, 2, "bb").await;
    let three = part(&client, "k", &id, 3, "cccc").await;
    let complete = |parts: &[CompletedPart]| {
        client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("k")
            .upload_id(&id)
            .multipart_upload(of(parts))
    };
    let wrong = CompletedPart::builder()
        .part_number(1)
        .e_tag("\"00\"")
        .build();
    assert_eq!(
        refusal(complete(&[wrong]).send().await),
        is(400, "InvalidPart")
    );
    let missing = CompletedPart::builder()
        .part_number(9)
        .e_tag("\"00\"")
        .build();
    assert_eq!(
        refusal(complete(&[one.clone(), missing]).send().await),
        is(400, "InvalidPart")
    );
    assert_eq!(
        refusal(complete(&[two.clone(), one.clone()]).send().await),
        is(400, "InvalidPartOrder")
    );
    assert_eq!(
        refusal(
            complete(&[one.clone(), two.clone(), three.clone()])
                .send()
                .await
        ),
        is(400, "EntityTooSmall")
    );
    // Conditions.
    server.insert(BUCKET, "k", "there".into()).unwrap();
    let parts = [one.clone(), two.clone()];
    assert_eq!(
        refusal(complete(&parts).if_none_match("*").send().await),
        is(412, "PreconditionFailed")
    );
    assert_eq!(
        refusal(complete(&parts).if_match("\"00\"").send().await),
        is(412, "PreconditionFailed")
    );
    assert_eq!(server.object(BUCKET, "k").unwrap(), "there");
    server.remove(BUCKET, "k").unwrap();
    assert_eq!(
        refusal(complete(&parts).if_match("\"00\"").send().await),
        is(404, "NoSuchKey")
    );
    assert!(server.objects(BUCKET).is_empty());
    complete(&parts).if_none_match("*").send().await.unwrap();
    assert_eq!(server.object(BUCKET, "k").unwrap(), "aaaabb");
}

#[tokio::test]
async fn an_unknown_upload_and_one_given_up() {
    let server = server().await;
    let client = client(&server);
    let id = create(&client, "k").await;
    let one = part(&client, "k", &id, 1, "aaaa").await;
    let abort = |id: &str| {
        client
            .abort_multipart_upload()
            .bucket(BUCKET)
            .key("k")
            .upload_id(id)
            .send()
    };
    assert_eq!(refusal(abort("unknown").await), is(404, "NoSuchUpload"));
    abort(&id).await.unwrap();
    assert_eq!(refusal(abort(&id).await), is(404, "NoSuchUpload"));
    let upload = client
        .upload_part()
        .bucket(BUCKET)
        .key("k")
        .upload_id(&id)
        .part_number(1);
    let upload = upload.body(ByteStream::from_static(b"x")).send().await;
    assert_eq!(refusal(upload), is(404, "NoSuchUpload"));
    let complete = client
        .complete_multipart_upload()
        .bucket(BUCKET)
        .key("k")
        .upload_id(&id);
    let complete = complete.multipart_upload(of(&[one])).send().await;
    assert_eq!(refusal(complete), is(404, "NoSuchUpload"));
    let list = client
        .list_parts()
        .bucket(BUCKET)
        .key("k")
        .upload_id(&id)
        .send()
        .await;
    assert_eq!(refusal(list), is(404, "NoSuchUpload"));
    assert!(server.uploads(BUCKET).is_empty());
    // Another key's upload is not this key's.
    let other = create(&client, "other").await;
    assert_eq!(refusal(abort(&other).await), is(404, "NoSuchUpload"));
}

#[tokio::test]
async fn five_mebibytes_are_the_least_by_default() {
    let server = server().await;
    let client = client(&server);
    let id = create(&client, "k").await;
    let least = 5 << 20;
    let mut parts = Vec::new();
    for (number, size) in [(1, least - 1), (2, least), (3, 1)] {
        let upload = client.upload_part().bucket(BUCKET).key("k").upload_id(&id);
        let body = ByteStream::from(vec![b'x'; size]);
        let part = upload.part_number(number).body(body).send().await.unwrap();
        let completed = CompletedPart::builder().part_number(number);
        parts.push(completed.set_e_tag(part.e_tag().map(str::to_owned)).build());
    }
    let complete = |parts: &[CompletedPart]| {
        let complete = client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("k")
            .upload_id(&id);
        complete.multipart_upload(of(parts)).send()
    };
    assert_eq!(refusal(complete(&parts).await), is(400, "EntityTooSmall"));
    complete(&parts[1..]).await.unwrap();
    assert_eq!(server.objects(BUCKET)[0].size, least as u64 + 1);
}
