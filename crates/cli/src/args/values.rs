//! Values of arguments: sizes, times, variables, places.

use std::{fmt, path::PathBuf, str::FromStr};

/// A size in MiB, from a number with or without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mebibytes(pub u64);

impl FromStr for Mebibytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &lower[digits.len()..] {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            "t" | "tb" | "tib" => 1024 * 1024,
            unit => return Err(format!("unknown unit {unit:?}; known are M, G and T")),
        };
        whole_number(digits)?
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| "the size is too large".to_owned())
    }
}

/// A size in bytes, from a number with or without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &lower[digits.len()..] {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1024,
            "m" | "mb" | "mib" => 1024 * 1024,
            unit => return Err(format!("unknown unit {unit:?}; known are K and M")),
        };
        whole_number(digits)?
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| "the size is too large".to_owned())
    }
}

fn whole_number(digits: &str) -> Result<u64, String> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("not a whole number with an optional unit, such as 512M or 2G".to_owned());
    }
    digits.parse().map_err(|_| "the size is too large".to_owned())
}

/// A length of time, from a number with or without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub u32);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u32 = match &lower[digits.len()..] {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            unit => return Err(format!("unknown unit {unit:?}; known are s, m, h and d")),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err("not a whole number with an optional unit, such as 90s or 2h".to_owned());
        }
        let too_long = || "the time is too long".to_owned();
        let number: u32 = digits.parse().map_err(|_| too_long())?;
        number.checked_mul(factor).map(Self).ok_or_else(too_long)
    }
}

/// An environment variable to set.
#[derive(Clone, PartialEq, Eq)]
pub struct EnvArg {
    /// Its name.
    pub name: String,
    /// Its value; `None` means that of the client's own environment.
    pub value: Option<String>,
}

impl fmt::Debug for EnvArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.name)
    }
}

impl FromStr for EnvArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let good = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !good {
            return Err("a name is letters, digits and _, not beginning with a digit".to_owned());
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Standard input or output.
    Standard,
    /// On this machine.
    Local(PathBuf),
    /// In a workspace.
    Remote {
        /// Which one.
        workspace: String,
        /// Absolute path in it.
        path: String,
    },
}

impl FromStr for Place {
    type Err = String;

    /// `NAME:/path` is in a workspace; text with a slash before its first colon, or without a colon,
    /// is a local path (`./a:b`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        if text == "-" {
            return Ok(Self::Standard);
        }
        match text.split_once(':') {
            Some((workspace, path)) if !workspace.contains('/') => {
                if workspace.is_empty() {
                    return Err("the workspace's name before the colon is missing".to_owned());
                }
                if !path.starts_with('/') {
                    return Err(format!(
                        "the path in the workspace must be absolute: {workspace}:/…; a local file \
                         of this name is written ./{text}"
                    ));
                }
                Ok(Self::Remote { workspace: workspace.to_owned(), path: path.to_owned() })
            }
            Some(_) | None => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        let read = |text: &str| text.parse::<Mebibytes>().map(|size| size.0);
        assert_eq!(read("2048"), Ok(2048));
        assert_eq!(read("512M"), Ok(512));
        assert_eq!(read("2G"), Ok(2048));
        assert_eq!(read("2gib"), Ok(2048));
        assert_eq!(read("1T"), Ok(1_048_576));
        for bad in [
            "",
            "G",
            "1.5G",
            "-1",
            "1 G",
            "2K",
            "2x",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let bytes = |text: &str| text.parse::<Bytes>().map(|size| size.0);
        assert_eq!(bytes("64K"), Ok(65_536));
        assert_eq!(bytes("10"), Ok(10));
        assert!(bytes("1G").is_err());
    }

    #[test]
    fn times_are_read_with_and_without_unit() {
        let read = |text: &str| text.parse::<Seconds>().map(|time| time.0);
        assert_eq!((read("90"), read("90s"), read("15m")), (Ok(90), Ok(90), Ok(900)));
        assert_eq!((read("2h"), read("7D")), (Ok(7200), Ok(604_800)));
        for bad in ["", "h", "1.5h", "-1", "2w", "1 h", "4294967296", "99999d"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn places_are_told_apart_by_their_first_colon() {
        let remote = |workspace: &str, path: &str| {
            Ok(Place::Remote { workspace: workspace.to_owned(), path: path.to_owned() })
        };
        let local = |path: &str| Ok(Place::Local(path.into()));
        assert_eq!("box:/a:b".parse(), remote("box", "/a:b"));
        assert_eq!("./a:b".parse(), local("./a:b"));
        assert_eq!("/a:/b".parse(), local("/a:/b"));
        assert_eq!("a".parse(), local("a"));
        assert_eq!("-".parse(), Ok(Place::Standard));
        for bad in ["", ":/a", "box:a", "box:"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_keep_everything_after_the_first_equals_sign() {
        let variable = |text: &str| text.parse::<EnvArg>().map(|v| (v.name, v.value));
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), Some("b=c".to_owned()))));
        assert_eq!(variable("A="), Ok(("A".to_owned(), Some(String::new()))));
        assert_eq!(variable("_a1"), Ok(("_a1".to_owned(), None)));
        for bad in ["", "=x", "1A=x", "A B=x"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in ".{0,40}") {
            let _ = text.parse::<Mebibytes>();
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Seconds>();
            let _ = text.parse::<Place>();
            let _ = text.parse::<EnvArg>();
        }

        #[test]
        fn a_size_in_g_is_1024_times_the_number(number in 0..1_000_000_u64) {
            prop_assert_eq!(format!("{number}G").parse(), Ok(Mebibytes(number * 1024)));
        }
    }
}
