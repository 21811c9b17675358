//! `anypath publish` and `anypath subscribe`.

use serde_json::{Value, json};

use crate::{Error, context::Context};

pub(crate) async fn publish(context: &Context, topic: &str, message: String) -> Result<(), Error> {
    let message = match message.as_str() {
        "-" => std::io::read_to_string(std::io::stdin())?,
        _ => message,
    };
    let client = context.running().await?;
    let request = json!({ "topic": topic, "text": message });
    client.post("/api/publish", &request).await?;
    context.output.print(
        &json!({ "event": "published", "topic": topic }),
        "published",
    );
    Ok(())
}

pub(crate) async fn subscribe(
    context: &Context,
    topic: &str,
    count: Option<u64>,
) -> Result<(), Error> {
    let client = context.running().await?;
    let output = context.output;
    let mut left = count;
    let mut is_complete = false;
    let request = json!({ "topic": topic });
    let shown = client.post_for_lines("/api/subscribe", &request, |event| {
        let is_message = show(output, &event);
        left = left.map(|left| left.saturating_sub(u64::from(is_message)));
        is_complete = left == Some(0);
        !is_complete
    });
    tokio::select! {
        shown = shown => shown?,
        _ = tokio::signal::ctrl_c() => return Ok(()),
    }
    match is_complete {
        true => Ok(()),
        false => Err("the node has stopped".into()),
    }
}

/// Returns whether the event is a message.
fn show(output: crate::output::Output, event: &Value) -> bool {
    let text = |key: &str| event.get(key).and_then(Value::as_str);
    let name = text("event").unwrap_or_default();
    let is_message = name == "message";
    if is_message || output.is_json() {
        let message = text("text").or_else(|| text("hex")).unwrap_or_default();
        // Strangers write it: no escape sequences on a terminal.
        let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let message: String = message.chars().map(plain).collect();
        let from = text("from").unwrap_or_default();
        output.print(event, format!("{from}: {message}"));
    } else if name == "subscribed" {
        output.note("subscribed; Ctrl-C ends it");
    } else if let Some(count) = event.get("count") {
        output.note(format!("{count} messages were lost, this end is too slow"));
    }
    is_message
}
