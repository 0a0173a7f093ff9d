#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::name::{check_key_name, check_namespace, check_project_name};

fn variable(key: &str, value: &str) -> EnvVar {
    EnvVar { key: key.to_owned(), value: value.to_owned() }
}

#[test]
fn an_environment_within_its_bounds_is_accepted() {
    let full = vec![variable("A", &"x".repeat(EnvVar::MAX_VALUE_BYTES)); 1];
    assert_eq!(EnvVar::check_all(&full), Ok(()));
    assert_eq!(EnvVar::check_all(&[variable("_a1", ""), variable("_A1", "")]), Ok(()));
    let many: Vec<_> = (0..EnvVar::MAX_COUNT).map(|n| variable(&format!("V{n}"), "")).collect();
    assert_eq!(EnvVar::check_all(&many), Ok(()));
}

#[test]
fn an_environment_beyond_a_bound_is_refused_without_its_values() {
    let long = "secret".repeat(EnvVar::MAX_VALUE_BYTES);
    let many: Vec<_> = (0..=EnvVar::MAX_COUNT).map(|n| variable(&format!("V{n}"), "")).collect();
    let piece = "s".repeat(EnvVar::MAX_VALUE_BYTES);
    let heavy: Vec<_> = (0..5).map(|n| variable(&format!("V{n}"), &piece)).collect();
    let cases = [
        vec![variable("", "secret")],
        vec![variable("1A", "secret")],
        vec![variable("A-B", "secret")],
        vec![variable("A=B", "secret")],
        vec![variable(&"A".repeat(EnvVar::MAX_KEY_LEN + 1), "secret")],
        vec![variable("A", "sec\0ret")],
        vec![variable("A", "secret"), variable("A", "secret")],
        vec![variable("A", &long)],
        many,
        heavy,
    ];
    for case in cases {
        let refused = EnvVar::check_all(&case).unwrap_err();
        assert_eq!(refused.field, "env");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
}

#[test]
fn names_are_checked_at_their_bounds() {
    assert!(check_namespace(&"a".repeat(63)).is_ok() && check_namespace("Team-7").is_ok());
    for bad in ["", "a b", "a/b", "ä", &"a".repeat(64)] {
        assert_eq!(check_namespace(bad).unwrap_err().field, "namespace");
    }
    assert!(check_project_name("My project_1.2-x").is_ok());
    for bad in ["", " a", "-a", "a/b", "a\n", &"a".repeat(101)] {
        assert!(check_project_name(bad).is_err(), "{bad:?}");
    }
    assert!(check_key_name("laptop é").is_ok());
    for bad in ["", "  ", "a\tb", &"a".repeat(101)] {
        assert!(check_key_name(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_time_to_live_is_a_second_to_a_year() {
    for (seconds, good) in [(0, false), (1, true), (31_536_000, true), (31_536_001, false)] {
        let expiry = Expiry { after_seconds: seconds, action: ExpiryAction::Stop };
        assert_eq!(expiry.check().is_ok(), good, "{seconds}");
    }
}

#[test]
fn labels_are_bounded_as_json() {
    let labels = |len: usize| BTreeMap::from([("k".to_owned(), "x".repeat(len).into())]);
    // {"k":""} takes eight bytes.
    assert_eq!(check_metadata(&labels(MAX_METADATA_BYTES - 8)), Ok(()));
    assert_eq!(check_metadata(&labels(MAX_METADATA_BYTES - 7)).unwrap_err().field, "metadata");
}
