//! The rows in which the server has a state: what is in it afterwards is what the effect says.

use std::sync::Arc;
use std::time::Duration;

use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use s3_writeback::remote::Class::{Conflict, Environment, Throttle, Transient};
use s3_writeback::remote::Effect::{NotApplied, Unknown};
use s3_writeback::remote::deadline::within;
use s3_writeback::remote::{Remote, S3Remote, WriteCondition};
use s3_writeback::testing::{Action, FaultRule, S3Server};
use s3_writeback::{Config, Options, Settlement, UploadQueue};

use super::put;

const ATTEMPT: Duration = Duration::from_secs(1);

fn remote_of(server: &S3Server) -> S3Remote {
    let keys = Credentials::new("key", "secret", None, None, "test");
    let config = SdkConfig::builder()
        .endpoint_url(server.endpoint())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .build();
    S3Remote::builder(&config).bucket("bucket").build().unwrap()
}

async fn server() -> S3Server {
    let builder = S3Server::builder().credentials("key", "secret");
    builder.bucket("bucket").start().await.unwrap()
}

/// The fault plan of the embedded server, row by row: a PUT that is not applied left nothing, and
/// of an unknown one both are seen.
#[tokio::test]
async fn what_an_effect_says_is_what_the_server_has() {
    let rule = FaultRule::new;
    #[rustfmt::skip]
    let rows = [
        ("throttled", FaultRule::slow_down().retry_after(7), Throttle, NotApplied, false),
        ("internal error, before", FaultRule::internal_error(), Transient, Unknown, false),
        ("commits, then 500", FaultRule::internal_error().after_effect(), Transient, Unknown, true),
        ("commits, then RST", FaultRule::reset().after_effect(), Transient, Unknown, true),
        ("RST, before", FaultRule::reset(), Transient, Unknown, false),
        ("commits, then FIN", rule(Action::Close).after_effect(), Transient, Unknown, true),
        ("FIN, before", rule(Action::Close), Transient, Unknown, false),
        ("commits, answer cut", rule(Action::CutAnswer), Transient, Unknown, true),
        ("error in a 200", rule(Action::ErrorIn200("InternalError".to_owned())), Transient, Unknown, false),
        ("commits, then hangs", FaultRule::hang().after_effect(), Transient, Unknown, true),
        ("hangs", FaultRule::hang(), Transient, Unknown, false),
        ("hangs, unread", rule(Action::HangUnread), Transient, Unknown, false),
        ("no access", FaultRule::respond(403, "AccessDenied"), Environment, NotApplied, false),
        ("storage full", FaultRule::respond(507, "XMinioStorageFull"), Environment, NotApplied, false),
        ("race", FaultRule::respond(409, "ConditionalRequestConflict"), Transient, NotApplied, false),
        ("condition", FaultRule::respond(412, "PreconditionFailed"), Conflict, NotApplied, false),
    ];
    let looked = rows.map(async |(name, rule, class, effect, there)| {
        let server = server().await;
        let remote = remote_of(&server);
        server.faults().add(rule);
        let request = remote.put(put("body", Some(WriteCondition::IfAbsent)));
        let error = within("PutObject", ATTEMPT, request).await.expect_err(name);
        assert_eq!(
            (error.class, error.effect),
            (class, effect),
            "{name}: {error}"
        );
        assert_eq!(!server.objects("bucket").is_empty(), there, "{name}");
    });
    futures::future::join_all(looked).await;
}

/// A write that landed and whose reply was lost: the second attempt meets its own object, and the
/// task is uploaded, with one object and not quarantined or told that it failed.
#[tokio::test]
async fn a_write_that_landed_is_found_out_by_the_second_attempt() {
    let rules = [
        ("then 500", FaultRule::internal_error().after_effect()),
        ("then RST", FaultRule::reset().after_effect()),
        ("then FIN", FaultRule::new(Action::Close).after_effect()),
        ("answer cut", FaultRule::new(Action::CutAnswer)),
    ];
    for (name, rule) in rules {
        let server = server().await;
        server.faults().add(rule.once());
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path());
        config.segment_bytes = 64 * 1024;
        config.retry_base = Duration::from_millis(1);
        let queue = UploadQueue::builder(config, Arc::new(remote_of(&server)));
        let queue = queue.open().await.unwrap();
        let receipt = queue.submit("k", "x", Options::default()).await.unwrap();
        let end = receipt.settled().await.unwrap();
        assert!(matches!(end, Settlement::Uploaded(_)), "{name}: {end:?}");
        let refused = queue.snapshot().remote_errors;
        let again = refused.iter().find(|error| error.status == Some(412));
        assert_eq!(
            again.map(|error| error.count),
            Some(1),
            "{name}: {refused:?}"
        );
        queue.shutdown().await.unwrap();
    }
}
