#![allow(clippy::unwrap_used, reason = "tests")]

use crate::{
    AccountId, Blueprint, BlueprintBody, BlueprintId, EnvVar, Floor, Plan, Pool, RequestedShape,
    RestartMode, ServiceSpec, SetupRuns, SetupScript, Template, Timestamp, spec::CpuKind,
};

fn of(name: &str, body: BlueprintBody) -> Blueprint {
    Blueprint {
        id: BlueprintId::from_u128(1),
        account_id: AccountId::from_u128(2),
        name: name.to_owned(),
        body,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
        revision: 1,
    }
}

fn service(command_line: &str) -> ServiceSpec {
    ServiceSpec {
        command_line: command_line.to_owned(),
        env: Vec::new(),
        restart: RestartMode::OnFailure,
        starts_by_itself: true,
        environment_file: None,
        setup: None,
        user: None,
        working_dir: None,
    }
}

fn refused(blueprint: &Blueprint) -> &'static str {
    blueprint.check().map_or_else(|invalid| invalid.field, |()| "nothing")
}

#[test]
fn a_command_is_split_as_a_shell_splits_it_and_nothing_is_expanded() {
    let words = service(r#"python3 -m "http server" 'a b' $HOME ~ *"#).words().unwrap();
    assert_eq!(words, ["python3", "-m", "http server", "a b", "$HOME", "~", "*"]);
}

#[test]
fn a_command_is_one_line_with_a_program() {
    for line in ["", "  ", "a\nb", "a 'b", "'' x", "a\0"] {
        assert_eq!(refused(&of("web", BlueprintBody::Service(service(line)))), "command", "{line}");
    }
}

#[test]
fn a_wrong_part_of_a_service_is_named() {
    let with = |change: fn(&mut ServiceSpec)| {
        let mut one = service("serve");
        change(&mut one);
        refused(&of("web", BlueprintBody::Service(one)))
    };
    assert_eq!(with(|_| {}), "nothing");
    assert_eq!(with(|one| one.environment_file = Some("-/etc/app.env".to_owned())), "nothing");
    assert_eq!(with(|one| one.environment_file = Some("app.env".to_owned())), "environment_file");
    assert_eq!(with(|one| one.setup = Some(" ".to_owned())), "setup");
    let bad = EnvVar { key: "1".to_owned(), value: String::new() };
    let mut one = service("serve");
    one.env = vec![bad];
    assert_eq!(refused(&of("web", BlueprintBody::Service(one))), "env");
    for name in ["", "a b", "ä", &"x".repeat(49)] {
        assert_eq!(refused(&of(name, BlueprintBody::Service(service("serve")))), "name", "{name}");
    }
}

#[test]
fn a_script_is_bounded_and_has_a_name_for_people() {
    let script = |text: String| {
        BlueprintBody::Setup(SetupScript {
            script: text,
            runs: SetupRuns::Once,
            order: 0,
            user: None,
            working_dir: None,
        })
    };
    assert_eq!(refused(&of("Install the tools", script("true".to_owned()))), "nothing");
    assert_eq!(refused(&of("Install", script("x".repeat(64 * 1024 + 1)))), "script");
    assert_eq!(refused(&of("Install", script(String::new()))), "script");
    assert_eq!(refused(&of("\n", script("true".to_owned()))), "name");
}

#[test]
fn a_template_names_an_image_and_so_many_blueprints() {
    let template = Template { image: "base".to_owned(), ..Template::default() };
    let with = |template: Template| refused(&of("mine", BlueprintBody::Template(template)));
    assert_eq!(with(template.clone()), "nothing");
    assert_eq!(with(Template::default()), "image");
    let many = vec![BlueprintId::from_u128(3); 13];
    assert_eq!(with(Template { setup: many.clone(), ..template.clone() }), "setup_scripts");
    assert_eq!(with(Template { services: many, ..template.clone() }), "service_specs");
    let apps = vec![String::new()];
    assert_eq!(with(Template { apps, ..template }), "apps");
}

#[test]
fn a_floor_raises_what_is_asked_and_what_is_not() {
    let pool = Pool { vcpu_count: 100, memory_mib: 100_000, disk_mib: 100_000 };
    let plan = Plan::self_hosted(10, pool, pool);
    let floor = Floor { vcpu_count: 2, memory_mib: 0, disk_mib: u32::MAX };
    let asked = RequestedShape {
        vcpu_count: Some(0),
        memory_mib: None,
        disk_mib: None,
        cpu_kind: CpuKind::default(),
    };
    let raised = floor.raise_new(&plan, &asked);
    assert_eq!(raised.vcpu_count, Some(2));
    assert_eq!(raised.memory_mib, None);
    assert_eq!(raised.disk_mib, Some(u32::MAX.into()));
    let changed = floor.raise_change(&asked);
    assert_eq!((changed.vcpu_count, changed.disk_mib), (Some(2), None));
    let more = RequestedShape { vcpu_count: Some(3), ..asked };
    assert_eq!(floor.raise_new(&plan, &more).vcpu_count, Some(3));
}

#[test]
fn what_a_blueprint_runs_is_in_no_debug_output() {
    let shown = format!("{:?}", of("web", BlueprintBody::Service(service("serve --key s3cret"))));
    assert!(!shown.contains("s3cret"), "{shown}");
}
