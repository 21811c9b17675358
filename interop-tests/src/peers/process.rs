//! A program that answers commands, one JSON object a line.

use super::Error;
use super::console::Console;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::process::{Child, Command};

/// A line of the peer: the answer to a command, or an event.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Answer {
        id: u64,
        #[serde(flatten)]
        answer: Answer,
    },
    Event(Value),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// The running program. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    console: Console,
    last_id: u64,
    events: VecDeque<Value>,
}

impl Process {
    /// `spawn` starts the command, here or elsewhere.
    pub(super) fn start(
        command: Command,
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
    ) -> Result<Self, Error> {
        Ok(Self {
            console: Console::start_by(command, spawn)?,
            last_id: 0,
            events: VecDeque::new(),
        })
    }

    /// Sends a command and waits for its answer; events that come before it are kept.
    pub(super) async fn call(
        &mut self,
        command: &str,
        mut fields: Value,
        within: Duration,
    ) -> Result<Value, Error> {
        self.last_id += 1;
        let id = self.last_id;
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("id".to_owned(), json!(id));
            fields.insert("command".to_owned(), json!(command));
            fields.insert("seconds".to_owned(), json!(within.as_secs_f64()));
        }
        let answered = async {
            self.console.enter(&fields.to_string()).await?;
            loop {
                match self.line().await? {
                    Line::Answer {
                        id: answered,
                        answer,
                    } if answered == id => {
                        return match answer {
                            Answer::Ok(value) => Ok(value),
                            Answer::Error(reason) => Err(Error::Peer(reason)),
                        };
                    }
                    // Of a command that was given up.
                    Line::Answer { .. } => {}
                    Line::Event(event) => self.events.push_back(event),
                }
            }
        };
        // The peer has its own clock for the same time; its reason is better than ours.
        let patience = within + Duration::from_secs(5);
        tokio::time::timeout(patience, answered)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Timeout {
                    what: format!("answer to {command}"),
                    within: patience,
                })
            })
    }

    /// The first event, of those before and those to come, that `pick` takes.
    pub(super) async fn event<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut pick: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T, Error> {
        for index in 0..self.events.len() {
            if let Some(found) = self.events.get(index).and_then(&mut pick) {
                self.events.remove(index);
                return Ok(found);
            }
        }
        let found = async {
            loop {
                if let Line::Event(event) = self.line().await? {
                    if let Some(found) = pick(&event) {
                        return Ok(found);
                    }
                    self.events.push_back(event);
                }
            }
        };
        match tokio::time::timeout(within, found).await {
            Ok(found) => found,
            Err(_) => {
                // For who looks into it.
                println!("no {what}, only {:?}", self.events);
                Err(Error::Timeout {
                    what: what.to_owned(),
                    within,
                })
            }
        }
    }

    /// The events that came until now and that `pick` takes.
    pub(super) fn events_until_now<T>(
        &mut self,
        mut pick: impl FnMut(&Value) -> Option<T>,
    ) -> Vec<T> {
        let mut picked = Vec::new();
        self.events.retain(|event| match pick(event) {
            Some(found) => {
                picked.push(found);
                false
            }
            None => true,
        });
        picked
    }

    /// The operating system's number of it, while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.console.id()
    }

    /// Closes its stdin and waits until it has ended.
    pub(super) async fn stop(self, within: Duration) -> Result<(), Error> {
        self.console.stop(within).await.map(drop)
    }

    async fn line(&mut self) -> Result<Line, Error> {
        loop {
            let line = self.console.line().await?;
            // Libraries may print what they like.
            if line.starts_with('{') {
                return Ok(serde_json::from_str(&line)?);
            }
        }
    }
}
