//! `/terminals`: sessions that outlive their connections. What they print goes through [`super::socket`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_control::internal_api::{ExecRequest, ExecSession, GuestApi, NodeError, Pty, User};
use skerry_model::Timestamp;
use tokio::sync::watch;

use super::{
    problem::{RuntimeProblem, refusal},
    visitor::Visitor,
};
use crate::{
    ApiState,
    dialects::oblien::{Oblien, error_body::Problem, object},
    extract::{JsonBody, PathOf, QueryOf},
    number::WholeNumber,
    object::Object,
    terminal::{Ended, Terminal},
};

/// Of one workspace at a time.
const OPEN_MAX: usize = 10;
/// Of one workspace, those that have ended among them: a terminal's number is one byte.
const KEPT_MAX: usize = 32;
const WORKING_DIR: &str = "/root";
/// What is kept of what a terminal has printed, in bytes.
const SCROLLBACK_BYTES: i64 = 64 * 1024;
const SCROLLBACK_MIN_BYTES: i64 = 1024;
const SCROLLBACK_MAX_BYTES: i64 = 256 * 1024;
const ARGUMENTS_MAX: usize = 4096;

/// A terminal of a workspace.
#[derive(Debug)]
pub(super) struct Session {
    /// Its number on the wire, from 1. Given again once the session is forgotten.
    pub(super) id: u8,
    /// Another one for each.
    pub(super) number: u64,
    pub(super) terminal: Terminal,
    command: Vec<String>,
    created_at: Timestamp,
}

/// Those of one workspace.
#[derive(Debug)]
pub(super) struct Terminals {
    all: Mutex<All>,
    /// How many there have been.
    opened: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct All {
    opened: u64,
    by_id: BTreeMap<u8, Arc<Session>>,
}

impl Default for Terminals {
    fn default() -> Self {
        Self { all: Mutex::default(), opened: watch::Sender::new(0) }
    }
}

/// A terminal that is about to be kept.
struct Opened {
    command: Vec<String>,
    size: Pty,
    kept_bytes: usize,
}

impl Terminals {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the order of their numbers.
    pub(super) fn list(&self) -> Vec<Arc<Session>> {
        self.all().by_id.values().cloned().collect()
    }

    /// Changes whenever one is opened.
    pub(super) fn opened(&self) -> watch::Receiver<u64> {
        self.opened.subscribe()
    }

    pub(super) fn get(&self, id: u8) -> Option<Arc<Session>> {
        self.all().by_id.get(&id).cloned()
    }

    fn named(&self, id: &str) -> Result<Arc<Session>, RuntimeProblem> {
        let session = id.parse().ok().and_then(|id| self.get(id));
        session.ok_or(RuntimeProblem::NoSuch("terminal"))
    }

    fn has_room(&self) -> Result<(), RuntimeProblem> {
        let all = self.all();
        let open = all.by_id.values().filter(|one| one.terminal.ended().is_none()).count();
        if open >= OPEN_MAX {
            return Err(RuntimeProblem::TooMany { what: "terminals open", max: OPEN_MAX });
        }
        Ok(())
    }

    /// Keeps one under the lowest free number, and forgets those that ended first where there are too
    /// many.
    fn keep(
        &self,
        opened: Opened,
        session: &ExecSession,
        now: Timestamp,
    ) -> Result<Arc<Session>, RuntimeProblem> {
        self.has_room()?;
        let Opened { command, size, kept_bytes } = opened;
        let mut all = self.all();
        while all.by_id.len() >= KEPT_MAX {
            let ended = all.by_id.values().filter(|one| one.terminal.ended().is_some());
            let Some(oldest) = ended.min_by_key(|one| one.number).map(|one| one.id) else { break };
            all.by_id.remove(&oldest);
        }
        let free = (1..=u8::MAX).find(|id| !all.by_id.contains_key(id));
        let too_many = RuntimeProblem::TooMany { what: "terminals", max: KEPT_MAX };
        let id = free.ok_or(too_many)?;
        all.opened += 1;
        let number = all.opened;
        let terminal = Terminal::new(session.control.clone(), size, kept_bytes);
        let kept = Arc::new(Session { id, number, terminal, command, created_at: now });
        all.by_id.insert(id, Arc::clone(&kept));
        drop(all);
        self.opened.send_replace(number);
        Ok(kept)
    }

    fn forget(&self, session: &Arc<Session>) {
        self.all().by_id.retain(|_, other| !Arc::ptr_eq(other, session));
    }

    pub(super) fn kill_all(&self) {
        let all = std::mem::take(&mut self.all().by_id);
        all.values().for_each(|one| one.terminal.kill());
    }

    /// Whether none is open.
    pub(super) fn is_idle(&self) -> bool {
        self.all().by_id.values().all(|one| one.terminal.ended().is_some())
    }
}

impl Session {
    fn shown(&self) -> Value {
        let Pty { columns, rows } = self.terminal.size();
        let ended = self.terminal.ended();
        json!({
            "id": self.id.to_string(),
            "command": self.command,
            "cols": columns,
            "rows": rows,
            "alive": ended.is_none(),
            "exit_code": ended.map(exit_code),
            "created_at": object::time(self.created_at),
            "scrollback_size": self.terminal.kept_bytes(),
        })
    }
}

/// As clients take it: a number.
pub(super) const fn exit_code(ended: Ended) -> i32 {
    match ended {
        Ended::Exited(code) => code,
        Ended::Lost => -1,
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct CreateBody {
    #[serde(alias = "command")]
    cmd: Option<Vec<String>>,
    cols: Option<WholeNumber>,
    rows: Option<WholeNumber>,
    scrollback_size: Option<WholeNumber>,
}

fn side(field: &str, asked: Option<WholeNumber>, default: u16) -> Result<u16, Problem> {
    let Some(WholeNumber(asked)) = asked else { return Ok(default) };
    let side = u16::try_from(asked).ok().filter(|side| (1..=1000).contains(side));
    side.ok_or_else(|| refusal(field, "is out of range", "1 to 1000"))
}

/// Starts the shell that the image has, where none is asked for.
async fn begun(
    guest: &dyn GuestApi,
    asked: Option<Vec<String>>,
    size: Pty,
) -> Result<(ExecSession, Vec<String>), NodeError> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let tried = match asked {
        Some(argv) => vec![argv],
        None => vec![words(&["/bin/bash", "-l"]), words(&["/bin/sh", "-l"])],
    };
    let mut refused = NodeError::Invalid { field: "cmd", problem: "is empty".to_owned() };
    for argv in tried {
        let request = ExecRequest {
            argv: argv.clone(),
            env: BTreeMap::new(),
            working_dir: Some(WORKING_DIR.to_owned()),
            user: User::Root,
            pty: Some(size),
            timeout: None,
        };
        match guest.exec(request).await {
            Ok(session) => return Ok((session, argv)),
            Err(error @ NodeError::Guest { code: "no_such_command", .. }) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

pub(super) async fn create(
    State(state): State<ApiState>,
    visitor: Visitor,
    JsonBody { value: body, .. }: JsonBody<Option<Object<CreateBody>>, Oblien>,
) -> Result<Response, Problem> {
    let body = body.map(|Object(body)| body).unwrap_or_default();
    let size = Pty { columns: side("cols", body.cols, 80)?, rows: side("rows", body.rows, 24)? };
    let WholeNumber(kept) = body.scrollback_size.unwrap_or(WholeNumber(SCROLLBACK_BYTES));
    let kept = Some(kept).filter(|k| (SCROLLBACK_MIN_BYTES..=SCROLLBACK_MAX_BYTES).contains(k));
    let kept_bytes = kept.and_then(|kept| usize::try_from(kept).ok());
    let kept_bytes = kept_bytes
        .ok_or_else(|| refusal("scrollback_size", "is out of range", "1024 to 262144"))?;
    let asked = body.cmd.filter(|words| !words.is_empty());
    let is_bad = |words: &Vec<String>| {
        words.len() > ARGUMENTS_MAX || words.iter().any(|word| word.contains('\0'))
    };
    if asked.as_ref().is_some_and(is_bad) {
        return Err(refusal("cmd", "is not a command", "texts without NUL characters"));
    }
    let inside = state.runtimes.of(visitor.workspace, state.control.now());
    inside.terminals.has_room()?;
    let guest = visitor.guest(&state).await?;
    let (session, command) =
        begun(guest.as_ref(), asked, size).await.map_err(|error| match error {
            NodeError::Guest { code: "no_such_command", message } => {
                RuntimeProblem::NotStarted(message).into()
            }
            error => Problem::from(error),
        })?;
    let opened = Opened { command, size, kept_bytes };
    let kept = inside.terminals.keep(opened, &session, state.control.now())?;
    let mut answer = kept.shown();
    answer["success"] = json!(true);
    let server = state.clone();
    state.runtimes.running.spawn(async move {
        kept.terminal.run(session, server.shutdown_begun()).await;
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

pub(super) async fn list(State(state): State<ApiState>, visitor: Visitor) -> Json<Value> {
    let inside = state.runtimes.of(visitor.workspace, state.control.now());
    let all: Vec<Value> = inside.terminals.list().iter().map(|one| one.shown()).collect();
    Json(json!({ "success": true, "terminals": all }))
}

/// Hangs up and forgets it.
pub(super) async fn close(
    State(state): State<ApiState>,
    visitor: Visitor,
    PathOf { value: id, .. }: PathOf<String, Oblien>,
) -> Result<Json<Value>, Problem> {
    let inside = state.runtimes.of(visitor.workspace, state.control.now());
    let session = inside.terminals.named(&id)?;
    session.terminal.kill();
    inside.terminals.forget(&session);
    Ok(Json(json!({ "success": true, "terminal_id": id })))
}

#[derive(Debug, Deserialize)]
pub(super) struct ScrollbackQuery {
    bytes: Option<usize>,
}

pub(super) async fn scrollback(
    State(state): State<ApiState>,
    visitor: Visitor,
    PathOf { value: id, .. }: PathOf<String, Oblien>,
    QueryOf { value: query, .. }: QueryOf<ScrollbackQuery, Oblien>,
) -> Result<Json<Value>, Problem> {
    let inside = state.runtimes.of(visitor.workspace, state.control.now());
    let session = inside.terminals.named(&id)?;
    let ended = session.terminal.ended();
    let kept = session.terminal.tail(query.bytes.unwrap_or(usize::MAX));
    Ok(Json(json!({
        "success": true,
        "size": kept.len(),
        "scrollback": STANDARD.encode(kept),
        "alive": ended.is_none(),
        "exit_code": ended.map(exit_code),
    })))
}
