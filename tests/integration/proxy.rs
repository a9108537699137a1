//! A link between two servers that a test can cut, hold and mend.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Hands on what comes to `port` to another port, and what comes back.
pub struct Proxy {
    pub port: u16,
    link: Arc<Link>,
}

struct Link {
    target: u16,
    /// The connections that are open, both ends of each; none where the link is cut.
    open: Mutex<Option<Vec<TcpStream>>>,
    held: AtomicBool,
    over: AtomicBool,
}

impl Proxy {
    pub fn to(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let link = Arc::new(Link {
            target,
            open: Mutex::new(Some(Vec::new())),
            held: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let served = link.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if served.over.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(client) = client {
                    // Where the link is cut, or nobody is there, the client is dropped.
                    let _ = served.join(client);
                }
            }
        });
        Proxy { port, link }
    }

    /// Ends all connections and lets none be made.
    pub fn cut(&self) {
        for stream in self.link.open.lock().unwrap().take().into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections stay, but nothing goes through.
    pub fn hold(&self) {
        self.link.held.store(true, Ordering::SeqCst);
    }

    /// All is well again. What was held comes through.
    pub fn mend(&self) {
        self.link.held.store(false, Ordering::SeqCst);
        self.link.open.lock().unwrap().get_or_insert_default();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.link.over.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // the listener looks up
    }
}

impl Link {
    fn join(self: &Arc<Self>, client: TcpStream) -> std::io::Result<()> {
        let mut open = self.open.lock().unwrap();
        let Some(open) = open.as_mut() else { return Ok(()) };
        let server = TcpStream::connect(("127.0.0.1", self.target))?;
        for (from, to) in [(&client, &server), (&server, &client)] {
            from.set_nodelay(true)?;
            open.push(from.try_clone()?);
            let (link, from, to) = (self.clone(), from.try_clone()?, to.try_clone()?);
            thread::spawn(move || link.pump(from, to));
        }
        Ok(())
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            while self.held.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(2));
            }
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
