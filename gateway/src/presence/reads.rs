//! Reads of a space: snapshots and events.

use super::replies::{event_id, field, items, read, read_member, string, unexpected};
use super::{PAGE, PresenceClient};
use crate::core::event::{Event, EventId};
use crate::core::follow::EventsAfter;
use crate::core::room::{Member, Room};
use redis::{RedisResult, Value, cmd};

/// How often a space is read page by page. If it changes too fast for that, it is then read in one call.
const PAGED_READS: usize = 3;

impl PresenceClient {
    /// The sessions of a space. Events that happen while it is read page by page are applied.
    pub async fn snapshot(&self, space: &str) -> RedisResult<Room> {
        for _ in 0..PAGED_READS {
            let (first, members, pages) = self.pages(space, Some(PAGE)).await?;
            let mut room = Room::new(first, members);
            // 0-0 is a space that does not exist. It is before every event.
            if pages == 1 || first == EventId::default() {
                return Ok(room);
            }
            let since = self.events_after(space, first).await?;
            if since.continues(first) {
                since.events.iter().for_each(|event| drop(room.apply(event)));
                return Ok(room);
            }
        }
        let (first, members, _) = self.pages(space, None).await?;
        Ok(Room::new(first, members))
    }

    /// The id and the sessions of a space, and how many pages they were.
    async fn pages(
        &self,
        space: &str,
        size: Option<usize>,
    ) -> RedisResult<(EventId, Vec<Member>, usize)> {
        let (mut first, mut members, mut cursor) = (None, Vec::new(), "0".to_string());
        for pages in 1.. {
            let mut command = cmd("PRESENCE.SPACE");
            command.arg(space).arg("WITHSESSIONS").arg("CURSOR").arg(&cursor);
            if let Some(size) = size {
                command.arg("COUNT").arg(size);
            }
            let page: Value = command.query_async(&mut self.redis.clone()).await?;
            if first.is_none() {
                first = Some(event_id(&page)?);
            }
            for member in items(field(&page, "members")?) {
                read_member(member, &mut members)?;
            }
            cursor = string(field(&page, "cursor")?)?;
            if cursor == "0" {
                return Ok((first.unwrap_or_default(), members, pages));
            }
        }
        Err(unexpected("cursor"))
    }

    pub async fn last_id(&self, space: &str) -> RedisResult<EventId> {
        let mut command = cmd("PRESENCE.SPACE");
        command.arg(space).arg("COUNT").arg(1);
        event_id(&command.query_async(&mut self.redis.clone()).await?)
    }

    pub async fn events_after(&self, space: &str, id: EventId) -> RedisResult<EventsAfter> {
        let mut command = cmd("PRESENCE.EVENTS");
        command.arg(space).arg("AFTER").arg(id.to_string());
        let reply: Value = command.query_async(&mut self.redis.clone()).await?;
        let gap = read(field(&reply, "gap")?)?;
        let mut events = Vec::new();
        for text in items(field(&reply, "events")?) {
            events.push(Event::parse(string(text)?.as_bytes()).ok_or_else(|| unexpected("event"))?);
        }
        Ok(EventsAfter { id: event_id(&reply)?, gap, events })
    }
}
