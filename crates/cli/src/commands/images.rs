//! Pulling images.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, error_from_detail, read},
    error::Error,
    output::Output,
    progress::{spinner, transfer},
    wire,
};

/// Between two looks at how far the pull is.
const LOOK_EVERY: Duration = Duration::from_millis(300);

pub(crate) async fn pull(client: &Client, reference: &str, output: Output) -> Result<(), Error> {
    let body = json!({ "reference": reference });
    let mut answer = client.call(Method::POST, &["images"], &[], Some(&body), 0).await?;
    let mut shown: Option<(String, crate::progress::Progress)> = None;
    let mut counted = 0;
    loop {
        let pull: wire::ImagePull = read(&answer)?;
        if pull.state != "pulling" {
            drop(shown);
            return ended(&answer, pull, output);
        }
        if shown.as_ref().is_none_or(|(step, _)| *step != pull.step) {
            let message = format!("{}: {}", pull.reference, pull.step);
            let bar = match (pull.step.as_str(), pull.total_bytes) {
                ("downloading", total @ 1..) => transfer(output, message, Some(total)),
                (_step, _total) => spinner(output, message),
            };
            counted = 0;
            shown = Some((pull.step.clone(), bar));
        }
        if let Some((_, bar)) = &shown {
            bar.advance(pull.done_bytes.saturating_sub(counted));
            counted = pull.done_bytes.max(counted);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let list = client.get(&["image-pulls"], &[]).await?;
        let list: wire::ImagePullList = read(&list)?;
        let mine = |pull: &Value| {
            pull.get("reference").and_then(Value::as_str) == Some(pull_name(&answer))
        };
        let Some(found) = list.pulls.into_iter().find(mine) else {
            let problem = "the server forgot the pull; it was probably started anew";
            return Err(Error::BadAnswer(problem.to_owned()));
        };
        answer = found;
    }
}

fn pull_name(answer: &Value) -> &str {
    answer.get("reference").and_then(Value::as_str).unwrap_or_default()
}

fn ended(answer: &Value, pull: wire::ImagePull, output: Output) -> Result<(), Error> {
    match (pull.image, pull.error) {
        (Some(image), None) => {
            output.answer(answer, || Ok(format!("{}\t{}\n", image.name, image.digest)))
        }
        (_, Some(error)) => Err(error_from_detail(error)),
        (None, None) => Err(Error::BadAnswer("a pull that ended without an outcome".to_owned())),
    }
}
