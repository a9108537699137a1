//! A link between two processes that a test can cut, hold and mend.
//!
//! A proxy listens on a port and connects each client to its target. It knows replicas by the port that they announce
//! (`REPLCONF listening-port`), so a test can cut off one replica and leave the others alone.

use crate::now_ms;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    /// Connections end, and new ones are refused.
    Broken,
    /// Connections stay, and what is sent is held back.
    Silent,
}

pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    over: AtomicBool,
    target: AtomicU16,
    cuts: Mutex<Cuts>,
    links: Mutex<Vec<Weak<Link>>>,
    full_syncs: Mutex<Vec<(u16, i64)>>,
}

#[derive(Default)]
struct Cuts {
    all: Option<Cut>,
    /// By the port that the replica announces.
    replicas: BTreeMap<u16, Cut>,
}

/// One connection: the client's end and the target's end.
struct Link {
    state: Arc<State>,
    /// The port that the client announces as a replica. 0 if it has not done so.
    replica: AtomicU16,
    ends: [TcpStream; 2],
}

const NAP: Duration = Duration::from_millis(2);
const CLIENT: usize = 0;
const TARGET: usize = 1;

impl Proxy {
    /// A proxy whose target is named later.
    pub fn start() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    // If the target cannot be reached, the client's connection ends.
                    let _ = shared.connect(client);
                }
            }
        });
        Proxy { port, state }
    }

    /// A proxy in front of this port.
    pub fn to(target: u16) -> Proxy {
        let proxy = Proxy::start();
        proxy.lead_to(target);
        proxy
    }

    /// Where new connections go.
    pub fn lead_to(&self, target: u16) {
        self.state.target.store(target, Ordering::SeqCst);
    }

    /// Ends all connections and refuses new ones.
    pub fn cut(&self) {
        self.state.cuts.lock().unwrap().all = Some(Cut::Broken);
        self.state.end_broken_links();
    }

    /// Holds back what is sent in both directions.
    pub fn hold(&self) {
        self.state.cuts.lock().unwrap().all = Some(Cut::Silent);
    }

    /// Cuts off one replica, which announces this port.
    pub fn cut_replica(&self, port: u16, how: Cut) {
        self.state.cuts.lock().unwrap().replicas.insert(port, how);
        self.state.end_broken_links();
    }

    /// Ends all cuts. What was held back goes on.
    pub fn mend(&self) {
        *self.state.cuts.lock().unwrap() = Cuts::default();
    }

    /// The replicas that were told to synchronise in full, and when.
    pub fn full_syncs(&self) -> Vec<(u16, i64)> {
        self.state.full_syncs.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes the listener
    }
}

impl State {
    fn connect(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let target = TcpStream::connect(("127.0.0.1", self.target.load(Ordering::SeqCst)))?;
        client.set_nodelay(true)?;
        target.set_nodelay(true)?;
        let replica = AtomicU16::new(0);
        let link = Arc::new(Link { state: self.clone(), replica, ends: [client, target] });
        // `cut` sets the cut and then walks over the links, so a link is seen there or sees the cut here.
        let mut links = self.links.lock().unwrap();
        links.retain(|link| link.strong_count() > 0);
        links.push(Arc::downgrade(&link));
        drop(links);
        if link.cut() == Some(Cut::Broken) {
            link.end();
            return Ok(());
        }
        for (from, to) in [(CLIENT, TARGET), (TARGET, CLIENT)] {
            let link = link.clone();
            thread::spawn(move || {
                link.forward(from, to);
                link.end();
            });
        }
        Ok(())
    }

    fn end_broken_links(&self) {
        let links = self.links.lock().unwrap();
        let broken = links.iter().filter_map(Weak::upgrade);
        broken.filter(|link| link.cut() == Some(Cut::Broken)).for_each(|link| link.end());
    }
}

impl Link {
    fn cut(&self) -> Option<Cut> {
        let cuts = self.state.cuts.lock().unwrap();
        let replica = cuts.replicas.get(&self.replica.load(Ordering::SeqCst)).copied();
        match (cuts.all, replica) {
            (Some(Cut::Broken), _) | (_, Some(Cut::Broken)) => Some(Cut::Broken),
            (all, replica) => all.or(replica),
        }
    }

    fn end(&self) {
        self.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
    }

    fn forward(&self, from: usize, to: usize) {
        let (mut buffer, mut beginning) = (vec![0; 64 * 1024], Vec::new());
        let mut reading_greeting = true;
        while let Ok(n @ 1..) = (&self.ends[from]).read(&mut buffer) {
            if reading_greeting {
                beginning.extend_from_slice(&buffer[..n]);
                let done = match from {
                    CLIENT => self.is_announced(&beginning),
                    _ => self.is_synchronised(&beginning),
                };
                reading_greeting = !done && beginning.len() < 1 << 20;
            }
            while self.cut() == Some(Cut::Silent) && !self.state.over.load(Ordering::SeqCst) {
                thread::sleep(NAP);
            }
            if self.cut() == Some(Cut::Broken) || (&self.ends[to]).write_all(&buffer[..n]).is_err()
            {
                return;
            }
        }
    }

    /// Reads which port a replica announces.
    fn is_announced(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        let Some((_, after)) = text.split_once("listening-port\r\n") else { return false };
        let mut lines = after.split("\r\n");
        let (Some(_), Some(port), Some(_)) = (lines.next(), lines.next(), lines.next()) else {
            return false;
        };
        self.replica.store(port.parse().unwrap_or(0), Ordering::SeqCst);
        true
    }

    /// Reads the answer to PSYNC.
    fn is_synchronised(&self, bytes: &[u8]) -> bool {
        let contains = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
        if contains(b"+FULLRESYNC") {
            let replica = self.replica.load(Ordering::SeqCst);
            self.state.full_syncs.lock().unwrap().push((replica, now_ms()));
            return true;
        }
        contains(b"+CONTINUE")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut copy = stream.try_clone().unwrap();
                    io::copy(&mut stream, &mut copy)
                });
            }
        });
        port
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn answers(stream: &mut TcpStream, text: &str) -> bool {
        let mut reply = vec![0; text.len()];
        stream.write_all(text.as_bytes()).is_ok()
            && stream.read_exact(&mut reply).is_ok()
            && reply == text.as_bytes()
    }

    #[test]
    fn a_link_is_cut_and_mended() {
        let proxy = Proxy::to(echo());
        let mut stream = connect(&proxy);
        assert!(answers(&mut stream, "one"));
        proxy.cut();
        assert!(!answers(&mut stream, "two"));
        assert!(!answers(&mut connect(&proxy), "three"));
        proxy.mend();
        assert!(answers(&mut connect(&proxy), "four"));
    }

    #[test]
    fn a_held_link_goes_on() {
        let proxy = Proxy::to(echo());
        let mut stream = connect(&proxy);
        assert!(answers(&mut stream, "one"));
        proxy.hold();
        stream.write_all(b"two").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(stream.read(&mut [0; 3]).is_err());
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        proxy.mend();
        let mut reply = [0; 3];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"two");
    }

    #[test]
    fn one_replica_is_cut_off() {
        let proxy = Proxy::to(echo());
        let announce = |port: u16| {
            let mut stream = connect(&proxy);
            let text = format!("*3\r\n$8\r\nREPLCONF\r\n$14\r\nlistening-port\r\n$4\r\n{port}\r\n");
            assert!(answers(&mut stream, &text));
            stream
        };
        let (mut one, mut two) = (announce(7001), announce(7002));
        proxy.cut_replica(7001, Cut::Broken);
        assert!(!answers(&mut one, "x"));
        assert!(answers(&mut two, "+FULLRESYNC"));
        let syncs = proxy.full_syncs();
        assert_eq!(syncs.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [7002]);
        proxy.mend();
        assert!(answers(&mut announce(7001), "x"));
    }
}
