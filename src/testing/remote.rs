//! A simulated S3: exact conditions, scripted faults, no sockets.
//!
//! Owns: objects in memory and what happens to requests on their way. Does not own: time (a delay
//! is tokio's, which tests pause) or randomness (scripts are explicit).
//!
//! 1. A request that succeeds takes effect at one instant, under one lock.
//! 2. A fault is used up by the request that meets it, unless it stands.
//! 3. Late effects are carried out when the test says so, and their conditions are evaluated
//!    then.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::remote::{
    BucketFacts, CompleteMultipart, Crc64, CreateMultipart, ETag, GetRequest, GetResponse,
    ListPage, MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteError, RemoteFuture,
    UploadPart, WriteCondition,
};

/// Which operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the S3 operation of that name")]
pub enum Call {
    Put,
    Get,
    Head,
    Delete,
    List,
    CreateMultipart,
    UploadPart,
    CompleteMultipart,
    AbortMultipart,
    ListMultipart,
}

/// What happens to a request.
#[derive(Clone)]
pub enum Fault {
    /// It is refused with this error, and has no effect.
    Error(RemoteError),
    /// The same, after this long.
    ErrorAfter(Duration, RemoteError),
    /// It never gets an answer and has no effect.
    Hang,
    /// It takes effect, and its answer is lost with this error.
    LostReply(RemoteError),
    /// It takes effect, and never gets an answer.
    HangAfter,
    /// It never gets an answer, and takes effect when [`SimRemote::land_late`] is called.
    Late,
    /// It is answered after this long.
    Delay(Duration),
    /// The code that makes it panics.
    Panic(&'static str),
    /// It waits until the test opens the gate, then goes through as if nothing had been.
    Gate(Arc<Notify>),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error(_) => "Error",
            Self::ErrorAfter(..) => "ErrorAfter",
            Self::Hang => "Hang",
            Self::LostReply(_) => "LostReply",
            Self::HangAfter => "HangAfter",
            Self::Late => "Late",
            Self::Delay(_) => "Delay",
            Self::Panic(_) => "Panic",
            Self::Gate(_) => "Gate",
        })
    }
}

/// A fault, and which requests meet it.
#[derive(Debug, Clone)]
struct Rule {
    call: Option<Call>,
    key: Option<String>,
    /// The key is what keys begin with.
    under: bool,
    fault: Fault,
    /// `None` for ever.
    times: Option<usize>,
}

/// A request that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which operation.
    pub call: Call,
    /// On which key.
    pub key: String,
    /// On what condition.
    pub condition: Option<WriteCondition>,
}

#[derive(Debug, Clone)]
struct Object {
    body: Bytes,
    info: ObjectInfo,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    rules: Vec<Rule>,
    late: Vec<Effect>,
    seen: Vec<Seen>,
    in_flight: usize,
    most_in_flight: usize,
    next: u64,
    ignore_conditions: bool,
    bucket: BucketFacts,
    /// A PUT with these bytes in it is refused for good.
    poison: Option<Bytes>,
    /// Seconds that are added to the server's clock.
    skew: u64,
}

#[derive(Debug)]
struct Upload {
    key: String,
    write_id: Option<String>,
    parts: BTreeMap<i32, (Bytes, PartInfo)>,
}

#[derive(Debug, Clone)]
enum Effect {
    Put(Box<PutRequest>),
    Delete(String, Option<ETag>),
}

/// The most requests that are remembered.
const MAX_SEEN: usize = 1_000_000;

/// A simulated S3. Clones are of the same bucket.
#[derive(Debug, Clone, Default)]
pub struct SimRemote {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// A request in progress; counts itself out.
struct InFlight(SimRemote);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state.lock().in_flight -= 1;
        self.0.changed.notify_waiters();
    }
}

impl SimRemote {
    /// An empty bucket.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next request of this kind (`None`: any) on this key (`None`: any) meets `fault`.
    pub fn once(&self, call: Option<Call>, key: Option<&str>, fault: Fault) {
        self.times(1, call, key, fault);
    }

    /// The next `n` requests meet `fault`.
    pub fn times(&self, n: usize, call: Option<Call>, key: Option<&str>, fault: Fault) {
        let key = key.map(str::to_owned);
        self.state.lock().rules.push(Rule {
            call,
            key,
            under: false,
            fault,
            times: Some(n),
        });
    }

    /// Every request from now on meets `fault`.
    pub fn always(&self, call: Option<Call>, key: Option<&str>, fault: Fault) {
        let key = key.map(str::to_owned);
        self.state.lock().rules.push(Rule {
            call,
            key,
            under: false,
            fault,
            times: None,
        });
    }

    /// All is well again; hanging requests stay lost.
    pub fn heal(&self) {
        self.state.lock().rules.clear();
    }

    /// The next `n` requests of this kind on keys that begin with `prefix` meet `fault`; `None`:
    /// all of them.
    pub fn under(&self, n: Option<usize>, call: Option<Call>, prefix: &str, fault: Fault) {
        self.state.lock().rules.push(Rule {
            call,
            key: Some(prefix.to_owned()),
            under: true,
            fault,
            times: n,
        });
    }

    /// Conditions are accepted and not looked at, as some servers do.
    pub fn ignore_conditions(&self, ignore: bool) {
        self.state.lock().ignore_conditions = ignore;
    }

    /// What is so of the bucket as a whole.
    pub fn set_bucket(&self, facts: BucketFacts) {
        self.state.lock().bucket = facts;
    }

    /// From here on a PUT whose body has these bytes in it is refused for good; `None`: none is.
    pub fn refuse_bodies_with(&self, bytes: Option<Bytes>) {
        self.state.lock().poison = bytes;
    }

    /// Moves the server's clock on: what is written from here on has later dates.
    pub fn advance_clock(&self, by: Duration) {
        self.state.lock().skew += by.as_secs();
    }

    /// Carries out the effects of requests that met [`Fault::Late`]; returns which succeeded.
    pub fn land_late(&self) -> Vec<bool> {
        let mut state = self.state.lock();
        let late = std::mem::take(&mut state.late);
        let landed = late
            .into_iter()
            .map(|effect| match effect {
                Effect::Put(request) => state.put(&request).is_ok(),
                Effect::Delete(key, if_match) => state.delete(&key, if_match.as_ref()).is_ok(),
            })
            .collect();
        drop(state);
        self.changed.notify_waiters();
        landed
    }

    /// The bytes of an object.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.state
            .lock()
            .objects
            .get(key)
            .map(|object| object.body.clone())
    }

    /// Bytes of all objects.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        let state = self.state.lock();
        state.objects.values().map(|object| object.body.len()).sum()
    }

    /// All keys.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    /// Removes an object behind everyone's back.
    pub fn remove(&self, key: &str) {
        self.state.lock().objects.remove(key);
    }

    /// Puts an object there that is nobody's.
    pub fn plant(&self, key: &str, body: impl Into<Bytes>) {
        let body = body.into();
        let request = PutRequest {
            key: key.to_owned(),
            checksum: Crc64::of(&body),
            body,
            condition: None,
            headers: crate::remote::ObjectHeaders::default(),
            write_id: None,
        };
        let _planted = self.state.lock().put(&request);
    }

    /// Every request that was seen, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }

    /// How many requests of this kind were seen on keys that start with `prefix`.
    #[must_use]
    pub fn count(&self, call: Call, prefix: &str) -> usize {
        let state = self.state.lock();
        state
            .seen
            .iter()
            .filter(|s| s.call == call && s.key.starts_with(prefix))
            .count()
    }

    /// Requests in flight now, and the most there were at one time.
    #[must_use]
    pub fn in_flight(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.in_flight, state.most_in_flight)
    }

    /// Unfinished multipart uploads.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.state.lock().uploads.len()
    }

    /// Waits until `ready` holds; it is looked at after each request. The caller bounds the wait.
    pub async fn wait_for(&self, ready: impl Fn(&Self) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if ready(self) {
                return;
            }
            changed.await;
        }
    }

    /// Lets a request meet the faults on its way, then carries it out.
    async fn carry<T>(
        &self,
        call: Call,
        key: &str,
        condition: Option<WriteCondition>,
        late: Option<Effect>,
        effect: impl FnOnce(&mut State) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let fault = {
            let mut state = self.state.lock();
            state.in_flight += 1;
            state.most_in_flight = state.most_in_flight.max(state.in_flight);
            if state.seen.len() < MAX_SEEN {
                state.seen.push(Seen {
                    call,
                    key: key.to_owned(),
                    condition,
                });
            }
            state.meet(call, key)
        };
        let _in_flight = InFlight(self.clone());
        self.changed.notify_waiters();
        match fault {
            None => (),
            Some(Fault::Error(error)) => return Err(error),
            Some(Fault::ErrorAfter(delay, error)) => {
                tokio::time::sleep(delay).await;
                return Err(error);
            }
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Gate(gate)) => gate.notified().await,
            // What the fault is for; unwound, it prints nothing of its own.
            Some(Fault::Panic(text)) => std::panic::resume_unwind(Box::new(text)),
            Some(Fault::LostReply(error)) => {
                let _applied = effect(&mut self.state.lock());
                return Err(error);
            }
            Some(Fault::HangAfter) => {
                let _applied = effect(&mut self.state.lock());
                return std::future::pending().await;
            }
            Some(Fault::Late) => {
                self.state.lock().late.extend(late);
                return std::future::pending().await;
            }
        }
        effect(&mut self.state.lock())
    }
}

impl State {
    fn meet(&mut self, call: Call, key: &str) -> Option<Fault> {
        let at = self.rules.iter().position(|rule| {
            let is_on = |k: &str| {
                if rule.under {
                    key.starts_with(k)
                } else {
                    k == key
                }
            };
            rule.call.is_none_or(|c| c == call) && rule.key.as_deref().is_none_or(is_on)
        })?;
        let rule = self.rules.get_mut(at)?;
        let fault = rule.fault.clone();
        if let Some(times) = &mut rule.times {
            *times -= 1;
            if *times == 0 {
                self.rules.remove(at);
            }
        }
        Some(fault)
    }

    fn check(&self, key: &str, condition: Option<&WriteCondition>) -> Result<(), RemoteError> {
        let found = self.objects.get(key);
        let holds = match condition {
            _ if self.ignore_conditions => true,
            None => true,
            Some(WriteCondition::IfAbsent) => found.is_none(),
            Some(WriteCondition::IfMatch(etag)) => {
                found.is_some_and(|object| object.info.etag == *etag)
            }
        };
        if holds {
            Ok(())
        } else {
            Err(RemoteError::conflict("PutObject"))
        }
    }

    fn put(&mut self, request: &PutRequest) -> Result<ObjectInfo, RemoteError> {
        if Crc64::of(&request.body) != request.checksum {
            return Err(RemoteError::permanent("PutObject", 400, "BadDigest"));
        }
        if let Some(poison) = &self.poison
            && request
                .body
                .windows(poison.len().max(1))
                .any(|bytes| bytes == poison)
        {
            return Err(RemoteError::permanent("PutObject", 400, "InvalidArgument"));
        }
        self.check(&request.key, request.condition.as_ref())?;
        Ok(self.store(&request.key, request.body.clone(), request.write_id.clone()))
    }

    fn store(&mut self, key: &str, body: Bytes, write_id: Option<String>) -> ObjectInfo {
        self.next += 1;
        let checksum = Crc64::of(&body);
        let info = ObjectInfo {
            // Equal bytes have equal entity tags, as with S3's MD5.
            etag: ETag(format!("{:016x}{:x}", checksum.0, body.len())),
            size: body.len() as u64,
            checksum: Some(checksum),
            write_id,
            last_modified: Some(UNIX_EPOCH + Duration::from_secs(self.next + self.skew)),
        };
        self.objects.insert(
            key.to_owned(),
            Object {
                body,
                info: info.clone(),
            },
        );
        info
    }

    fn delete(&mut self, key: &str, if_match: Option<&ETag>) -> Result<(), RemoteError> {
        if let Some(etag) = if_match {
            self.check(key, Some(&WriteCondition::IfMatch(etag.clone())))?;
        }
        self.objects.remove(key);
        Ok(())
    }

    /// Uploads that are not finished, of some keys.
    fn uploads_of(&self, wanted: impl Fn(&str) -> bool) -> Vec<MultipartUpload> {
        let uploads = self.uploads.iter();
        let found = uploads.filter(|(_, upload)| wanted(&upload.key));
        found
            .map(|(id, upload)| MultipartUpload {
                key: upload.key.clone(),
                upload_id: id.clone(),
                initiated: None,
            })
            .collect()
    }

    fn complete(&mut self, request: &CompleteMultipart) -> Result<ObjectInfo, RemoteError> {
        let operation = "CompleteMultipartUpload";
        self.check(&request.key, request.condition.as_ref())?;
        let Some(upload) = self.uploads.get(&request.upload_id) else {
            return Err(RemoteError::permanent(operation, 404, "NoSuchUpload"));
        };
        let mut body = BytesMut::new();
        for part in &request.parts {
            match upload.parts.get(&part.number) {
                Some((bytes, info)) if info == part => body.extend_from_slice(bytes),
                _ => return Err(RemoteError::permanent(operation, 400, "InvalidPart")),
            }
        }
        if Crc64::of(&body) != request.checksum {
            return Err(RemoteError::permanent(operation, 400, "BadDigest"));
        }
        let write_id = upload.write_id.clone();
        self.uploads.remove(&request.upload_id);
        Ok(self.store(&request.key, body.freeze(), write_id))
    }
}

impl Remote for SimRemote {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(async move {
            let late = Effect::Put(Box::new(request.clone()));
            let condition = request.condition.clone();
            let key = request.key.clone();
            self.carry(Call::Put, &key, condition, Some(late), move |state| {
                state.put(&request)
            })
            .await
        })
    }

    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        Box::pin(async move {
            let key = request.key.clone();
            self.carry(Call::Get, &key, None, None, move |state| {
                let Some(object) = state.objects.get(&request.key) else {
                    return Ok(None);
                };
                let body = match request.range {
                    None => object.body.clone(),
                    Some((from, len)) => {
                        let end = from.saturating_add(len).min(object.info.size);
                        let range = usize::try_from(from.min(end)).unwrap_or(0)
                            ..usize::try_from(end).unwrap_or(0);
                        object.body.slice(range)
                    }
                };
                Ok(Some(GetResponse {
                    body,
                    info: object.info.clone(),
                }))
            })
            .await
        })
    }

    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.carry(Call::Head, &key, None, None, |state| {
                Ok(state.objects.get(&key).map(|object| object.info.clone()))
            })
            .await
        })
    }

    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        let key = key.to_owned();
        Box::pin(async move {
            let late = Effect::Delete(key.clone(), if_match.clone());
            let condition = if_match.clone().map(WriteCondition::IfMatch);
            self.carry(Call::Delete, &key, condition, Some(late), |state| {
                state.delete(&key, if_match.as_ref())
            })
            .await
        })
    }

    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.carry(Call::List, &prefix, None, None, |state| {
                let start = from.unwrap_or_else(|| prefix.clone());
                let objects = state
                    .objects
                    .range(start..)
                    .take_while(|(key, _)| key.starts_with(&prefix))
                    .map(|(key, object)| (key.clone(), object.info.clone()))
                    .take(1001)
                    .collect::<Vec<_>>();
                let next = objects.get(1000).map(|(key, _)| key.clone());
                Ok(ListPage {
                    objects: objects.into_iter().take(1000).collect(),
                    next,
                })
            })
            .await
        })
    }

    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        Box::pin(async move {
            let key = request.key.clone();
            self.carry(Call::CreateMultipart, &key, None, None, move |state| {
                state.next += 1;
                let id = format!("upload-{}", state.next);
                let CreateMultipart { key, write_id, .. } = request;
                state.uploads.insert(
                    id.clone(),
                    Upload {
                        key,
                        write_id,
                        parts: BTreeMap::new(),
                    },
                );
                Ok(id)
            })
            .await
        })
    }

    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        Box::pin(async move {
            let key = request.key.clone();
            self.carry(Call::UploadPart, &key, None, None, move |state| {
                let Some(upload) = state.uploads.get_mut(&request.upload_id) else {
                    return Err(RemoteError::permanent("UploadPart", 404, "NoSuchUpload"));
                };
                let checksum = Crc64::of(&request.body);
                if checksum != request.checksum {
                    return Err(RemoteError::permanent("UploadPart", 400, "BadDigest"));
                }
                let etag = ETag(format!("{:016x}", checksum.0));
                let info = PartInfo {
                    number: request.number,
                    etag,
                    checksum,
                };
                upload
                    .parts
                    .insert(request.number, (request.body, info.clone()));
                Ok(info)
            })
            .await
        })
    }

    fn complete_multipart(&self, request: CompleteMultipart) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(async move {
            let (key, condition) = (request.key.clone(), request.condition.clone());
            self.carry(
                Call::CompleteMultipart,
                &key,
                condition,
                None,
                move |state| state.complete(&request),
            )
            .await
        })
    }

    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let (key, upload_id) = (key.to_owned(), upload_id.to_owned());
        Box::pin(async move {
            self.carry(Call::AbortMultipart, &key, None, None, |state| {
                state.uploads.remove(&upload_id);
                Ok(())
            })
            .await
        })
    }

    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.carry(Call::ListMultipart, &key, None, None, |state| {
                Ok(state.uploads_of(|of| of == key))
            })
            .await
        })
    }

    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.carry(Call::ListMultipart, &prefix, None, None, |state| {
                Ok(state.uploads_of(|of| of.starts_with(&prefix)))
            })
            .await
        })
    }

    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        let facts = self.state.lock().bucket;
        Box::pin(std::future::ready(Ok(facts)))
    }

    fn describe(&self) -> String {
        "s3://simulated".to_owned()
    }
}
