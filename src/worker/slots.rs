//! The remote as the checkpoint layer has it: every request in a slot.
//!
//! Owns: nothing but the way there: a request becomes a call of the queue, a worker makes it, and
//! shutdown cuts it off like any other.

use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::oneshot;

use crate::queue::gate::Way;
use crate::queue::{Call, Queue, Totals};
use crate::remote::{
    BucketFacts, CompleteMultipart, CreateMultipart, ETag, GetRequest, GetResponse, ListPage,
    MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteFuture, UploadPart,
};

use super::attempt::cut_off;

/// A remote behind the slots of a queue.
#[derive(Clone)]
pub(crate) struct Slots {
    pub queue: Arc<Queue>,
    pub remote: Arc<dyn Remote>,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slots({})", self.remote.describe())
    }
}

impl Slots {
    fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        make: impl FnOnce(Arc<dyn Remote>) -> RemoteFuture<'static, T> + Send + 'static,
    ) -> RemoteFuture<'_, T> {
        let way = Way::of(operation);
        async move {
            let (mut told, hears) = oneshot::channel();
            let (remote, queue) = (Arc::clone(&self.remote), Arc::clone(&self.queue));
            let asker = Arc::new(());
            let call = async move {
                Totals::add(&queue.totals.requests, 1);
                let outcome = tokio::select! {
                    biased;
                    outcome = make(remote) => outcome,
                    // Whoever asked has gone, and the slot is somebody else's.
                    () = told.closed() => return,
                };
                let _ = told.send(outcome);
            };
            self.queue.submit_call(Call {
                way,
                made: call.boxed(),
                asker: Arc::downgrade(&asker),
            });
            let heard = hears.await;
            drop(asker);
            match heard {
                Ok(outcome) => outcome,
                Err(_) => Err(cut_off(operation)),
            }
        }
        .boxed()
    }
}

impl Remote for Slots {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        self.call("PutObject", |remote| {
            async move { remote.put(request).await }.boxed()
        })
    }

    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        self.call("GetObject", |remote| {
            async move { remote.get(request).await }.boxed()
        })
    }

    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        let key = key.to_owned();
        self.call("HeadObject", |remote| {
            async move { remote.head(&key).await }.boxed()
        })
    }

    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        let key = key.to_owned();
        self.call("DeleteObject", |remote| {
            async move { remote.delete(&key, if_match).await }.boxed()
        })
    }

    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        let prefix = prefix.to_owned();
        self.call("ListObjectsV2", |remote| {
            async move { remote.list(&prefix, from).await }.boxed()
        })
    }

    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        self.call("CreateMultipartUpload", |remote| {
            async move { remote.create_multipart(request).await }.boxed()
        })
    }

    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        self.call("UploadPart", |remote| {
            async move { remote.upload_part(request).await }.boxed()
        })
    }

    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        self.call("CompleteMultipartUpload", |remote| {
            async move { remote.complete_multipart(request).await }.boxed()
        })
    }

    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let (key, upload_id) = (key.to_owned(), upload_id.to_owned());
        self.call("AbortMultipartUpload", |remote| {
            async move { remote.abort_multipart(&key, &upload_id).await }.boxed()
        })
    }

    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let key = key.to_owned();
        self.call("ListMultipartUploads", |remote| {
            async move { remote.list_multipart(&key).await }.boxed()
        })
    }

    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let prefix = prefix.to_owned();
        self.call("ListMultipartUploads", |remote| {
            async move { remote.list_multipart_under(&prefix).await }.boxed()
        })
    }

    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        self.call("GetBucketVersioning", |remote| {
            async move { remote.bucket().await }.boxed()
        })
    }

    fn refresh_credentials(&self) {
        self.remote.refresh_credentials();
    }

    fn prefix(&self) -> &str {
        self.remote.prefix()
    }

    fn describe(&self) -> String {
        self.remote.describe()
    }
}
