//! What a failed test has to show, in a file.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

/// Collects long texts of a failed test, such as server logs, and writes them to a file in `target/test-failures`.
/// Only the path goes to stderr.
#[derive(Default)]
pub struct Dump {
    text: String,
}

impl Dump {
    pub fn new() -> Dump {
        Dump::default()
    }

    /// The file of the running test.
    pub fn path() -> PathBuf {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("test").replace("::", ".").replace(['/', ' '], "_");
        folder().join(format!("{test}.{}.txt", std::process::id()))
    }

    /// A heading and a text under it.
    pub fn add(&mut self, heading: &str, text: &str) {
        self.text += &format!("--- {heading}\n{}\n\n", text.trim_end());
    }

    /// Appends to the file of the running test. The path, or the whole text where no file can be written.
    pub fn write(self) -> String {
        let path = Dump::path();
        let written = fs::create_dir_all(folder())
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&path))
            .and_then(|mut file| file.write_all(self.text.as_bytes()));
        match written {
            Ok(()) => path.display().to_string(),
            Err(error) => format!("(no file {}: {error})\n{}", path.display(), self.text),
        }
    }
}

/// `target/test-failures`, beside the folder of the profile: the test is `target/debug/deps/<name>`.
fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().nth(3).map_or_else(std::env::temp_dir, PathBuf::from);
    target.join("test-failures")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_a_file_of_the_test() {
        let mut dump = Dump::new();
        dump.add("the log of the server on port 7001", "a\nb\n");
        let path = dump.write();
        assert!(path.contains("a_dump_is_a_file_of_the_test"), "{path}");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "--- the log of the server on port 7001\na\nb\n\n");
        fs::remove_file(path).unwrap();
    }
}
