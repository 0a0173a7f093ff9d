//! `/v1/sessions/{session}/pty` and `/v1/vms/{vm}/pty`: terminals that outlive their connections. They are
//! the server's: a restart of it, and everything that ends the VM's machine, hangs up.

mod connect;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Json, extract::State};
use skerry_control::{
    Caller, Error,
    internal_api::{ExecRequest, Pty, User},
};
use skerry_model::WorkspaceId;
use tokio_util::task::TaskTracker;

use super::{
    Instavm,
    error_body::Problem,
    execute::inside,
    request::{AuthenticatedBody, AuthenticatedOptionalBody},
    run::{self, WORKING_DIR},
    validation::Fields,
    wire::{PtyList, PtyRecord},
};
use crate::{
    ApiState,
    auth::Authenticated,
    extract::PathOf,
    ids,
    terminal::{Ended, Terminal},
};

pub(super) use connect::connect;

/// So many of a workspace are kept, those that have ended among them.
const PER_WORKSPACE: usize = 32;
const MAX_ID_CHARS: usize = 100;
/// What is kept of each for those who look later.
const KEPT_BYTES: usize = 256 * 1024;
/// How long the VM may take to be brought up: below the 300 s that clients wait.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// All terminals of the server. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terminals {
    all: Arc<Mutex<All>>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct All {
    opened: u64,
    /// By workspace, then in the order they were opened.
    of: BTreeMap<WorkspaceId, BTreeMap<u64, (String, Arc<Terminal>)>>,
}

impl Terminals {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when no command runs any more; to be awaited after the listener has ended.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn of(&self, workspace: WorkspaceId) -> Vec<(String, Arc<Terminal>)> {
        let all = self.all();
        all.of.get(&workspace).map(|mine| mine.values().cloned().collect()).unwrap_or_default()
    }

    fn get(&self, workspace: WorkspaceId, id: &str) -> Result<Arc<Terminal>, Problem> {
        let mine = self.of(workspace).into_iter();
        let found = mine.rev().find(|(one, _)| one == id).map(|(_, terminal)| terminal);
        found.ok_or(Problem::NoSuchTerminal)
    }

    /// Keeps one, and forgets those that have ended first where there are too many.
    fn keep(
        &self,
        workspace: WorkspaceId,
        id: Option<String>,
        terminal: &Arc<Terminal>,
    ) -> Result<String, Problem> {
        let mut all = self.all();
        all.opened += 1;
        let number = all.opened;
        // Terminals are bounded by the workspaces that run: of others none is left but what has ended.
        all.of.retain(|other, theirs| {
            *other == workspace || theirs.values().any(|(_, one)| one.ended().is_none())
        });
        let mine = all.of.entry(workspace).or_default();
        let taken = |id: &str| mine.values().any(|(one, it)| one == id && it.ended().is_none());
        if id.as_deref().is_some_and(taken) {
            return Err(Problem::TerminalExists);
        }
        while mine.len() >= PER_WORKSPACE {
            let ended = mine.iter().find(|(_, (_, one))| one.ended().is_some());
            let Some(ended) = ended.map(|(number, _)| *number) else {
                return Err(Problem::TooManyTerminals { max: PER_WORKSPACE });
            };
            mine.remove(&ended);
        }
        let id = id.unwrap_or_else(|| format!("pty-{number:x}"));
        mine.retain(|_, (one, _)| *one != id);
        mine.insert(number, (id.clone(), Arc::clone(terminal)));
        Ok(id)
    }

    fn forget(&self, workspace: WorkspaceId, id: &str) {
        let mut all = self.all();
        if let Some(mine) = all.of.get_mut(&workspace) {
            mine.retain(|_, (one, _)| one != id);
        }
    }
}

/// What is to run in a new terminal.
fn argv(fields: &mut Fields) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let (command, shell) = (fields.text("command"), fields.text("shell"));
    match (command, shell) {
        (Some(command), _) => words(&["/bin/bash", "-lc", &command]),
        (None, Some(shell)) if !shell.is_empty() => vec![shell],
        (None, _) => words(&["/bin/bash", "-il"]),
    }
}

fn size(fields: &mut Fields, defaults: Option<Pty>) -> Pty {
    let mut side = |name, default: Option<u16>| {
        let side = fields.integer(name, 1..=1000).and_then(|side| u16::try_from(side).ok());
        side.or(default).unwrap_or_else(|| {
            fields.missing(name);
            1
        })
    };
    let columns = side("cols", defaults.map(|size| size.columns));
    let rows = side("rows", defaults.map(|size| size.rows));
    Pty { columns, rows }
}

pub(super) async fn create(
    State(state): State<ApiState>,
    PathOf { value: workspace, .. }: PathOf<String, Instavm>,
    AuthenticatedOptionalBody { caller, mut fields }: AuthenticatedOptionalBody,
) -> Result<Json<PtyRecord>, Problem> {
    let argv = argv(&mut fields);
    let size = size(&mut fields, Some(Pty { columns: 80, rows: 24 }));
    let id = fields.text("id");
    let plain = |id: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=MAX_ID_CHARS).contains(&id.len()) && id.chars().all(plain)
    };
    if !id.as_ref().is_none_or(plain) {
        fields.refuse("id", "Input should have 1 to 100 letters, digits, '-', '_' or '.'");
    }
    if argv.iter().any(|word| word.contains('\0')) {
        fields.refuse("command", "Input should not contain a NUL character");
    }
    fields.finish()?;
    let which = ids::parse_workspace_ref(&workspace);
    let (workspace, guest) = inside(&state, &caller, &which, START_TIMEOUT).await?;
    let request = ExecRequest {
        argv,
        env: BTreeMap::new(),
        working_dir: Some(WORKING_DIR.to_owned()),
        user: User::Root,
        pty: Some(size),
        timeout: None,
    };
    let session = run::started(guest.as_ref(), request).await.map_err(Error::from)?;
    let terminal = Arc::new(Terminal::new(session.control.clone(), size, KEPT_BYTES));
    let id = state.terminals.keep(workspace, id, &terminal)?;
    let record = record(id, workspace, &terminal);
    let shutdown = state.clone();
    state.terminals.tasks.spawn(async move {
        terminal.run(session, shutdown.shutdown_begun()).await;
    });
    Ok(Json(record))
}

async fn workspace(state: &ApiState, caller: &Caller, which: &str) -> Result<WorkspaceId, Problem> {
    let which = ids::parse_workspace_ref(which);
    Ok(state.control.get_workspace(caller, &which).await?.id)
}

fn record(id: String, workspace: WorkspaceId, terminal: &Terminal) -> PtyRecord {
    let ended = terminal.ended();
    let Pty { columns, rows } = terminal.size();
    PtyRecord {
        session_id: id.clone(),
        id,
        code_session_id: ids::uuid_text(workspace),
        alive: ended.is_none(),
        exit_code: match ended {
            Some(Ended::Exited(code)) => Some(code),
            Some(Ended::Lost) | None => None,
        },
        cols: columns,
        rows,
    }
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: which, .. }: PathOf<String, Instavm>,
) -> Result<Json<PtyList>, Problem> {
    let workspace = workspace(&state, &caller, &which).await?;
    let mine = state.terminals.of(workspace).into_iter();
    let sessions = mine.map(|(id, terminal)| record(id, workspace, &terminal)).collect();
    Ok(Json(PtyList { sessions }))
}

pub(super) async fn get(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: (which, id), .. }: PathOf<(String, String), Instavm>,
) -> Result<Json<PtyRecord>, Problem> {
    let workspace = workspace(&state, &caller, &which).await?;
    let terminal = state.terminals.get(workspace, &id)?;
    Ok(Json(record(id, workspace, &terminal)))
}

pub(super) async fn resize(
    State(state): State<ApiState>,
    PathOf { value: (which, id), .. }: PathOf<(String, String), Instavm>,
    AuthenticatedBody { caller, mut fields }: AuthenticatedBody,
) -> Result<Json<PtyRecord>, Problem> {
    let size = size(&mut fields, None);
    fields.finish()?;
    let workspace = workspace(&state, &caller, &which).await?;
    let terminal = state.terminals.get(workspace, &id)?;
    terminal.resize(size).await;
    Ok(Json(record(id, workspace, &terminal)))
}

pub(super) async fn kill(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Authenticated<Instavm>,
    PathOf { value: (which, id), .. }: PathOf<(String, String), Instavm>,
) -> Result<Json<PtyRecord>, Problem> {
    let workspace = workspace(&state, &caller, &which).await?;
    let terminal = state.terminals.get(workspace, &id)?;
    terminal.kill();
    state.terminals.forget(workspace, &id);
    Ok(Json(PtyRecord { alive: false, ..record(id, workspace, &terminal) }))
}
