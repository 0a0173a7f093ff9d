//! Workloads: what a workspace's guest supervises. The list stands in the workspace's record; how it
//! goes, the guest alone knows. [`attend`] keeps the one in step with the other.

mod attend;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use skerry_internal_api::{LogPart, SupervisorApi, WorkloadLog, WorkloadReport, WorkloadReports};
use skerry_model::{
    Desired, EnvVar, ErrorKind, OnExit, Refusal, State, Timestamp, Workload, WorkloadDesired,
    WorkloadId, WorkloadKind, WorkloadOrigin, WorkloadRef, WorkloadRestart, Workloads, Workspace,
};

use crate::{Caller, Control, Error, WorkspaceRef, control::Inner, workspaces::refused};

pub(crate) use attend::{Attended, EndedMains};

/// A workload to be made.
#[derive(Clone, PartialEq, Eq)]
pub struct NewWorkload {
    /// `None`: drawn.
    pub id: Option<WorkloadId>,
    /// `None`: made from the program's name.
    pub name: Option<String>,
    /// What it is for.
    pub kind: WorkloadKind,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the workspace's environment.
    pub env: Vec<EnvVar>,
    /// Absolute; `None`: the image's, or else the user's home.
    pub working_dir: Option<String>,
    /// A login name; `None`: the image's, or else root.
    pub user: Option<String>,
    /// When it is started again.
    pub restart: WorkloadRestart,
    /// What its end means for the workspace.
    pub on_exit: OnExit,
    /// KiB of output that are kept.
    pub log_limit_kib: u32,
    /// Whether output of before the last boot is kept.
    pub keeps_log: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Notes.
    pub annotations: BTreeMap<String, String>,
    /// Whether it starts.
    pub desired: WorkloadDesired,
    /// What it is made from.
    pub origin: WorkloadOrigin,
}

impl NewWorkload {
    /// A service that runs this and for which everything else is left to the defaults.
    #[must_use]
    pub fn new(argv: Vec<String>) -> Self {
        Self {
            id: None,
            name: None,
            kind: WorkloadKind::Service,
            argv,
            env: Vec::new(),
            working_dir: None,
            user: None,
            restart: WorkloadRestart::default(),
            on_exit: OnExit::Nothing,
            log_limit_kib: Workload::DEFAULT_LOG_LIMIT_KIB,
            keeps_log: true,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            desired: WorkloadDesired::Running,
            origin: WorkloadOrigin::Direct,
        }
    }
}

/// Neither arguments nor values of variables: both may be secrets.
impl std::fmt::Debug for NewWorkload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewWorkload")
            .field("name", &self.name)
            .field("program", &self.argv.first())
            .finish_non_exhaustive()
    }
}

/// What to change of a workload; `None` leaves as it is. A process that runs is not touched: what is new
/// takes effect at its next start.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UpdateWorkload {
    /// Another name.
    pub name: Option<String>,
    /// Another command.
    pub argv: Option<Vec<String>>,
    /// Other variables; replaces all of them.
    pub env: Option<Vec<EnvVar>>,
    /// Another directory; the inner `None` means the default.
    pub working_dir: Option<Option<String>>,
    /// Another login; the inner `None` means the default.
    pub user: Option<Option<String>>,
    /// When it is started again.
    pub restart: Option<WorkloadRestart>,
    /// What its end means for the workspace.
    pub on_exit: Option<OnExit>,
    /// KiB of output that are kept.
    pub log_limit_kib: Option<u32>,
    /// Other labels; replaces all of them.
    pub labels: Option<BTreeMap<String, String>>,
    /// Other notes; replaces all of them.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Whether it should run.
    pub desired: Option<WorkloadDesired>,
}

impl std::fmt::Debug for UpdateWorkload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpdateWorkload").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A workload, and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadView {
    /// What should run.
    pub workload: Workload,
    /// What the guest says of it; `None` while the workspace does not run, or before the guest was told.
    pub report: Option<WorkloadReport>,
}

/// What becomes of a workload's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadVerb {
    /// It runs; one that runs already goes on.
    Start,
    /// It does not run, also not after the next boot.
    Stop,
    /// It runs anew.
    Restart,
}

impl Control {
    /// Adds a workload to a workspace. In one that runs it is started as soon as its guest was told.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the name or identifier is there already; `Invalid` (see
    /// [`Workloads::change`]); `RefusedByState` while the workspace is deleted.
    pub async fn create_workload(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        new: NewWorkload,
    ) -> Result<WorkloadView, Error> {
        let there = self.inner.find(caller, which).await?.spec.workloads.items;
        let made = self.inner.new_workload(new, self.inner.now(), &there);
        let id = made.id;
        self.inner
            .change_workloads(caller, which, move |items| {
                let taken = items
                    .iter()
                    .find(|other| other.id == made.id || other.name == made.name)
                    .map(|other| other.name.clone());
                if let Some(taken) = taken {
                    let text = format!("the workspace has a workload {taken} already");
                    return Err(ErrorKind::Conflict(text).into());
                }
                items.push(made.clone());
                Ok(())
            })
            .await?;
        self.workload(caller, which, &WorkloadRef::Id(id)).await
    }

    /// The workloads of a workspace.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn workloads(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<Vec<WorkloadView>, Error> {
        let workspace = self.inner.find(caller, which).await?;
        let reports = self.inner.reports_of(&workspace).await;
        let view = |workload: &Workload| WorkloadView {
            report: reports.reports.iter().find(|report| report.id == workload.id).cloned(),
            workload: workload.clone(),
        };
        Ok(workspace.spec.workloads.items.iter().map(view).collect())
    }

    /// One workload of a workspace.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `workload`).
    pub async fn workload(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
    ) -> Result<WorkloadView, Error> {
        let all = self.workloads(caller, which).await?;
        let found = all.into_iter().find(|view| workload.names(&view.workload));
        found.ok_or_else(|| Error::not_found("workload"))
    }

    /// Changes a workload.
    ///
    /// # Errors
    /// As [`Control::create_workload`]; `NotFound` (`workload`).
    pub async fn update_workload(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
        update: UpdateWorkload,
    ) -> Result<WorkloadView, Error> {
        let id = self.inner.workload_id(caller, which, workload).await?;
        let now = self.inner.now();
        self.inner
            .change_workloads(caller, which, move |items| {
                let one = named(items, id)?;
                let before = one.clone();
                apply(one, &update);
                if *one != before {
                    one.updated_at = now;
                }
                Ok(())
            })
            .await?;
        self.workload(caller, which, &WorkloadRef::Id(id)).await
    }

    /// Starts, stops or restarts a workload. It is recorded when the call returns, and done as soon as the
    /// guest can be told.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `workload`); `RefusedByState` while the workspace is deleted.
    pub async fn command_workload(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
        verb: WorkloadVerb,
    ) -> Result<WorkloadView, Error> {
        let view = self.workload(caller, which, workload).await?;
        let id = view.workload.id;
        let has_ended = view
            .report
            .as_ref()
            .is_some_and(|report| report.turn == view.workload.turn && has_ended_for_good(report));
        self.inner
            .change_workloads(caller, which, move |items| {
                let one = named(items, id)?;
                match verb {
                    WorkloadVerb::Start => {
                        one.turn += u64::from(has_ended);
                        one.desired = WorkloadDesired::Running;
                    }
                    WorkloadVerb::Stop => one.desired = WorkloadDesired::Stopped,
                    WorkloadVerb::Restart => {
                        one.turn += 1;
                        one.desired = WorkloadDesired::Running;
                    }
                }
                Ok(())
            })
            .await?;
        self.workload(caller, which, &WorkloadRef::Id(id)).await
    }

    /// Removes a workload; its process ends, and its output is removed.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `workload`); `RefusedByState` while the workspace is deleted.
    pub async fn delete_workload(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
    ) -> Result<(), Error> {
        let id = self.inner.workload_id(caller, which, workload).await?;
        self.inner
            .change_workloads(caller, which, move |items| {
                items.retain(|one| one.id != id);
                Ok(())
            })
            .await
            .map(drop)
    }

    /// Removes all workloads of a workspace; answers how many there were.
    ///
    /// # Errors
    /// `NotFound`; `RefusedByState` while the workspace is deleted.
    pub async fn delete_workloads(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
    ) -> Result<usize, Error> {
        let there = self.inner.find(caller, which).await?.spec.workloads.items.len();
        let clear = |items: &mut Vec<Workload>| {
            items.clear();
            Ok(())
        };
        self.inner.change_workloads(caller, which, clear).await?;
        Ok(there)
    }

    /// A part of a workload's output, from its guest.
    ///
    /// # Errors
    /// `NotFound` (`workspace`, `workload`); `RefusedByState` unless the workspace runs; `Unavailable`
    /// when the guest does not know the workload yet.
    pub async fn workload_log(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
        part: LogPart,
    ) -> Result<WorkloadLog, Error> {
        let (id, supervisor) = self.inner.supervisor_of(caller, which, workload).await?;
        let log = supervisor.workload_log(id, part);
        Ok(self.inner.bounded("workload_log", log).await??)
    }

    /// Removes a workload's output.
    ///
    /// # Errors
    /// As [`Control::workload_log`].
    pub async fn clear_workload_log(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
    ) -> Result<(), Error> {
        let (id, supervisor) = self.inner.supervisor_of(caller, which, workload).await?;
        Ok(self.inner.bounded("clear_workload_log", supervisor.clear_workload_log(id)).await??)
    }
}

const fn has_ended_for_good(report: &WorkloadReport) -> bool {
    use skerry_internal_api::WorkloadPhase as Phase;
    match report.phase {
        Phase::Ended => true,
        Phase::Waiting | Phase::Running | Phase::Stopping | Phase::Stopped => false,
    }
}

fn named(items: &mut [Workload], id: WorkloadId) -> Result<&mut Workload, Error> {
    items.iter_mut().find(|one| one.id == id).ok_or_else(|| Error::not_found("workload"))
}

fn apply(one: &mut Workload, update: &UpdateWorkload) {
    let UpdateWorkload {
        name,
        argv,
        env,
        working_dir,
        user,
        restart,
        on_exit,
        log_limit_kib,
        labels,
        annotations,
        desired,
    } = update.clone();
    one.name = name.unwrap_or_else(|| one.name.clone());
    one.argv = argv.unwrap_or_else(|| one.argv.clone());
    one.env = env.unwrap_or_else(|| one.env.clone());
    one.working_dir = working_dir.unwrap_or_else(|| one.working_dir.clone());
    one.user = user.unwrap_or_else(|| one.user.clone());
    one.restart = restart.unwrap_or(one.restart);
    one.on_exit = on_exit.unwrap_or(one.on_exit);
    one.log_limit_kib = log_limit_kib.unwrap_or(one.log_limit_kib);
    one.labels = labels.unwrap_or_else(|| one.labels.clone());
    one.annotations = annotations.unwrap_or_else(|| one.annotations.clone());
    one.desired = desired.unwrap_or(one.desired);
}

/// A name from a program's: what it may not have becomes `-`.
fn name_from(argv: &[String], taken: &[Workload]) -> String {
    let program = argv.first().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
    let mut stem: String = program
        .chars()
        .take(48)
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    if stem.is_empty() {
        stem.push_str("workload");
    }
    let is_taken = |name: &str| taken.iter().any(|one| one.name == name);
    let numbered = (2..).map(|number| format!("{stem}-{number}"));
    let mut names = std::iter::once(stem.clone()).chain(numbered);
    names.find(|name| !is_taken(name)).unwrap_or(stem)
}

impl Inner {
    fn new_workload(&self, new: NewWorkload, now: Timestamp, others: &[Workload]) -> Workload {
        Workload {
            id: new.id.unwrap_or_else(|| WorkloadId::from_random(self.random())),
            name: new.name.unwrap_or_else(|| name_from(&new.argv, others)),
            kind: new.kind,
            argv: new.argv,
            env: new.env,
            working_dir: new.working_dir,
            user: new.user,
            restart: new.restart,
            on_exit: new.on_exit,
            log_limit_kib: new.log_limit_kib,
            keeps_log: new.keeps_log,
            labels: new.labels,
            annotations: new.annotations,
            desired: new.desired,
            turn: 1,
            origin: new.origin,
            created_at: now,
            updated_at: now,
        }
    }

    /// The workloads of a workspace that is made.
    pub(crate) fn workloads_of_new(&self, asked: Vec<NewWorkload>) -> Result<Workloads, Error> {
        let now = self.now();
        let mut items = Vec::with_capacity(asked.len());
        for new in asked {
            let made = self.new_workload(new, now, &items);
            items.push(made);
        }
        Ok(Workloads::new(items)?)
    }

    /// Changes the list in the record as it then is; whoever attends the workspace tells the guest.
    pub(crate) async fn change_workloads(
        self: &Arc<Self>,
        caller: &Caller,
        which: &WorkspaceRef,
        change: impl Fn(&mut Vec<Workload>) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<Workspace, Error> {
        let (inner, caller, which) = (Arc::clone(self), caller.clone(), which.clone());
        self.to_the_end(async move {
            let written = inner
                .change(&caller, &which, |workspace, _| {
                    if workspace.desired == Desired::Deleted {
                        return Err(refused(Refusal::BeingDeleted));
                    }
                    workspace.spec.workloads.change(&change)??;
                    Ok(None)
                })
                .await?;
            inner.attend_workloads(&written);
            Ok(written)
        })
        .await
    }

    async fn workload_id(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
    ) -> Result<WorkloadId, Error> {
        let workspace = self.find(caller, which).await?;
        let found = workspace.spec.workloads.find(workload);
        found.map(|one| one.id).ok_or_else(|| Error::not_found("workload"))
    }

    async fn supervisor_of(
        &self,
        caller: &Caller,
        which: &WorkspaceRef,
        workload: &WorkloadRef,
    ) -> Result<(WorkloadId, Arc<dyn SupervisorApi>), Error> {
        let workspace = self.find(caller, which).await?;
        let found = workspace.spec.workloads.find(workload);
        let id = found.map(|one| one.id).ok_or_else(|| Error::not_found("workload"))?;
        if !matches!(workspace.state, State::Running { .. }) {
            return Err(ErrorKind::RefusedByState {
                state: workspace.state.name(),
                reason: "the workspace must be running".to_owned(),
            }
            .into());
        }
        let guest = self.bounded("guest", self.node.guest(workspace.id)).await??;
        Ok((id, guest.supervisor()))
    }

    /// What the guest says; nothing where there is none to ask, or it does not answer.
    async fn reports_of(&self, workspace: &Workspace) -> WorkloadReports {
        if !attend::is_attended(workspace) {
            return WorkloadReports::default();
        }
        let asked = async {
            let guest = self.bounded("guest", self.node.guest(workspace.id)).await??;
            let supervisor = guest.supervisor();
            let reports = supervisor.watch_workloads(0, Duration::ZERO);
            Ok::<_, Error>(self.bounded("watch_workloads", reports).await??)
        };
        asked.await.unwrap_or_else(|error| {
            tracing::debug!(workspace.id = %workspace.id, %error, "its workloads cannot be asked");
            WorkloadReports::default()
        })
    }
}
