//! Connections.

use crate::time::REPLY_DEADLINE;
use crate::{Args, SOON, Space, User, Value, args, show, text, texts};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// One connection. `ok` and its kin fail the test on an error reply; `err` fails it on anything else.
pub struct Conn {
    stream: Uninterrupted,
    parser: redis::Parser,
    /// What the server pushed on a RESP3 connection (invalidations and the like), in order.
    pub pushes: Vec<Value>,
}

/// A stream whose reads a signal does not end (a debugger's, a job control's). `redis::Connection`
/// takes such an end for a reply given up on, and drops the reply when it comes.
struct Uninterrupted(TcpStream);

impl Read for Uninterrupted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

fn lost(error: impl fmt::Display) -> String {
    format!("lost: {error}")
}

impl Conn {
    /// A connection in RESP2 to a loopback port.
    pub fn dial(port: u16) -> Result<Conn, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, SOON).map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let (stream, parser) = (Uninterrupted(stream), redis::Parser::new());
        let conn = Conn { stream, parser, pushes: Vec::new() };
        conn.set_deadline(Some(REPLY_DEADLINE))?;
        Ok(conn)
    }

    /// As `dial`, without the reason if there is none.
    pub fn to(port: u16) -> Option<Conn> {
        Conn::dial(port).ok()
    }

    /// How long a reply may take; None is for ever.
    pub(crate) fn set_deadline(&self, deadline: Option<Duration>) -> Result<(), String> {
        self.stream.0.set_read_timeout(deadline).map_err(lost)
    }

    /// The reply, or the error line ("ERR …", "WRONGTYPE …"). A lost connection is an error that starts with "lost".
    pub fn try_cmd(&mut self, args: impl Args) -> Result<Value, String> {
        self.send(args)?;
        self.recv()
    }

    /// Sends without waiting, for pipelines and for commands that block.
    pub fn send(&mut self, args: impl Args) -> Result<(), String> {
        let mut cmd = redis::Cmd::new();
        args.args().iter().for_each(|a| {
            cmd.arg(a);
        });
        self.stream.0.write_all(&cmd.get_packed_command()).map_err(lost)
    }

    /// The next reply to what was sent.
    pub fn recv(&mut self) -> Result<Value, String> {
        loop {
            match self.parser.parse_value(&mut self.stream) {
                Ok(push @ Value::Push { .. }) => self.pushes.push(push),
                Ok(Value::ServerError(e)) => {
                    return Err(format!("{} {}", e.code(), e.details().unwrap_or(""))
                        .trim_end()
                        .to_string());
                }
                Ok(value) => return Ok(value),
                Err(e) => return Err(lost(e)),
            }
        }
    }

    /// Sends many commands at once, then reads a reply for each. For hundreds of thousands, in portions.
    #[track_caller]
    pub fn batch(
        &mut self,
        commands: impl IntoIterator<Item = impl Args>,
    ) -> Vec<Result<Value, String>> {
        let (mut bytes, mut n) = (Vec::new(), 0);
        for command in commands {
            let mut cmd = redis::Cmd::new();
            command.args().iter().for_each(|a| {
                cmd.arg(a);
            });
            cmd.write_packed_command(&mut bytes);
            n += 1;
        }
        self.stream.0.write_all(&bytes).unwrap_or_else(|e| panic!("{}", lost(e)));
        (0..n).map(|_| self.recv()).collect()
    }

    #[track_caller]
    pub fn ok(&mut self, args: impl Args) -> Value {
        let args = args.args();
        self.try_cmd(&args[..]).unwrap_or_else(|e| panic!("{}: {e}", show(&args)))
    }

    /// The error line that the command gets.
    #[track_caller]
    pub fn err(&mut self, args: impl Args) -> String {
        let args = args.args();
        match self.try_cmd(&args[..]) {
            Err(e) if !e.starts_with("lost") => e,
            other => panic!("{}: wanted an error, got {other:?}", show(&args)),
        }
    }

    #[track_caller]
    pub fn int(&mut self, args: impl Args) -> i64 {
        let args = args.args();
        match self.ok(&args[..]) {
            Value::Int(n) => n,
            other => panic!("{}: wanted an integer, got {other:?}", show(&args)),
        }
    }

    #[track_caller]
    pub fn ints(&mut self, args: impl Args) -> Vec<i64> {
        let args = args.args();
        let Value::Array(items) = self.ok(&args[..]) else { panic!("{}: no array", show(&args)) };
        items
            .iter()
            .map(|v| if let Value::Int(n) = v { *n } else { panic!("{}: {v:?}", show(&args)) })
            .collect()
    }

    #[track_caller]
    pub fn text(&mut self, args: impl Args) -> String {
        text(&self.ok(args))
    }

    #[track_caller]
    pub fn is_null(&mut self, args: impl Args) -> bool {
        self.ok(args) == Value::Nil
    }

    /// `name:value` lines of an INFO section; empty where the server has no such section.
    pub fn info(&mut self, section: &str) -> BTreeMap<String, String> {
        let reply = text(&self.ok(["INFO", section]));
        let pairs = reply.lines().filter_map(|l| l.split_once(':'));
        pairs.map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    /// One number of the module's INFO section, named without the prefix: `stat("users")`.
    #[track_caller]
    pub fn stat(&mut self, name: &str) -> i64 {
        let info = self.info("everything");
        let value = info
            .get(&format!("presence_{name}"))
            .unwrap_or_else(|| panic!("INFO has no presence_{name}"));
        value.parse().unwrap_or_else(|_| panic!("presence_{name} is {value:?}"))
    }

    /// `PRESENCE.SPACE space`, all at once, with sessions, parsed and checked for shape.
    #[track_caller]
    pub fn space(&mut self, space: impl AsRef<[u8]>) -> Space {
        Space::parse(&self.ok(args!["PRESENCE.SPACE", space.as_ref(), "WITHSESSIONS"]))
    }

    /// `PRESENCE.USER space user`, parsed and checked for shape; None for an unknown user.
    #[track_caller]
    pub fn user(&mut self, space: impl AsRef<[u8]>, user: impl AsRef<[u8]>) -> Option<User> {
        User::parse(&self.ok(args!["PRESENCE.USER", space.as_ref(), user.as_ref()]))
    }

    /// `DEBUG DIGEST-VALUE`: equal digests, equal content.
    #[track_caller]
    pub fn digest(&mut self, key: impl AsRef<[u8]>) -> String {
        texts(&self.ok(args!["DEBUG", "DIGEST-VALUE", key.as_ref()])).remove(0)
    }
}
