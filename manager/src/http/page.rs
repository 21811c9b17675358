//! The status page: what `/api/status` says, as a table.

use serde_json::Value;

/// Renders the page. Every text is escaped: peers choose their agent names and addresses.
pub(super) fn render(status: &Value, peers: &Value) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Anypath</title>\
         <meta http-equiv=\"refresh\" content=\"5\"><style>\
         body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
         table{border-collapse:collapse}th{text-align:left;vertical-align:top;font-weight:600;padding:.1rem 1rem .1rem 0}\
         td{padding:.1rem 0;overflow-wrap:anywhere}ul{margin:0;padding:0;list-style:none}\
         </style></head><body><h1>Anypath</h1>",
    );
    render_value(status, &mut page);
    page.push_str("<h2>Peers</h2>");
    render_value(peers, &mut page);
    page.push_str("</body></html>");
    page
}

fn render_value(value: &Value, page: &mut String) {
    match value {
        Value::Object(fields) => {
            page.push_str("<table>");
            for (name, value) in fields {
                page.push_str("<tr><th>");
                escape(&name.replace('_', " "), page);
                page.push_str("</th><td>");
                render_value(value, page);
                page.push_str("</td></tr>");
            }
            page.push_str("</table>");
        }
        Value::Array(items) if items.is_empty() => page.push_str("none"),
        Value::Array(items) => {
            page.push_str("<ul>");
            for item in items {
                page.push_str("<li>");
                render_value(item, page);
                page.push_str("</li>");
            }
            page.push_str("</ul>");
        }
        Value::String(text) => escape(text, page),
        Value::Null => page.push('–'),
        other => page.push_str(&other.to_string()),
    }
}

fn escape(text: &str, page: &mut String) {
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            other => page.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn what_peers_say_about_themselves_is_text() {
        let peers = json!([{ "agent": "<script>alert('x')</script>", "connections": [] }]);
        let page = super::render(&json!({ "peer_id": "12D3KooW" }), &peers);
        assert!(
            page.contains("12D3KooW")
                && page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;")
        );
        assert!(!page.contains("<script"));
    }
}
