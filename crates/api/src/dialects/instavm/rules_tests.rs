use serde_json::{Value, json};
use skerry_model::{Desired, State};

use super::{super::convert::tests::workspace, *};

fn rules(body: &Value) -> Rules {
    let mut fields = Fields::new(body.as_object().expect("an object").clone());
    let rules = Rules::read(&mut fields, 1..=u32::MAX);
    fields.finish().expect("accepted");
    rules
}

/// A VM that was made by a request with these rules.
fn made(body: &Value) -> Workspace {
    let asked = rules(body);
    let mut workspace = workspace(State::Suspended, Desired::Suspended);
    workspace.spec.expiry = asked.expiry();
    workspace.spec.lifetime = asked.lifetime();
    workspace.spec.snapshot_on_terminate = asked.last_snapshot();
    workspace
}

fn change(of: &Value, asked: &Value) -> LifecycleChange {
    rules(asked).change(&made(of)).expect("accepted").unwrap_or_default()
}

const fn ends(after_seconds: u32, action: ExpiryAction) -> Option<Expiry> {
    Some(Expiry { after_seconds, action })
}

#[test]
fn a_new_vm_is_killed_or_parked_when_its_time_is_over() {
    let expiry = |body: Value| rules(&body).expiry();
    assert_eq!(expiry(json!({})), None);
    assert_eq!(expiry(json!({ "auto_suspend": false })), None);
    let lifetime = json!({ "vm_lifetime_seconds": 60 });
    assert_eq!(expiry(lifetime), ends(60, ExpiryAction::Delete));
    let parks = json!({ "vm_lifetime_seconds": 60, "auto_suspend": true });
    assert_eq!(expiry(parks), ends(60, ExpiryAction::Suspend));
    assert_eq!(expiry(json!({ "auto_suspend": true })), ends(31_536_000, ExpiryAction::Suspend));
}

#[test]
fn parking_is_turned_on_and_off_without_a_new_time() {
    let mortal = json!({ "vm_lifetime_seconds": 60 });
    let parked = json!({ "vm_lifetime_seconds": 60, "auto_suspend": true });
    let on = change(&mortal, &json!({ "auto_suspend": true }));
    assert_eq!((on.expiry_action, on.expiry), (Some(ExpiryAction::Suspend), Setting::Keep));
    let off = change(&parked, &json!({ "auto_suspend": false }));
    assert_eq!((off.expiry_action, off.expiry), (Some(ExpiryAction::Delete), Setting::Keep));
    for (of, same) in [(&mortal, false), (&parked, true)] {
        let nothing = change(of, &json!({ "auto_suspend": same }));
        assert_eq!(nothing, LifecycleChange::default());
    }
}

#[test]
fn parking_alone_leaves_with_the_end_it_brought() {
    let immortal = json!({});
    let on = change(&immortal, &json!({ "auto_suspend": true }));
    let year = Expiry { after_seconds: 31_536_000, action: ExpiryAction::Suspend };
    assert_eq!((on.expiry, on.lifetime), (Setting::To(year), None));
    let off = change(&json!({ "auto_suspend": true }), &json!({ "auto_suspend": false }));
    assert_eq!((off.expiry, off.expiry_action), (Setting::Clear, None));
    assert_eq!(change(&immortal, &json!({ "auto_suspend": false })), LifecycleChange::default());
}

#[test]
fn a_new_lifetime_keeps_what_comes_at_its_end() {
    let to = |of: &Value, asked: &Value| match change(of, asked).expiry {
        Setting::To(expiry) => Some(expiry),
        Setting::Keep | Setting::Clear => None,
    };
    let renewal = json!({ "vm_lifetime_seconds": 90 });
    let parked = json!({ "auto_suspend": true });
    assert_eq!(to(&json!({}), &renewal), ends(90, ExpiryAction::Delete));
    assert_eq!(to(&parked, &renewal), ends(90, ExpiryAction::Suspend));
    let killed = json!({ "vm_lifetime_seconds": 90, "auto_suspend": false });
    assert_eq!(to(&parked, &killed), ends(90, ExpiryAction::Delete));
}

#[test]
fn what_another_dialect_stops_at_the_end_is_never_killed_by_turning_parking_off() {
    let mut stops = made(&json!({}));
    stops.spec.expiry = ends(60, ExpiryAction::Stop);
    let off = rules(&json!({ "auto_suspend": false })).change(&stops).expect("accepted");
    assert_eq!(off, None);
    let longer = json!({ "auto_suspend": false, "vm_lifetime_seconds": 90 });
    let longer = rules(&longer).change(&stops).expect("accepted").expect("a change");
    let expected = Expiry { after_seconds: 90, action: ExpiryAction::Stop };
    assert_eq!(longer.expiry, Setting::To(expected));
}

#[test]
fn the_last_snapshot_keeps_its_name_until_it_gets_another() {
    let kept = json!({ "snapshot_on_terminate": true, "snapshot_name": "last" });
    let name = |of: &Value, asked: &Value| match change(of, asked).snapshot_on_terminate {
        Setting::To(last) => last.name,
        Setting::Keep => Some("(kept)".to_owned()),
        Setting::Clear => Some("(cleared)".to_owned()),
    };
    assert_eq!(name(&kept, &json!({ "snapshot_on_terminate": true })).as_deref(), Some("last"));
    assert_eq!(name(&kept, &json!({ "snapshot_name": "other" })).as_deref(), Some("other"));
    let off = json!({ "snapshot_on_terminate": false });
    assert_eq!(name(&kept, &off).as_deref(), Some("(cleared)"));
    assert_eq!(name(&kept, &json!({ "auto_resume": true })).as_deref(), Some("(kept)"));
    assert_eq!(name(&json!({}), &json!({ "snapshot_on_terminate": true })), None);
    let alone = json!({ "snapshot_name": "other" });
    assert!(rules(&alone).change(&made(&json!({}))).is_err());
    let off = json!({ "snapshot_on_terminate": false, "snapshot_name": "other" });
    assert!(rules(&off).change(&made(&kept)).is_err());
}
