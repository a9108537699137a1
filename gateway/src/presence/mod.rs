//! The commands of the module, as the gateway uses them.

mod reads;
mod replies;
mod sessions;

pub use sessions::{Condition, Keeper, Online};

use crate::core::room::Key;
use crate::owner::Owner;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{RedisResult, cmd};
use replies::unexpected;
use std::sync::Arc;
use std::time::Duration;

/// Number of members or sessions that one request reads.
const PAGE: usize = 1000;

#[derive(Clone)]
pub struct PresenceClient {
    redis: ConnectionManager,
    /// It owns the sessions of this gateway's clients.
    owner: Owner,
}

impl PresenceClient {
    pub async fn connect(client: redis::Client, owner: Owner) -> RedisResult<PresenceClient> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(Duration::from_secs(10)))
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_max_delay(Duration::from_millis(500))
            .set_number_of_retries(3);
        let redis = ConnectionManager::new_with_config(client, config).await?;
        Ok(PresenceClient { redis, owner })
    }

    pub async fn message(&self, space: &str, key: &Key, text: &str) -> RedisResult<bool> {
        let mut command = cmd("PRESENCE.MESSAGE");
        command.arg(space).arg(&key.0).arg(text).arg("SESSION").arg(&key.1);
        let id: Option<String> = command.query_async(&mut self.redis.clone()).await?;
        Ok(id.is_some())
    }

    /// Returns the number of subscribers that received it.
    pub async fn publish(&self, channel: &str, text: &str) -> RedisResult<u64> {
        cmd("PUBLISH").arg(channel).arg(text).query_async(&mut self.redis.clone()).await
    }

    /// Begins or renews many sessions without metadata, for simulated users.
    pub async fn renew_many(&self, space: &str, users: &[String], ms: u64) -> RedisResult<()> {
        let mut command = cmd("PRESENCE.ONLINE");
        command.arg(space).arg("SESSIONS").arg(users.len());
        for user in users {
            command.arg(user).arg("simulated");
        }
        command.arg("PX").arg(ms).query_async(&mut self.redis.clone()).await
    }

    pub async fn setting(&self, name: &str) -> RedisResult<Option<String>> {
        let pair: Vec<String> =
            cmd("CONFIG").arg("GET").arg(name).query_async(&mut self.redis.clone()).await?;
        Ok(pair.into_iter().nth(1))
    }

    /// Names this run of the server and of its data: another one after a restart, and after a promotion.
    pub async fn server_run(&self) -> RedisResult<Arc<str>> {
        let mut command = cmd("INFO");
        command.arg("server").arg("replication");
        let info: String = command.query_async(&mut self.redis.clone()).await?;
        let names = ["run_id:", "master_replid:"];
        let run: Vec<&str> =
            names.iter().filter_map(|n| info.lines().find_map(|l| l.strip_prefix(n))).collect();
        if run.len() < names.len() {
            return Err(unexpected("INFO"));
        }
        Ok(run.concat().into())
    }

    pub async fn info(&self) -> RedisResult<String> {
        cmd("INFO").arg("presence").query_async(&mut self.redis.clone()).await
    }
}
