//! When the weather changes: over S3, and on the disk.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use s3_writeback::testing::fs::{Call, EIO, EMFILE, ENOSPC, Fault, SimFs};
use s3_writeback::testing::remote::SimRemote;
use s3_writeback::testing::weather::{Odds, Outage};

use super::env::Env;

/// How bad a seed's weather may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Climate {
    /// Nothing goes wrong.
    Fine,
    /// Requests fail now and then.
    Mixed,
    /// They fail often, and S3 is away for minutes.
    Rough,
}

/// Changes the weather over S3 for as long as it is polled.
pub async fn over_s3(env: Env, remote: SimRemote, climate: Climate, is_fenced: bool, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    if climate == Climate::Fine {
        return std::future::pending().await;
    }
    loop {
        let ms = rng.random_range(0..8000);
        tokio::time::sleep(Duration::from_millis(ms)).await;
        if env.world.weather_is_over.get() {
            return std::future::pending().await;
        }
        match rng.random_range(0..10) {
            0..=3 => {
                let worse = match climate {
                    Climate::Rough => rng.random_range(1..10),
                    Climate::Fine | Climate::Mixed => 1,
                };
                env.world.storm();
                env.say(|| format!("a storm, {worse}"));
                let mut odds = Odds::stormy(worse);
                if !is_fenced {
                    // One that changes `head` late takes a checkpoint away: it is documented so.
                    odds.late = 0;
                }
                remote.change_weather(|weather| weather.odds = odds);
            }
            4 | 5 if climate == Climate::Rough => {
                let outage = Outage::ALL[rng.random_range(0..Outage::ALL.len())];
                env.world.storm();
                env.say(|| format!("an outage: {outage:?}"));
                remote.change_weather(|weather| weather.outage = Some(outage));
                let ms = rng.random_range(0..60_000);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                env.say(|| "the outage is over".to_owned());
                remote.change_weather(|weather| weather.outage = None);
            }
            6 | 7 => {
                env.say(|| "S3 is well".to_owned());
                remote.change_weather(s3_writeback::testing::weather::Weather::clear);
                env.world.mend();
            }
            _ => {
                if let Some(landed) = remote.land_one(rng.random_range(0..16)) {
                    env.say(|| format!("a late request lands: {landed}"));
                }
            }
        }
    }
}

/// S3 is well for the rest of this life.
pub fn clear_for_good(env: &Env, remote: &SimRemote) {
    env.world.weather_is_over.set(true);
    clear(env, remote);
}

/// S3 is well, for now.
pub fn clear(env: &Env, remote: &SimRemote) {
    remote.change_weather(s3_writeback::testing::weather::Weather::clear);
    env.world.mend();
}

/// One call on the disk fails, or all from there on.
pub fn on_the_disk(env: &Env, fs: &SimFs, rng: &mut StdRng) {
    let call = match rng.random_range(0..8) {
        0 => Some(Call::Write),
        1 => Some(Call::Sync),
        2 => Some(Call::Preallocate),
        3 => Some(Call::Create),
        4 => Some(Call::SyncDir),
        5 => Some(Call::Read),
        _ => None,
    };
    let fault = Fault {
        call,
        after: rng.random_range(0..200),
        errno: [EIO, ENOSPC, EMFILE][rng.random_range(0..3)],
        forever: rng.random_bool(0.3),
    };
    env.world.disk_is_bad.set(true);
    env.say(|| format!("the disk: {fault:?}"));
    fs.fail(fault);
}
