//! The one task that writes. It takes what waits, runs it in one transaction with one sync, and
//! answers each caller after the commit: the more callers there are, the more of them share a sync,
//! and one that is alone waits for nobody.
//!
//! A write whose condition does not hold (a stale revision, a plan's limit) is decided before anything
//! of it is written, so it does not harm the others in the transaction. A fault of the database does:
//! then everything is rolled back and each write is tried again alone, so that only the one with the
//! fault meets it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use skerry_model::{ErrorKind, WorkspaceId};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::{
    mpsc::{self, error::SendTimeoutError},
    oneshot,
};

use super::{
    picture::{Verdict, WorkspaceWrite},
    recent::Recent,
    records::write_all,
};
use crate::{Error, store::Write};

/// How many writes may wait for their transaction; further callers wait for a place.
const QUEUE: usize = 1024;
/// How many writes share a transaction at most, so that none waits long for the others.
const TOGETHER: usize = 256;
/// How long a caller waits for a place in the queue.
const PATIENCE: Duration = Duration::from_secs(10);

/// A fault of the database, because of which a transaction was not made. Everybody who took part in it
/// is told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", cause(.0))]
pub(super) struct Broken(Arc<Error>);

/// What the log is to say: an error by itself says only what may be shown to everybody.
fn cause(error: &Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl<E: Into<Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self(Arc::new(error.into()))
    }
}

impl Broken {
    /// The same for one of them.
    pub(super) fn told(self) -> Error {
        Error::with_cause(self.0.kind().clone(), self)
    }
}

/// Something else that is written than a workspace.
#[async_trait]
pub(super) trait Operation: Send + 'static {
    /// What its caller is told.
    type Answer: Send + 'static;

    /// Does it within a transaction. What it refuses (the inner error) it refuses before it has
    /// written anything. It may be run again, after a rollback.
    async fn run(
        &mut self,
        db: &mut SqliteConnection,
    ) -> Result<Result<Self::Answer, Error>, Broken>;

    /// Takes over into the records in memory what was committed.
    fn settle(&self, recent: &Recent) {
        let _nothing = recent;
    }
}

/// The callers' side. The task ends when this is dropped: then nobody is left to be answered.
pub(super) struct Writer {
    queue: mpsc::Sender<Job>,
}

impl Writer {
    /// Starts the task on this connection. `options` make another one should it be lost.
    pub(super) fn start(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        recent: Recent,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let task = Task { options, connection: Some(connection), recent };
        tokio::spawn(task.work(jobs));
        Self { queue }
    }

    /// Has one workspace written; answers it as it was written, once that is durable. A caller that
    /// goes away before the write began takes it back.
    pub(super) async fn write(
        &self,
        write: WorkspaceWrite,
    ) -> Result<Write<WorkspaceWrite>, Error> {
        let (answer, answered) = oneshot::channel();
        self.submit(Job::Workspace(Box::new(WorkspaceJob { write, verdict: None, answer })))
            .await?;
        answered.await.map_err(Error::internal)?
    }

    /// Has something else written, in the same way.
    pub(super) async fn run<O: Operation>(&self, operation: O) -> Result<O::Answer, Error> {
        let (answer, answered) = oneshot::channel();
        self.submit(Job::Other(Box::new(OperationJob { operation, outcome: None, answer })))
            .await?;
        answered.await.map_err(Error::internal)?
    }

    async fn submit(&self, job: Job) -> Result<(), Error> {
        self.queue.send_timeout(job, PATIENCE).await.map_err(|error| match error {
            SendTimeoutError::Timeout(_) => {
                ErrorKind::Unavailable("the database is too slow".to_owned()).into()
            }
            SendTimeoutError::Closed(_) => Error::internal("the database is closed"),
        })
    }
}

/// A write that waits for its transaction, or for the transaction's end.
enum Job {
    Workspace(Box<WorkspaceJob>),
    Other(Box<dyn OtherJob>),
}

struct WorkspaceJob {
    write: WorkspaceWrite,
    verdict: Option<Verdict>,
    answer: oneshot::Sender<Result<Write<WorkspaceWrite>, Error>>,
}

struct OperationJob<O: Operation> {
    operation: O,
    outcome: Option<Result<O::Answer, Error>>,
    answer: oneshot::Sender<Result<O::Answer, Error>>,
}

/// Any [`OperationJob`].
#[async_trait]
trait OtherJob: Send {
    async fn run(&mut self, db: &mut SqliteConnection) -> Result<(), Broken>;
    fn is_abandoned(&self) -> bool;
    fn settle(&self, recent: &Recent);
    fn answer(self: Box<Self>, committed: Result<(), Broken>);
}

#[async_trait]
impl<O: Operation> OtherJob for OperationJob<O> {
    async fn run(&mut self, db: &mut SqliteConnection) -> Result<(), Broken> {
        self.outcome = Some(self.operation.run(db).await?);
        Ok(())
    }

    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn settle(&self, recent: &Recent) {
        self.operation.settle(recent);
    }

    fn answer(self: Box<Self>, committed: Result<(), Broken>) {
        reply(self.answer, committed, self.outcome);
    }
}

impl Job {
    fn is_abandoned(&self) -> bool {
        match self {
            Self::Workspace(job) => job.answer.is_closed(),
            Self::Other(job) => job.is_abandoned(),
        }
    }

    /// The workspace it changes, if it is to be asked of the database from now on.
    fn changed(&self) -> Option<WorkspaceId> {
        match self {
            Self::Workspace(job) => {
                matches!(job.verdict, Some(Verdict::Done(_))).then(|| job.write.id())
            }
            Self::Other(_) => None,
        }
    }

    /// Takes over into the records in memory what was committed.
    fn settle(&self, recent: &Recent) {
        match self {
            Self::Workspace(job) => {
                if let Some(Verdict::Done(_)) = job.verdict {
                    recent.take_over(&job.write);
                }
            }
            Self::Other(job) => job.settle(recent),
        }
    }

    fn answer(self, committed: Result<(), Broken>) {
        match self {
            Self::Workspace(job) => {
                let WorkspaceJob { write, verdict, answer } = *job;
                let outcome = verdict.map(|verdict| match verdict {
                    Verdict::Done(_) => Ok(Write::Done(write)),
                    Verdict::Stale => Ok(Write::Stale),
                    Verdict::Taken => Ok(Write::Taken),
                    Verdict::Refused(error) => Err(error),
                });
                reply(answer, committed, outcome);
            }
            Self::Other(job) => job.answer(committed),
        }
    }
}

fn reply<T>(
    answer: oneshot::Sender<Result<T, Error>>,
    committed: Result<(), Broken>,
    outcome: Option<Result<T, Error>>,
) {
    let missing = || Err(Error::internal("a write was committed without an outcome"));
    let reply = match committed {
        Ok(()) => outcome.unwrap_or_else(missing),
        Err(broken) => Err(broken.told()),
    };
    // Whoever asked may be gone; what was written stays written.
    let _gone = answer.send(reply);
}

/// How far a transaction came that was not made.
enum Failed {
    /// One of its writes met a fault: without it the others may well be made.
    Statement(Broken),
    /// It could not be begun or committed, whatever was in it.
    Whole(Broken),
}

struct Task {
    options: SqliteConnectOptions,
    /// `None` after a fault that left it in an unknown state.
    connection: Option<SqliteConnection>,
    recent: Recent,
}

impl Task {
    async fn work(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(TOGETHER);
        while queue.recv_many(&mut jobs, TOGETHER).await > 0 {
            jobs.retain(|job| !job.is_abandoned());
            let callers = jobs.len();
            match self.commit(&mut jobs).await {
                Ok(()) => jobs.drain(..).for_each(|job| job.answer(Ok(()))),
                Err(Failed::Statement(broken)) if callers > 1 => {
                    tracing::warn!(%broken, callers, "a transaction failed; each write is tried alone");
                    for mut job in jobs.drain(..) {
                        let committed = self.commit(std::slice::from_mut(&mut job)).await;
                        job.answer(committed.map_err(Failed::into_broken));
                    }
                }
                Err(Failed::Statement(broken) | Failed::Whole(broken)) => {
                    jobs.drain(..).for_each(|job| job.answer(Err(broken.clone())));
                }
            }
            if callers > 1 {
                // Those just answered may have the next write ready: it shares the next sync.
                tokio::task::yield_now().await;
            }
        }
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the database was not closed in order");
        }
    }

    /// Makes one transaction of all these writes.
    async fn commit(&mut self, jobs: &mut [Job]) -> Result<(), Failed> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.options.connect().await.map_err(Failed::whole)?,
        };
        let outcome = transaction(&mut connection, &self.recent, jobs).await;
        // A connection that cannot even go back is not used again.
        let usable =
            outcome.is_ok() || sqlx::query("ROLLBACK").execute(&mut connection).await.is_ok();
        self.connection = usable.then_some(connection);
        outcome
    }
}

impl Failed {
    fn whole(error: sqlx::Error) -> Self {
        Self::Whole(error.into())
    }

    fn into_broken(self) -> Broken {
        match self {
            Self::Statement(broken) | Self::Whole(broken) => broken,
        }
    }
}

async fn transaction(
    db: &mut SqliteConnection,
    recent: &Recent,
    jobs: &mut [Job],
) -> Result<(), Failed> {
    // Holds the write lock from here on, so that what is read is still so when it is written.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await.map_err(Failed::whole)?;
    for run in jobs.chunk_by_mut(|a, b| matches!((a, b), (Job::Workspace(_), Job::Workspace(_)))) {
        perform(db, run).await.map_err(Failed::Statement)?;
    }
    recent.forget(jobs.iter().filter_map(Job::changed));
    sqlx::query("COMMIT").execute(&mut *db).await.map_err(Failed::whole)?;
    jobs.iter().for_each(|job| job.settle(recent));
    Ok(())
}

/// Does either one operation or the writes of any number of workspaces.
async fn perform(db: &mut SqliteConnection, run: &mut [Job]) -> Result<(), Broken> {
    let mut writes = Vec::with_capacity(run.len());
    let mut places = Vec::with_capacity(run.len());
    for job in run {
        match job {
            Job::Workspace(job) => {
                let WorkspaceJob { write, verdict, answer: _ } = &mut **job;
                writes.push(write);
                places.push(verdict);
            }
            Job::Other(job) => job.run(db).await?,
        }
    }
    if writes.is_empty() {
        return Ok(());
    }
    let verdicts = write_all(db, &mut writes).await?;
    for (place, verdict) in places.into_iter().zip(verdicts) {
        *place = Some(verdict);
    }
    Ok(())
}
