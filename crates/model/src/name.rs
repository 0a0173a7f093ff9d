//! Names with their rules checked once, at the edge.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// A name for people: 1 to 255 characters, no control characters, not only white space.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DisplayName(String);

impl DisplayName {
    /// The most characters a name may have.
    pub const MAX_CHARS: usize = 255;

    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] with field `name`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let problem = if text.trim().is_empty() {
            "is empty"
        } else if text.chars().count() > Self::MAX_CHARS {
            "is too long"
        } else if text.chars().any(char::is_control) {
            "contains a control character"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(Invalid {
            field: "name",
            problem: problem.to_owned(),
            allowed: "1 to 255 characters, no control characters".to_owned(),
        })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DisplayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name for addresses: a DNS label of 3 to 63 characters of `[a-z0-9-]`, beginning and ending with
/// a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slug(String);

impl Slug {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`Invalid`] with field `slug`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let bytes = text.as_bytes();
        let good = (3..=63).contains(&bytes.len())
            && bytes.iter().copied().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(Invalid {
            field: "slug",
            problem: "is not a slug".to_owned(),
            allowed: "3 to 63 characters of a-z, 0-9 and -, not beginning or ending with -"
                .to_owned(),
        })
    }

    /// A slug made from a display name and some random digits, so that two workspaces of one name
    /// get two slugs: `My App!` and `x7k2` give `my-app-x7k2`.
    ///
    /// # Panics
    /// Never, for a `suffix` of 3 to 12 characters of `[a-z0-9]`; anything else is a caller's bug.
    #[must_use]
    pub fn from_name(name: &str, suffix: &str) -> Self {
        let mut stem = String::new();
        for c in name.chars().flat_map(char::to_lowercase) {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                stem.push(c);
            } else if !stem.is_empty() && !stem.ends_with('-') {
                stem.push('-');
            }
            if stem.len() == 40 {
                break;
            }
        }
        let stem = stem.trim_matches('-');
        let stem = if stem.is_empty() { "workspace" } else { stem };
        let slug = Self::parse(&format!("{stem}-{suffix}"));
        debug_assert!(slug.is_ok(), "suffix {suffix:?} is not [a-z0-9]{{3,12}}");
        slug.unwrap_or_else(|_| Self(format!("workspace-{suffix}")))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Checks a namespace: 1 to 63 letters, digits and hyphens.
///
/// # Errors
/// [`Invalid`] with field `namespace`.
pub fn check_namespace(text: &str) -> Result<(), Invalid> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if (1..=63).contains(&text.len()) && text.bytes().all(inner) {
        return Ok(());
    }
    Err(Invalid {
        field: "namespace",
        problem: "is not a namespace".to_owned(),
        allowed: "1 to 63 letters, digits and hyphens".to_owned(),
    })
}

/// Checks a project's name: 1 to 100 characters, the first a letter or digit, then letters, digits,
/// `-`, `_`, `.` and spaces.
///
/// # Errors
/// [`Invalid`] with field `name`.
pub fn check_project_name(text: &str) -> Result<(), Invalid> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && text.len() <= 100 && text.chars().all(inner) {
        return Ok(());
    }
    Err(Invalid {
        field: "name",
        problem: "is not a name of a project".to_owned(),
        allowed: "1 to 100 letters, digits, -, _, . and spaces, the first a letter or digit"
            .to_owned(),
    })
}

/// Checks an API key's name: 1 to 100 characters, no control characters, not only white space.
///
/// # Errors
/// [`Invalid`] with field `name`.
pub fn check_key_name(text: &str) -> Result<(), Invalid> {
    let fits = !text.trim().is_empty() && text.chars().count() <= 100;
    if fits && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Invalid {
        field: "name",
        problem: "is not a name of a key".to_owned(),
        allowed: "1 to 100 characters, no control characters".to_owned(),
    })
}
