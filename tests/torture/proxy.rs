//! The network between a node and its replicas. Replicas reach a node through its proxy, which knows them by the port
//! that they announce, and can cut each off: by breaking its connections, or by silently holding back what is sent.

use crate::harness::now_ms;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    Broken,
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
    /// By the port that the replica announces.
    cuts: Mutex<BTreeMap<u16, Cut>>,
    full_syncs: Mutex<Vec<(u16, i64)>>,
}

/// One connection of a replica: what both directions know of it.
struct Link {
    state: Arc<State>,
    /// The port that the replica announces, 0 until it has.
    peer: AtomicU16,
    ends: [TcpStream; 2],
}

const NAP: Duration = Duration::from_millis(2);

impl Proxy {
    pub fn start() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            while !shared.over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((replica, _)) => connect(&shared, replica),
                    Err(_) => thread::sleep(NAP),
                }
            }
        });
        Proxy { port, state }
    }

    /// Who is reached through it.
    pub fn lead_to(&self, port: u16) {
        self.state.target.store(port, Ordering::Relaxed);
    }

    pub fn cut(&self, peer: u16, how: Cut) {
        self.state.cuts.lock().unwrap().insert(peer, how);
    }

    pub fn heal(&self) {
        self.state.cuts.lock().unwrap().clear();
    }

    /// Who was told to synchronise in full, and when.
    pub fn full_syncs(&self) -> Vec<(u16, i64)> {
        self.state.full_syncs.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
    }
}

fn connect(state: &Arc<State>, replica: TcpStream) {
    let Ok(node) = TcpStream::connect(("127.0.0.1", state.target.load(Ordering::Relaxed))) else {
        return;
    };
    for end in [&replica, &node] {
        let _ = end.set_nodelay(true);
        let _ = end.set_nonblocking(false);
        let _ = end.set_read_timeout(Some(Duration::from_millis(20)));
    }
    let link =
        Arc::new(Link { state: state.clone(), peer: AtomicU16::new(0), ends: [replica, node] });
    for (from, to) in [(0, 1), (1, 0)] {
        let link = link.clone();
        thread::spawn(move || {
            link.forward(from, to);
            link.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        });
    }
}

impl Link {
    fn cut(&self) -> Option<Cut> {
        let peer = self.peer.load(Ordering::Relaxed);
        self.state.cuts.lock().unwrap().get(&peer).copied()
    }

    fn forward(&self, from: usize, to: usize) {
        let (mut buffer, mut beginning) = (vec![0; 65536], Vec::new());
        let mut listening = true;
        while !self.state.over.load(Ordering::Relaxed) {
            match self.cut() {
                Some(Cut::Broken) => return,
                Some(Cut::Silent) => {
                    thread::sleep(NAP);
                    continue;
                }
                None => {}
            }
            let read = match (&self.ends[from]).read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => &buffer[..n],
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock) => continue,
                Err(_) => return,
            };
            if listening {
                beginning.extend_from_slice(read);
                let heard =
                    if from == 0 { self.announced(&beginning) } else { self.told(&beginning) };
                listening = !heard && beginning.len() < 1 << 20;
            }
            // What was read while the cut came is held back as well.
            while self.cut() == Some(Cut::Silent) && !self.state.over.load(Ordering::Relaxed) {
                thread::sleep(NAP);
            }
            if self.cut() == Some(Cut::Broken) || (&self.ends[to]).write_all(read).is_err() {
                return;
            }
        }
    }

    /// What the replica says: REPLCONF listening-port.
    fn announced(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        let Some((_, after)) = text.split_once("listening-port\r\n") else { return false };
        let mut lines = after.split("\r\n");
        let (Some(_), Some(port), Some(_)) = (lines.next(), lines.next(), lines.next()) else {
            return false;
        };
        self.peer.store(port.parse().unwrap_or(0), Ordering::Relaxed);
        true
    }

    /// What the node answers to PSYNC.
    fn told(&self, bytes: &[u8]) -> bool {
        let contains = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
        if contains(b"+FULLRESYNC") {
            let peer = self.peer.load(Ordering::Relaxed);
            self.state.full_syncs.lock().unwrap().push((peer, now_ms()));
            return true;
        }
        contains(b"+CONTINUE")
    }
}
