//! Presence over WebSockets, in front of a server with the redis-presence module. See README.md.
//!
//! `core` decides, and knows no socket. `hub` has a task per space, `socket` a task per client. `subscriber` subscribes,
//! `presence` sends the commands. `web` serves what is not a WebSocket, `simulator` the simulated users of the demo.

mod core;
mod hub;
mod owner;
mod presence;
mod random;
mod reconcile;
mod sessions;
mod settings;
mod simulator;
mod socket;
mod subscriber;
mod web;

use crate::core::conn::ConnNumbers;
use hub::{Hubs, Shared};
use owner::Owner;
use presence::PresenceClient;
use sessions::Sessions;
use settings::Settings;
use simulator::Simulator;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use subscriber::Subscriber;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};

/// How long sockets have to close when the gateway ends.
const SHUTDOWN: Duration = Duration::from_secs(3);

pub struct App {
    settings: Settings,
    presence: PresenceClient,
    conns: ConnNumbers,
    sessions: Arc<Sessions>,
    hubs: Arc<Hubs>,
    simulator: Simulator,
    connected: Arc<AtomicBool>,
    seats: Arc<Semaphore>,
    restart: watch::Receiver<bool>,
    stats: Mutex<web::Stats>,
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

/// Connects to the server, and starts the tasks that are not a client's or a space's. The sender tells sockets to close.
async fn start() -> Result<(Arc<App>, Owner, watch::Sender<bool>), String> {
    let settings = Settings::from_env()?;
    let url = settings.redis_url.as_str();
    let client = redis::Client::open(url).map_err(|e| format!("REDIS_URL: {e}"))?;
    let gateway_id = match &settings.gateway_id {
        Some(id) => id.clone(),
        None => random::token().map_err(|e| e.to_string())?,
    };
    let linger = settings.linger;
    let (owner, owner_task) = Owner::new(&gateway_id, settings.owner_ttl, linger, client.clone());
    let presence = PresenceClient::connect(client.clone(), owner.clone())
        .await
        .map_err(|e| format!("no server at REDIS_URL: {e}"))?;
    let prefix = channel_prefix(&presence).await?;
    let bound = owner_task.begin().await.map_err(|e| format!("PRESENCE.OWNER: {e}"))?;
    let (counts_sender, counts) = mpsc::unbounded_channel();
    tokio::spawn(owner_task.run(bound, counts_sender));

    let connected = Arc::new(AtomicBool::new(false));
    let (subscriber, commands) = mpsc::unbounded_channel();
    tokio::spawn(Subscriber::new(client, commands, connected.clone(), presence.clone()).run());
    let shared = Shared {
        presence: presence.clone(),
        ttl: settings.ttl,
        by_identity: settings.by_identity,
        simulated_users: settings.simulated_users,
    };
    let hubs = Arc::new(Hubs::new(Arc::new(shared), subscriber, prefix));
    let sessions = Arc::<Sessions>::default();
    tokio::spawn(reconcile::run(counts, presence.clone(), sessions.clone(), hubs.clone(), linger));
    let gateway_number = random::number().map_err(|e| e.to_string())? as u32;
    let (restart_now, restart) = watch::channel(false);
    let app = Arc::new(App {
        hubs,
        sessions,
        simulator: Simulator::new(presence.clone(), settings.simulated_users),
        presence,
        conns: ConnNumbers::new(gateway_number),
        connected,
        seats: Arc::new(Semaphore::new(settings.max_clients)),
        restart,
        stats: Mutex::default(),
        settings,
    });
    Ok((app, owner, restart_now))
}

async fn run() -> Result<(), String> {
    let (app, owner, restart_now) = start().await?;
    let seats = app.seats.clone();
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
        () = end_requested() => {}
    }
    // A client that connects elsewhere in time was never gone.
    let _ = tokio::time::timeout(SHUTDOWN, owner.end()).await;
    let _ = restart_now.send(true);
    let _ = tokio::time::timeout(SHUTDOWN, seats.acquire_many(all)).await;
    Ok(())
}

/// The setting `presence.channel-prefix`. If the server does not allow CONFIG, it is the default.
async fn channel_prefix(presence: &PresenceClient) -> Result<String, String> {
    let mode = presence.setting("presence.channel-mode").await;
    match mode.as_ref().map(Option::as_deref) {
        Ok(Some("sharded")) => {
            return Err(
                "presence.channel-mode is sharded; the gateway follows global channels".into()
            );
        }
        Ok(None) => return Err("the server at REDIS_URL has no presence module".into()),
        _ => {}
    }
    let prefix = presence.setting("presence.channel-prefix").await.ok().flatten();
    Ok(prefix.unwrap_or_else(|| "presence:".into()))
}

async fn end_requested() {
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
