//! The kernels guests boot with.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skerry_e2e::{Options, Server};

/// What the small kernel's release ends with.
const SMALL: &str = "-skerry";

/// What the only VM has written on its serial console.
fn console_log(server: &Server) -> Result<String> {
    let mut vms = std::fs::read_dir(server.data_dir().join("vms"))?;
    let vm = vms.next().context("no VM")??;
    Ok(std::fs::read_to_string(vm.path().join("console.log"))?)
}

#[tokio::test]
async fn guests_boot_with_the_kernel_that_was_chosen_and_doctor_and_log_name_it() -> Result<()> {
    let server = Server::start(Options::default()).await?;
    let body = json!({"name": "one", "memory_mib": 256});
    server.expect(201, "POST", "/skerry/v1/workspaces?wait=240", Some(body)).await?;
    let release = server.run("one", "uname -r").await?;
    let release = release.trim();
    ensure!(release.ends_with(SMALL) == (skerry_e2e::kernel() == "small"), "{release}");
    let doctor = server.expect(200, "GET", "/skerry/v1/doctor", None).await?;
    let checks = doctor["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|check| check["name"] == "boot files");
    let found = found.context("no boot files")?["found"].as_str().unwrap_or_default();
    ensure!(found == format!("{} kernel {release}", skerry_e2e::kernel()), "{found}");
    ensure!(server.log().contains(release), "{}", server.log());
    let console = console_log(&server)?;
    ensure!(console.contains("skerry-agent: ready"), "programs do not reach it: {console}");
    server.finish().await
}

#[tokio::test]
async fn containers_and_usual_programs_find_what_they_need_in_the_small_kernel() -> Result<()> {
    if skerry_e2e::kernel() != "small" {
        println!("NOT TESTED: only with SKERRY_TEST_KERNEL=small");
        return Ok(());
    }
    let server = Server::start(Options::default()).await?;
    let body = json!({"name": "one", "memory_mib": 512, "vcpu_count": 2});
    server.expect(201, "POST", "/skerry/v1/workspaces?wait=240", Some(body)).await?;
    let body = json!({
        "argv": ["python3", "-c", include_str!("guest_kernel.py")],
        "timeout_seconds": 240,
    });
    let answer = server.expect(200, "POST", "/skerry/v1/workspaces/one/exec", Some(body)).await?;
    let lines: Vec<&str> = answer["stdout"].as_str().unwrap_or_default().lines().collect();
    let failed: Vec<_> = lines.iter().filter(|line| !line.starts_with("ok ")).collect();
    ensure!(answer["exit_code"] == 0 && failed.is_empty(), "{failed:#?}\n{answer}");
    ensure!(lines.len() > 25, "{lines:?}");
    server.finish().await
}
