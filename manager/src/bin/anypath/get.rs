//! `anypath get`.

use std::path::{Path, PathBuf};

use anypath::{
    FetchError,
    files::{self, Download, GetError},
};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::{Error, args::GetFlags, client::Client, context::Context, output::Output};

const INTERRUPTED: &str = "interrupted; run the same command again to continue";

pub(crate) async fn run(context: &Context, flags: &GetFlags) -> Result<(), Error> {
    let output = flags
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(flags.cid.to_string()));
    if output == Path::new("-") {
        return Err("get writes to a file that an interrupted run can continue, not to standard output; name one with -o".into());
    }
    let output = std::path::absolute(&output)?;
    if let Some(parent) = output.parent().filter(|parent| !parent.is_dir()) {
        let parent = parent.display();
        return Err(format!(
            "the directory {parent} does not exist; create it or choose another output with -o"
        )
        .into());
    }
    let client = context.client().await?;
    if let (Some(_), Some(setting)) = (&client, flags.node.settings().first()) {
        let flag = setting.flag;
        context.output.note(format!(
            "the running node fetches it; {flag} is for a node of get's own and has no effect"
        ));
    }
    let view = View::new(context.output, flags, &output);
    match client {
        Some(client) => tokio::select! {
            done = through_running_node(&client, flags, &output, view) => done,
            // The node notices that nobody reads and stops the transfer.
            _ = tokio::signal::ctrl_c() => Err(INTERRUPTED.into()),
        },
        None => with_own_node(context, flags, &output, view).await,
    }
}

async fn through_running_node(
    client: &Client,
    flags: &GetFlags,
    output: &Path,
    mut view: View,
) -> Result<(), Error> {
    let peers: Vec<_> = flags.peer.iter().map(ToString::to_string).collect();
    let request = json!({
        "cid": flags.cid.to_string(), "output": output, "peers": peers, "force": flags.force,
    });
    view.begin_search();
    let shown = client.post_for_lines("/api/get", &request, |event| {
        view.show(event);
        true
    });
    shown.await?;
    match view.is_done {
        true => Ok(()),
        false => Err(
            "the node stopped before all was there; start it and run the same command again".into(),
        ),
    }
}

/// No node runs: one for this file alone, which stops as soon as it is complete.
async fn with_own_node(
    context: &Context,
    flags: &GetFlags,
    output: &Path,
    mut view: View,
) -> Result<(), Error> {
    let config = context.config(&flags.node)?;
    let store = context.store(&config).await?;
    let node = context.start_node(&config, store.clone()).await?;
    view.begin_search();
    let request = Download {
        cid: flags.cid,
        output: output.to_owned(),
        peers: flags.peer.clone(),
        force: flags.force,
    };
    let done: Result<(), GetError<FetchError>> = tokio::select! {
        done = files::download(&node, request, |event| {
            if let Ok(event) = serde_json::to_value(event) {
                view.show(event);
            }
        }) => done,
        _ = tokio::signal::ctrl_c() => {
            node.shutdown().await;
            store.close().await?;
            return Err(INTERRUPTED.into());
        }
    };
    node.shutdown().await;
    store.close().await?;
    Ok(done?)
}

/// Until the first byte is there, or a connection is reported.
const SEARCHING: &str = "looking for a peer that has it";

/// Shows a download's events.
struct View {
    output: Output,
    bar: ProgressBar,
    cid: String,
    path: String,
    begin: std::time::Instant,
    is_done: bool,
}

impl View {
    #[expect(clippy::disallowed_methods, reason = "the command's own clock")]
    fn new(output: Output, flags: &GetFlags, path: &Path) -> Self {
        Self {
            output,
            bar: output.progress_bar(None),
            cid: flags.cid.to_string(),
            path: path.display().to_string(),
            begin: std::time::Instant::now(),
            is_done: false,
        }
    }

    fn begin_search(&self) {
        self.bar.set_message(SEARCHING);
    }

    fn show(&mut self, mut event: Value) {
        let name = event
            .get("event")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
        match name.as_str() {
            "progress" => {
                self.output.set_total(&self.bar, number("total"));
                self.bar.set_position(number("written"));
                if self.bar.message() == SEARCHING && number("written") > 0 {
                    self.bar.set_message("");
                }
                return;
            }
            "relayed" => self.bar.set_message("over a relay"),
            "direct" => self.bar.set_message("direct"),
            "waiting_for_direct" => {
                let allowed = indicatif::BinaryBytes(number("allowed"));
                let text = format!("the relay allows {allowed}; waiting for a direct path");
                self.bar.suspend(|| self.output.note(text));
            }
            "done" => self.is_done = true,
            _ => {}
        }
        let mut done = format!("{} ({}", self.path, indicatif::BinaryBytes(number("bytes")));
        if number("files") > 1 {
            done.push_str(&format!(" in {} files", number("files")));
        }
        for (key, label) in [
            ("resumed_bytes", "from an earlier run"),
            ("relayed_bytes", "relayed"),
            ("direct_bytes", "direct"),
            ("local_bytes", "from this node's store"),
        ] {
            if number(key) > 0 {
                let bytes = indicatif::BinaryBytes(number(key));
                done.push_str(&format!("; {bytes} {label}"));
            }
        }
        done.push(')');
        let since_begin = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Value::Object(fields) = &mut event {
            // Since the command began, not the download.
            for key in ["t_ms", "elapsed_ms"] {
                if let Some(time) = fields.get_mut(key) {
                    *time = since_begin.into();
                }
            }
            if self.is_done {
                fields.insert("cid".to_owned(), self.cid.as_str().into());
                fields.insert("output".to_owned(), self.path.as_str().into());
            }
        }
        if self.is_done {
            self.bar.finish_and_clear();
        }
        if self.is_done || self.output.is_json() {
            self.output.print(&event, done);
        }
    }
}
