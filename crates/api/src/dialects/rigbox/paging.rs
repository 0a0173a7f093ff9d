//! Rigbox's paging: `max_results` and an opaque `cursor`.
//!
//! A cursor is the place of the last item shown in the list's order (time of creation, then id), so
//! that items that come and go between two pages neither hide nor repeat others.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use skerry_model::{Invalid, Timestamp};

/// Items of a page when the request does not say.
const DEFAULT_MAX_RESULTS: usize = 50;
/// The most items of a page.
const LARGEST_MAX_RESULTS: usize = 200;

/// The query of a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PageQuery {
    /// 1 to 200; other numbers are brought into that range and other text is taken as absent.
    #[serde(default)]
    pub max_results: Option<String>,
    /// What the page before gave as `next_cursor`.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// Where an item stands: lists run from the greatest place to the least (newest first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub created_at: Timestamp,
    pub id: u128,
}

/// A list and the part of it that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Paged<'a, T> {
    /// What clients that know no paging are shown: everything, unless the request pages.
    pub unpaged: &'a [T],
    /// The page.
    pub page: &'a [T],
    /// Present when there is a page after this one.
    pub next_cursor: Option<String>,
}

/// The page of `items` that `query` asks for; sorts them, newest first.
///
/// # Errors
/// For a cursor that no page gave.
pub(super) fn page<'a, T>(
    items: &'a mut [T],
    place: impl Fn(&T) -> Place,
    query: &PageQuery,
) -> Result<Paged<'a, T>, Invalid> {
    items.sort_by_key(|item| std::cmp::Reverse(place(item)));
    let items = &*items;

    let begin = match &query.cursor {
        None => 0,
        Some(cursor) => {
            let last_shown = parse_cursor(cursor)?;
            items.partition_point(|item| place(item) >= last_shown)
        }
    };
    let rest = items.get(begin..).unwrap_or_default();
    let page = &rest[..rest.len().min(query.size())];
    let next_cursor = match page.last() {
        Some(last) if page.len() < rest.len() => Some(print_cursor(place(last))),
        Some(_) | None => None,
    };
    let pages = query.max_results.is_some() || query.cursor.is_some();
    Ok(Paged { unpaged: if pages { page } else { items }, page, next_cursor })
}

impl PageQuery {
    fn size(&self) -> usize {
        self.max_results
            .as_deref()
            .and_then(|text| text.trim().parse::<i64>().ok())
            .map_or(DEFAULT_MAX_RESULTS, |asked| {
                usize::try_from(asked).unwrap_or(0).clamp(1, LARGEST_MAX_RESULTS)
            })
    }
}

fn print_cursor(place: Place) -> String {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&place.created_at.as_nanosecond().to_be_bytes());
    bytes[16..].copy_from_slice(&place.id.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn parse_cursor(text: &str) -> Result<Place, Invalid> {
    let read = || {
        let bytes: [u8; 32] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (nanoseconds, id) = bytes.split_at(16);
        let nanoseconds = i128::from_be_bytes(nanoseconds.try_into().ok()?);
        Some(Place {
            created_at: Timestamp::from_nanosecond(nanoseconds).ok()?,
            id: u128::from_be_bytes(id.try_into().ok()?),
        })
    };
    read().ok_or_else(|| Invalid {
        field: "cursor",
        problem: "is not a cursor of this list".to_owned(),
        allowed: "the next_cursor of the page before, unchanged".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64, id: u128) -> Place {
        Place { created_at: Timestamp::from_second(seconds).expect("in range"), id }
    }

    fn query(max_results: &str, cursor: Option<String>) -> PageQuery {
        PageQuery { max_results: Some(max_results.to_owned()), cursor }
    }

    #[test]
    fn the_pages_together_are_the_list_newest_first() {
        let mut items: Vec<Place> =
            (0..7_u32).map(|n| at(i64::from(n / 2), u128::from(n))).collect();
        let (mut shown, mut cursor) = (Vec::new(), None);
        for _ in 0..4 {
            let paged = page(&mut items, |place| *place, &query("2", cursor)).expect("page");
            shown.extend_from_slice(paged.page);
            cursor = paged.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(shown.iter().map(|place| place.id).collect::<Vec<_>>(), [6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(cursor, None);
    }

    #[test]
    fn an_item_deleted_between_two_pages_hides_no_other() {
        let mut items: Vec<Place> = (0..4).map(|n| at(n, 0)).collect();
        let first = page(&mut items, |place| *place, &query("2", None)).expect("page");
        let cursor = first.next_cursor;
        let mut left: Vec<Place> = vec![at(0, 0), at(1, 0), at(3, 0)];
        let second = page(&mut left, |place| *place, &query("2", cursor)).expect("page");
        assert_eq!(second.page, [at(1, 0), at(0, 0)]);
    }

    #[test]
    fn a_request_without_paging_shows_everything_to_old_clients_and_a_page_to_new_ones() {
        let mut items: Vec<Place> = (0..60).map(|n| at(n, 0)).collect();
        let paged = page(&mut items, |place| *place, &PageQuery::default()).expect("page");
        assert_eq!((paged.unpaged.len(), paged.page.len()), (60, 50));
        assert!(paged.next_cursor.is_some());
    }

    #[test]
    fn max_results_is_brought_into_its_range() {
        for (text, size) in
            [("0", 1), ("-5", 1), ("7", 7), ("200", 200), ("201", 200), ("many", 50), ("", 50)]
        {
            assert_eq!(query(text, None).size(), size, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_leads_back_to_its_place(seconds in 0_i64..4_000_000_000, id: u128) {
            prop_assert_eq!(parse_cursor(&print_cursor(at(seconds, id))), Ok(at(seconds, id)));
        }

        #[test]
        fn any_text_is_a_cursor_or_refused(text: String) {
            let _ = parse_cursor(&text);
        }
    }
}
