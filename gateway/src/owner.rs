//! The owner of the gateway's sessions: one lease for all of them, on the server.
//!
//! A task renews the lease and holds the connection that it is bound to. If the gateway dies, the server sees that the
//! connection is closed, and the sessions end after the linger. If only the connection breaks, the task makes a new one
//! in time and no session ends.

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, cmd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How often the connection is checked. It must be found broken well before the shortest linger is over.
const CHECK_EVERY: Duration = Duration::from_millis(500);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
/// The shortest linger of the owner, in ms. A connection that breaks for a moment must not end sessions.
const SHORTEST_LINGER: u64 = 3000;

/// The owner's name, and a way to send requests to its task.
#[derive(Clone)]
pub struct Owner {
    name: Arc<str>,
    requests: mpsc::UnboundedSender<Request>,
}

enum Request {
    Renew(oneshot::Sender<()>),
    End(oneshot::Sender<()>),
}

impl Owner {
    /// `ttl` is the lease in ms, `linger` how long sessions stay live after the connection closes.
    pub fn new(name: &str, ttl: u64, linger: u64, client: redis::Client) -> (Owner, OwnerTask) {
        let (sender, requests) = mpsc::unbounded_channel();
        let owner = Owner { name: name.into(), requests: sender };
        let linger = linger.max(SHORTEST_LINGER);
        (owner.clone(), OwnerTask { name: owner.name, ttl, linger, client, requests })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Renews the lease now.
    pub async fn renew(&self) -> RedisResult<()> {
        self.request(Request::Renew).await
    }

    /// Ends the owner. Its sessions stay live for a linger, in which clients can connect elsewhere.
    pub async fn end(&self) -> RedisResult<()> {
        self.request(Request::End).await
    }

    async fn request(&self, request: impl Fn(oneshot::Sender<()>) -> Request) -> RedisResult<()> {
        let (reply, done) = oneshot::channel();
        let _ = self.requests.send(request(reply));
        done.await.map_err(|_| (redis::ErrorKind::Io, "the owner is not renewed").into())
    }
}

pub struct OwnerTask {
    name: Arc<str>,
    ttl: u64,
    linger: u64,
    client: redis::Client,
    requests: mpsc::UnboundedReceiver<Request>,
}

impl OwnerTask {
    /// Makes the owner, or renews it, and binds it to a new connection.
    pub async fn begin(&self) -> RedisResult<MultiplexedConnection> {
        let reply_within = Duration::from_millis(self.ttl / 3).min(Duration::from_secs(5));
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(reply_within));
        let client = &self.client;
        let mut redis = client.get_multiplexed_async_connection_with_config(&config).await?;
        self.renew(&mut redis, self.ttl, self.linger).await?;
        Ok(redis)
    }

    /// Runs until the gateway ends. `counts` gets the number of live sessions that the owner has, at each renewal.
    pub async fn run(
        mut self,
        mut redis: MultiplexedConnection,
        counts: mpsc::UnboundedSender<u64>,
    ) {
        loop {
            let Err(error) = self.keep(&mut redis, &counts).await else { return };
            eprintln!("gateway: lost the owner's connection ({error}), connecting again");
            redis = loop {
                match self.begin().await {
                    Ok(redis) => break redis,
                    Err(error) => eprintln!("gateway: cannot renew the owner: {error}"),
                }
                tokio::time::sleep(PAUSE).await;
            };
        }
    }

    /// Renews every third of the lease. Returns the error of the connection, or when the gateway ends.
    async fn keep(
        &mut self,
        redis: &mut MultiplexedConnection,
        counts: &mpsc::UnboundedSender<u64>,
    ) -> RedisResult<()> {
        let third = Duration::from_millis(self.ttl / 3);
        let mut check = tokio::time::interval(CHECK_EVERY.min(third));
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Renew(reply)) => {
                        let _ = counts.send(self.renew(redis, self.ttl, self.linger).await?);
                        renewed = Instant::now();
                        let _ = reply.send(());
                    }
                    Some(Request::End(reply)) => {
                        self.hand_over(redis).await?;
                        let _ = reply.send(());
                        return Ok(());
                    }
                    None => return Ok(()),
                },
                _ = check.tick() => {
                    if renewed.elapsed() + CHECK_EVERY.min(third) / 2 >= third {
                        let _ = counts.send(self.renew(redis, self.ttl, self.linger).await?);
                        renewed = Instant::now();
                    } else {
                        cmd("PING").query_async::<redis::Value>(redis).await?;
                    }
                }
            }
        }
    }

    /// Returns how many live sessions the owner has.
    async fn renew(
        &self,
        redis: &mut MultiplexedConnection,
        ttl: u64,
        linger: u64,
    ) -> RedisResult<u64> {
        let mut command = cmd("PRESENCE.OWNER");
        command.arg("RENEW").arg(&*self.name).arg("PX").arg(ttl);
        command.arg("BIND").arg("LINGER").arg(linger).query_async(redis).await
    }

    /// Gives clients a whole lease to connect elsewhere, also after this connection is closed.
    async fn hand_over(&self, redis: &mut MultiplexedConnection) -> RedisResult<()> {
        let linger = self.ttl.max(self.linger);
        self.renew(redis, linger, linger).await?;
        let mut command = cmd("PRESENCE.OWNER");
        command.arg("END").arg(&*self.name).arg("LINGER").arg(linger);
        command.query_async::<u64>(redis).await.map(drop)
    }
}
