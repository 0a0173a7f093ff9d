use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::dialects::oblien::object::ttl_text;

fn create(body: Value) -> Result<CreateWorkspace, Refusal> {
    create_request(serde_json::from_value(body).expect("body"), Wait::No)
}

fn ttl_seconds(ttl: &Value) -> Option<u32> {
    life::ttl("config.", Some(ttl)).ok().flatten()
}

proptest! {
    #[test]
    fn a_time_to_live_reads_back_from_its_text(seconds in 1..=Expiry::MAX_SECONDS) {
        prop_assert_eq!(ttl_seconds(&Value::String(ttl_text(seconds))), Some(seconds));
        prop_assert_eq!(ttl_seconds(&json!(seconds)), Some(seconds));
    }

    #[test]
    fn any_text_for_a_time_to_live_is_read_or_refused(text: String) {
        let _ = ttl_seconds(&Value::String(text));
    }
}

#[test]
fn times_to_live_without_a_sense_are_refused() {
    for ttl in ["", "h", "-1h", "1.5h", "1w", "0", "366d", "99999999999999999999d", "1h30m", "é"] {
        assert_eq!(ttl_seconds(&json!(ttl)), None, "{ttl}");
    }
    for ttl in [json!(0), json!(-5), json!(1.5), json!(true), json!([])] {
        assert_eq!(ttl_seconds(&ttl), None, "{ttl}");
    }
}

#[test]
fn a_silent_request_gets_the_defaults_of_the_reference() {
    let request = create(json!({})).expect("accepted");
    let mut expected = CreateWorkspace::new(StartPolicy::Now(Wait::No));
    expected.lifetime = Lifetime::Temporary;
    expected.vcpu_count = Some(1);
    expected.memory_mib = Some(512);
    expected.disk_mib = Some(512);
    assert_eq!(request, expected);
}

#[test]
fn a_size_is_taken_from_any_of_its_names_unless_they_disagree() {
    let cpus = |body| create(body).map(|request| request.vcpu_count);
    assert_eq!(cpus(json!({"config": {"cpus": 3}})), Ok(Some(3)));
    assert_eq!(cpus(json!({"cpus": 3.0})), Ok(Some(3)));
    assert_eq!(cpus(json!({"vcpus": 3, "config": {"cpus": 3}})), Ok(Some(3)));
    assert_eq!(cpus(json!({"vcpus": 4, "config": {"cpus": 3}})).expect_err("two").field, "vcpus");
    let disk = |body| create(body).map(|request| request.disk_mib);
    assert_eq!(disk(json!({"config": {"disk_size_mb": 2048}})), Ok(Some(2048)));
    assert_eq!(disk(json!({"disk_mb": 2048})), Ok(Some(2048)));
}

#[test]
fn every_field_without_machinery_is_refused_by_name_unless_it_asks_for_nothing() {
    for entry in &UNSERVED_CONFIG {
        let body = json!({ "config": { entry.field: "something" } });
        assert_eq!(create(body).expect_err(entry.field).field, format!("config.{}", entry.field));
        let body = json!({ "config": { entry.field: null } });
        assert!(create(body).is_ok(), "{}", entry.field);
    }
    for entry in &UNSERVED_FIELDS {
        let body = json!({ entry.field: 1 });
        assert_eq!(create(body).expect_err(entry.field).field, entry.field);
    }
    assert!(
        create(json!({"config": {
            "restart_policy": "no", "max_restarts": 0, "remove_on_exit": false, "workloads": [],
            "static_network": false, "ssh_access": false, "proxy_assignment_id": null,
            "network_config": {"allow_internet": false, "public_ingress": false},
        }}))
        .is_ok()
    );
}

#[test]
fn a_slug_of_an_ids_form_is_refused() {
    let slug = "9f1c2d3e-4b5a-4c6d-8e7f-001122334455";
    assert_eq!(create(json!({ "slug": slug })).expect_err("an id").field, "slug");
    assert_eq!(create(json!({"slug": "my-app"})).expect("plain").slug.as_deref(), Some("my-app"));
}

#[test]
fn a_time_to_live_counts_in_temporary_mode_only() {
    let expiry = |mode: &str| {
        create(json!({"mode": mode, "config": {"ttl": "1h", "ttl_action": "remove"}}))
            .expect("accepted")
            .expiry
    };
    assert_eq!(
        expiry("temporary"),
        Some(Expiry { after_seconds: 3600, action: skerry_model::ExpiryAction::Delete }),
    );
    assert_eq!(expiry("permanent"), None);
}
