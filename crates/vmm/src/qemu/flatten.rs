//! Copying a chain's layers into its top, beside the guest: one job of QEMU for each disk.

use serde_json::{Value, json};

use super::{
    control::{self, ANSWER_DEADLINE},
    qmp::QmpClient,
};
use crate::VmmError;

/// How fast layers are copied together: a fraction of what a disk reads, so that guests notice little.
const BYTES_PER_SECOND: u64 = 64 << 20;
/// What the names of these jobs begin with.
const PREFIX: &str = "flatten-";

/// Begins the job of this name, or finds it under way, and waits for its end; the caller sets the
/// bound. `chain` asks for the disk's nodes from the top down to `base`.
pub(super) async fn run<F>(
    qmp: &QmpClient,
    id: &str,
    base: &str,
    chain: impl Fn() -> F,
) -> Result<(), VmmError>
where
    F: Future<Output = Result<Vec<String>, VmmError>>,
{
    debug_assert!(id.starts_with(PREFIX), "{id}");
    let before = chain().await?;
    let top = before.first().ok_or_else(|| refused("it has no disk"))?;
    if job(qmp, id).await?.is_none() && before.len() > 2 {
        let stream = json!({
            "job-id": id, "device": top, "base-node": base,
            "speed": BYTES_PER_SECOND, "auto-dismiss": false,
        });
        control::run(qmp, "block-stream", stream).await?;
    }
    let ended = control::wait_until(qmp, || async {
        Ok(match job(qmp, id).await? {
            Some(Job::Running) => None,
            // Somebody else has dismissed it.
            None => Some(None),
            Some(Job::Concluded(error)) => Some(error),
        })
    });
    let error = ended.await?;
    dismiss(qmp, id).await;
    if let Some(reason) = error {
        return Err(VmmError::Refused { command: "block-stream", reason });
    }
    if chain().await?.len() > 2 {
        return Err(refused("it was broken off"));
    }
    Ok(())
}

fn refused(reason: &str) -> VmmError {
    VmmError::Refused { command: "block-stream", reason: reason.to_owned() }
}

/// Ends the job of this name, if it is under way; what it has copied stays.
pub(super) async fn stop(qmp: &QmpClient, id: &str) -> Result<(), VmmError> {
    match job(qmp, id).await? {
        None => return Ok(()),
        Some(Job::Concluded(_)) => {}
        Some(Job::Running) => {
            // It may have ended in between.
            let _ = control::run(qmp, "job-cancel", json!({ "id": id })).await;
            let ended = control::wait_until(qmp, || async {
                Ok(match job(qmp, id).await? {
                    Some(Job::Running) => None,
                    Some(Job::Concluded(_)) | None => Some(()),
                })
            });
            tokio::time::timeout(ANSWER_DEADLINE, ended)
                .await
                .map_err(|_| VmmError::Timeout("job-cancel"))??;
        }
    }
    dismiss(qmp, id).await;
    Ok(())
}

/// Ends every such job of the VM.
pub(super) async fn stop_all(qmp: &QmpClient) -> Result<(), VmmError> {
    for id in jobs_in(&qmp.execute("query-jobs", None, ANSWER_DEADLINE).await?) {
        stop(qmp, &id).await?;
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Job {
    Running,
    /// With the error, if it failed or was cancelled.
    Concluded(Option<String>),
}

async fn job(qmp: &QmpClient, id: &str) -> Result<Option<Job>, VmmError> {
    Ok(job_in(&qmp.execute("query-jobs", None, ANSWER_DEADLINE).await?, id))
}

fn job_in(query_jobs: &Value, id: &str) -> Option<Job> {
    let job = query_jobs.as_array()?.iter().find(|job| job["id"] == id)?;
    Some(match job["status"].as_str() {
        Some("concluded") => Job::Concluded(job["error"].as_str().map(str::to_owned)),
        Some(_) | None => Job::Running,
    })
}

fn jobs_in(query_jobs: &Value) -> Vec<String> {
    let ids = query_jobs.as_array().into_iter().flatten().filter_map(|job| job["id"].as_str());
    ids.filter(|id| id.starts_with(PREFIX)).map(str::to_owned).collect()
}

async fn dismiss(qmp: &QmpClient, id: &str) {
    let _ = control::run(qmp, "job-dismiss", json!({ "id": id })).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_over_when_it_says_so() {
        let id = "flatten-root";
        let job = |status: &str| job_in(&json!([{ "id": id, "status": status }]), id);
        assert_eq!(job("running"), Some(Job::Running));
        assert_eq!(job("pending"), Some(Job::Running));
        assert_eq!(job("concluded"), Some(Job::Concluded(None)));
        assert_eq!(job_in(&json!([{ "id": "other", "status": "running" }]), id), None);
    }

    #[test]
    fn jobs_of_others_are_left_alone() {
        let jobs = json!([{ "id": "flatten-root" }, { "id": "save" }, { "id": "flatten-v1" }]);
        assert_eq!(jobs_in(&jobs), ["flatten-root", "flatten-v1"]);
    }
}
