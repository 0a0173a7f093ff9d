//! The rules of a workspace's life.

use clap::ValueEnum;
use http::Method;
use serde_json::{Map, Value, json};

use super::workspaces::shown;
use crate::{
    args::{LifeArgs, LifecycleArgs, RenewArgs, Seconds},
    client::{Client, read},
    error::Error,
    output::Output,
};

/// Adds the rules of a new workspace to the request.
pub(super) fn rules(life: &LifeArgs, body: &mut Map<String, Value>) {
    if let Some(ttl) = life.ttl {
        body.insert("expiry".to_owned(), timed(ttl, life.ttl_action));
    }
    if let Some(idle) = life.idle {
        body.insert("idle".to_owned(), timed(idle, life.idle_action));
    }
    if let Some(mode) = life.restart {
        body.insert("restart".to_owned(), restart(mode, life.max_restarts));
    }
    if life.snapshot_on_delete {
        body.insert("snapshot_on_terminate".to_owned(), json!({}));
    }
    for (name, wanted) in [
        ("remove_on_exit", life.remove_on_exit),
        ("auto_resume", life.auto_resume),
        ("keep_active", life.keep_active),
    ] {
        if wanted {
            body.insert(name.to_owned(), wanted.into());
        }
    }
}

pub(crate) async fn change(
    client: &Client,
    args: &LifecycleArgs,
    output: Output,
) -> Result<(), Error> {
    let mut body = Map::new();
    let mut rule = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    };
    let cleared = |wanted: bool| wanted.then_some(Value::Null);
    rule("expiry", args.ttl.map(|ttl| timed(ttl, args.ttl_action)).or(cleared(args.no_ttl)));
    rule("idle", args.idle.map(|idle| timed(idle, args.idle_action)).or(cleared(args.no_idle)));
    rule("restart", args.restart.map(|mode| restart(mode, args.max_restarts)));
    let snapshot = |wanted: bool| if wanted { json!({}) } else { Value::Null };
    rule("snapshot_on_terminate", args.snapshot_on_delete.map(snapshot));
    rule("remove_on_exit", args.remove_on_exit.map(Value::from));
    rule("auto_resume", args.auto_resume.map(Value::from));
    rule("keep_active", args.keep_active.map(Value::from));
    let path = ["workspaces", &args.workspace, "lifecycle"];
    let answer = client.call(Method::PATCH, &path, &[], Some(&Value::Object(body)), 0).await?;
    output.answer(&answer, || Ok(shown(&read(&answer)?)))
}

pub(crate) async fn renew(client: &Client, args: RenewArgs, output: Output) -> Result<(), Error> {
    let mut body = Map::new();
    if let Some(length) = args.length {
        body.insert("after_seconds".to_owned(), length.0.into());
    }
    if let Some(by) = args.by {
        body.insert("by_seconds".to_owned(), by.0.into());
    }
    if let Some(until) = args.until {
        body.insert("at".to_owned(), until.into());
    }
    let path = ["workspaces", &args.workspace, "lifecycle", "renew"];
    let answer = client.call(Method::POST, &path, &[], Some(&Value::Object(body)), 0).await?;
    output.answer(&answer, || Ok(shown(&read(&answer)?)))
}

fn timed(after: Seconds, action: impl ValueEnum) -> Value {
    json!({ "after_seconds": after.0, "action": word(action) })
}

fn restart(mode: impl ValueEnum, max_restarts: u32) -> Value {
    json!({ "mode": word(mode), "max_restarts": max_restarts })
}

/// The API's word for a choice: clap writes it with hyphens.
fn word(choice: impl ValueEnum) -> String {
    let name = choice.to_possible_value().map(|value| value.get_name().to_owned());
    name.unwrap_or_default().replace('-', "_")
}
