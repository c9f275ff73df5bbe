//! The HTTP client: the SDK's own, with a shorter life for idle connections.
//!
//! A load balancer drops a connection that was idle for a minute or so, and a request sent on it
//! just then is lost with an unknown outcome. The SDK's client keeps idle connections for 90 s;
//! this one for 25 s. All else is as the SDK sets it up: rustls, proxies from the environment.

use std::sync::OnceLock;
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::{SharedHttpClient, SharedHttpConnector, http_client_fn};

/// How long an idle connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(25);

/// How many idle connections are kept.
const POOL_MAX_IDLE: usize = 256;

/// A client with a pool of its own, made at the first request: all requests of one remote have
/// the same settings, so there is one connector.
pub(super) fn client() -> SharedHttpClient {
    let connector = OnceLock::new();
    http_client_fn(move |settings, components| {
        let connector: &SharedHttpConnector = connector.get_or_init(|| {
            let mut builder = Connector::builder()
                .connector_settings(settings.clone())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(POOL_MAX_IDLE)
                .proxy_config(ProxyConfig::from_env());
            builder.set_sleep_impl(components.sleep_impl());
            let builder = builder.tls_provider(Provider::Rustls(CryptoMode::AwsLc));
            SharedHttpConnector::new(builder.build())
        });
        connector.clone()
    })
}
