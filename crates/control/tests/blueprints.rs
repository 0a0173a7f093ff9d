//! Services, setup scripts and templates: kept by accounts, copied into workspaces.
#![allow(clippy::unwrap_used, reason = "tests")]

mod ground;

use std::time::Duration;

use ground::{by_id, provisioned};
use skerry_control::{
    Caller, CreateWorkspace, Error, ListWorkspaces, UpdateWorkspace, WorkspaceRef,
    internal_api::{LogPart, WorkloadPhase},
    testing::{self, TestControl},
};
use skerry_model::{
    Blueprint, BlueprintBody, BlueprintId, BlueprintKind, EnvVar, ErrorKind, Floor, RestartMode,
    ServiceSpec, SetupRuns, SetupScript, Template, WorkloadDesired, WorkloadKind, WorkloadOrigin,
    WorkloadRef, Workspace,
};

const BOUND: Duration = Duration::from_secs(60);

fn service(command_line: &str) -> ServiceSpec {
    ServiceSpec {
        command_line: command_line.to_owned(),
        env: vec![EnvVar { key: "PORT".to_owned(), value: "80".to_owned() }],
        restart: RestartMode::Always,
        starts_by_itself: true,
        environment_file: None,
        setup: None,
        user: Some("developer".to_owned()),
        working_dir: Some("/home/developer".to_owned()),
    }
}

fn script(text: &str, runs: SetupRuns) -> SetupScript {
    SetupScript {
        script: text.to_owned(),
        runs,
        order: 0,
        user: Some("developer".to_owned()),
        working_dir: None,
    }
}

struct Ground {
    test: TestControl,
    caller: Caller,
}

impl Ground {
    async fn open() -> Self {
        let test = testing::open().await;
        let caller = test.caller().await;
        Self { test, caller }
    }

    async fn keep(&self, name: &str, body: BlueprintBody) -> BlueprintId {
        self.test.control.create_blueprint(&self.caller, name, body).await.unwrap().id
    }

    async fn keep_service(&self, name: &str, service: ServiceSpec) -> BlueprintId {
        self.keep(name, BlueprintBody::Service(service)).await
    }

    async fn keep_script(&self, name: &str, text: &str) -> BlueprintId {
        self.keep(name, BlueprintBody::Setup(script(text, SetupRuns::Once))).await
    }

    async fn make(&self, request: CreateWorkspace) -> Result<Workspace, Error> {
        self.test.control.create_workspace(&self.caller, request).await
    }

    /// The workload of this name once the guest says that it is so far.
    async fn reached(&self, which: &WorkspaceRef, name: &str, phase: WorkloadPhase) -> u64 {
        let workload = WorkloadRef::Name(name.to_owned());
        let reached = async {
            loop {
                let view =
                    self.test.control.workload(&self.caller, which, &workload).await.unwrap();
                match view.report {
                    Some(report) if report.phase == phase => return report.starts,
                    Some(_) | None => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(BOUND, reached).await.expect("reached in time")
    }
}

fn field(outcome: Result<Workspace, Error>) -> &'static str {
    match outcome.unwrap_err().kind() {
        ErrorKind::Invalid(invalid) => invalid.field,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_workspace_runs_its_scripts_in_their_order_and_then_its_services() {
    let ground = Ground::open().await;
    let first = ground.keep_script("Second by name", "echo one").await;
    let second = ground.keep_script("First by name", "exit 3").await;
    let boot = SetupRuns::AtBoot;
    let each = ground.keep("each", BlueprintBody::Setup(script("echo boot", boot))).await;
    let setup = Some("echo before".to_owned());
    let web = ground.keep_service("web", ServiceSpec { setup, ..service("serve 'a b'") }).await;
    let idle = ServiceSpec { starts_by_itself: false, ..service("serve idle") };
    let idle = ground.keep_service("idle", idle).await;
    let request = CreateWorkspace {
        setup: vec![first, second, each],
        services: vec![web, idle],
        ..provisioned()
    };
    let made = ground.make(request).await.unwrap();
    let told: Vec<_> = made
        .spec
        .workloads
        .items
        .iter()
        .map(|one| (one.name.as_str(), one.kind, one.desired))
        .collect();
    let runs = WorkloadDesired::Running;
    assert_eq!(
        told,
        [
            ("setup.1.Second-by-name", WorkloadKind::SetupOnce, runs),
            ("setup.2.First-by-name", WorkloadKind::SetupOnce, runs),
            ("setup.3.each", WorkloadKind::SetupAtBoot, runs),
            ("service-setup.web", WorkloadKind::SetupOnce, runs),
            ("service.web", WorkloadKind::Service, runs),
            ("service.idle", WorkloadKind::Service, WorkloadDesired::Stopped),
        ]
    );
    let served = &made.spec.workloads.items[4];
    assert_eq!(served.argv, ["serve", "a b"]);
    assert_eq!(served.env[0].value, "80");
    assert_eq!(served.restart.mode, RestartMode::Always);
    assert_eq!(served.origin, WorkloadOrigin::Service { blueprint_id: web });
    assert_eq!(served.user.as_deref(), Some("developer"));

    let which = by_id(&made);
    let control = &ground.test.control;
    for boots in 1..=2_u64 {
        control.start_workspace(&ground.caller, &which, ground::LONG).await.unwrap();
        ground.reached(&which, "service.web", WorkloadPhase::Running).await;
        // Those that ran once are not run by the second boot.
        let once = ground.reached(&which, "setup.2.First-by-name", WorkloadPhase::Ended).await;
        assert_eq!(once, u64::from(boots == 1));
        assert_eq!(ground.reached(&which, "setup.3.each", WorkloadPhase::Ended).await, 1);
        ground.reached(&which, "service.idle", WorkloadPhase::Stopped).await;
        control.stop_workspace(&ground.caller, &which, ground::LONG).await.unwrap();
    }
    control.start_workspace(&ground.caller, &which, ground::LONG).await.unwrap();
    let name = WorkloadRef::Name("setup.1.Second-by-name".to_owned());
    ground.reached(&which, "setup.1.Second-by-name", WorkloadPhase::Ended).await;
    let log = control.workload_log(&ground.caller, &which, &name, LogPart::Tail { lines: 9 });
    let said: Vec<_> = log.await.unwrap().lines.into_iter().map(|line| line.text).collect();
    assert_eq!(said, ["one"]);
}

#[tokio::test]
async fn a_workspace_keeps_what_it_was_made_with() {
    let ground = Ground::open().await;
    let web = ground.keep_service("web", service("serve first")).await;
    let request = CreateWorkspace { services: vec![web], ..provisioned() };
    let made = ground.make(request.clone()).await.unwrap();
    let control = &ground.test.control;
    let kind = BlueprintKind::Service;
    let change = |name: &mut String, body: &mut BlueprintBody| {
        "api".clone_into(name);
        *body = BlueprintBody::Service(service("serve second"));
        Ok(())
    };
    let changed = control.update_blueprint(&ground.caller, kind, web, change).await.unwrap();
    assert_eq!((changed.name.as_str(), changed.revision), ("api", 2));
    let later = ground.make(request.clone()).await.unwrap();
    assert_eq!(later.spec.workloads.items[0].argv, ["serve", "second"]);
    control.delete_blueprint(&ground.caller, kind, web).await.unwrap();
    let now = control.get_workspace(&ground.caller, &by_id(&made)).await.unwrap();
    assert_eq!(now.spec.workloads, made.spec.workloads);
    assert_eq!(now.spec.workloads.items[0].argv, ["serve", "first"]);
    assert_eq!(field(ground.make(request).await), "service_specs");
}

#[tokio::test]
async fn what_is_not_the_accounts_is_not_there_and_nothing_is_made() {
    let ground = Ground::open().await;
    let web = ground.keep_service("web", service("serve")).await;
    let tools = ground.keep_script("tools", "true").await;
    let (other, _) = ground.test.other_caller("other").await;
    let control = &ground.test.control;
    let found = control.blueprint(&other, BlueprintKind::Service, web).await.unwrap_err();
    assert_eq!(found.kind(), &ErrorKind::NotFound { what: "service spec" });
    let deleted = control.delete_blueprint(&other, BlueprintKind::Setup, tools).await.unwrap_err();
    assert_eq!(deleted.kind(), &ErrorKind::NotFound { what: "setup script" });
    let with = |setup, services| CreateWorkspace { setup, services, ..provisioned() };
    let theirs = control.create_workspace(&other, with(vec![tools], vec![]));
    assert_eq!(field(theirs.await), "setup_scripts");
    // A service is no script, and nothing runs twice.
    assert_eq!(field(ground.make(with(vec![web], vec![])).await), "setup_scripts");
    assert_eq!(field(ground.make(with(vec![], vec![tools])).await), "service_specs");
    assert_eq!(field(ground.make(with(vec![tools, tools], vec![])).await), "setup_scripts");
    for caller in [&ground.caller, &other] {
        let all = control.list_workspaces(caller, &ListWorkspaces::default()).await.unwrap();
        assert_eq!(all.total, 0);
    }
}

#[tokio::test]
async fn a_name_is_taken_once_for_each_kind() {
    let ground = Ground::open().await;
    ground.keep_service("web", service("serve")).await;
    let script = ground.keep_script("web", "true").await;
    ground.keep_script("other", "true").await;
    let control = &ground.test.control;
    let again = BlueprintBody::Service(service("serve"));
    let again = control.create_blueprint(&ground.caller, "web", again).await.unwrap_err();
    assert!(matches!(again.kind(), ErrorKind::Conflict(_)), "{again}");
    let rename = |name: &mut String, _: &mut BlueprintBody| {
        "other".clone_into(name);
        Ok(())
    };
    let kind = BlueprintKind::Setup;
    let taken = control.update_blueprint(&ground.caller, kind, script, rename).await.unwrap_err();
    assert!(matches!(taken.kind(), ErrorKind::Conflict(_)), "{taken}");
}

#[tokio::test]
async fn a_template_brings_its_image_sizes_and_blueprints() {
    let ground = Ground::open().await;
    let own = ground.keep_script("own", "true").await;
    let tools = ground.keep_script("tools", "true").await;
    let web = ground.keep_service("web", service("serve")).await;
    let template = Template {
        image: "node-20".to_owned(),
        least: Floor { vcpu_count: 2, memory_mib: 2048, disk_mib: 4096 },
        setup: vec![tools],
        services: vec![web],
        ..Template::default()
    };
    let id = ground.keep("mine", BlueprintBody::Template(template)).await;
    let template = Some(id.to_string());
    let request = CreateWorkspace { template: template.clone(), ..provisioned() };
    let made = ground.make(request.clone()).await.unwrap();
    let shape = made.spec.shape;
    assert_eq!(made.spec.image.0, "node-20");
    assert_eq!((shape.vcpu_count.get(), shape.memory_mib.get()), (2, 2048));
    assert_eq!(shape.disk_mib.get(), 4096);
    assert_eq!(made.spec.made_from.template, template);
    // What is asked for below is raised, and what is above stays.
    let asked = CreateWorkspace {
        memory_mib: Some(1),
        vcpu_count: Some(3),
        setup: vec![own, tools],
        ..request.clone()
    };
    let made = ground.make(asked).await.unwrap();
    let shape = made.spec.shape;
    assert_eq!((shape.vcpu_count.get(), shape.memory_mib.get()), (3, 2048));
    let names: Vec<_> = made.spec.workloads.items.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["setup.1.tools", "setup.2.own", "service.web"]);
    // Nor does a change go below.
    let less = UpdateWorkspace { memory_mib: Some(256), ..UpdateWorkspace::default() };
    let control = &ground.test.control;
    let changed = control.update_workspace(&ground.caller, &by_id(&made), less).await.unwrap();
    assert_eq!(changed.spec.shape, made.spec.shape);

    let other_image = CreateWorkspace { image: Some("base".to_owned()), ..request.clone() };
    assert_eq!(field(ground.make(other_image).await), "image");
    control.delete_blueprint(&ground.caller, BlueprintKind::Setup, tools).await.unwrap();
    assert_eq!(field(ground.make(request).await), "template");
    let none = CreateWorkspace { template: Some("none".to_owned()), ..provisioned() };
    assert_eq!(field(ground.make(none).await), "template");
}

#[tokio::test]
async fn each_image_is_a_template() {
    let ground = Ground::open().await;
    let control = &ground.test.control;
    let all = control.templates(&ground.caller).await.unwrap();
    assert!(all.iter().any(|one| one.id == "base" && one.times.is_none()), "{all:?}");
    let request = CreateWorkspace { template: Some("base".to_owned()), ..provisioned() };
    let made = ground.make(request).await.unwrap();
    assert_eq!((made.spec.shape.memory_mib.get(), made.spec.shape.disk_mib.get()), (512, 3072));
}

#[tokio::test]
async fn a_template_of_what_is_not_there_is_refused() {
    let ground = Ground::open().await;
    let template = Template {
        image: "base".to_owned(),
        least: Floor { vcpu_count: 1, memory_mib: 512, disk_mib: 1024 },
        ..Template::default()
    };
    let nobodys = vec![BlueprintId::from_u128(7)];
    let refused = async |template: Template| {
        let body = BlueprintBody::Template(template);
        let made: Result<Blueprint, Error> =
            ground.test.control.create_blueprint(&ground.caller, "mine", body).await;
        match made.unwrap_err().kind() {
            ErrorKind::Invalid(invalid) => invalid.field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refused(Template { setup: nobodys.clone(), ..template.clone() }).await,
        "setup_scripts"
    );
    assert_eq!(refused(Template { services: nobodys, ..template.clone() }).await, "service_specs");
    let least = Floor { vcpu_count: 10_000, ..template.least };
    assert_eq!(refused(Template { least, ..template }).await, "vcpu_count");
}

#[tokio::test]
async fn what_blueprints_say_is_nowhere_in_the_database_to_be_read() {
    const WORD: &str = "a word that only its owner may read";
    let ground = Ground::open().await;
    let script = ground.keep_script("tools", &format!("echo '{WORD}'")).await;
    let env = vec![EnvVar { key: "KEY".to_owned(), value: WORD.to_owned() }];
    ground.keep_service("web", ServiceSpec { env, ..service("serve") }).await;
    let request = CreateWorkspace { setup: vec![script], ..provisioned() };
    ground.make(request).await.unwrap();
    let directory = ground.test.database.parent().unwrap();
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            bytes.extend(std::fs::read(path).unwrap());
        }
    }
    let holds = |word: &str| bytes.windows(word.len()).any(|found| found == word.as_bytes());
    assert!(holds("tools"), "the name of one is there");
    assert!(!holds(WORD));
}
