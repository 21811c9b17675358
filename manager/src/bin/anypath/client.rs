//! Talking to the running node over its API.

use std::io;

use anypath::data_dir::ApiFile;
use bytes::Bytes;
use futures::Stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use crate::Error;

type Body = BoxBody<Bytes, io::Error>;

/// A node that has answered.
#[derive(Debug)]
pub(crate) struct Client {
    api: ApiFile,
    http: HyperClient<HttpConnector, Body>,
}

impl Client {
    /// None if the node that wrote `api.json` is gone: nothing answers there, or something else.
    pub(crate) async fn connect(api: ApiFile) -> Option<Self> {
        let http = HyperClient::builder(TokioExecutor::new()).build_http();
        let pid = api.pid;
        let client = Self { api, http };
        let status = client.get("/api/status").await.ok()?;
        (status.get("pid").and_then(Value::as_u64) == Some(pid.into())).then_some(client)
    }

    /// Asks and returns the answer's JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Error> {
        let response = self.send(Method::GET, path, None, empty()).await?;
        Ok(serde_json::from_slice(
            &response.into_body().collect().await?.to_bytes(),
        )?)
    }

    /// Sends JSON and returns the answer's JSON.
    pub(crate) async fn post(&self, path: &str, value: &Value) -> Result<Value, Error> {
        let response = self.post_for_stream(path, value).await?;
        Ok(serde_json::from_slice(
            &response.into_body().collect().await?.to_bytes(),
        )?)
    }

    /// Sends JSON and returns the answer as it comes.
    async fn post_for_stream(
        &self,
        path: &str,
        value: &Value,
    ) -> Result<Response<Incoming>, Error> {
        let body = Full::new(Bytes::from(value.to_string()))
            .map_err(|never| match never {})
            .boxed();
        self.send(Method::POST, path, Some("application/json"), body)
            .await
    }

    /// Sends JSON and hands each line of the answer, an object of JSON, to `next` as it comes. An event of the name
    /// `error` is one; `next` returns whether to go on.
    pub(crate) async fn post_for_lines(
        &self,
        path: &str,
        value: &Value,
        mut next: impl FnMut(Value) -> bool,
    ) -> Result<(), Error> {
        let mut body = self.post_for_stream(path, value).await?.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = pending.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line)?;
                let text = |key: &str| event.get(key).and_then(Value::as_str);
                if text("event") == Some("error") {
                    return Err(text("message").unwrap_or_default().to_owned().into());
                }
                if !next(event) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends bytes as they come and returns the answer's JSON. `size` is their number, if known.
    pub(crate) async fn post_bytes(
        &self,
        path: &str,
        size: Option<u64>,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
    ) -> Result<Value, Error> {
        let frames = futures::TryStreamExt::map_ok(bytes, Frame::data);
        let body = Sized {
            body: StreamBody::new(frames).boxed(),
            size,
        };
        let response = self.send(Method::POST, path, None, body.boxed()).await?;
        Ok(serde_json::from_slice(
            &response.into_body().collect().await?.to_bytes(),
        )?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.api.address))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.api.token));
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let response = self.http.request(request.body(body)?).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => {
                let body = response.into_body().collect().await?.to_bytes();
                let answer: Option<Value> = serde_json::from_slice(&body).ok();
                let error = answer
                    .as_ref()
                    .and_then(|answer| answer.get("error")?.as_str());
                Err(match error {
                    Some(error) => error.to_owned(),
                    None => format!(
                        "the node answered {status}: {}",
                        String::from_utf8_lossy(&body)
                    ),
                }
                .into())
            }
        }
    }
}

fn empty() -> Body {
    Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed()
}

/// A body whose length is sent ahead, so that the node can refuse what does not fit.
struct Sized {
    body: Body,
    size: Option<u64>,
}

impl hyper::body::Body for Sized {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.size.map_or_else(
            hyper::body::SizeHint::default,
            hyper::body::SizeHint::with_exact,
        )
    }
}
