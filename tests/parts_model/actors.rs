//! Several at once.

use crate::life::{Open, World};

impl World {
    pub async fn act(&mut self, _open: &mut Open) {}
}
