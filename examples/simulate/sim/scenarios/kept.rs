//! What has a name of its own in the bucket has one content for ever.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use s3_writeback::remote::Crc64;
use s3_writeback::testing::remote::SimRemote;

const EVERY: Duration = Duration::from_millis(100);

/// What packs and manifests were when they were first seen.
#[derive(Debug, Default, Clone)]
pub struct Kept(Rc<RefCell<BTreeMap<String, Crc64>>>);

impl Kept {
    /// Each that is there is what it was.
    pub fn look(&self, remote: &SimRemote) {
        let known = &mut *self.0.borrow_mut();
        for key in remote.keys() {
            if !key.starts_with("packs/") && !key.starts_with("checkpoints/") {
                continue;
            }
            let Some(body) = remote.object(&key) else {
                continue;
            };
            let is = Crc64::of(&body);
            let was = *known.entry(key.clone()).or_insert(is);
            assert_eq!(was, is, "{key} has two contents");
        }
    }

    /// Looks all the while.
    pub async fn watch(self, remote: SimRemote) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.look(&remote);
        }
    }
}
