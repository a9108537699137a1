//! The Makefile and scripts/: what they say before they begin, and what they refuse.

use crate::harness::*;
use crate::transcript::words;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A program of the project, in its folder, without settings of the caller's.
fn program(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    for name in ["SERVER", "PORT", "KEEP", "DEMO_PORT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        command.env_remove(name);
    }
    // Not into the summary of the run that this test is part of.
    command.env_remove("PRESENCE_TEST_SUMMARY");
    command
}

/// Its exit status, and what it prints to both.
fn outcome(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

/// A program that answers `--version` so, and ends with an error otherwise.
fn fake_server(dir: &Path, version: &str) -> PathBuf {
    let path = dir.join("redis-server");
    let script =
        format!("#!/bin/sh\n[ \"$1\" = --version ] || exit 1\necho '{version} sha=0:0 bits=64'\n");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_server_that_is_too_old_is_refused_before_the_build() {
    let dir = tempfile::tempdir().unwrap();
    for (version, runs) in [
        ("Redis server v=6.0.16", false),
        ("Redis server v=6.2.14", false),
        ("Redis server v=7.0.0", true),
        ("Redis server v=10.0.1", true),
        ("Valkey server v=7.2.5", true),
        ("Valkey server v=9.1.2", true),
        ("KeyDB server v=6.3.4", false),
        ("true (GNU coreutils) 9.1", false),
    ] {
        let fake = fake_server(dir.path(), version);
        let (status, text) = outcome(program("scripts/server", &[]).env("SERVER", &fake));
        if runs {
            assert_eq!((status, text.trim_end()), (0, fake.to_str().unwrap()), "{version}");
            continue;
        }
        assert_eq!(status, 2, "{version}: {text}");
        assert!(text.contains(version.split("v=").last().unwrap()), "{text}");
        // scripts/setup is what every target runs before it builds; it installs nothing then.
        let (status, text) = outcome(program("scripts/setup", &[]).env("SERVER", &fake));
        assert_eq!(status, 1, "{version}: {text}");
        assert!(text.starts_with("server: "), "{text}");
    }
    // What to do instead stands there.
    let fake = fake_server(dir.path(), "Redis server v=6.0.16");
    let (_, text) = outcome(program("scripts/server", &[]).env("SERVER", &fake));
    assert!(text.contains("needs Redis 7.0") && text.contains("SERVER=engines/"), "{text}");
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let (status, text) = outcome(program("scripts/server", &[]).env("SERVER", "./no-such-server"));
    assert_eq!((status, text.as_str()), (1, "server: there is no program ./no-such-server\n"));
}

#[test]
fn a_port_in_use_is_refused_before_the_build() {
    let free = free_port().to_string();
    for (script, variable) in [("scripts/run", "PORT"), ("scripts/demo", "DEMO_PORT")] {
        let (status, text) = outcome(program(script, &["check"]).env(variable, &free));
        assert_eq!(status, 0, "{text}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let used = listener.local_addr().unwrap().port().to_string();
    for (script, variable) in [("scripts/run", "PORT"), ("scripts/demo", "DEMO_PORT")] {
        let (status, text) = outcome(program(script, &["check"]).env(variable, &used));
        assert_eq!(status, 1, "{text}");
        assert!(text.contains(&format!("port {used} is in use")), "{text}");
    }
}

#[test]
fn make_refuses_the_names_of_folders() {
    if Command::new("make").arg("--version").output().is_err() {
        return not_tested("there is no make");
    }
    for (name, meant) in [
        ("tests", "make test"),
        ("docs", "make doc"),
        ("benches", "make bench"),
        ("src", "make build"),
        ("scripts", "'make' lists"),
        ("testkit", "'make' lists"),
    ] {
        let (status, text) = outcome(&mut program("make", &[name]));
        assert_eq!(status, 2, "{name}: {text}");
        assert!(text.contains(meant), "{name}: {text}");
    }
}

#[test]
fn tests_that_cannot_run_do_not_count_as_passed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, notes) = (dir.path().join("log"), dir.path().join("notes"));
    let result = "test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out";
    std::fs::write(&log, format!("test a ... ok\n{result}\n{result}\n")).unwrap();
    std::fs::write(
        &notes,
        "a::x\tthere is no node\nb::y\tthere is no go\na::z\tthere is no node\n",
    )
    .unwrap();
    let mut summary = program("scripts/test-summary", &["test"]);
    let (status, text) = outcome(summary.arg(&log).arg(&notes));
    assert_eq!(status, 0, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "test: 11 passed, 0 failed, 3 not tested",
            "test: 2 not tested, because: there is no node",
            "test:     a::x, a::z",
            "test: 1 not tested, because: there is no go",
            "test:     b::y",
        ]
    );
    // No test at all is a failure.
    std::fs::write(&log, "").unwrap();
    std::fs::write(&notes, "").unwrap();
    let mut summary = program("scripts/test-summary", &["test"]);
    assert_eq!(outcome(summary.arg(&log).arg(&notes)).0, 1);
}

/// `scripts/run` in the foreground, ended when dropped, with its folder.
struct Run {
    child: Child,
    port: u16,
    lines: BufReader<std::process::ChildStdout>,
}

impl Run {
    fn start(port: u16, keep: bool) -> Run {
        let mut command = program("bash", &["scripts/run"]);
        command.env("PORT", port.to_string()).env("PRESENCE_MODULE", module_path());
        command.env("SERVER", server_path());
        if keep {
            command.env("KEEP", "1");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Run { child, port, lines }
    }

    /// What it prints, until it says how to end it.
    fn says(&mut self) -> String {
        let mut text = String::new();
        while !text.contains("Ctrl-C here") {
            assert!(self.lines.read_line(&mut text).unwrap() > 0, "it ended: {text}");
        }
        text
    }

    /// Connects once the server has loaded its data: it accepts connections before that.
    fn connect(&self) -> Conn {
        let mut c = Conn::dial(self.port).unwrap();
        wait_until("the data to be loaded", SOON, || c.try_cmd("PING").is_ok());
        c
    }

    fn end(mut self) {
        signal(self.child.id(), Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The commands that it prints work as it says, at any pace, and it says what becomes of the data.
#[test]
fn make_run_says_what_is_true() {
    let port = free_port();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("run/{port}"));
    let mut run = Run::start(port, false);
    let said = run.says();
    assert!(!said.contains("data of the last run"), "{said}");
    assert!(said.contains(&format!("-p {port} --raw SUBSCRIBE presence:lobby")), "{said}");
    let mut sub = run.connect();
    sub.ok("SUBSCRIBE presence:lobby");
    let mut c = run.connect();
    let commands: Vec<&str> =
        said.lines().map(str::trim).filter(|line| line.starts_with("PRESENCE.")).collect();
    assert_eq!(commands.len(), 5, "{said}");
    for line in &commands {
        c.ok(words(line));
    }
    let shown = Space::parse(&c.ok("PRESENCE.SPACE lobby WITHSESSIONS"));
    for (user, sessions) in &shown.members {
        let long = sessions.iter().all(|s| s.expires_at > now_ms() + 50 * 60_000);
        assert!(long || user == "bob", "{user} leaves while the reader types");
    }
    wait_until("bob's leave", ms(10_000), || c.int("PRESENCE.COUNT lobby") == 1);
    run.end();

    let mut run = Run::start(port, true);
    assert!(run.says().contains("goes on with the data of the last run"));
    let mut c = run.connect();
    assert_eq!(c.int("PRESENCE.COUNT lobby"), 1);
    run.end();
    let mut run = Run::start(port, false);
    assert!(run.says().contains("removes the data of the last run"));
    let mut c = run.connect();
    assert_eq!(c.int("PRESENCE.COUNT lobby"), 0);
    run.end();
    std::fs::remove_dir_all(folder).unwrap();
}

/// `scripts/demo` with a program in the gateway's place, ended when dropped.
struct Demo(Child);

impl Demo {
    /// Starts it, and waits until it says where its logs are.
    fn start(gateway: &Path) -> (Demo, PathBuf) {
        let mut command = program("bash", &["scripts/demo"]);
        command.env("PRESENCE_MODULE", module_path()).env("PRESENCE_GATEWAY", gateway);
        command.env("SERVER", server_path()).stdout(Stdio::piped());
        let mut demo = Demo(command.spawn().unwrap());
        let out = BufReader::new(demo.0.stdout.take().unwrap());
        let logs = out.lines().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("Logs are in ")?;
            Some(rest.split_once(". ")?.0.to_string())
        });
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(logs.expect("where its logs are"));
        (demo, folder)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It ends the server and the gateway itself.
        let _ = try_signal(self.0.id(), Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
fn each_demo_keeps_its_own_logs() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = dir.path().join("gateway");
    let script =
        "#!/bin/sh\necho \"gateway: http://127.0.0.1:$PORT\"\necho started >&2\nexec sleep 600\n";
    std::fs::write(&gateway, script).unwrap();
    std::fs::set_permissions(&gateway, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (first, first_logs) = Demo::start(&gateway);
    let (second, second_logs) = Demo::start(&gateway);
    drop(first);
    let (third, third_logs) = Demo::start(&gateway);
    drop((second, third));
    for folder in [&first_logs, &second_logs, &third_logs] {
        for file in ["server.log", "gateway.log"] {
            assert!(folder.join(file).metadata().unwrap().len() > 0, "{file}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
