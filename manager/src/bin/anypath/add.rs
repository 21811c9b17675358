//! `anypath add`.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anypath::files::{self, AddDirectoryOptions, AddError, AddOptions, Profile};
use bytes::Bytes;
use futures::{AsyncReadExt as _, Stream};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::{
    Error,
    args::{AddFlags, NodeFlags},
    client::Client,
    context::Context,
    query::{addresses, with_peer},
};

/// Bytes read from the file at a time.
const READ_BYTES: usize = 256 * 1024;

pub(crate) async fn run(context: &Context, flags: &AddFlags) -> Result<(), Error> {
    // First, so that a wrong name is the error that is reported.
    let source = Source::open(&flags.file)?;
    let client = context.client().await?;
    let mut added = match source {
        Source::Directory(path) => add_directory(context, client.as_ref(), flags, &path).await?,
        Source::Bytes { reader, size } => {
            let bar = context.output.progress_bar(size);
            let bytes = into_stream(reader, bar.clone());
            let added = match &client {
                Some(client) => {
                    check_room(client, flags, size).await?;
                    let path = format!("/api/add?profile={}", flags.profile.name());
                    client.post_bytes(&path, size, bytes).await?
                }
                None => add_here(context, flags, size, bytes).await?,
            };
            bar.finish_and_clear();
            added
        }
    };

    let address = match &client {
        Some(client) => best_address(client).await?,
        None => None,
    };
    let cid = added
        .get("cid")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if let (Value::Object(fields), Some(address)) = (&mut added, &address) {
        fields.insert("address".to_owned(), address.as_str().into());
    }
    context.output.print(&added, &cid);
    if context.output.is_terminal() {
        context.output.note(match address {
            Some(address) => format!(
                "\non another machine:\n  anypath get {cid}{} --peer {address}",
                output_flag(&flags.file)
            ),
            None => "\nrun `anypath start` so that others can get it".to_owned(),
        });
    }
    Ok(())
}

/// ` -o NAME` if the name needs no quotes in any shell.
fn output_flag(file: &Path) -> String {
    let is_plain = |name: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !name.starts_with('-') && name.bytes().all(plain)
    };
    let name = file.file_name().and_then(|name| name.to_str());
    name.filter(is_plain)
        .map(|name| format!(" -o {name}"))
        .unwrap_or_default()
}

/// Before a gigabyte is sent only to be refused. The node checks again.
async fn check_room(client: &Client, flags: &AddFlags, size: Option<u64>) -> Result<(), Error> {
    let status = client.get("/api/status").await?;
    let room = status
        .get("store")
        .and_then(|store| store.get("room_for_pinned")?.as_u64());
    if let (Some(size), Some(room)) = (size, room) {
        let needed = files::dag_size(profile(flags), size);
        if needed > room {
            return Err(AddError::NoRoom { needed, room }.into());
        }
    }
    Ok(())
}

fn profile(flags: &AddFlags) -> Profile {
    Profile::by_name(flags.profile.name()).unwrap_or_default()
}

/// Through the running node, which reads the directory itself, or straight into the store.
async fn add_directory(
    context: &Context,
    client: Option<&Client>,
    flags: &AddFlags,
    path: &Path,
) -> Result<Value, Error> {
    let bar = context.output.progress_bar(None);
    let show = {
        let (output, bar) = (context.output, bar.clone());
        move |read: u64, total: u64| {
            output.set_total(&bar, total);
            bar.set_position(read);
        }
    };
    let added = match client {
        Some(client) => {
            let request = json!({
                "path": path, "profile": flags.profile.name(), "hidden": flags.hidden,
            });
            let mut added = None;
            let lines = client.post_for_lines("/api/add_directory", &request, |event| {
                let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
                match event.get("event").and_then(Value::as_str) {
                    Some("progress") => show(number("read"), number("total")),
                    Some("added") => added = Some(event),
                    _ => {}
                }
                true
            });
            lines.await?;
            let mut added = added.ok_or(
                "the node stopped before all was added; start it and run the same command again",
            )?;
            if let Value::Object(fields) = &mut added {
                fields.remove("event");
            }
            added
        }
        None => {
            let config = context.config(&NodeFlags::default())?;
            let store = context.store(&config).await?;
            let options = AddDirectoryOptions {
                profile: profile(flags),
                hidden: flags.hidden,
                on_progress: Some(Box::new(|read, total| {
                    show(read, total);
                    ControlFlow::Continue(())
                })),
            };
            let added = files::add_directory(&store, path, options).await;
            // Also after an error: what was cleaned up must be on disk.
            store.close().await?;
            let added = added?;
            json!({
                "cid": added.cid.to_string(), "bytes": added.bytes, "blocks": added.blocks,
                "files": added.files, "left_out": added.left_out,
            })
        }
    };
    bar.finish_and_clear();
    if let Some(left_out @ 1..) = added.get("left_out").and_then(Value::as_u64) {
        let what = if left_out == 1 { "entry" } else { "entries" };
        let note = format!("{left_out} hidden {what} left out; --hidden adds them too");
        context.output.note(note);
    }
    Ok(added)
}

/// No node runs: straight into the store.
async fn add_here(
    context: &Context,
    flags: &AddFlags,
    size: Option<u64>,
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + Sync,
) -> Result<Value, Error> {
    let config = context.config(&NodeFlags::default())?;
    let store = context.store(&config).await?;
    let options = AddOptions {
        profile: profile(flags),
        size,
        on_progress: None,
    };
    let bytes = futures::TryStreamExt::into_async_read(Box::pin(bytes));
    let added = files::add(&store, bytes, options).await;
    // Also after an error: what was cleaned up must be on disk.
    store.close().await?;
    let added = added?;
    Ok(json!({ "cid": added.cid.to_string(), "bytes": added.bytes, "blocks": added.blocks }))
}

/// Where another machine reaches the running node: directly from outside, else through a relay, else in this network.
async fn best_address(client: &Client) -> Result<Option<String>, Error> {
    let status = client.get("/api/status").await?;
    let peer_id = status
        .get("peer_id")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let external = addresses(&status, "external_addrs");
    // Loopback addresses come last.
    let listen = addresses(&status, "listen_addrs");
    let is_relayed = |address: &&String| address.contains("/p2p-circuit");
    let best = external
        .iter()
        .find(|address| !is_relayed(address))
        .or_else(|| external.iter().find(is_relayed))
        .or_else(|| listen.iter().find(is_relayed))
        .or_else(|| listen.first());
    Ok(best.map(|address| with_peer(address, peer_id)))
}

type Reader = Box<dyn futures::AsyncRead + Send + Sync + Unpin>;

/// What to add.
enum Source {
    Bytes {
        reader: Reader,
        size: Option<u64>,
    },
    /// Absolute: a running node has another working directory.
    Directory(PathBuf),
}

impl Source {
    fn open(path: &Path) -> Result<Self, Error> {
        if path == Path::new("-") {
            let reader = Box::new(blocking::Unblock::new(io::stdin()));
            return Ok(Self::Bytes { reader, size: None });
        }
        let cannot = |error: io::Error| format!("cannot read {}: {error}", path.display());
        let file = std::fs::File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            return Ok(Self::Directory(std::path::absolute(path)?));
        }
        let size = metadata.is_file().then_some(metadata.len());
        let reader = Box::new(blocking::Unblock::with_capacity(4 * READ_BYTES, file));
        Ok(Self::Bytes { reader, size })
    }
}

fn into_stream(
    reader: Reader,
    bar: ProgressBar,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync {
    futures::stream::try_unfold(reader, move |mut reader| {
        let bar = bar.clone();
        async move {
            let mut buffer = vec![0; READ_BYTES];
            let read = reader.read(&mut buffer).await?;
            buffer.truncate(read);
            bar.inc(read as u64);
            Ok((read > 0).then(|| (Bytes::from(buffer), reader)))
        }
    })
}
