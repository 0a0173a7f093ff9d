//! Numbers in bodies whose complaint names no Rust type.

use serde::Deserialize;
use serde_json::Number;

/// A whole number of a body; its range is checked later, where the range is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Number")]
pub struct WholeNumber(pub i64);

impl TryFrom<Number> for WholeNumber {
    type Error = &'static str;

    fn try_from(number: Number) -> Result<Self, Self::Error> {
        number.as_i64().map(Self).ok_or("must be a whole number")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::parse_json;

    #[test]
    fn whole_numbers_are_read_and_everything_else_is_told_apart() {
        let read = |text: &str| {
            parse_json::<WholeNumber>(text.as_bytes()).map_err(|p| p.message().to_owned())
        };
        assert_eq!(read("-3"), Ok(WholeNumber(-3)));
        assert_eq!(read("2.5"), Err("must be a whole number".to_owned()));
        assert_eq!(read("1e30"), Err("must be a whole number".to_owned()));
        assert_eq!(read("18446744073709551615"), Err("must be a whole number".to_owned()));
        assert!(read("\"2\"").is_err_and(|text| text.ends_with("expected a JSON number")));
    }
}
