//! The load: requests that were made before the clock runs, sent over a few connections by one
//! thread, and every reply looked at.

use crate::Result;
use crate::resp::{Expect, Skipper, request};
use crate::server::Server;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Digits of a number that is new with every call: a score, a time.
pub const CLOCK_DIGITS: usize = 13;
/// Stands in a request where such a number goes.
pub static CLOCK: [u8; CLOCK_DIGITS] = *b"0000000000000";
/// The first such number. Later than any moment of this run, so that it is always the highest.
const CLOCK_START: u64 = 2_000_000_000_000;

/// A ring of calls. A call is one request or several, and may be about several sessions.
#[derive(Clone)]
pub struct Calls {
    /// The database they go to: each system has one of its own.
    pub db: usize,
    /// The replies to one call.
    pub replies: Vec<Expect>,
    /// The commands whose time INFO adds up for a call.
    pub commands: &'static [&'static str],
    /// Whether the numbers that change lie anywhere, and do not only grow.
    pub scattered: bool,
    /// Requests of one call are cheap: this many calls may be under way on a connection.
    pub pipeline: usize,
    bytes: Vec<u8>,
    /// Where each call ends.
    ends: Vec<usize>,
    /// Where the numbers are that change, the same count in each call.
    clocks: Vec<usize>,
    cursor: usize,
    clock: u64,
}

impl Calls {
    pub fn new(db: usize, replies: Vec<Expect>, commands: &'static [&'static str]) -> Calls {
        Calls {
            db,
            replies,
            commands,
            scattered: false,
            pipeline: 64,
            bytes: Vec::new(),
            ends: Vec::new(),
            clocks: Vec::new(),
            cursor: 0,
            clock: CLOCK_START,
        }
    }

    /// Adds a request to the call that is being made.
    pub fn request(&mut self, args: &[&[u8]]) -> &mut Calls {
        let from = self.bytes.len();
        request(&mut self.bytes, args);
        let mut at = from;
        for arg in args {
            // Whether an argument is the clock is told by its address, so that data may look like it.
            if std::ptr::eq(arg.as_ptr(), CLOCK.as_ptr()) {
                let found = find(&self.bytes[at..], &CLOCK).expect("it was just written");
                self.clocks.push(at + found);
                at += found + CLOCK_DIGITS;
            }
        }
        self
    }

    /// The call is complete.
    pub fn end(&mut self) {
        self.ends.push(self.bytes.len());
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of the next calls, at most `count`; they do not go round the end.
    fn take(&mut self, count: usize) -> (std::ops::Range<usize>, usize) {
        if self.cursor == self.ends.len() {
            self.cursor = 0;
        }
        let first = self.cursor;
        let last = (first + count).min(self.ends.len());
        self.cursor = last;
        let from = if first == 0 { 0 } else { self.ends[first - 1] };
        let a_call = self.clocks.len() / self.ends.len();
        for at in &self.clocks[first * a_call..last * a_call] {
            self.clock += 1;
            let value = if self.scattered { scatter(self.clock) } else { self.clock };
            let digits = value.to_string();
            self.bytes[*at..at + CLOCK_DIGITS].copy_from_slice(digits.as_bytes());
        }
        (from..self.ends[last - 1], last - first)
    }
}

/// Another number of as many digits for each number.
fn scatter(clock: u64) -> u64 {
    1_000_000_000_000 + clock.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 9_000_000_000_000
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

struct Connection {
    stream: TcpStream,
    /// What of the ring is still to be written.
    out: std::ops::Range<usize>,
    buf: Vec<u8>,
    /// Bytes of `buf` that are filled.
    filled: usize,
    /// Where the reply began that is being looked at, and how far.
    begin: usize,
    pos: usize,
    skipper: Skipper,
    /// Replies to come, and which of the call's replies is next.
    waiting: usize,
    next: usize,
    calls: usize,
    sent: Instant,
}

/// How long a run goes on.
#[derive(Clone, Copy)]
pub enum Until {
    /// At least this long.
    Time(Duration),
    /// Exactly so many calls.
    Count(usize),
    /// So many calls, or as many as this time allows.
    Either(usize, Duration),
}

/// What was seen in a run.
#[derive(Default)]
pub struct Run {
    pub calls: usize,
    pub wall: Duration,
    /// Of each call, in nanoseconds, where calls go one by one.
    pub latencies: Vec<u32>,
}

/// The connections that the load comes by.
pub struct Load {
    connections: Vec<Connection>,
    db: usize,
    port: u16,
}

/// Enough that the server has something to do while the load looks at replies.
const CONNECTIONS: usize = 4;
/// A server that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(120);

impl Load {
    pub fn connect(server: &Server) -> Result<Load> {
        let connect = || -> Result<Connection> {
            let stream = TcpStream::connect(("127.0.0.1", server.port))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(Connection {
                stream,
                out: 0..0,
                buf: vec![0; 1 << 18],
                filled: 0,
                begin: 0,
                pos: 0,
                skipper: Skipper::default(),
                waiting: 0,
                next: 0,
                calls: 0,
                sent: Instant::now(),
            })
        };
        let connections = (0..CONNECTIONS).map(|_| connect()).collect::<Result<_>>()?;
        Ok(Load { connections, db: 0, port: server.port })
    }

    /// Every call of the ring once.
    pub fn all(&mut self, calls: &mut Calls) -> Result<Run> {
        calls.cursor = 0;
        let pipeline = calls.pipeline;
        self.run(calls, pipeline, Until::Count(calls.len()))
    }

    /// The same one by one, in their order.
    pub fn in_turn(&mut self, calls: &mut Calls) -> Result<Run> {
        calls.cursor = 0;
        self.run(calls, 1, Until::Count(calls.len()))
    }

    /// Calls in pipelines, over all connections.
    pub fn pipelined(&mut self, calls: &mut Calls, until: Until) -> Result<Run> {
        let pipeline = calls.pipeline;
        self.run(calls, pipeline, until)
    }

    /// Calls one by one, over one connection.
    pub fn one_by_one(&mut self, calls: &mut Calls, until: Until) -> Result<Run> {
        self.run(calls, 1, until)
    }

    fn select(&mut self, db: usize) -> Result<()> {
        if self.db == db {
            return Ok(());
        }
        let mut select = Calls::new(self.db, vec![Expect::ok()], &[]);
        select.request(&[b"SELECT", db.to_string().as_bytes()]).end();
        for at in 0..self.connections.len() {
            drive(&mut self.connections[at..=at], &mut select, 1, Until::Count(1))?;
        }
        self.db = db;
        Ok(())
    }

    fn run(&mut self, calls: &mut Calls, pipeline: usize, until: Until) -> Result<Run> {
        assert!(calls.len() > 0 && self.port > 0);
        self.select(calls.db)?;
        // Nothing may be changed in a call that is being written.
        let room = (calls.len() / pipeline).max(1);
        let used = if pipeline == 1 { 1 } else { CONNECTIONS.min(room) };
        drive(&mut self.connections[..used], calls, pipeline, until)
    }
}

fn drive(
    connections: &mut [Connection],
    calls: &mut Calls,
    pipeline: usize,
    until: Until,
) -> Result<Run> {
    let start = Instant::now();
    let mut run = Run::default();
    let mut begun = 0;
    let mut polls: Vec<libc::pollfd> = Vec::with_capacity(connections.len());
    loop {
        let mut busy = false;
        for connection in &mut *connections {
            if connection.waiting == 0 {
                let more = match until {
                    Until::Time(time) => start.elapsed() < time,
                    Until::Count(count) => begun < count,
                    Until::Either(count, time) => begun < count && start.elapsed() < time,
                };
                if !more {
                    continue;
                }
                let most = match until {
                    Until::Time(_) => pipeline,
                    Until::Count(count) | Until::Either(count, _) => pipeline.min(count - begun),
                };
                let (bytes, count) = calls.take(most);
                begun += count;
                connection.out = bytes;
                connection.calls = count;
                connection.waiting = count * calls.replies.len();
                connection.sent = Instant::now();
                connection.write(&calls.bytes)?;
            }
            busy = true;
        }
        if !busy {
            break;
        }
        polls.clear();
        polls.extend(connections.iter().map(|connection| libc::pollfd {
            fd: if connection.waiting > 0 { connection.stream.as_raw_fd() } else { -1 },
            events: libc::POLLIN | if connection.out.is_empty() { 0 } else { libc::POLLOUT },
            revents: 0,
        }));
        // SAFETY: the array is ours and as long as is said.
        let ready = unsafe {
            libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, SILENCE.as_millis() as i32)
        };
        match ready {
            0 => return Err("the server says nothing".into()),
            n if n < 0 => return Err(std::io::Error::last_os_error().into()),
            _ => {}
        }
        for (connection, poll) in connections.iter_mut().zip(&polls) {
            if poll.revents & libc::POLLOUT != 0 {
                connection.write(&calls.bytes)?;
            }
            if poll.revents & !libc::POLLOUT != 0 && connection.read(&calls.replies)? {
                run.calls += connection.calls;
                if pipeline == 1 {
                    run.latencies.push(connection.sent.elapsed().as_nanos() as u32);
                }
            }
        }
    }
    run.wall = start.elapsed();
    Ok(run)
}

impl Connection {
    fn write(&mut self, ring: &[u8]) -> Result<()> {
        while !self.out.is_empty() {
            match self.stream.write(&ring[self.out.clone()]) {
                Ok(written) => self.out.start += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there. True when the last reply has come.
    fn read(&mut self, replies: &[Expect]) -> Result<bool> {
        if self.filled == self.buf.len() {
            self.buf.resize(self.buf.len() * 2, 0);
        }
        match self.stream.read(&mut self.buf[self.filled..]) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(read) => self.filled += read,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        while self.waiting > 0
            && self.pos < self.filled
            && self.skipper.skip(&self.buf[..self.filled], &mut self.pos)?
        {
            replies[self.next].check(&self.buf[self.begin..self.pos])?;
            self.next = (self.next + 1) % replies.len();
            self.begin = self.pos;
            self.waiting -= 1;
        }
        if self.waiting == 0 {
            if self.pos < self.filled {
                return Err("more replies than requests".into());
            }
            (self.filled, self.begin, self.pos) = (0, 0, 0);
            return Ok(true);
        }
        Ok(false)
    }
}
