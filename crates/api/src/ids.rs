//! The printed forms of identifiers, and one parser for all of them.
//!
//! A workspace is one 128-bit number. Each dialect prints it in its own form, and every dialect
//! understands every form, so that a workspace made through one can be used through another:
//!
//! | dialect | form | example |
//! | --- | --- | --- |
//! | Oblien | `ws_` and 25 digits of base 36 | `ws_0b1c…` |
//! | Rigbox | `ws-` and the same | `ws-0b1c…` |
//! | InstaVM, VM | `vm_` and the same, from the second start on `_` and its number: never readable as a UUID, which InstaVM's client relies on | `vm_0b1c…`, `vm_0b1c…_2` |
//! | InstaVM, session | the UUID | `9f1c…-…` |
//! | Aether | the UUID | `9f1c…-…` |

use skerry_control::WorkspaceRef;
use skerry_model::{Incarnation, PublishedPortId, WorkspaceId};
use uuid::Uuid;

/// Digits needed for 2^128 - 1 in base 36.
const BASE36_DIGITS: usize = 25;
const PREFIXES: [&str; 2] = ["ws_", "ws-"];
const VM_PREFIX: &str = "vm_";

/// A number in base 36: 25 characters of `[0-9a-z]`, padded with zeros.
#[must_use]
pub fn base36(mut number: u128) -> String {
    let mut digits = [b'0'; BASE36_DIGITS];
    for digit in digits.iter_mut().rev() {
        // The remainder is below 36, so the narrowing loses nothing.
        let value = (number % 36) as u8;
        *digit = if value < 10 { b'0' + value } else { b'a' + value - 10 };
        number /= 36;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// The number that [`base36`] prints as `text`, and nothing else.
#[must_use]
pub fn parse_base36(text: &str) -> Option<u128> {
    if text.len() != BASE36_DIGITS {
        return None;
    }
    text.bytes().try_fold(0_u128, |number, byte| {
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            0..=b'/' | b':'..=b'`' | b'{'..=u8::MAX => return None,
        };
        number.checked_mul(36)?.checked_add(u128::from(value))
    })
}

/// Oblien's form of a workspace id.
#[must_use]
pub fn oblien_workspace_id(id: WorkspaceId) -> String {
    format!("ws_{}", base36(id.as_u128()))
}

/// Rigbox's form of a workspace id.
#[must_use]
pub fn rigbox_workspace_id(id: WorkspaceId) -> String {
    format!("ws-{}", base36(id.as_u128()))
}

/// Rigbox's id of an app.
#[must_use]
pub fn rigbox_app_id(id: PublishedPortId) -> String {
    format!("app-{}", base36(id.as_u128()))
}

/// The published port that is Rigbox's app of this id.
#[must_use]
pub fn parse_rigbox_app_id(text: &str) -> Option<PublishedPortId> {
    text.strip_prefix("app-").and_then(parse_base36).map(PublishedPortId::from_u128)
}

/// InstaVM's id of the first VM of a workspace.
#[must_use]
pub fn instavm_vm_id(id: WorkspaceId) -> String {
    format!("{VM_PREFIX}{}", base36(id.as_u128()))
}

/// InstaVM's id of the VM of one start of a workspace: there, every start is a VM of its own. All of
/// them lead to the workspace.
#[must_use]
pub fn instavm_vm_id_of_start(id: WorkspaceId, start: Incarnation) -> String {
    let first = instavm_vm_id(id);
    if start.0 > 1 { format!("{first}_{start}") } else { first }
}

/// The id as a UUID: Aether's workspace id and InstaVM's session id.
#[must_use]
pub fn uuid_text(id: WorkspaceId) -> String {
    id.as_uuid().hyphenated().to_string()
}

/// The workspace id that `text` prints in any dialect's form.
#[must_use]
pub fn parse_workspace_id(text: &str) -> Option<WorkspaceId> {
    let number = PREFIXES
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .and_then(parse_base36)
        .or_else(|| parse_vm(text.strip_prefix(VM_PREFIX)?))
        .or_else(|| parse_uuid(text).map(|uuid| uuid.as_u128()))?;
    Some(WorkspaceId::from_u128(number))
}

/// The workspace's number in what follows `vm_`, whichever start it speaks of.
fn parse_vm(text: &str) -> Option<u128> {
    let Some((number, start)) = text.split_once('_') else { return parse_base36(text) };
    // Only in the one form in which it is printed.
    let start = start.parse::<u64>().ok().filter(|n| *n > 1 && n.to_string() == start);
    start.and_then(|_| parse_base36(number))
}

/// A UUID in its hyphenated form or as 32 hexadecimal digits, in either case; no other form.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    matches!(text.len(), 32 | 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// What a request means by `text`: an id in any dialect's form, else a slug, else a name. Total: text
/// that can be none of them finds nothing.
#[must_use]
pub fn parse_workspace_ref(text: &str) -> WorkspaceRef {
    match parse_workspace_id(text) {
        Some(id) => WorkspaceRef::Id(id),
        None => WorkspaceRef::SlugOrName(text.to_owned()),
    }
}

/// What somebody at the SSH gateway means by a user's name: as [`parse_workspace_ref`], or Rigbox's
/// `<name>-<its id without the prefix>`, where the id decides.
#[must_use]
pub fn parse_ssh_user(text: &str) -> WorkspaceRef {
    let rigbox = || text.rsplit_once('-').and_then(|(_, number)| parse_base36(number));
    match (parse_workspace_id(text), rigbox()) {
        (Some(id), _) => WorkspaceRef::Id(id),
        (None, Some(number)) => WorkspaceRef::Id(WorkspaceId::from_u128(number)),
        (None, None) => WorkspaceRef::SlugOrName(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_form_of_an_id_leads_back_to_it(number: u128, start: u64) {
            let id = WorkspaceId::from_u128(number);
            for text in [
                oblien_workspace_id(id),
                rigbox_workspace_id(id),
                instavm_vm_id(id),
                instavm_vm_id_of_start(id, Incarnation(start)),
                uuid_text(id),
                id.as_uuid().simple().to_string(),
                uuid_text(id).to_uppercase(),
            ] {
                prop_assert_eq!(parse_workspace_ref(&text), WorkspaceRef::Id(id), "{}", text);
            }
        }

        #[test]
        fn an_ssh_user_in_any_form_leads_to_its_workspace(number: u128, name in "[a-z][a-z0-9-]{0,20}") {
            let id = WorkspaceId::from_u128(number);
            for text in [oblien_workspace_id(id), uuid_text(id), format!("{name}-{}", base36(number))] {
                prop_assert_eq!(parse_ssh_user(&text), WorkspaceRef::Id(id), "{}", text);
            }
            prop_assert_eq!(parse_ssh_user(&name), WorkspaceRef::SlugOrName(name.clone()));
        }

        #[test]
        fn a_vm_id_never_reads_as_a_uuid(number: u128, start: u64) {
            let id = WorkspaceId::from_u128(number);
            let text = instavm_vm_id_of_start(id, Incarnation(start));
            prop_assert!(Uuid::try_parse(&text).is_err());
            let next = instavm_vm_id_of_start(id, Incarnation(start.saturating_add(2)));
            prop_assert!(start > u64::MAX - 2 || text != next);
        }

        #[test]
        fn rigbox_ids_satisfy_its_clients_check(number: u128) {
            let text = rigbox_workspace_id(WorkspaceId::from_u128(number));
            let rest = text.strip_prefix("ws-").expect("prefix");
            prop_assert!(rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        }

        #[test]
        fn any_text_is_an_id_or_passed_on_as_it_is(text: String) {
            match parse_workspace_ref(&text) {
                WorkspaceRef::Id(id) => {
                    let lower = text.to_lowercase();
                    let prefixed = |prefix: &&str| {
                        text.strip_prefix(*prefix) == Some(base36(id.as_u128()).as_str())
                    };
                    let printed = lower == uuid_text(id)
                        || lower == id.as_uuid().simple().to_string()
                        || PREFIXES.iter().any(prefixed)
                        || text.starts_with(&instavm_vm_id(id));
                    prop_assert!(printed, "{}", text);
                }
                WorkspaceRef::SlugOrName(kept) => prop_assert_eq!(kept, text),
                WorkspaceRef::Slug(_) => prop_assert!(false, "never a slug alone"),
            }
        }

        #[test]
        fn base36_is_read_only_in_its_one_form(text in "[0-9a-z]{25}") {
            if let Some(number) = parse_base36(&text) {
                prop_assert_eq!(base36(number), text);
            }
        }
    }

    #[test]
    fn numbers_beyond_128_bits_and_other_lengths_are_not_ids() {
        assert_eq!(parse_base36(&base36(u128::MAX)), Some(u128::MAX));
        assert_eq!(parse_base36(&"z".repeat(25)), None);
        assert_eq!(parse_base36(&"0".repeat(24)), None);
        assert_eq!(parse_base36(&"0".repeat(26)), None);
        assert_eq!(parse_base36("0000000000000000000000-00"), None);
        assert_eq!(parse_base36("000000000000000000000000A"), None);
    }

    #[test]
    fn the_number_of_a_start_has_one_form() {
        let first = instavm_vm_id(WorkspaceId::from_u128(7));
        assert_eq!(parse_workspace_id(&format!("{first}_2")), Some(WorkspaceId::from_u128(7)));
        for wrong in ["_", "_0", "_1", "_02", "_+2", "_2_3", "_18446744073709551616", "_x", "2"] {
            assert_eq!(parse_workspace_id(&format!("{first}{wrong}")), None, "{wrong}");
        }
        let other = oblien_workspace_id(WorkspaceId::from_u128(7));
        assert_eq!(parse_workspace_id(&format!("{other}_2")), None);
    }
}
