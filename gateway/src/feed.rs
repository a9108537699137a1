//! One subscribing connection for all spaces of this gateway, and one subscription a space.

use crate::hub::ToHub;
use crate::store::Store;
use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// A subscription that says nothing for that long is asked whether it is still there.
const CHECK_EVERY: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub enum ToFeed {
    Follow { channels: Channels, hub: UnboundedSender<ToHub> },
    Leave { channels: Channels },
}

/// The channels of a space: the module's, and the one on which gateways talk to each other.
#[derive(Clone, Debug)]
pub struct Channels {
    pub events: String,
    pub side: String,
}

pub struct Feed {
    client: redis::Client,
    requests: UnboundedReceiver<ToFeed>,
    /// By name of the event channel.
    followed: HashMap<String, (Channels, UnboundedSender<ToHub>)>,
    by_side: HashMap<String, String>,
    connected: Arc<AtomicBool>,
    store: Store,
    /// The run of the server that this connection goes to; None if it is not known.
    server: Option<Arc<str>>,
}

impl Feed {
    pub fn new(
        client: redis::Client,
        requests: UnboundedReceiver<ToFeed>,
        connected: Arc<AtomicBool>,
        store: Store,
    ) -> Feed {
        let (followed, by_side) = (HashMap::new(), HashMap::new());
        Feed { client, requests, followed, by_side, connected, store, server: None }
    }

    /// For the life of the process: connects, follows, connects again.
    pub async fn run(mut self) {
        let mut pause = Duration::from_millis(50);
        loop {
            match in_time(self.client.get_async_pubsub()).await {
                Ok(pubsub) => {
                    let (mut sink, mut stream) = pubsub.split();
                    if self.subscribe_again(&mut sink).await.is_ok() {
                        pause = Duration::from_millis(50);
                        self.connected.store(true, Ordering::Relaxed);
                        let why = self.follow(&mut sink, &mut stream).await;
                        self.connected.store(false, Ordering::Relaxed);
                        let Some(why) = why else { return };
                        for (_, hub) in self.followed.values() {
                            let _ = hub.send(ToHub::Unsubscribed);
                        }
                        eprintln!("gateway: the subscription is lost ({why}), connecting again");
                    }
                }
                Err(error) => eprintln!("gateway: cannot subscribe: {error}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
            // Who came or went in the meantime.
            while let Ok(request) = self.requests.try_recv() {
                self.note(request);
            }
        }
    }

    /// What a request means for the next connection; what it means for this one is returned.
    fn note(&mut self, request: ToFeed) -> (Channels, bool) {
        match request {
            ToFeed::Follow { channels, hub } => {
                self.by_side.insert(channels.side.clone(), channels.events.clone());
                self.followed.insert(channels.events.clone(), (channels.clone(), hub));
                (channels, true)
            }
            ToFeed::Leave { channels } => {
                self.by_side.remove(&channels.side);
                self.followed.remove(&channels.events);
                (channels, false)
            }
        }
    }

    async fn subscribe_again(&mut self, sink: &mut PubSubSink) -> redis::RedisResult<()> {
        let all: Vec<Channels> = self.followed.values().map(|(c, _)| c.clone()).collect();
        for some in all.chunks(100) {
            let names: Vec<&str> =
                some.iter().flat_map(|c| [c.events.as_str(), c.side.as_str()]).collect();
            in_time(sink.subscribe(&names)).await?;
        }
        // Without an answer the hubs take it for another server, and verify what they know.
        self.server = in_time(self.store.server_run()).await.ok();
        for (_, hub) in self.followed.values() {
            let _ = hub.send(ToHub::Subscribed { server: self.server.clone() });
        }
        Ok(())
    }

    /// Returns why it ended; None when the gateway ends.
    async fn follow(&mut self, sink: &mut PubSubSink, stream: &mut PubSubStream) -> Option<String> {
        let mut check = tokio::time::interval(CHECK_EVERY);
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => self.dispatch(&message),
                    None => return Some("closed".into()),
                },
                request = self.requests.recv() => {
                    let (channels, follow) = self.note(request?);
                    let names = [channels.events.as_str(), channels.side.as_str()];
                    let done = if follow {
                        in_time(sink.subscribe(&names)).await
                    } else {
                        in_time(sink.unsubscribe(&names)).await
                    };
                    if let Err(error) = done {
                        return Some(error.to_string());
                    }
                    if follow {
                        let server = self.server.clone();
                        self.tell(&channels.events, ToHub::Subscribed { server });
                    }
                }
                _ = check.tick() => {
                    if let Err(error) = in_time(sink.ping::<redis::Value>()).await {
                        return Some(error.to_string());
                    }
                }
            }
        }
    }

    fn dispatch(&self, message: &redis::Msg) {
        let channel = message.get_channel_name();
        let payload = message.get_payload_bytes().to_vec();
        if self.followed.contains_key(channel) {
            self.tell(channel, ToHub::Event(payload));
        } else if let Some(events) = self.by_side.get(channel) {
            self.tell(events, ToHub::Side(payload));
        }
    }

    fn tell(&self, events: &str, what: ToHub) {
        if let Some((_, hub)) = self.followed.get(events) {
            let _ = hub.send(what);
        }
    }
}

/// A server that does not answer is as good as gone.
async fn in_time<T>(
    request: impl std::future::Future<Output = redis::RedisResult<T>>,
) -> redis::RedisResult<T> {
    let answer = tokio::time::timeout(ANSWER_WITHIN, request).await;
    answer.unwrap_or_else(|_| Err((redis::ErrorKind::Io, "no answer").into()))
}
