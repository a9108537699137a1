//! Subscribers, which miss no message.

use crate::{Conn, Event, SOON, Server, Value, now_ms};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// One published message.
#[derive(Clone, Debug)]
pub struct Message {
    pub channel: Vec<u8>,
    pub payload: Vec<u8>,
    /// When it arrived here, unix ms.
    pub arrived: i64,
}

/// Collects, on its own connection and thread, what is published on its channels.
pub struct Subscriber {
    messages: mpsc::Receiver<Message>,
    fence: String,
    fences: usize,
}

impl Subscriber {
    #[track_caller]
    pub(crate) fn new(server: &Server, verb: &str, channels: &[impl AsRef<[u8]>]) -> Subscriber {
        Subscriber::by(server.connect(), verb, channels).expect("subscribe")
    }

    /// By a connection that may be lost at any time.
    pub fn by(
        mut conn: Conn,
        verb: &str,
        channels: &[impl AsRef<[u8]>],
    ) -> Result<Subscriber, String> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let fence = format!("fence:{}", NEXT.fetch_add(1, Ordering::Relaxed));
        conn.try_cmd(["SUBSCRIBE", &fence])?;
        let words = [verb.as_bytes()].into_iter().chain(channels.iter().map(AsRef::as_ref));
        conn.send(words.collect::<Vec<_>>())?;
        for _ in channels {
            conn.recv()?;
        }
        conn.set_deadline(None)?;
        let (sender, messages) = mpsc::channel();
        // Ends with its server, or when the `Subscriber` is dropped.
        thread::spawn(move || {
            while let Ok(Value::Array(words)) = conn.recv() {
                let bytes = |v: &Value| {
                    if let Value::BulkString(b) = v { b.clone() } else { Vec::new() }
                };
                let [.., channel, payload] = &words[..] else {
                    continue;
                };
                let kind = bytes(&words[0]);
                if !kind.ends_with(b"message") {
                    continue;
                }
                let message =
                    Message { channel: bytes(channel), payload: bytes(payload), arrived: now_ms() };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Ok(Subscriber { messages, fence, fences: 0 })
    }

    /// The next message, None after `deadline`. An error where the connection is lost.
    pub fn poll(&mut self, deadline: Duration) -> Result<Option<Message>, String> {
        match self.messages.recv_timeout(deadline) {
            Ok(message) => Ok(Some(message)),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err("lost".into()),
        }
    }

    /// The next message, or None after `deadline`.
    pub fn try_next(&mut self, deadline: Duration) -> Option<Message> {
        self.messages.recv_timeout(deadline).ok()
    }

    /// The next message; fails the test after `deadline`.
    #[track_caller]
    pub fn next(&mut self, deadline: Duration) -> Message {
        self.try_next(deadline).unwrap_or_else(|| panic!("no message within {deadline:?}"))
    }

    /// The next message as an event; fails the test after `deadline`.
    #[track_caller]
    pub fn event(&mut self, deadline: Duration) -> Event {
        Event::parse(self.next(deadline))
    }

    /// The next `n` events, each within `deadline` of the one before.
    #[track_caller]
    pub fn events(&mut self, n: usize, deadline: Duration) -> Vec<Event> {
        (0..n).map(|_| self.event(deadline)).collect()
    }

    /// Fails the test if anything arrives during `quiet`. Where a command could have published, `so_far` needs no wait.
    #[track_caller]
    pub fn expect_none_for(&mut self, quiet: Duration) {
        if let Some(m) = self.try_next(quiet) {
            panic!("unexpected message: {}", m.payload.escape_ascii());
        }
    }

    /// Everything published up to now and not yet taken. Publishes a mark through `c` and reads up to it, so it waits
    /// for nothing else; `c` may be of the subscriber's server or, with replication, of its primary.
    #[track_caller]
    pub fn so_far(&mut self, c: &mut Conn) -> Vec<Message> {
        self.fences += 1;
        let mark = self.fences.to_string();
        c.ok(["PUBLISH", &self.fence, &mark]);
        let mut messages = Vec::new();
        loop {
            let m = self.next(SOON);
            if m.channel != self.fence.as_bytes() {
                messages.push(m);
            } else if m.payload == mark.as_bytes() {
                return messages;
            }
        }
    }

    /// `so_far`, as events.
    #[track_caller]
    pub fn events_so_far(&mut self, c: &mut Conn) -> Vec<Event> {
        self.so_far(c).into_iter().map(Event::parse).collect()
    }
}
