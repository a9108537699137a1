//! The subscribing connection: one for all spaces of this gateway, with one subscription per space.

use crate::hub::HubCommand;
use crate::presence::PresenceClient;
use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// How often the connection is checked by a PING, because a lost connection can look like a quiet one.
const CHECK_EVERY: Duration = Duration::from_secs(5);
const REPLY_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub enum SubscriberCommand {
    Subscribe { channels: Channels, hub: UnboundedSender<HubCommand> },
    Unsubscribe { channels: Channels },
}

/// The channels of a space: the module's, and the one on which gateways talk to each other.
#[derive(Clone, Debug)]
pub struct Channels {
    pub events: String,
    pub peers: String,
}

impl Channels {
    fn names(&self) -> [&str; 2] {
        [&self.events, &self.peers]
    }
}

pub struct Subscriber {
    client: redis::Client,
    commands: UnboundedReceiver<SubscriberCommand>,
    /// By name of the event channel.
    subscribed: HashMap<String, (Channels, UnboundedSender<HubCommand>)>,
    /// The name of the event channel, by that of the peer channel.
    by_peer_channel: HashMap<String, String>,
    connected: Arc<AtomicBool>,
    presence: PresenceClient,
    /// The run of the server that this connection goes to; None if it is not known.
    server: Option<Arc<str>>,
}

impl Subscriber {
    pub fn new(
        client: redis::Client,
        commands: UnboundedReceiver<SubscriberCommand>,
        connected: Arc<AtomicBool>,
        presence: PresenceClient,
    ) -> Subscriber {
        let (subscribed, by_peer_channel) = (HashMap::new(), HashMap::new());
        Subscriber {
            client,
            commands,
            subscribed,
            by_peer_channel,
            connected,
            presence,
            server: None,
        }
    }

    /// Runs until the gateway ends. When the connection breaks, it connects and subscribes again.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match with_deadline(self.client.get_async_pubsub()).await {
                Ok(pubsub) => {
                    let (mut sink, mut stream) = pubsub.split();
                    if self.subscribe_again(&mut sink).await.is_ok() {
                        pause = FIRST_PAUSE;
                        self.connected.store(true, Ordering::Relaxed);
                        let why = self.receive(&mut sink, &mut stream).await;
                        self.connected.store(false, Ordering::Relaxed);
                        let Some(why) = why else { return };
                        for (_, hub) in self.subscribed.values() {
                            let _ = hub.send(HubCommand::Unsubscribed);
                        }
                        eprintln!("gateway: lost the subscription ({why}), connecting again");
                    }
                }
                Err(error) => eprintln!("gateway: cannot subscribe: {error}"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            while let Ok(command) = self.commands.try_recv() {
                self.record(command);
            }
        }
    }

    /// Records a command for the next connections. Returns what this connection has to do: subscribe or not.
    fn record(&mut self, command: SubscriberCommand) -> (Channels, bool) {
        match command {
            SubscriberCommand::Subscribe { channels, hub } => {
                self.by_peer_channel.insert(channels.peers.clone(), channels.events.clone());
                self.subscribed.insert(channels.events.clone(), (channels.clone(), hub));
                (channels, true)
            }
            SubscriberCommand::Unsubscribe { channels } => {
                self.by_peer_channel.remove(&channels.peers);
                self.subscribed.remove(&channels.events);
                (channels, false)
            }
        }
    }

    async fn subscribe_again(&mut self, sink: &mut PubSubSink) -> redis::RedisResult<()> {
        let all: Vec<Channels> = self.subscribed.values().map(|(c, _)| c.clone()).collect();
        for some in all.chunks(100) {
            let names: Vec<&str> = some.iter().flat_map(Channels::names).collect();
            with_deadline(sink.subscribe(&names)).await?;
        }
        // Without a reply the hubs assume that it is another server, and verify what they know.
        self.server = with_deadline(self.presence.server_run()).await.ok();
        for (_, hub) in self.subscribed.values() {
            let _ = hub.send(HubCommand::Subscribed { server: self.server.clone() });
        }
        Ok(())
    }

    /// Passes on what arrives. Returns why the connection ended; None when the gateway ends.
    async fn receive(
        &mut self,
        sink: &mut PubSubSink,
        stream: &mut PubSubStream,
    ) -> Option<String> {
        let mut check = tokio::time::interval(CHECK_EVERY);
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => self.dispatch(&message),
                    None => return Some("closed".into()),
                },
                command = self.commands.recv() => {
                    let (channels, subscribe) = self.record(command?);
                    let done = if subscribe {
                        with_deadline(sink.subscribe(&channels.names())).await
                    } else {
                        with_deadline(sink.unsubscribe(&channels.names())).await
                    };
                    if let Err(error) = done {
                        return Some(error.to_string());
                    }
                    if subscribe {
                        let server = self.server.clone();
                        self.send(&channels.events, HubCommand::Subscribed { server });
                    }
                }
                _ = check.tick() => {
                    if let Err(error) = with_deadline(sink.ping::<redis::Value>()).await {
                        return Some(error.to_string());
                    }
                }
            }
        }
    }

    fn dispatch(&self, message: &redis::Msg) {
        let channel = message.get_channel_name();
        let payload = message.get_payload_bytes().to_vec();
        if self.subscribed.contains_key(channel) {
            self.send(channel, HubCommand::Event(payload));
        } else if let Some(events) = self.by_peer_channel.get(channel) {
            self.send(events, HubCommand::PeerMessage(payload));
        }
    }

    fn send(&self, events: &str, command: HubCommand) {
        if let Some((_, hub)) = self.subscribed.get(events) {
            let _ = hub.send(command);
        }
    }
}

/// Treats a server that does not reply in time as lost.
async fn with_deadline<T>(
    request: impl std::future::Future<Output = redis::RedisResult<T>>,
) -> redis::RedisResult<T> {
    let reply = tokio::time::timeout(REPLY_WITHIN, request).await;
    reply.unwrap_or_else(|_| Err((redis::ErrorKind::Io, "no reply in time").into()))
}
