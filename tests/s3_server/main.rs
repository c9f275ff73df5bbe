//! One suite over the public API, against every S3 server there is: its *lanes*.
//!
//! | lane | runs | settings |
//! |---|---|---|
//! | `embedded` | always | |
//! | `container` | where a container engine answers and has the image | `S3_WRITEBACK_TEST_IMAGE` (default: MinIO's of `minio/compose.yaml`; one that is named is pulled, the default is not) |
//! | `endpoint` | where one is named | `S3_WRITEBACK_TEST_ENDPOINT`, `S3_WRITEBACK_TEST_BUCKET`, and the usual AWS variables |
//!
//! A lane that cannot run says so in one line, with the reason, and is counted as ignored. A lane
//! works under a prefix of its own, and ends with a look at what it left: nothing, anywhere.
//! What a server does otherwise than S3 and the crate copes with is told as `differs`.

mod container;
mod ends;
mod lane;
mod objects;
mod pages;
mod requests;
mod suite;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use lane::Lane;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn trial(name: &'static str, ready: Result<(), String>, run: fn()) -> Trial {
    if let Err(reason) = &ready {
        println!("lane {name}: skipped: {reason}");
    }
    let run = move || {
        run();
        Ok(())
    };
    Trial::test(format!("lane_{name}"), run).with_ignored_flag(ready.is_err())
}

fn main() -> ExitCode {
    if ends::is_child() {
        runtime().block_on(ends::child());
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // Lanes tell what they do as they go; one after the other it can be read.
    arguments.test_threads = Some(1);
    let engine = runtime().block_on(container::ready());
    let trials = vec![
        trial("embedded", Ok(()), || {
            runtime().block_on(async { suite::run(Lane::embedded().await).await });
        }),
        trial("container", engine, || runtime().block_on(container::run())),
        trial("endpoint", Lane::endpoint_ready(), || {
            runtime().block_on(async { suite::run(Lane::endpoint().await).await });
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}
