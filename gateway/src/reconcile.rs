//! Compares the sessions that the owner has with those of the connections, and corrects what differs.
//!
//! They differ after a crash of a gateway that comes back under its name, and after commands whose replies got lost.

use crate::hub::Hubs;
use crate::presence::PresenceClient;
use crate::sessions::{Name, Sessions};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A difference counts if it is there at so many renewals in a row. Joins and leaves that are in progress make one too.
const IN_A_ROW: u32 = 2;

/// `counts` has the number of sessions that the owner has, at each renewal. `linger` in ms.
pub async fn run(
    mut counts: mpsc::UnboundedReceiver<u64>,
    presence: PresenceClient,
    sessions: Arc<Sessions>,
    hubs: Arc<Hubs>,
    linger: u64,
) {
    let mut different = 0;
    while let Some(owned) = counts.recv().await {
        different = if owned == sessions.count() { 0 } else { different + 1 };
        if different < IN_A_ROW {
            continue;
        }
        different = 0;
        if let Err(error) = reconcile(&presence, &sessions, &hubs, linger).await {
            eprintln!("gateway: cannot read the sessions of the owner: {error}");
        }
    }
}

async fn reconcile(
    presence: &PresenceClient,
    sessions: &Sessions,
    hubs: &Hubs,
    linger: u64,
) -> redis::RedisResult<()> {
    let names = sessions.names();
    let owned: HashSet<Name> = presence.owned().await?.into_iter().collect();
    hubs.recheck(names.into_iter().filter(|name| !owned.contains(name)).collect());
    for name in &owned {
        if !sessions.contains(name) {
            presence.offline(&name.0, &name.1, linger).await?;
        }
    }
    Ok(())
}
