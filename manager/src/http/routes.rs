//! What each request does.

use std::{io, ops::ControlFlow, path::PathBuf};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        DefaultBodyLimit, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use cid::Cid;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, channel::mpsc, stream};
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Api, MAX_JSON_BYTES, guard::guard, page};
use crate::{
    PublishError, SubscribeError, Subscription,
    files::{self, AddDirectoryOptions, AddOptions, Download, DownloadEvent, Profile},
    topic::Message,
};

/// Events of a download that wait for a slow client; progress beyond that is left out.
const EVENTS: usize = 64;

/// Answers of a line of JSON each.
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/dashboard", get(status_page))
        .route("/api/status", get(status))
        .route("/api/peers", get(peers))
        .route("/api/mcp/peers", get(peers))
        .route("/metrics", get(metrics))
        .route("/api/add", post(add))
        .route("/api/add_directory", post(add_directory))
        .route("/api/get", post(download))
        .route("/api/connect", post(connect))
        .route("/api/publish", post(publish))
        .route("/api/subscribe", post(subscribe))
        .route("/api/shutdown", post(shutdown))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

/// An error, as `{"error": "…"}`.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, error: impl ToString) -> Self {
        Self {
            status,
            message: error.to_string(),
        }
    }

    fn bad_request(error: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    fn stopped(error: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

async fn unknown() -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        "nothing is here; /api/status, /api/peers, /metrics, or / for the status page",
    )
}

async fn status_page(State(api): State<Api>) -> Result<impl IntoResponse, Failure> {
    const POLICY: HeaderValue =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    let (status, peers) = (status_value(&api).await?, peers_value(&api).await?);
    Ok((
        [(header::CONTENT_SECURITY_POLICY, POLICY)],
        Html(page::render(&status, &peers)),
    ))
}

async fn status(State(api): State<Api>) -> Result<Json<Value>, Failure> {
    status_value(&api).await.map(Json)
}

async fn peers(State(api): State<Api>) -> Result<Json<Value>, Failure> {
    peers_value(&api).await.map(Json)
}

async fn status_value(api: &Api) -> Result<Value, Failure> {
    let mut status = to_value(&api.node.status().await.map_err(Failure::stopped)?)?;
    if let Value::Object(fields) = &mut status {
        let store = api.node.store();
        let mut figures = to_value(&store.stats())?;
        if let Value::Object(figures) = &mut figures {
            figures.insert("room_for_pinned".to_owned(), store.room_for_pinned().into());
        }
        fields.insert("store".to_owned(), figures);
        fields.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        fields.insert("pid".to_owned(), std::process::id().into());
    }
    Ok(status)
}

async fn peers_value(api: &Api) -> Result<Value, Failure> {
    to_value(&api.node.peers().await.map_err(Failure::stopped)?)
}

fn to_value(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value)
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))
}

async fn metrics(State(api): State<Api>) -> Result<impl IntoResponse, Failure> {
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = api.node.metrics_text().await.map_err(Failure::stopped)?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddQuery {
    profile: Option<String>,
}

async fn add(
    State(api): State<Api>,
    query: Result<Query<AddQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Failure> {
    let Query(query) = query?;
    let profile = profile(query.profile.as_deref())?;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok());
    let size = length.and_then(|length| length.parse().ok());
    // A task of its own: if the client goes, the body ends with an error and the add cleans up after itself.
    let task = spawn(async move {
        let mut source = body
            .into_data_stream()
            .map_err(io::Error::other)
            .into_async_read();
        let options = AddOptions {
            profile,
            size,
            ..AddOptions::default()
        };
        let added = files::add(api.node.store(), &mut source, options).await;
        if added.is_err() {
            // HTTP/1 clients read the answer only when they have sent everything.
            let _ = futures::io::copy(source, &mut futures::io::sink()).await;
        }
        let added = added?;
        tell_of(api, added.cid, added.bytes).await;
        Ok(added)
    });
    let added: Result<files::Added, files::AddError> = task
        .await
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    let added = added.map_err(|error| {
        let status = match error {
            files::AddError::NoRoom { .. } | files::AddError::DiskFull => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            files::AddError::Read { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Failure::new(status, error)
    })?;
    Ok(Json(
        json!({ "cid": added.cid.to_string(), "bytes": added.bytes, "blocks": added.blocks }),
    ))
}

fn profile(name: Option<&str>) -> Result<Profile, Failure> {
    match name {
        None => Ok(Profile::default()),
        Some(name) => Profile::by_name(name).ok_or_else(|| {
            Failure::bad_request(format!("unknown profile {name:?}; kubo or unixfs-v1-2025"))
        }),
    }
}

/// Who waits for it already need not ask again; the DHT is told while the user goes on.
async fn tell_of(api: Api, cid: Cid, bytes: u64) {
    let _ = api.node.notify_new_blocks(vec![cid]).await;
    if api.announces {
        drop(spawn(async move { api.announce(cid, Some(bytes)).await }));
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddDirectoryRequest {
    /// Absolute: the client's working directory is not the node's.
    path: PathBuf,
    profile: Option<String>,
    #[serde(default)]
    hidden: bool,
}

/// The node reads the directory itself, as it writes what `get` gets.
async fn add_directory(
    State(api): State<Api>,
    request: Result<Json<AddDirectoryRequest>, JsonRejection>,
) -> Result<impl IntoResponse, Failure> {
    let Json(request) = request?;
    let profile = profile(request.profile.as_deref())?;
    if !request.path.is_absolute() {
        return Err(Failure::bad_request("`path` must be an absolute path"));
    }
    let (mut last, events) = mpsc::channel(EVENTS);
    let mut progress = last.clone();
    // A task of its own, which drops what it has pinned if the client goes.
    drop(spawn(async move {
        let options = AddDirectoryOptions {
            profile,
            hidden: request.hidden,
            on_progress: Some(Box::new(move |read, total| {
                let event = json!({ "event": "progress", "read": read, "total": total });
                // If the queue is full, the next one says more.
                let _ = progress.try_send(to_line(&event));
                match progress.is_closed() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })),
        };
        let added = files::add_directory(api.node.store(), &request.path, options).await;
        let event = match added {
            Ok(added) => {
                tell_of(api, added.cid, added.bytes).await;
                added_directory(&added)
            }
            Err(error) => json!({ "event": "error", "message": error.to_string() }),
        };
        // Each sender has a place of its own in the queue.
        let _ = last.try_send(to_line(&event));
    }));
    let lines = events.map(Ok::<_, io::Error>);
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)))
}

fn added_directory(added: &files::AddedDirectory) -> Value {
    json!({
        "event": "added",
        "cid": added.cid.to_string(),
        "bytes": added.bytes,
        "blocks": added.blocks,
        "files": added.files,
        "left_out": added.left_out,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GetRequest {
    cid: String,
    /// Absolute: the client's working directory is not the node's.
    output: PathBuf,
    #[serde(default)]
    peers: Vec<Multiaddr>,
    #[serde(default)]
    force: bool,
}

async fn download(
    State(api): State<Api>,
    request: Result<Json<GetRequest>, JsonRejection>,
) -> Result<impl IntoResponse, Failure> {
    let Json(request) = request?;
    let cid: Cid = request
        .cid
        .parse()
        .map_err(|_| Failure::bad_request(format!("{:?} is not a CID", request.cid)))?;
    if !request.output.is_absolute() {
        return Err(Failure::bad_request("`output` must be an absolute path"));
    }
    let GetRequest {
        output,
        peers,
        force,
        ..
    } = request;
    let (mut sender, events) = mpsc::channel(EVENTS);
    let transfer = async move {
        let mut last = sender.clone();
        let request = Download {
            cid,
            output,
            peers,
            force,
        };
        let done = files::download(&api.node, request, move |event: DownloadEvent| {
            let line = to_line(&event);
            let _ = match event {
                // If the queue is full, the next one says more.
                DownloadEvent::Progress { .. } => sender.try_send(line),
                // Each new sender has a place of its own in the queue.
                _ => sender.clone().try_send(line),
            };
        });
        if let Err(error) = done.await {
            let _ = last.try_send(to_line(
                &json!({ "event": "error", "message": error.to_string() }),
            ));
        }
    };
    // The transfer runs as the client reads, and ends when it goes away.
    let transfer = transfer
        .into_stream()
        .filter_map(|()| async { None::<Bytes> });
    let lines = stream::select(events, transfer).map(Ok::<_, io::Error>);
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)))
}

fn to_line(event: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectRequest {
    address: Multiaddr,
}

async fn connect(
    State(api): State<Api>,
    request: Result<Json<ConnectRequest>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let Json(request) = request?;
    let peer = api.node.connect(request.address).await;
    let peer = peer.map_err(|error| Failure::new(StatusCode::BAD_GATEWAY, error))?;
    Ok(Json(json!({ "peer_id": peer.to_string() })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishRequest {
    topic: String,
    text: Option<String>,
    json: Option<Value>,
}

async fn publish(
    State(api): State<Api>,
    request: Result<Json<PublishRequest>, JsonRejection>,
) -> Result<Json<Value>, Failure> {
    let Json(request) = request?;
    let data = match (request.text, request.json) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(json)) => json.to_string().into_bytes(),
        _ => return Err(Failure::bad_request("give either `text` or `json`")),
    };
    let published = api.node.publish(request.topic, data).await;
    published.map_err(|error| {
        let status = match error {
            PublishError::Disabled | PublishError::NobodyListens => StatusCode::CONFLICT,
            PublishError::Topic(_) | PublishError::TooLarge { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Failure::new(status, error)
    })?;
    Ok(Json(json!({})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeRequest {
    topic: String,
}

async fn subscribe(
    State(api): State<Api>,
    request: Result<Json<SubscribeRequest>, JsonRejection>,
) -> Result<impl IntoResponse, Failure> {
    let Json(request) = request?;
    let subscribed = api.node.subscribe(request.topic).await;
    let subscription = subscribed.map_err(|error| {
        let status = match error {
            SubscribeError::Disabled | SubscribeError::TooMany => StatusCode::CONFLICT,
            SubscribeError::Topic(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Failure::new(status, error)
    })?;
    let first = to_line(&json!({ "event": "subscribed", "topic": subscription.topic() }));
    let messages = stream::unfold((subscription, 0), next_lines);
    // The subscription ends when the client goes away.
    let lines = stream::iter([first])
        .chain(messages)
        .map(Ok::<_, io::Error>);
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)))
}

/// The next message, after what was missed before it; `told` of those have been told.
async fn next_lines(
    (mut subscription, told): (Subscription, u64),
) -> Option<(Bytes, (Subscription, u64))> {
    let message = subscription.next().await?;
    let missed = subscription.missed();
    let mut lines = Vec::new();
    if missed > told {
        lines.extend(to_line(
            &json!({ "event": "missed", "count": missed - told }),
        ));
    }
    lines.extend(to_line(&message_value(&message)));
    Some((lines.into(), (subscription, missed)))
}

fn message_value(message: &Message) -> Value {
    let mut fields = serde_json::Map::new();
    fields.insert("event".to_owned(), "message".into());
    fields.insert("from".to_owned(), message.from.to_string().into());
    match std::str::from_utf8(&message.data) {
        Ok(text) => fields.insert("text".to_owned(), text.into()),
        Err(_) => fields.insert("hex".to_owned(), hex::encode(&message.data).into()),
    };
    if let Ok(json) = message.json::<Value>() {
        fields.insert("json".to_owned(), json);
    }
    fields.into()
}

async fn shutdown(State(api): State<Api>) -> Json<Value> {
    api.stop.notify_one();
    Json(json!({}))
}

#[expect(clippy::disallowed_methods, reason = "axum runs on tokio anyway")]
fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}
