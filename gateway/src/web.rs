//! HTTP without a WebSocket: the page, /health, /stats.

use crate::{App, socket};
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The largest message that a client may send.
const MAX_MESSAGE: usize = 64 * 1024;
/// Statistics that are younger are not read again.
const FRESH: Duration = Duration::from_millis(500);

/// With a WebSocket every path is a space, so no name is reserved. Without one a few paths have a page.
pub async fn any(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    uri: Uri,
    State(app): State<Arc<App>>,
) -> Response {
    let Ok(upgrade) = upgrade else { return plain(&app, uri.path()).await };
    let Ok(seat) = app.seats.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many clients\n").into_response();
    };
    let (path, query) = (uri.path().to_string(), uri.query().unwrap_or("").to_string());
    upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).on_upgrade(
        move |socket| async move {
            let _seat = seat;
            socket::serve(socket, app, path, query).await;
        },
    )
}

async fn plain(app: &App, path: &str) -> Response {
    match path {
        "/" => file("text/html; charset=utf-8", include_str!("../page/index.html")),
        "/page/style.css" => file("text/css; charset=utf-8", include_str!("../page/style.css")),
        "/page/main.js" => script(include_str!("../page/main.js")),
        "/page/room.js" => script(include_str!("../page/room.js")),
        "/page/connection.js" => script(include_str!("../page/connection.js")),
        "/page/charts.js" => script(include_str!("../page/charts.js")),
        "/page/icon.svg" => file("image/svg+xml", include_str!("../page/icon.svg")),
        "/health" => health(app),
        "/stats" => stats(app).await,
        _ => (StatusCode::NOT_FOUND, "nothing here\n").into_response(),
    }
}

fn script(text: &'static str) -> Response {
    file("text/javascript; charset=utf-8", text)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'",
        ),
    ];
    (headers, text).into_response()
}

fn health(app: &App) -> Response {
    if app.connected.load(Ordering::Relaxed) {
        return "ok".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the server with the module is not available\n")
        .into_response()
}

#[derive(Default)]
pub struct Stats {
    json: String,
    at: Option<Instant>,
}

/// `INFO presence` as JSON, without the prefix of its names.
async fn stats(app: &App) -> Response {
    let mut stats = app.stats.lock().await;
    if stats.at.is_none_or(|at| at.elapsed() > FRESH) {
        let Ok(info) = app.presence.info().await else {
            return (StatusCode::SERVICE_UNAVAILABLE, "{}").into_response();
        };
        *stats = Stats { json: info_json(&info), at: Some(Instant::now()) };
    }
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, stats.json.clone()).into_response()
}

fn info_json(info: &str) -> String {
    let field = |line: &str| {
        let (name, value) = line.trim().strip_prefix("presence_")?.split_once(':')?;
        let number: serde_json::Number = value.parse().ok()?;
        Some((name.to_string(), serde_json::Value::Number(number)))
    };
    serde_json::Value::Object(info.lines().filter_map(field).collect()).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn info() {
        let text =
            "# presence_\r\npresence_users:3\r\npresence_sweep_lag_p99_ms:1.5\r\nother:1\r\n";
        assert_eq!(super::info_json(text), r#"{"sweep_lag_p99_ms":1.5,"users":3}"#);
    }
}
