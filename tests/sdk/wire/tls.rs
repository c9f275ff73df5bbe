//! TLS that is not to be believed: a wrong name, an old certificate, a stranger.

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use s3_writeback::remote::s3::ConnectError;
use s3_writeback::remote::{Class, Effect, Remote, S3Remote};
use s3_writeback::testing::{Operation, ProxyCertificate, S3Server, WireProxy};
use s3_writeback::{Options, UploadQueue};

use super::stage::{BUCKET, DEADLINE, PREFIX, Stage, aws, bytes, config, put_of, submit, uploaded};

async fn stage(certificate: ProxyCertificate) -> Stage {
    let server = S3Server::builder().bucket(BUCKET).start().await.unwrap();
    let proxy = WireProxy::to(server.address()).tls(certificate);
    let proxy = proxy.start().await.unwrap();
    Stage { server, proxy }
}

/// A remote that trusts who signed this proxy's certificate.
fn trusting(proxy: &WireProxy) -> S3Remote {
    let authority = proxy.authority_pem().unwrap();
    let store = TrustStore::empty().with_pem_certificate(authority.as_bytes());
    let context = TlsContext::builder()
        .with_trust_store(store)
        .build()
        .unwrap();
    let client = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .build_https();
    let config = aws(&proxy.endpoint(), Some(client));
    let remote = S3Remote::builder(&config).bucket(BUCKET).prefix(PREFIX);
    remote.build().unwrap()
}

/// What is refused is refused before a byte of the request, and it is the environment's fault: no
/// attempt is charged to the object.
#[tokio::test]
async fn d15_a_certificate_that_is_not_believed_applies_nothing() {
    let body = bytes(200_000, 1);
    for (certificate, says) in [
        (ProxyCertificate::WrongName, "not valid for name"),
        (ProxyCertificate::Expired, "expired"),
    ] {
        let stage = stage(certificate).await;
        let remote = trusting(&stage.proxy);
        let error = remote.put(put_of("k", &body, None)).await.unwrap_err();
        assert_eq!(
            (error.effect, error.class),
            (Effect::NotApplied, Class::Environment),
            "{certificate:?}: {error}"
        );
        assert!(error.message.contains(says), "{certificate:?}: {error}");
        let refused = remote.connect(Duration::from_secs(10)).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Failed { .. }), "{refused}");
        assert_eq!(stage.server.counters().total_requests(), 0);
        assert_eq!(stage.proxy.counters().requests, 0);
    }
    // A good certificate, whose signer nobody knows.
    let stage = stage(ProxyCertificate::Good).await;
    let error = stage
        .remote()
        .put(put_of("k", &body, None))
        .await
        .unwrap_err();
    assert_eq!(
        (error.effect, error.class),
        (Effect::NotApplied, Class::Environment)
    );
    let remote = trusting(&stage.proxy);
    remote.connect(Duration::from_secs(10)).await.unwrap();
    remote.put(put_of("k", &body, None)).await.unwrap();
    assert_eq!(stage.object("k"), Some(body));
}

/// A queue before a server with an old certificate parks and keeps what it has; it goes up once,
/// when the certificate is renewed on the same port.
#[tokio::test]
async fn d15_uploads_wait_for_a_certificate_to_be_renewed() {
    let server = S3Server::builder().bucket(BUCKET).start().await.unwrap();
    let old = WireProxy::to(server.address()).tls(ProxyCertificate::Expired);
    let old = old.start().await.unwrap();
    let address = old.address();
    let dir = tempfile::tempdir().unwrap();
    let body = bytes(200_000, 2);
    let open = async |proxy: &WireProxy| {
        let remote = Arc::new(trusting(proxy));
        let mut config = config(dir.path());
        config.shutdown_within = Duration::from_millis(500);
        UploadQueue::builder(config, remote).open().await.unwrap()
    };
    let queue = open(&old).await;
    let receipt = submit(&queue, "k", &body, Options::default()).await;
    receipt.durable().await.unwrap();
    let refused = |seen: &s3_writeback::testing::WireCounters| seen.failed_handshakes >= 1;
    old.wait_for(refused, DEADLINE).await.unwrap();
    let report = queue.shutdown().await.unwrap();
    assert_eq!((report.deferred, report.quarantined), (1, 0), "{report:?}");
    old.stop().await;
    let new = WireProxy::to(server.address()).tls(ProxyCertificate::Good);
    let new = new.listen(address).start().await.unwrap();
    let queue = open(&new).await;
    let owed = queue.pending();
    uploaded(&owed.first().unwrap().receipt, "renewed").await;
    let stage = Stage { server, proxy: new };
    assert_eq!(stage.effects(Operation::PutObject, "k"), 1);
    assert_eq!(stage.object("k"), Some(body));
    queue.shutdown().await.unwrap();
}
