//! What a peer of libp2p's universal-connectivity app can be told to do; started with [`Settings::universal`](super::Settings).

use super::{BASE64, Data, Done, PATIENCE, Peer};
use crate::peers::Error;
use base64::Engine as _;
use bytes::Bytes;
use libp2p::PeerId;
use serde::Deserialize;
use serde_json::json;

impl Peer {
    /// Serves a file and tells the room of it; returns the id that it gave to it.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn offer(&mut self, data: &[u8]) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Offered {
            file: String,
        }
        let fields = json!({ "data": BASE64.encode(data) });
        let offered: Offered = self.call("offer", fields).await?;
        Ok(offered.file)
    }

    /// Asks a peer for a file.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn take(&mut self, from: PeerId, file: &str) -> Result<Bytes, Error> {
        let fields = json!({ "peer": from.to_string(), "file": file });
        let taken: Data = self.call("take", fields).await?;
        taken.decode()
    }

    /// Sends a direct message; returns when the other end has it.
    ///
    /// # Errors
    ///
    /// The peer's: the other end did not say that it took it.
    pub async fn send_direct(&mut self, to: PeerId, text: &str) -> Result<(), Error> {
        let fields = json!({ "peer": to.to_string(), "text": text });
        let Done {} = self.call("direct", fields).await?;
        Ok(())
    }

    /// Waits for a direct message from a peer.
    ///
    /// # Errors
    ///
    /// None came.
    pub async fn direct(&mut self, from: PeerId) -> Result<String, Error> {
        let name = from.to_string();
        self.process
            .event("direct message", PATIENCE, |event| {
                let text = |key: &str| event.get(key)?.as_str();
                let wanted = text("event")? == "direct" && text("from")? == name;
                wanted.then(|| text("text").map(str::to_owned))?
            })
            .await
    }

    /// Answers with these very bytes to whoever asks for a file.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn answer_raw(&mut self, file: &[u8], answer: &[u8]) -> Result<(), Error> {
        let fields = json!({ "file": BASE64.encode(file), "data": BASE64.encode(answer) });
        let Done {} = self.call("answer_raw", fields).await?;
        Ok(())
    }

    /// Opens a stream, writes these very bytes and returns what comes until the other end hangs up.
    ///
    /// # Errors
    ///
    /// The peer's: the other end does not hang up.
    pub async fn send_raw(
        &mut self,
        to: PeerId,
        protocol: &str,
        data: &[u8],
    ) -> Result<Bytes, Error> {
        let fields =
            json!({ "peer": to.to_string(), "protocol": protocol, "data": BASE64.encode(data) });
        let received: Data = self.call("send_raw", fields).await?;
        received.decode()
    }
}
