//! Tests that cannot run on this machine.

use std::fs::OpenOptions;
use std::io::Write;

/// Reports that this test, or a part of it, does not run, and why: "there is no node on this machine". Call it once
/// in a test, then return.
///
/// The test runner has no such result and counts the test as passed. So the line goes to stderr past its capture, and
/// into the file that `PRESENCE_NOT_TESTED` names. `scripts/test` reads that file and corrects the count.
pub fn not_tested(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // println! and eprintln! are captured.
    let _ = std::io::stderr().write_all(format!("\n{test} NOT TESTED: {reason}\n").as_bytes());
    let Some(file) = std::env::var_os("PRESENCE_NOT_TESTED").filter(|file| !file.is_empty()) else {
        return;
    };
    // One write, because tests run side by side.
    let line = format!("{test}\t{}\n", reason.replace(['\t', '\n'], " "));
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .and_then(|mut to| to.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
}
