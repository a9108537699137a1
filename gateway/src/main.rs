//! Presence over WebSockets, in front of a server with the redis-presence module. See README.md.
//!
//! `core` decides and knows no socket. `hub` runs a task a space, `socket` one a client; `feed` subscribes, `store` asks
//! and tells the server; `web` has what is not a WebSocket, `crowd` the demo's simulated users.

mod core;
mod crowd;
mod feed;
mod hub;
mod settings;
mod socket;
mod store;
mod web;

use crate::core::holder::ConnNumbers;
use crowd::Crowds;
use feed::Feed;
use hub::{Hubs, Shared};
use settings::Settings;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};

/// How long sockets have to close when the gateway ends.
const GOODBYE: Duration = Duration::from_secs(3);

pub struct App {
    settings: Settings,
    store: Store,
    conns: ConnNumbers,
    hubs: Arc<Hubs>,
    crowds: Crowds,
    connected: Arc<AtomicBool>,
    seats: Arc<Semaphore>,
    restart: watch::Receiver<bool>,
    figures: Mutex<web::Figures>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("gateway: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let settings = Settings::from_env()?;
    let url = settings.redis_url.as_str();
    let client = redis::Client::open(url).map_err(|e| format!("REDIS_URL: {e}"))?;
    let store = Store::connect(url, settings.ttl, &settings.prefix)
        .await
        .map_err(|e| format!("no server at REDIS_URL: {e}"))?;
    let prefix = channel_prefix(&store).await?;

    let connected = Arc::new(AtomicBool::new(false));
    let (feed, requests) = mpsc::unbounded_channel();
    tokio::spawn(Feed::new(client, requests, connected.clone(), store.clone()).run());
    let shared = Shared {
        store: store.clone(),
        ttl: settings.ttl,
        by_identity: settings.by_identity,
        crowd: settings.crowd,
    };
    let (restart_now, restart) = watch::channel(false);
    let seats = Arc::new(Semaphore::new(settings.max_clients));
    let app = Arc::new(App {
        hubs: Arc::new(Hubs::new(Arc::new(shared), feed, prefix)),
        crowds: Crowds::new(store.clone(), settings.crowd),
        store,
        conns: ConnNumbers::new(hub::random() as u32),
        connected,
        seats: seats.clone(),
        restart,
        figures: Mutex::default(),
        settings,
    });

    let address = &app.settings.address;
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|e| format!("cannot listen on {address}: {e}"))?;
    let bound = listener.local_addr().map_err(|e| e.to_string())?;
    println!("gateway: http://{bound}");
    let all = app.settings.max_clients as u32;
    let router = axum::Router::new().fallback(web::any).with_state(app);
    tokio::select! {
        ended = axum::serve(listener, router) => return ended.map_err(|e| e.to_string()),
        () = told_to_end() => {}
    }
    // Sessions keep their leases: whoever connects again in time, here or elsewhere, was never gone.
    let _ = restart_now.send(true);
    let _ = tokio::time::timeout(GOODBYE, seats.acquire_many(all)).await;
    Ok(())
}

/// What the module puts in front of a space's name to make its channel. Servers may keep CONFIG from us; then it is the
/// default.
async fn channel_prefix(store: &Store) -> Result<String, String> {
    let mode = store.setting("presence.channel-mode").await;
    match mode.as_ref().map(Option::as_deref) {
        Ok(Some("sharded")) => {
            return Err(
                "presence.channel-mode is sharded; the gateway follows global channels".into()
            );
        }
        Ok(None) => return Err("the server at REDIS_URL has no presence module".into()),
        _ => {}
    }
    let prefix = store.setting("presence.channel-prefix").await.ok().flatten();
    Ok(prefix.unwrap_or_else(|| "presence:".into()))
}

async fn told_to_end() {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
