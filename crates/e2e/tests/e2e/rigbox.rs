//! Rigbox's setup scripts, service specs, templates and apps, observed inside a real VM.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{Options, Server};

const API: &str = "/api/v1";

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("not a string: {value}"))
}

async fn make(server: &Server, path: &str, body: Value) -> Result<String> {
    let made = server.expect(201, "POST", &format!("{API}{path}"), Some(body)).await?;
    text(made.get("id").unwrap_or(&made["vm"]["id"]))
}

async fn power(server: &Server, item: &str, verb: &str, status: &str) -> Result<()> {
    server.expect(200, "POST", &format!("{item}/{verb}"), None).await?;
    server.until(item, |answer| answer["vm"]["status"] == status).await.map(drop)
}

/// The process that the service `web` is, once it serves.
async fn served(server: &Server, id: &str, item: &str) -> Result<String> {
    let web = format!("{item}/services/web");
    server.until(&web, |service| service["status"] == "healthy").await?;
    let ask = "until curl -fso /dev/null http://127.0.0.1:8000/; do sleep 0.2; done; \
               pgrep -u developer -f 'http.server 8000'";
    server.run(id, ask).await
}

#[tokio::test]
async fn setup_scripts_run_in_order_and_a_service_stays_up_whatever_is_killed() -> Result<()> {
    let mut server = Server::start(Options::default()).await?;
    let note = |what: &str| format!("echo \"{what} $(id -un) $PWD\" >> ~/order");
    let first = format!("{}; echo said; echo complained >&2; exit 3", note("first"));
    let first = json!({ "name": "Z first", "content": first });
    let first = make(&server, "/setup-scripts", first).await?;
    let second =
        json!({ "name": "A second", "content": "sudo sh -c 'id -un >> ~developer/order'" });
    let second = make(&server, "/setup-scripts", second).await?;
    let each = json!({ "name": "each", "content": note("boot"), "run_on": "every_start" });
    let each = make(&server, "/setup-scripts", each).await?;
    let web = json!({
        "name": "web", "exec_start": "python3 -m http.server 8000", "auto_enable": true,
        "restart_policy": "always", "env_vars": { "GREETING": "hello, world" },
        "environment_file": "/home/developer/web.env",
        "setup_script": "echo 'FROM_FILE=\"it too\"' > web.env",
    });
    let web = make(&server, "/service-specs", web).await?;
    let template = json!({
        "name": "prepared", "image": "base", "ram_mb": 640, "disk_size_mb": 2048,
        "setup_script_ids": [first],
    });
    let template = make(&server, "/templates", template).await?;
    let body = json!({
        "name": "my-project", "template_id": template, "ram_mb": 1, "vcpu_count": 0,
        "setup_script_ids": [second, each], "service_spec_ids": [web],
    });
    let made = server.expect(201, "POST", &format!("{API}/workspaces"), Some(body)).await?;
    let vm = &made["vm"];
    ensure!(vm["ram_mb"] == 640 && vm["vcpu_count"] == 1 && vm["disk_size_mb"] == 2048, "{made}");
    ensure!(vm["setup_script_ids"] == json!([first, second, each]), "{made}");
    let id = text(&vm["id"])?;
    let item = format!("{API}/workspaces/{id}");

    // What it was made with is its own.
    server.expect(200, "DELETE", &format!("{API}/service-specs/{web}"), None).await?;
    server.expect(200, "DELETE", &format!("{API}/templates/{template}"), None).await?;
    power(&server, &item, "start", "running").await?;
    let process = served(&server, &id, &item).await?;
    let order = "first developer /home/developer\nroot\nboot developer /home/developer\n";
    let found = server.run(&id, "cat /home/developer/order").await?;
    ensure!(found == order, "{found}");
    let memory = server.run(&id, "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo").await?;
    ensure!((480..=640).contains(&memory.trim().parse::<u32>()?), "{memory} MiB");
    let environment = format!("tr '\\0' '\\n' < /proc/{}/environ", process.trim());
    let environment = server.run(&id, &environment).await?;
    for variable in ["GREETING=hello, world\n", "FROM_FILE=it too\n"] {
        ensure!(environment.contains(variable), "{environment}");
    }
    let jobs = server.expect(200, "GET", &format!("{item}/jobs"), None).await?;
    let job = text(&jobs["jobs"][0]["job_id"])?;
    let job = server.expect(200, "GET", &format!("{item}/jobs/{job}"), None).await?;
    ensure!(job["status"] == "failed" && job["exit_code"] == 3, "{job}");
    ensure!(job["stdout"] == "said\n" && job["stderr"] == "complained\n", "{job}");

    // The service is killed, and is up again.
    let kill = format!("kill -9 {0}; while [ -e /proc/{0} ]; do sleep 0.1; done", process.trim());
    server.run(&id, &kill).await?;
    let again = served(&server, &id, &item).await?;
    ensure!(again != process, "another process: {again}");

    // The server is killed, and the service is not.
    server.kill_9().await?;
    server.spawn().await?;
    ensure!(served(&server, &id, &item).await? == again, "the same process");

    // After another boot only what runs at every one has run again.
    power(&server, &item, "stop", "stopped").await?;
    power(&server, &item, "start", "running").await?;
    served(&server, &id, &item).await?;
    let found = server.run(&id, "cat /home/developer/order").await?;
    ensure!(found == format!("{order}boot developer /home/developer\n"), "{found}");
    server.finish().await
}

/// Apps of a server's own: a program, and an installation that takes its time.
const APPS: &str = r#"
[[apps]]
id = "greeter"
name = "Greeter"
install = "printf '#!/bin/sh\\necho hello, %s\\n' \"$PARAM_WHOM\" > /usr/local/bin/greet; chmod 755 /usr/local/bin/greet"

[[apps.params]]
key = "whom"
label = "Whom to greet"
required = true

[[apps]]
id = "slow"
name = "Slow"
install = "echo begun; touch /root/begun; exec sleep 100000"
"#;

#[tokio::test]
async fn apps_are_installed_as_jobs_at_create_and_later() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("skerry.toml");
    std::fs::write(&config, APPS)?;
    let path = config.to_str().context("a path that is text")?;
    let arguments = ["--config", path].map(str::to_owned).into();
    let server = Server::start(Options { arguments, ..Options::default() }).await?;
    let catalogue = server.expect(200, "GET", &format!("{API}/app-catalog"), None).await?;
    let ids: Vec<_> = catalogue["items"].as_array().context("items")?.iter().collect();
    ensure!(ids.iter().map(|item| &item["id"]).eq(["greeter", "slow", "static-files"]), "{ids:?}");

    let body = json!({
        "template_id": "base", "name": "deployed", "catalog_ids": ["static-files"],
        "app_params": { "static-files": { "directory": "/etc" } },
    });
    let made = server.expect(200, "POST", &format!("{API}/quick-deploy"), Some(body)).await?;
    ensure!(made["installed_apps"] == json!(["static-files"]), "{made}");
    let id = text(&made["workspace"]["id"])?;
    let item = format!("{API}/workspaces/{id}");
    let apps = format!("{API}/apps?workspace_id={id}");
    let listed = server.until(&apps, |list| list["apps"][0]["status"] == "active").await?;
    let app = &listed["apps"][0];
    ensure!(app["subdomain"] == "deployed-static-files" && app["port"] == 8080, "{app}");
    let ask = "until curl -fs http://127.0.0.1:8080/hostname; do sleep 0.2; done";
    let found = server.run(&id, ask).await?;
    ensure!(!found.is_empty(), "the file is served");
    let jobs = server.expect(200, "GET", &format!("{item}/jobs"), None).await?;
    let job = text(&jobs["jobs"][0]["job_id"])?;
    let job = server.expect(200, "GET", &format!("{item}/jobs/{job}"), None).await?;
    ensure!(job["status"] == "done" && job["stdout"] == "installed for /etc\n", "{job}");

    // A program, in a workspace that runs.
    let install = format!("{item}/install-app");
    let body = json!({ "catalog_id": "greeter", "params": { "whom": "world" } });
    let installed = server.expect(200, "POST", &install, Some(body.clone())).await?;
    ensure!(installed["live_installed"] == true && installed["app"]["port"] == 0, "{installed}");
    let job = format!("{item}/jobs/{}", text(&installed["job_id"])?);
    server.until(&job, |job| job["status"] == "done").await?;
    ensure!(server.run(&id, "greet").await? == "hello, world\n", "greeted");
    server.expect(409, "POST", &install, Some(body)).await?;

    // One that is cancelled on its way.
    let body = json!({ "catalog_id": "slow" });
    let installed = server.expect(200, "POST", &install, Some(body)).await?;
    let job = format!("{item}/jobs/{}", text(&installed["job_id"])?);
    server.run(&id, "until [ -e /root/begun ]; do sleep 0.2; done").await?;
    let running = server.expect(200, "GET", &job, None).await?;
    ensure!(running["status"] == "running", "{running}");
    server.expect(200, "POST", &format!("{job}/cancel"), None).await?;
    server.run(&id, "while pgrep -f 'sleep 10000[0]' > /dev/null; do sleep 0.2; done").await?;
    let cancelled = server.expect(200, "GET", &job, None).await?;
    ensure!(cancelled["status"] == "cancelled", "{cancelled}");
    server.finish().await
}
