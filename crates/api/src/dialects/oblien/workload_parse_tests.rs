use serde_json::json;

use super::*;

fn fields(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields,
        other => panic!("{other} is not an object"),
    }
}

#[test]
fn a_command_is_a_list_or_a_line_for_the_shell_under_either_name() {
    let argv = |value| new_workload("", &fields(value)).unwrap().argv;
    assert_eq!(argv(json!({ "cmd": ["node", "server.js"] })), ["node", "server.js"]);
    assert_eq!(argv(json!({ "cmd": "a | b" })), ["/bin/sh", "-c", "a | b"]);
    assert_eq!(argv(json!({ "command": ["x"] })), ["x"]);
    for bad in [json!({}), json!({ "cmd": [] }), json!({ "cmd": [1] }), json!({ "cmd": 5 })] {
        assert_eq!(new_workload("", &fields(bad.clone())).unwrap_err().field, "cmd", "{bad}");
    }
}

#[test]
fn variables_come_in_every_form_that_clients_send() {
    let env = |value| new_workload("", &fields(json!({ "cmd": ["x"], "env": value })));
    let expected = vec![EnvVar { key: "A".to_owned(), value: "b=c".to_owned() }];
    for form in [json!(["A=b=c"]), json!({ "A": "b=c" }), json!([{ "key": "A", "value": "b=c" }])] {
        assert_eq!(env(form).unwrap().env, expected);
    }
    let refused = env(json!(["hunter2"])).unwrap_err();
    assert!(refused.field == "env" && !refused.problem.contains("hunter2"));
}

#[test]
fn pauses_grow_unless_that_is_turned_off() {
    let restart = |value: Value| {
        let mut all = fields(json!({ "cmd": ["x"], "restart_policy": "always" }));
        all.append(&mut fields(value));
        new_workload("", &all).unwrap().restart
    };
    let pauses = |value| {
        let Backoff { first_seconds, most_seconds } = restart(value).backoff;
        (first_seconds, most_seconds)
    };
    assert_eq!(pauses(json!({})), (1, 300));
    assert_eq!(pauses(json!({ "restart_delay": 5 })), (5, 300));
    assert_eq!(pauses(json!({ "restart_delay": 5, "restart_backoff": false })), (5, 5));
    assert_eq!(restart(json!({ "max_restarts": 3 })).max_restarts, 3);
}

#[test]
fn what_is_not_given_of_a_restart_policy_stays() {
    let made = new_workload("", &fields(json!({ "cmd": ["x"], "restart_policy": "always" })));
    let now = WorkloadRestart { max_restarts: 7, ..made.unwrap().restart };
    let place = Place("");
    assert_eq!(place.restart(&fields(json!({ "name": "other" })), now).unwrap(), None);
    let changed = place.restart(&fields(json!({ "restart_delay": 9 })), now).unwrap().unwrap();
    assert_eq!((changed.mode, changed.max_restarts), (RestartMode::Always, 7));
    let never = place.restart(&fields(json!({ "restart_policy": "never" })), now).unwrap();
    assert_eq!(never.unwrap().max_restarts, 7);
}

#[test]
fn the_main_command_and_the_workloads_of_a_create_request_are_one_list() {
    let config =
        json!({ "cmd": ["node", "a.js"], "workloads": [{ "cmd": "sleep 1", "name": "b" }] });
    let all = of_config(&fields(config), false).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!((all[0].name.as_deref(), all[0].on_exit), (Some(MAIN), OnExit::Exit));
    assert!(all.iter().all(|one| !one.keeps_log));
    let bad = json!({ "workloads": [{ "cmd": ["x"], "vm_on_exit": "explode" }] });
    let refused = of_config(&fields(bad), true).unwrap_err();
    assert_eq!(
        (refused.code, refused.field.as_str()),
        ("INVALID_CONFIG", "config.workloads[0].vm_on_exit")
    );
}

#[test]
fn an_id_is_read_back_from_its_printed_form() {
    let id = WorkloadId::from_u128(0x1234_5678);
    assert_eq!(parse_workload_id(&workload_id(id)), Some(id));
    assert_eq!(parse_workload_id("app"), None);
}
