//! One request and one answer a stream, each a line of JSON.

use anypath::BoxError;
use futures::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    io::BufReader,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The longest line; a name is a few hundred bytes at most.
const MAX_LINE: u64 = 4096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// What is the result of that name?
    Get { name: String },
    /// It is this; take it from the one who asks.
    Put { name: String, cid: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The result, if there is one.
    pub(crate) cid: Option<String>,
}

pub(crate) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<(), BoxError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(stream.flush().await?)
}

pub(crate) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, BoxError> {
    let mut line = Vec::new();
    let mut stream = BufReader::new(stream.take(MAX_LINE));
    stream.read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}
