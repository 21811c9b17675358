//! What the user sees: results on stdout, everything else on stderr; JSON lines with `--json`.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::Error;

/// A progress bar whose total is known.
const MEASURED: &str = "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} {msg}";

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// A result: `value` with `--json`, else `text`. A reader that has gone away is not an error.
    pub(crate) fn print(self, value: &Value, text: impl AsRef<str>) {
        let line = if self.json {
            value.to_string()
        } else {
            text.as_ref().to_owned()
        };
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }

    /// Something that is good to know, for a person only.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// Whether a person reads the results.
    pub(crate) fn is_terminal(self) -> bool {
        !self.json && std::io::stdout().is_terminal()
    }

    /// A progress bar over bytes; invisible unless stderr is a terminal.
    pub(crate) fn progress_bar(self, total: Option<u64>) -> ProgressBar {
        let target = if self.json {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(total, target);
        if total.is_some() {
            set_style(&bar, MEASURED);
        } else {
            set_style(&bar, "{spinner} {bytes} {binary_bytes_per_sec} {msg}");
        }
        bar
    }

    /// The bar's total, known or changed later.
    pub(crate) fn set_total(self, bar: &ProgressBar, total: u64) {
        if bar.length().is_none() {
            set_style(bar, MEASURED);
        }
        bar.set_length(total);
    }

    /// Prints an error with its causes.
    pub(crate) fn fail(self, error: &Error) -> ExitCode {
        let message = with_causes(error.as_ref());
        if self.json {
            self.print(&json!({ "event": "error", "message": message }), "");
        } else {
            let _ = writeln!(std::io::stderr().lock(), "error: {message}");
        }
        ExitCode::FAILURE
    }
}

/// Prints what clap says: help and version as they are, mistakes as JSON where that was asked for.
pub(crate) fn fail_arguments(error: &clap::Error) -> ExitCode {
    let is_json = std::env::args_os().any(|argument| argument == "--json");
    if error.use_stderr() && is_json {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let message = text.lines().next().unwrap_or_default();
        Output::new(true).print(&json!({ "event": "error", "message": message }), "");
    } else {
        let _ = error.print();
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The error's text and those of its causes that it does not quote already.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}
