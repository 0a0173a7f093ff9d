//! Numbers in bodies whose complaint names no Rust type.

use serde::Deserialize;
use serde_json::Number;

/// A whole number of a body; its range is checked later, where the range is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Number")]
pub struct WholeNumber(pub i64);

const PROBLEM: &str = "must be a whole number of at most 15 digits";

/// The whole number that a float is, as far as floats tell whole numbers apart.
fn exact(float: f64) -> Option<i64> {
    const LARGEST: f64 = 999_999_999_999_999.0;
    // Within the bounds the conversion loses nothing.
    (float.fract() == 0.0 && float.abs() <= LARGEST).then_some(float as i64)
}

impl TryFrom<Number> for WholeNumber {
    type Error = &'static str;

    fn try_from(number: Number) -> Result<Self, Self::Error> {
        let written_as_float = || number.as_f64().and_then(exact);
        number.as_i64().or_else(written_as_float).map(Self).ok_or(PROBLEM)
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
        assert_eq!(read("2.0"), Ok(WholeNumber(2)));
        assert_eq!(read("-1e3"), Ok(WholeNumber(-1000)));
        for text in ["2.5", "1e30", "1e15", "18446744073709551615"] {
            assert_eq!(read(text), Err(PROBLEM.to_owned()), "{text}");
        }
        assert!(read("\"2\"").is_err_and(|text| text.ends_with("expected a JSON number")));
    }
}
