//! Keys, images, limits, the host.

use std::process::ExitCode;

use http::Method;
use serde_json::json;

use crate::{
    args::KeyCommand,
    client::{Client, read},
    error::Error,
    output::{self, Output, fields, table},
    wire,
};

pub(crate) async fn key(client: &Client, command: KeyCommand, output: Output) -> Result<(), Error> {
    match command {
        KeyCommand::Create { name } => {
            let body = json!({ "name": name });
            let answer = client.call(Method::POST, &["keys"], &[], Some(&body), 0).await?;
            output.answer(&answer, || {
                let made: wire::CreatedKey = read(&answer)?;
                Ok(fields(&[
                    ("name", made.key.name),
                    ("id", made.key.id),
                    ("secret", made.secret),
                    ("", "the secret is not shown again".to_owned()),
                ]))
            })
        }
        KeyCommand::Ls => {
            let answer = client.get(&["keys"], &[]).await?;
            output.answer(&answer, || Ok(keys(&read(&answer)?)))
        }
        KeyCommand::Rm { id } => {
            client.call(Method::DELETE, &["keys", &id], &[], None, 0).await?;
            output.answer(&json!({ "deleted": id }), || Ok(format!("{id}\n")))
        }
    }
}

fn keys(list: &wire::KeyList) -> String {
    let rows: Vec<_> = list
        .keys
        .iter()
        .map(|key| {
            [
                key.name.clone(),
                key.id.clone(),
                format!("…{}", key.secret_tail),
                output::time(&key.created_at),
                key.last_used_at.as_deref().map_or_else(|| "never".to_owned(), output::time),
            ]
        })
        .collect();
    table(["NAME", "ID", "SECRET", "CREATED", "LAST USED"], &rows)
}

pub(crate) async fn images(client: &Client, output: Output) -> Result<(), Error> {
    let answer = client.get(&["images"], &[]).await?;
    output.answer(&answer, || {
        let list: wire::ImageList = read(&answer)?;
        let rows: Vec<_> = list
            .images
            .iter()
            .map(|image| {
                [
                    image.name.clone(),
                    image.digest.trim_start_matches("sha256:").chars().take(12).collect(),
                    output::bytes(image.size_bytes),
                    output::time(&image.built_at),
                    image.description.clone(),
                ]
            })
            .collect();
        Ok(table(["NAME", "DIGEST", "SIZE", "BUILT", "DESCRIPTION"], &rows))
    })
}

pub(crate) async fn quota(client: &Client, output: Output) -> Result<(), Error> {
    let answer = client.get(&["quota"], &[]).await?;
    output.answer(&answer, || Ok(limits(&read(&answer)?)))
}

fn limits(quota: &wire::Quota) -> String {
    let count = |used: wire::Used| format!("{} of {}", used.used, used.max);
    let size = |used: wire::Used| {
        format!("{} of {}", output::mebibytes(used.used), output::mebibytes(used.max))
    };
    let row = |label: &str, pool: &wire::Pool| {
        [label.to_owned(), count(pool.vcpu_count), size(pool.memory_mib), size(pool.disk_mib)]
    };
    let mut text = fields(&[("plan", quota.plan.clone()), ("workspaces", count(quota.workspaces))]);
    text.push('\n');
    text.push_str(&table(
        ["", "VCPU", "MEMORY", "DISK"],
        &[row("all", &quota.owned), row("running", &quota.running)],
    ));
    text
}

pub(crate) async fn doctor(client: &Client, output: Output) -> Result<ExitCode, Error> {
    let mut answer = client.get(&["doctor"], &[]).await?;
    let doctor: wire::Doctor = read(&answer)?;
    answer["starts"] = client.get(&["starts"], &[]).await?;
    output.answer(&answer, || Ok(findings(&doctor, &read(&answer["starts"])?)))?;
    let missing = doctor.checks.iter().any(|check| check.level == "missing");
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn findings(doctor: &wire::Doctor, starts: &wire::Starts) -> String {
    let wire::Starts { pool_hits, template_restores, memory_restores, boots, .. } = starts;
    let mut text = fields(&[
        ("accelerator", doctor.accelerator.clone()),
        (
            "starts",
            format!(
                "{pool_hits} pool, {template_restores} template, {memory_restores} saved memory, \
                 {boots} boot ({} after a failed restore)",
                starts.restore_fallbacks
            ),
        ),
        (
            "ready",
            format!(
                "{} templates; pool: {} warm, {} parked",
                starts.templates, starts.pool_warm, starts.pool_parked
            ),
        ),
    ]);
    text.push('\n');
    let rows: Vec<_> = doctor
        .checks
        .iter()
        .map(|check| [check.level.clone(), check.name.clone(), check.found.clone()])
        .collect();
    text.push_str(&table(["", "CHECK", "FOUND"], &rows));
    for check in &doctor.checks {
        if let Some(remedy) = &check.remedy {
            text.push_str(&output::printable(&format!("\n{}: {remedy}\n", check.name)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_as_used_of_allowed() {
        let used = |used, max| json!({ "used": used, "max": max });
        let pool = |vcpu: u64, memory: u64, disk: u64| {
            json!({
                "vcpu_count": used(vcpu, 32),
                "memory_mib": used(memory, 65_536),
                "disk_mib": used(disk, 204_800),
            })
        };
        let quota = read(&json!({
            "plan": "self-hosted",
            "workspaces": used(3, 100),
            "owned": pool(6, 3072, 10_752),
            "running": pool(2, 1000, 1024),
        }))
        .expect("quota");
        insta::assert_snapshot!(limits(&quota));
    }

    #[test]
    fn what_the_doctor_found_is_a_table_with_remedies_below() {
        let doctor = read(&json!({
            "accelerator": "tcg",
            "checks": [
                { "name": "qemu", "level": "ok", "found": "7.2.0", "remedy": null },
                { "name": "kvm", "level": "degraded", "found": "no guest boots with it",
                  "remedy": "enable virtualisation" },
            ],
        }))
        .expect("doctor");
        let starts = read(&json!({
            "pool_hits": 12, "template_restores": 3, "memory_restores": 2, "boots": 4,
            "restore_fallbacks": 1, "templates": 2, "pool_warm": 5, "pool_parked": 1,
        }))
        .expect("starts");
        insta::assert_snapshot!(findings(&doctor, &starts));
    }

    #[test]
    fn a_remark_stands_below_the_value_it_is_about() {
        let text = fields(&[("secret", "sk_1".to_owned()), ("", "not shown again".to_owned())]);
        assert_eq!(text, "secret: sk_1\n        not shown again\n");
    }

    #[test]
    fn keys_are_shown_without_their_secrets() {
        let keys_of = |last_used: Option<&str>| {
            json!({
                "id": "6f1c1d0e-6c0e-4d2b-9d2f-0f6d5f2f8a11", "name": "ci", "secret_tail": "x7k2",
                "created_at": "2026-01-02T03:04:05.678Z", "last_used_at": last_used,
            })
        };
        let list = json!({ "keys": [keys_of(None), keys_of(Some("2026-01-03T00:00:00.000Z"))] });
        insta::assert_snapshot!(keys(&read(&list).expect("keys")));
    }
}
