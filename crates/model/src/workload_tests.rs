use super::*;

fn workload(number: u128, name: &str) -> Workload {
    Workload {
        id: WorkloadId::from_u128(number),
        name: name.to_owned(),
        kind: WorkloadKind::Service,
        argv: vec!["server".to_owned(), "--token=hunter2".to_owned()],
        env: vec![EnvVar { key: "KEY".to_owned(), value: "swordfish".to_owned() }],
        working_dir: None,
        user: None,
        restart: WorkloadRestart::default(),
        on_exit: OnExit::Nothing,
        log_limit_kib: Workload::DEFAULT_LOG_LIMIT_KIB,
        keeps_log: true,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        desired: WorkloadDesired::Running,
        turn: 1,
        origin: WorkloadOrigin::Direct,
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

fn problem(change: impl FnOnce(&mut Workload)) -> &'static str {
    let mut one = workload(1, "app");
    change(&mut one);
    Workloads::new(vec![one]).unwrap_err().field
}

#[test]
fn each_change_of_the_list_has_a_revision_of_its_own_and_a_change_to_nothing_none() {
    let mut all = Workloads::default();
    assert!(!all.were_ever());
    all.change(|items| items.push(workload(1, "app"))).unwrap();
    assert_eq!(all.revision, 1);
    all.change(|items| items[0].turn += 1).unwrap();
    all.change(|_| ()).unwrap();
    assert_eq!(all.revision, 2);
    all.change(Vec::clear).unwrap();
    assert_eq!((all.revision, all.were_ever(), all.items.len()), (3, true, 0));
    assert_eq!(Workloads::new(Vec::new()).unwrap(), Workloads::default());
}

#[test]
fn a_change_that_is_refused_leaves_the_list_as_it_was() {
    let before = Workloads::new(vec![workload(1, "app")]).unwrap();
    let mut after = before.clone();
    let refused = after.change(|items| items.push(workload(2, "app"))).unwrap_err();
    assert_eq!((refused.field, after), ("workloads", before));
}

#[test]
fn what_a_workload_cannot_be_is_named() {
    assert_eq!(problem(|one| one.name = "no spaces".to_owned()), "workload_name");
    assert_eq!(problem(|one| one.name = "x".repeat(65)), "workload_name");
    assert_eq!(problem(|one| one.argv.clear()), "command");
    assert_eq!(problem(|one| one.argv[0].clear()), "command");
    assert_eq!(problem(|one| one.argv.push("\0".to_owned())), "command");
    assert_eq!(problem(|one| one.env[0].key.clear()), "env");
    assert_eq!(problem(|one| one.working_dir = Some("here".to_owned())), "working_dir");
    assert_eq!(problem(|one| one.user = Some(String::new())), "user");
    assert_eq!(problem(|one| one.restart.backoff.most_seconds = 3601), "restart");
    assert_eq!(problem(|one| one.log_limit_kib = 15), "log_limit_kib");
    let long = "x".repeat(MAX_LABEL_BYTES + 1);
    assert_eq!(problem(|one| drop(one.labels.insert("a".to_owned(), long))), "labels");
    assert_eq!(problem(|one| one.argv.push("x".repeat(MAX_WORKLOADS_BYTES))), "workloads");
    let many = (0..33).map(|number| workload(number, &format!("w{number}"))).collect();
    assert_eq!(Workloads::new(many).unwrap_err().field, "workloads");
    let twins = vec![workload(1, "a"), workload(1, "b")];
    assert_eq!(Workloads::new(twins).unwrap_err().field, "workloads");
}

#[test]
fn setup_comes_before_services_and_keeps_its_order() {
    let setup = |number, name| Workload {
        kind: WorkloadKind::SetupOnce,
        restart: WorkloadRestart::default(),
        ..workload(number, name)
    };
    let all = Workloads::new(vec![workload(1, "app"), setup(2, "second"), setup(3, "first")]);
    let names: Vec<String> = all.unwrap().items.into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["second", "first", "app"]);
}

#[test]
fn a_workload_shows_neither_its_arguments_nor_values_of_variables() {
    let shown = format!("{:?}", workload(1, "app"));
    assert!(shown.contains("app") && shown.contains("server"), "{shown}");
    assert!(!shown.contains("hunter2") && !shown.contains("swordfish"), "{shown}");
}
