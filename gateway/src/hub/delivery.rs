//! Delivery of events and messages to the sockets.

use super::CloseReason;
use super::task::{Conn, Hub};
use crate::core::event::{Event, Kind};
use crate::core::protocol;
use crate::core::room::Change;
use axum::extract::ws::Utf8Bytes;

impl Hub {
    pub fn deliver_event(&mut self, event: &Event, changes: &[Change]) {
        for change in changes {
            if let Change::Left(member) = change
                && let Some(conn) = self.by_key.get(&member.key()).copied()
            {
                self.session_ended(conn, event);
            }
        }
        self.deliver_changes(changes);
        if self.conns.values().any(|c| c.detail) {
            let text = protocol::space_event(event).into();
            self.send(&text, |conn| conn.detail);
        }
    }

    /// The session of a socket has ended. If nothing but its owner's lease ended, the client is not concerned: the
    /// session is brought back.
    fn session_ended(&mut self, conn: u64, event: &Event) {
        match event.kind {
            Kind::Close => self.close(conn, CloseReason::SpaceClosed),
            _ if event.reason.as_deref() == Some("timeout") => self.bring_back(conn),
            _ => self.close(conn, CloseReason::Expired),
        }
    }

    /// Sends joins and leaves to the clients that do not get every event.
    pub fn deliver_changes(&mut self, changes: &[Change]) {
        if self.conns.values().all(|c| c.detail) {
            return;
        }
        for change in changes {
            let (member, text) = match change {
                Change::Joined(member) => (member, protocol::remote_join(member)),
                Change::Left(member) => (member, protocol::remote_leave(member)),
                Change::Updated(_) => continue,
            };
            let (key, text) = (member.key(), text.into());
            self.send(&text, |conn| !conn.detail && conn.key != key);
        }
    }

    /// Queues a message for some of the clients. A client whose queue is full is too slow: it is closed, and the others
    /// do not wait for it.
    pub fn send(&mut self, text: &Utf8Bytes, to: impl Fn(&Conn) -> bool) {
        let failed: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| to(c) && c.out.try_send(text.clone()).is_err())
            .map(|(conn, _)| *conn)
            .collect();
        failed.into_iter().for_each(|conn| self.close(conn, CloseReason::Slow));
    }

    /// Closes a socket.
    pub fn close(&mut self, conn: u64, why: CloseReason) {
        if let Some(conn) = self.drop_conn(conn) {
            let _ = conn.close.send(why);
        }
    }

    pub fn drop_conn(&mut self, conn: u64) -> Option<Conn> {
        let dropped = self.conns.remove(&conn)?;
        if self.by_key.get(&dropped.key) == Some(&conn) {
            self.by_key.remove(&dropped.key);
        }
        Some(dropped)
    }

    /// The list of clients for a first message.
    pub fn list(&self, detail: bool) -> String {
        let shown = self.room.shown();
        protocol::list(shown.map(|m| if detail { &*m.json_with_status } else { &*m.json }))
    }
}
