//! What is noted in the book when a file is made, cut, grown, written or dropped.

use std::sync::Arc;

use super::env::Book;
use super::model::{Act, Reg, UNIT};
use super::pages::Run;

/// A file is made.
pub fn create(book: &Book, file: u64) -> Arc<Act> {
    book.begin(true, |_| vec![(Reg::There(file), 1)])
}

/// A file goes, with all of it.
pub fn drop_file(book: &Book, file: u64) -> Arc<Act> {
    let len = book.last(Reg::Len(file));
    book.begin(true, |_| {
        let units = (0..len / UNIT).map(|unit| (Reg::Unit(file, unit), 0));
        let rest = [(Reg::Len(file), 0), (Reg::There(file), 0)];
        units.chain(rest).collect()
    })
}

/// A file gets a length in units: what is cut off is nothing.
pub fn set_len(book: &Book, file: u64, units: u64) -> Arc<Act> {
    let before = book.last(Reg::Len(file)) / UNIT;
    book.begin(true, |_| {
        let cut = (units..before).map(|unit| (Reg::Unit(file, unit), 0));
        cut.chain([(Reg::Len(file), units * UNIT)]).collect()
    })
}

/// A run is written, which may be past the end; whether that makes the file longer.
pub fn write(book: &Book, run: Run, is_one_step: bool) -> (Arc<Act>, bool) {
    let len = (run.from + run.units) * UNIT;
    let grows = len > book.last(Reg::Len(run.file));
    let act = book.begin(is_one_step, |id| {
        let mut puts = run.puts(id);
        puts.extend(grows.then_some((Reg::Len(run.file), len)));
        puts
    });
    (act, grows)
}
