//! `/exec`: commands, awaited, streamed or left alone.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body as HttpBody,
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{Stream as _, StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::internal_api::{ExecRequest, ExecSession, GuestApi, NodeError, User};
use skerry_model::Timestamp;

use super::{
    problem::{RuntimeProblem, refusal},
    state::Inside,
    task::{Ended, KEPT_BYTES, Task, Ttl},
    visitor::Visitor,
};
use crate::{
    ApiState,
    bodies::upload,
    dialects::oblien::{Oblien, error_body::Problem},
    extract::{JsonBody, PathOf, QueryOf},
    number::WholeNumber,
    object::Object,
    output_log::{Look, Next, Stream},
};

/// Where commands run that do not say.
const WORKING_DIR: &str = "/root";
/// Output that is kept of a command somebody waits for: both streams together.
const AWAITED_BYTES: usize = 16 * 1024 * 1024;
const MAX_TIMEOUT_SECONDS: u64 = 604_800;
const MAX_ARGUMENTS: usize = 4096;
/// What makes a text one for the shell.
const SHELL_CHARACTERS: &str = "|&;<>()$`\\\"'*?[]#~={}!\n";
const HEARTBEAT: Duration = Duration::from_secs(15);

/// `POST /exec`, `POST /exec/stream`. Other fields are ignored, as Oblien does.
#[derive(Debug, Deserialize)]
pub(super) struct ExecBody {
    #[serde(alias = "command")]
    cmd: Option<Cmd>,
    exec_mode: Option<String>,
    timeout_seconds: Option<WholeNumber>,
    ttl_seconds: Option<WholeNumber>,
    /// What it asks for is always done: output is kept as long as the task.
    #[allow(dead_code, reason = "checked to be what it should be")]
    keep_logs: Option<bool>,
    stream: Option<bool>,
    #[serde(alias = "working_dir")]
    cwd: Option<String>,
    env: Option<BTreeMap<String, String>>,
    user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a list of texts, or a text")]
enum Cmd {
    Words(Vec<String>),
    Line(String),
}

/// A command as it was asked for.
struct Asked {
    command: Vec<String>,
    request: ExecRequest,
    ttl: Ttl,
}

fn for_shell(line: String) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), line]
}

fn split(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// What is run. Several words are never looked at: clients send whole scripts as one of them.
fn argv(words: &[String], mode: Option<&str>) -> Vec<String> {
    match (mode, words) {
        (Some("shell"), _) => for_shell(words.join(" ")),
        (Some("direct"), [line]) => split(line),
        (Some("direct"), _) => words.to_vec(),
        // Modes that nobody knows are this one.
        (_, [line]) if line.contains(|c| SHELL_CHARACTERS.contains(c)) => for_shell(line.clone()),
        (_, [line]) => split(line),
        (_, words) => words.to_vec(),
    }
}

fn asked(body: ExecBody) -> Result<Asked, Problem> {
    let nothing = || refusal("cmd", "is missing or empty", "a program and its arguments");
    let words = match body.cmd.ok_or_else(nothing)? {
        Cmd::Words(words) => words,
        Cmd::Line(line) => vec![line],
    };
    let argv = argv(&words, body.exec_mode.as_deref());
    if argv.first().is_none_or(String::is_empty) {
        return Err(nothing());
    }
    if argv.len() > MAX_ARGUMENTS || argv.iter().any(|word| word.contains('\0')) {
        let allowed = "at most 4096 texts without NUL characters";
        return Err(refusal("cmd", "is not a command", allowed));
    }
    let timeout = match body.timeout_seconds.map_or(Ok(0), |WholeNumber(s)| u64::try_from(s)) {
        Ok(0) => None,
        Ok(seconds @ 1..=MAX_TIMEOUT_SECONDS) => Some(Duration::from_secs(seconds)),
        Ok(_) | Err(_) => {
            let allowed = "0 (none) to 604800";
            return Err(refusal("timeout_seconds", "is out of range", allowed));
        }
    };
    let ttl = Ttl::of(body.ttl_seconds.map_or(0, |WholeNumber(seconds)| seconds));
    let ttl = ttl.ok_or_else(|| {
        refusal("ttl_seconds", "is out of range", "-1 (never), 0 (300) to 604800")
    })?;
    let env = body.env.unwrap_or_default();
    let is_bad = |(name, value): (&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    if env.iter().any(is_bad) {
        return Err(refusal("env", "has a name or value that is none", "texts without NUL"));
    }
    let request = ExecRequest {
        argv,
        env,
        working_dir: Some(body.cwd.unwrap_or_else(|| WORKING_DIR.to_owned())),
        user: body.user.map_or(User::Root, User::Named),
        pty: None,
        timeout,
    };
    Ok(Asked { command: words, request, ttl })
}

async fn begun(guest: &dyn GuestApi, request: ExecRequest) -> Result<ExecSession, Problem> {
    guest.exec(request).await.map_err(|error| match error {
        NodeError::Guest { code: "no_such_command", message } => {
            RuntimeProblem::NotStarted(message).into()
        }
        error => error.into(),
    })
}

/// Notes the end of a command whose caller has hung up: that ends it, too.
struct Awaited<'a> {
    task: &'a Task,
    state: &'a ApiState,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if self.task.ended().is_none() {
            self.task.end(Ended::Killed, self.state.control.now());
        }
    }
}

pub(super) async fn run(
    State(state): State<ApiState>,
    visitor: Visitor,
    JsonBody { value: Object(body), .. }: JsonBody<Object<ExecBody>, Oblien>,
) -> Result<Response, Problem> {
    if body.stream == Some(true) {
        return streamed(&state, &visitor, body).await;
    }
    let Asked { command, request, ttl } = asked(body)?;
    let inside = state.runtimes.of(visitor.workspace, state.control.now());
    inside.tasks.has_room()?;
    let guest = visitor.guest(&state).await?;
    let session = begun(guest.as_ref(), request).await?;
    let now = state.control.now();
    let task = inside.tasks.keep(session.control.clone(), command, ttl, AWAITED_BYTES, now)?;
    let awaited = Awaited { task: &task, state: &state };
    let mut share = state.output_budget.begin();
    // Nobody else knows of it yet who could say anything to it.
    task.close_input().await;
    let ran = task.run(session, Some(&mut share), state.shutdown_begun()).await;
    let answer = match ran {
        Ok(ended) => {
            task.end(ended, state.control.now());
            Ok(share.carried_by(Json(task.shown()).into_response()))
        }
        Err(error) => {
            task.end(Ended::Lost(error.to_string()), state.control.now());
            Err(error.into())
        }
    };
    task.shrink();
    drop(awaited);
    answer
}

pub(super) async fn stream(
    State(state): State<ApiState>,
    visitor: Visitor,
    JsonBody { value: Object(body), .. }: JsonBody<Object<ExecBody>, Oblien>,
) -> Result<Response, Problem> {
    streamed(&state, &visitor, body).await
}

/// Begins a command that goes on when its caller hangs up.
async fn streamed(
    state: &ApiState,
    visitor: &Visitor,
    body: ExecBody,
) -> Result<Response, Problem> {
    let Asked { command, request, ttl } = asked(body)?;
    let inside = state.runtimes.of(visitor.workspace, state.control.now());
    inside.tasks.has_room()?;
    let guest = visitor.guest(state).await?;
    let session = begun(guest.as_ref(), request).await?;
    let now = state.control.now();
    let task = inside.tasks.keep(session.control.clone(), command, ttl, KEPT_BYTES, now)?;
    let look = task.look();
    let (server, running) = (state.clone(), Arc::clone(&task));
    state.runtimes.running.spawn(async move {
        let ended = running.run(session, None, server.shutdown_begun()).await;
        let ended = ended.unwrap_or_else(|error| Ended::Lost(error.to_string()));
        running.end(ended, server.control.now());
    });
    Ok(events(state, &task, look))
}

fn event(name: &str, data: &Value) -> Result<Event, Infallible> {
    Ok(Event::default().event(name).data(data.to_string()))
}

/// Everything that is kept, then what comes, then the end.
fn events(state: &ApiState, task: &Task, look: Look<Ended>) -> Response {
    let id = event("task_id", &json!({ "task_id": task.id }));
    let said = stream::unfold(Some(look), |look| async {
        let mut look = look?;
        let (name, data, rest) = match look.next().await {
            Next::Printed(Stream::Stdout, bytes) => {
                ("stdout", json!({ "data": STANDARD.encode(bytes) }), Some(look))
            }
            Next::Printed(Stream::Stderr, bytes) => {
                ("stderr", json!({ "data": STANDARD.encode(bytes) }), Some(look))
            }
            Next::Ended(ended) => ("exit", ended.event(), None),
        };
        Some((event(name, &data), rest))
    });
    sse(state, stream::iter([id]).chain(said))
}

fn sse(
    state: &ApiState,
    events: impl futures::Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let server = state.clone();
    let events = events.take_until(async move { server.shutdown_begun().await });
    debug_assert!(events.size_hint().0 <= 2);
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

#[derive(Debug, Deserialize)]
pub(super) struct SubscribeQuery {
    task_id: Option<String>,
}

/// Attaches to a command: one that has ended is told at once.
pub(super) async fn subscribe(
    State(state): State<ApiState>,
    visitor: Visitor,
    QueryOf { value: query, .. }: QueryOf<SubscribeQuery, Oblien>,
) -> Result<Response, Problem> {
    let id = query.task_id.ok_or_else(|| refusal("task_id", "is missing", "a task's id"))?;
    let (inside, now) = of(&state, &visitor);
    let task = inside.tasks.get(&id, now)?;
    let look = task.look();
    let Some(ended) = task.ended() else { return Ok(events(&state, &task, look)) };
    let (stdout, stderr, _) = task.texts();
    let all = [
        event("task_id", &json!({ "task_id": task.id })),
        event("output", &json!({ "stdout": stdout, "stderr": stderr })),
        event("exit", &ended.event()),
    ];
    Ok(Sse::new(stream::iter(all)).into_response())
}

fn of(state: &ApiState, visitor: &Visitor) -> (Arc<Inside>, Timestamp) {
    let now = state.control.now();
    (state.runtimes.of(visitor.workspace, now), now)
}

pub(super) async fn list(State(state): State<ApiState>, visitor: Visitor) -> Json<Value> {
    let (inside, now) = of(&state, &visitor);
    let tasks: Vec<Value> = inside.tasks.list(now).iter().map(|task| task.listed()).collect();
    Json(json!({ "success": true, "tasks": tasks }))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    visitor: Visitor,
    PathOf { value: id, .. }: PathOf<String, Oblien>,
) -> Result<Json<Value>, Problem> {
    let (inside, now) = of(&state, &visitor);
    Ok(Json(inside.tasks.get(&id, now)?.shown()))
}

/// Kills it, with everything it has begun, and forgets it.
pub(super) async fn delete(
    State(state): State<ApiState>,
    visitor: Visitor,
    PathOf { value: id, .. }: PathOf<String, Oblien>,
) -> Result<Json<Value>, Problem> {
    let (inside, now) = of(&state, &visitor);
    inside.tasks.remove(&id, now)?;
    Ok(Json(json!({ "success": true })))
}

pub(super) async fn delete_all(State(state): State<ApiState>, visitor: Visitor) -> Json<Value> {
    let (inside, _) = of(&state, &visitor);
    Json(json!({ "success": true, "deleted": inside.tasks.kill_all() }))
}

/// Hands the body in as it comes. A command that does not read holds its sender back.
pub(super) async fn input(
    State(state): State<ApiState>,
    visitor: Visitor,
    PathOf { value: id, .. }: PathOf<String, Oblien>,
    body: HttpBody,
) -> Result<Json<Value>, Problem> {
    let (inside, now) = of(&state, &visitor);
    let task = inside.tasks.get(&id, now)?;
    let mut pieces = upload(body);
    let mut written: u64 = 0;
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = state.shutdown_begun() => None,
        };
        let Some(piece) = piece.transpose()? else { break };
        let length = piece.len() as u64;
        if !task.write(piece).await {
            let why = "the command takes no input any more";
            return Err(RuntimeProblem::Conflict(why.to_owned()).into());
        }
        written += length;
    }
    Ok(Json(json!({ "success": true, "bytes_written": written })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str], mode: Option<&str>) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        argv(&words, mode)
    }

    #[test]
    fn several_words_are_a_command_and_one_is_a_line() {
        assert_eq!(run(&["sh", "-c", "a\nb; c"], None), ["sh", "-c", "a\nb; c"]);
        assert_eq!(run(&["ls -l  /tmp"], None), ["ls", "-l", "/tmp"]);
        assert_eq!(run(&["ls | wc"], Some("auto")), ["/bin/sh", "-c", "ls | wc"]);
        assert_eq!(run(&["ls | wc"], Some("direct")), ["ls", "|", "wc"]);
        assert_eq!(run(&["echo", "$HOME"], Some("shell")), ["/bin/sh", "-c", "echo $HOME"]);
        assert_eq!(run(&["echo", "$HOME"], Some("foreground")), ["echo", "$HOME"]);
        assert!(run(&[], None).is_empty() && run(&[""], None).is_empty());
    }
}
