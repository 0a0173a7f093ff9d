//! Streams of workloads' output and use, as server-sent events. They end with the workspace's run.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use skerry_control::{Caller, Error, WorkloadView, WorkspaceRef, internal_api::LogPart};
use skerry_model::{Timestamp, WorkloadId, WorkloadRef};

use super::{
    Oblien,
    error_body::Problem,
    workloads::{Login, One, average_cpu_percent, log_frame, percent, stats, workload_ref},
};
use crate::{ApiState, auth::Authenticated, extract::PathOf, ids};

/// How long the guest is asked to wait for more output at a time.
const MORE_WITHIN: Duration = Duration::from_secs(20);
/// The documented heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Between two records of use.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// Records as events, until they end or the server does.
pub(super) fn events(
    state: ApiState,
    records: impl Stream<Item = Value> + Send + 'static,
) -> Response {
    let until = async move { state.shutdown_begun().await };
    let events = records
        .take_until(until)
        .map(|record| Ok::<_, Infallible>(Event::default().data(record.to_string())));
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

/// Where a reader of a log is.
struct Reader {
    state: ApiState,
    caller: Caller,
    which: WorkspaceRef,
    workload: WorkloadRef,
    position: u64,
}

impl Reader {
    /// The next lines; `None` when there is nothing to be read any more.
    async fn more(mut self) -> Option<(Vec<Value>, Self)> {
        loop {
            let part = LogPart::After { position: self.position, wait: MORE_WITHIN };
            let asked =
                self.state.control.workload_log(&self.caller, &self.which, &self.workload, part);
            let log = asked.await.ok()?;
            self.position = log.position;
            if !log.lines.is_empty() {
                return Some((log.lines.iter().map(log_frame).collect(), self));
            }
        }
    }
}

/// What is said from now on.
pub(super) async fn logs(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workload = workload_ref(&workload);
    let end = LogPart::Tail { lines: 0 };
    let position = state.control.workload_log(&caller, &which, &workload, end).await?.position;
    let reader = Reader { state: state.clone(), caller, which, workload, position };
    let lines = stream::unfold(reader, Reader::more).flat_map(stream::iter);
    Ok(events(state, lines))
}

/// Samples of use.
struct Sampler {
    state: ApiState,
    caller: Caller,
    which: WorkspaceRef,
    /// `None`: all.
    workload: Option<WorkloadRef>,
    before: HashMap<WorkloadId, (Timestamp, u64)>,
    is_first: bool,
}

impl Sampler {
    async fn views(&self) -> Result<Vec<WorkloadView>, Error> {
        match &self.workload {
            None => self.state.control.workloads(&self.caller, &self.which).await,
            Some(workload) => {
                let one = self.state.control.workload(&self.caller, &self.which, workload);
                Ok(vec![one.await?])
            }
        }
    }

    async fn next(mut self) -> Option<(Value, Self)> {
        if !std::mem::take(&mut self.is_first) {
            tokio::time::sleep(SAMPLE_EVERY).await;
        }
        let views = self.views().await.ok()?;
        let now = self.state.control.now();
        let mut records: Vec<Value> =
            views.iter().map(|view| stats(view, self.cpu_percent(view, now), now)).collect();
        let record = match self.workload {
            Some(_) => records.pop()?,
            None => {
                let numbered = records.into_iter().enumerate();
                let mut all: serde_json::Map<String, Value> =
                    numbered.map(|(index, record)| (index.to_string(), record)).collect();
                all.insert("type".to_owned(), json!("stats"));
                Value::Object(all)
            }
        };
        Some((record, self))
    }

    /// Of one CPU: since the sample before, or on average if there was none.
    fn cpu_percent(&mut self, view: &WorkloadView, now: Timestamp) -> f64 {
        let used = view.report.as_ref().map_or(0, |report| report.cpu_used_ms);
        match self.before.insert(view.workload.id, (now, used)) {
            Some((at, before)) if used >= before && now > at => {
                percent(used - before, now.duration_since(at).as_millis())
            }
            Some(_) | None => average_cpu_percent(view, now),
        }
    }
}

fn sampled(sampler: Sampler, first: Option<Value>) -> Response {
    let state = sampler.state.clone();
    events(state, stream::iter(first).chain(stream::unfold(sampler, Sampler::next)))
}

pub(super) async fn stats_of_one(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: (reference, workload), .. }: One,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    let workload = workload_ref(&workload);
    state.control.workload(&caller, &which, &workload).await?;
    let sampler = Sampler {
        state,
        caller,
        which,
        workload: Some(workload),
        before: HashMap::new(),
        is_first: true,
    };
    Ok(sampled(sampler, None))
}

pub(super) async fn stats_of_all(
    State(state): State<ApiState>,
    Authenticated { caller, .. }: Login,
    PathOf { value: reference, .. }: PathOf<String, Oblien>,
) -> Result<Response, Problem> {
    let which = ids::parse_workspace_ref(&reference);
    state.control.get_workspace(&caller, &which).await?;
    let sampler =
        Sampler { state, caller, which, workload: None, before: HashMap::new(), is_first: true };
    Ok(sampled(sampler, Some(json!({ "type": "subscribed" }))))
}
