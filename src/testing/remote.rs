//! A simulated S3: exact conditions, scripted faults, no sockets.
//!
//! Owns: what happens to requests on their way. Does not own: what one does when it arrives
//! (`bucket.rs`), time (a delay is tokio's, which tests pause) or randomness (scripts are
//! explicit).
//!
//! 1. A request that succeeds takes effect at one instant, under one lock.
//! 2. A fault is used up by the request that meets it, unless it stands.
//! 3. Late effects are carried out when the test says so, and their conditions are evaluated
//!    then.

mod bucket;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::remote::{
    BucketFacts, CompleteMultipart, Crc64, CreateMultipart, ETag, GetRequest, GetResponse,
    ListPage, MultipartUpload, ObjectInfo, PartInfo, PutRequest, Remote, RemoteError, RemoteFuture,
    UploadPart, WriteCondition,
};
use crate::time::WallClock;

use super::hook::Hook;
use super::weather::{Lot, Weather};
use bucket::Bucket;

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

impl Call {
    /// As S3 calls it: whether a lost reply may have changed something depends on it.
    #[must_use]
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Put => "PutObject",
            Self::Get => "GetObject",
            Self::Head => "HeadObject",
            Self::Delete => "DeleteObject",
            Self::List => "ListObjectsV2",
            Self::CreateMultipart => "CreateMultipartUpload",
            Self::UploadPart => "UploadPart",
            Self::CompleteMultipart => "CompleteMultipartUpload",
            Self::AbortMultipart => "AbortMultipartUpload",
            Self::ListMultipart => "ListMultipartUploads",
        }
    }
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

#[derive(Debug, Default)]
struct State {
    bucket: Bucket,
    rules: Vec<Rule>,
    late: Vec<Late>,
    /// When requests are signed, and how long that is good for; `None`: for ever.
    signatures: Option<(WallClock, Duration)>,
    seen: Vec<Seen>,
    in_flight: usize,
    most_in_flight: usize,
    refreshes: usize,
    /// What requests meet that no rule is about.
    weather: Option<Weather>,
    hook: Option<Hook<Call>>,
}

#[derive(Debug, Clone)]
enum Effect {
    Put(Box<PutRequest>),
    Delete(String, Option<ETag>),
}

/// A request that is on its way to S3, whoever gave it up.
#[derive(Debug, Clone)]
struct Late {
    effect: Effect,
    /// When its signature is not good any more, by the clock of [`SimRemote::signed_by`].
    until: Option<Duration>,
}

impl State {
    fn be_late(&mut self, effect: Effect) {
        let signed = self.signatures.as_ref();
        let until = signed.map(|(clock, lifetime)| clock.unix() + *lifetime);
        self.late.push(Late { effect, until });
    }

    /// It takes place, unless its signature has expired; whether it succeeds.
    fn land(&mut self, late: Late) -> bool {
        let now = self.signatures.map(|(clock, _)| clock.unix());
        let has_expired = late.until.zip(now).is_some_and(|(until, now)| now > until);
        !has_expired && late.effect.land(&mut self.bucket)
    }
}

impl Effect {
    /// Takes place; whether it succeeds.
    fn land(self, bucket: &mut Bucket) -> bool {
        match self {
            Self::Put(request) => bucket.put(&request).is_ok(),
            Self::Delete(key, if_match) => bucket.delete(&key, if_match.as_ref()).is_ok(),
        }
    }
}

/// The most requests that are remembered.
const MAX_SEEN: usize = 1_000_000;

/// A simulated S3. Clones are of the same bucket.
#[derive(Debug, Clone, Default)]
pub struct SimRemote {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    /// Its requests meet nothing, and are not seen.
    is_calm: bool,
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
        self.rule(call, key, fault, Some(n), false);
    }

    /// Every request from now on meets `fault`.
    pub fn always(&self, call: Option<Call>, key: Option<&str>, fault: Fault) {
        self.rule(call, key, fault, None, false);
    }

    /// All is well again; hanging requests stay lost.
    pub fn heal(&self) {
        self.state.lock().rules.clear();
    }

    /// The next `n` requests of this kind on keys that begin with `prefix` meet `fault`; `None`:
    /// all of them.
    pub fn under(&self, n: Option<usize>, call: Option<Call>, prefix: &str, fault: Fault) {
        self.rule(call, Some(prefix), fault, n, true);
    }

    fn rule(
        &self,
        call: Option<Call>,
        key: Option<&str>,
        fault: Fault,
        times: Option<usize>,
        under: bool,
    ) {
        self.state.lock().rules.push(Rule {
            call,
            key: key.map(str::to_owned),
            under,
            fault,
            times,
        });
    }

    /// At the `nth` request of any kind from here on, before it meets anything, does this: it may
    /// add a fault, which the request meets. For who makes requests on one thread.
    pub fn at_request(&self, nth: usize, run: impl FnOnce(Call) + Send + 'static) {
        let mut state = self.state.lock();
        let at = state.seen.len() + nth;
        state.hook = Some(Hook::new(at as u64, run));
    }

    /// Conditions are accepted and not looked at, as some servers do.
    pub fn ignore_conditions(&self, ignore: bool) {
        self.state.lock().bucket.ignore_conditions = ignore;
    }

    /// The same of the conditions of a completion of parts only.
    pub fn complete_always(&self, always: bool) {
        self.state.lock().bucket.complete_always = always;
    }

    /// What is so of the bucket as a whole.
    pub fn set_bucket(&self, facts: BucketFacts) {
        self.state.lock().bucket.facts = facts;
    }

    /// From here on a PUT whose body has these bytes in it is refused for good; `None`: none is.
    pub fn refuse_bodies_with(&self, bytes: Option<Bytes>) {
        self.state.lock().bucket.poison = bytes;
    }

    /// Moves the server's clock on: what is written from here on has later dates.
    pub fn advance_clock(&self, by: Duration) {
        self.state.lock().bucket.skew += by.as_secs();
    }

    /// Carries out the effects of requests that met [`Fault::Late`]; returns which succeeded.
    pub fn land_late(&self) -> Vec<bool> {
        let mut state = self.state.lock();
        let late = std::mem::take(&mut state.late);
        let landed = late.into_iter().map(|late| state.land(late)).collect();
        drop(state);
        self.changed.notify_waiters();
        landed
    }

    /// Carries out one of the effects that [`land_late`](Self::land_late) would, whichever `nth`
    /// is taken for; `None` where there is none.
    pub fn land_one(&self, nth: usize) -> Option<bool> {
        let mut state = self.state.lock();
        let at = nth.checked_rem(state.late.len())?;
        let late = state.late.remove(at);
        let landed = state.land(late);
        drop(state);
        self.changed.notify_waiters();
        Some(landed)
    }

    /// From here on requests are signed at the time of `clock`, and one that is late has no effect
    /// when `lifetime` is over. Without this their signatures are good for ever.
    pub fn signed_by(&self, clock: WallClock, lifetime: Duration) {
        self.state.lock().signatures = Some((clock, lifetime));
    }

    /// From here on, requests that no rule is about meet what the weather has for them.
    pub fn set_weather(&self, weather: Option<Weather>) {
        self.state.lock().weather = weather;
    }

    /// Changes the weather, where there is any.
    pub fn change_weather(&self, change: impl FnOnce(&mut Weather)) {
        if let Some(weather) = &mut self.state.lock().weather {
            change(weather);
        }
    }

    /// The same bucket, from where it is always well: its requests meet no rule and no weather,
    /// and are not seen.
    #[must_use]
    pub fn calm(&self) -> Self {
        Self {
            is_calm: true,
            ..self.clone()
        }
    }

    /// The bytes of an object.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Bytes> {
        let state = self.state.lock();
        let object = state.bucket.objects.get(key);
        object.map(|object| object.body.clone())
    }

    /// Bytes of all objects.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        let state = self.state.lock();
        let objects = state.bucket.objects.values();
        objects.map(|object| object.body.len()).sum()
    }

    /// All keys.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.state.lock().bucket.objects.keys().cloned().collect()
    }

    /// Removes an object behind everyone's back.
    pub fn remove(&self, key: &str) {
        self.state.lock().bucket.objects.remove(key);
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
        let _planted = self.state.lock().bucket.put(&request);
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

    /// How often credentials were thrown away.
    #[must_use]
    pub fn refreshes(&self) -> usize {
        self.state.lock().refreshes
    }

    /// Unfinished multipart uploads.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.state.lock().bucket.uploads.len()
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
        effect: impl FnOnce(&mut Bucket) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        if self.is_calm {
            return effect(&mut self.state.lock().bucket);
        }
        let due = {
            let state = &mut *self.state.lock();
            Hook::due(&mut state.hook, state.seen.len() as u64 + 1)
        };
        if let Some(hook) = due {
            hook.run(call);
        }
        let Lot { after, fault } = {
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
            match state.meet(call, key) {
                Some(fault) => Lot::of(fault),
                None => state
                    .weather
                    .as_mut()
                    .map_or_else(Lot::default, |weather| weather.lot(call, key)),
            }
        };
        let _in_flight = InFlight(self.clone());
        self.changed.notify_waiters();
        if after > Duration::ZERO {
            tokio::time::sleep(after).await;
        }
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
                let _applied = effect(&mut self.state.lock().bucket);
                return Err(error);
            }
            Some(Fault::HangAfter) => {
                let _applied = effect(&mut self.state.lock().bucket);
                return std::future::pending().await;
            }
            Some(Fault::Late) => {
                if let Some(effect) = late {
                    self.state.lock().be_late(effect);
                }
                return std::future::pending().await;
            }
        }
        effect(&mut self.state.lock().bucket)
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
}

impl Remote for SimRemote {
    fn put(&self, request: PutRequest) -> RemoteFuture<'_, ObjectInfo> {
        Box::pin(async move {
            let late = Effect::Put(Box::new(request.clone()));
            let condition = request.condition.clone();
            let key = request.key.clone();
            self.carry(Call::Put, &key, condition, Some(late), move |bucket| {
                bucket.put(&request)
            })
            .await
        })
    }

    fn get(&self, request: GetRequest) -> RemoteFuture<'_, Option<GetResponse>> {
        Box::pin(async move {
            let key = request.key.clone();
            self.carry(Call::Get, &key, None, None, move |bucket| {
                Ok(bucket.get(&request))
            })
            .await
        })
    }

    fn head(&self, key: &str) -> RemoteFuture<'_, Option<ObjectInfo>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.carry(Call::Head, &key, None, None, |bucket| {
                Ok(bucket.objects.get(&key).map(|object| object.info.clone()))
            })
            .await
        })
    }

    fn delete(&self, key: &str, if_match: Option<ETag>) -> RemoteFuture<'_, ()> {
        let key = key.to_owned();
        Box::pin(async move {
            let late = Effect::Delete(key.clone(), if_match.clone());
            let condition = if_match.clone().map(WriteCondition::IfMatch);
            self.carry(Call::Delete, &key, condition, Some(late), |bucket| {
                bucket.delete(&key, if_match.as_ref())
            })
            .await
        })
    }

    fn list(&self, prefix: &str, from: Option<String>) -> RemoteFuture<'_, ListPage> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.carry(Call::List, &prefix, None, None, |bucket| {
                Ok(bucket.list(&prefix, from))
            })
            .await
        })
    }

    fn create_multipart(&self, request: CreateMultipart) -> RemoteFuture<'_, String> {
        Box::pin(async move {
            let key = request.key.clone();
            self.carry(Call::CreateMultipart, &key, None, None, move |bucket| {
                Ok(bucket.create(request))
            })
            .await
        })
    }

    fn upload_part(&self, request: UploadPart) -> RemoteFuture<'_, PartInfo> {
        Box::pin(async move {
            let key = request.key.clone();
            self.carry(Call::UploadPart, &key, None, None, move |bucket| {
                bucket.upload(request)
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
                move |bucket| bucket.complete(&request),
            )
            .await
        })
    }

    fn abort_multipart(&self, key: &str, upload_id: &str) -> RemoteFuture<'_, ()> {
        let (key, upload_id) = (key.to_owned(), upload_id.to_owned());
        Box::pin(async move {
            self.carry(Call::AbortMultipart, &key, None, None, |bucket| {
                bucket.uploads.remove(&upload_id);
                Ok(())
            })
            .await
        })
    }

    fn list_multipart(&self, key: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.carry(Call::ListMultipart, &key, None, None, |bucket| {
                Ok(bucket.uploads_of(|of| of == key))
            })
            .await
        })
    }

    fn list_multipart_under(&self, prefix: &str) -> RemoteFuture<'_, Vec<MultipartUpload>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.carry(Call::ListMultipart, &prefix, None, None, |bucket| {
                Ok(bucket.uploads_of(|of| of.starts_with(&prefix)))
            })
            .await
        })
    }

    fn bucket(&self) -> RemoteFuture<'_, BucketFacts> {
        let facts = self.state.lock().bucket.facts;
        Box::pin(std::future::ready(Ok(facts)))
    }

    fn refresh_credentials(&self) {
        self.state.lock().refreshes += 1;
    }

    fn describe(&self) -> String {
        "s3://simulated".to_owned()
    }
}
