//! How a server starts: its configuration.

use crate::Server;
use crate::launch::{free_port, launch, module_path};
use std::path::Path;

/// How a server starts: lines of its configuration file, and whether the module is loaded.
///
/// Everything goes through `redis.conf` in the server's own directory, so `CONFIG REWRITE` works and a restart reads
/// what it wrote.
#[derive(Clone)]
pub struct Builder {
    pub(crate) lines: Vec<String>,
    pub(crate) module: bool,
    pub(crate) module_args: String,
}

impl Builder {
    /// One directive; the value is put in quotes, so it may be empty or hold spaces.
    /// Module settings are directives as well: `config("presence.lease-ttl-ms", "500")`.
    pub fn config(self, name: &str, value: &str) -> Self {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
        self.line(&format!("{name} \"{quoted}\""))
    }

    /// One line of the configuration as it is, for directives of several words: `line("replicaof 127.0.0.1 7001")`.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_string());
        self
    }

    /// An append-only file, synced at each write, and nothing else on disk.
    pub fn aof(self) -> Self {
        self.config("appendonly", "yes").config("appendfsync", "always")
    }

    /// Words after the module's path in the `loadmodule` line.
    pub fn module_args(mut self, args: &str) -> Self {
        self.module_args = args.to_string();
        self
    }

    /// A server without the module.
    pub fn bare(mut self) -> Self {
        self.module = false;
        self
    }

    /// Starts it on a free loopback port, in a new directory. Fails the test if it does not answer.
    #[track_caller]
    pub fn start(self) -> Server {
        self.try_start()
            .unwrap_or_else(|log| panic!("the server did not start; the end of its log:\n{log}"))
    }

    /// As `start`, but a server that ends instead of answering is an error: the end of its log.
    pub fn try_start(self) -> Result<Server, String> {
        let dir = tempfile::Builder::new().prefix("presence-test-").tempdir().unwrap();
        for _ in 0..20 {
            let port = free_port();
            std::fs::write(dir.path().join("redis.conf"), self.conf(port, dir.path())).unwrap();
            match launch(dir.path(), port) {
                Ok(running) => return Ok(Server::new(dir, port, running)),
                // Another process took the port after `free_port` returned.
                Err(log) if log.contains("Address already in use") => continue,
                Err(log) => return Err(log),
            }
        }
        Err("no free port found".into())
    }

    fn conf(&self, port: u16, dir: &Path) -> String {
        let dir = dir.display();
        let mut conf = format!(
            "port {port}\nbind 127.0.0.1\ndir {dir}\nlogfile {dir}/log\nsave \"\"\nappendonly no\n\
             crash-log-enabled no\nenable-debug-command yes\nenable-module-command yes\nrepl-diskless-sync-delay 0\n"
        );
        if self.module {
            conf += &format!("loadmodule {} {}\n", module_path().display(), self.module_args);
        }
        for line in &self.lines {
            conf += line;
            conf += "\n";
        }
        conf
    }
}
