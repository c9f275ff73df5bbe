//! A cache of credentials that can be thrown away.
//!
//! Owns: when credentials are asked for again before they expire. Does not own: how they are got
//! (the provider in the `SdkConfig`), nor their expiry (the SDK's own cache, inside).
//!
//! Many requests fail at once when credentials expire, and each asks for new ones: only the first
//! of them throws the cache away, until what it led to has been resolved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::config::IdentityCache;
use aws_smithy_runtime_api::client::identity::{
    IdentityFuture, ResolveCachedIdentity, SharedIdentityCache, SharedIdentityResolver,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

use crate::sync::Mutex;

#[derive(Debug)]
struct Generation {
    cache: SharedIdentityCache,
    /// Whether it has given out an identity.
    used: AtomicBool,
}

impl Generation {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            cache: IdentityCache::lazy().build(),
            used: AtomicBool::new(false),
        })
    }
}

/// The cache of one client.
#[derive(Debug)]
pub(super) struct RefreshableCache {
    current: Mutex<Arc<Generation>>,
}

impl RefreshableCache {
    pub(super) fn new() -> Self {
        Self {
            current: Mutex::new(Generation::new()),
        }
    }

    /// The next request resolves credentials anew.
    pub(super) fn refresh(&self) {
        let mut current = self.current.lock();
        if current.used.load(Ordering::Acquire) {
            *current = Generation::new();
        }
    }
}

/// The same cache, held by the client and by the remote.
#[derive(Debug)]
pub(super) struct SharedCache(pub(super) Arc<RefreshableCache>);

impl ResolveCachedIdentity for SharedCache {
    fn resolve_cached_identity<'a>(
        &'a self,
        resolver: SharedIdentityResolver,
        components: &'a RuntimeComponents,
        config: &'a ConfigBag,
    ) -> IdentityFuture<'a> {
        let generation = Arc::clone(&self.0.current.lock());
        IdentityFuture::new(async move {
            let identity = generation
                .cache
                .resolve_cached_identity(resolver, components, config)
                .await?;
            generation.used.store(true, Ordering::Release);
            Ok(identity)
        })
    }
}
