//! Reads the fields of a JSON object the way InstaVM's server does (FastAPI with Pydantic): every bad
//! field is reported, with where it is, a sentence and a type. `null` is absence; numbers may be
//! written as text.

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::error_body::Problem;
use crate::extract::PathStep;

/// One field that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldError {
    pub(super) loc: Vec<PathStep>,
    pub(super) msg: String,
    pub(super) kind: &'static str,
}

impl FieldError {
    /// A field of the body that is wrong in its own way.
    pub(super) fn in_body(name: &str, msg: &str) -> Self {
        let loc = vec![PathStep::Field("body".to_owned()), PathStep::Field(name.to_owned())];
        Self { loc, msg: msg.to_owned(), kind: "value_error" }
    }

    /// An error in a query parameter.
    pub(super) fn in_query(name: &str, msg: &str, kind: &'static str) -> Self {
        let loc = vec![PathStep::Field("query".to_owned()), PathStep::Field(name.to_owned())];
        Self { loc, msg: msg.to_owned(), kind }
    }
}

/// The fields of a body, read one by one; [`Fields::finish`] says whether all of them fitted.
pub(super) struct Fields {
    object: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    pub(super) fn new(object: Map<String, Value>) -> Self {
        Self { object, errors: Vec::new() }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    fn error(&mut self, path: &[PathStep], msg: impl Into<String>, kind: &'static str) {
        let mut loc = vec![PathStep::Field("body".to_owned())];
        loc.extend_from_slice(path);
        self.errors.push(FieldError { loc, msg: msg.into(), kind });
    }

    fn field_error(&mut self, name: &str, msg: impl Into<String>, kind: &'static str) {
        self.error(&[PathStep::Field(name.to_owned())], msg, kind);
    }

    /// Whether a field is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(|value| !value.is_null())
    }

    /// Notes that a field is required and not there.
    pub(super) fn missing(&mut self, name: &str) {
        self.field_error(name, "Field required", "missing");
    }

    /// Notes that a field is wrong in its own way.
    pub(super) fn refuse(&mut self, name: &str, msg: &str) {
        self.field_error(name, msg, "value_error");
    }

    /// Notes that a field of an object is wrong in its own way.
    pub(super) fn refuse_within(&mut self, name: &str, inner: &str, msg: &str) {
        let path = [PathStep::Field(name.to_owned()), PathStep::Field(inner.to_owned())];
        self.error(&path, msg, "value_error");
    }

    /// A whole number within a range.
    pub(super) fn integer(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(name)?;
        let number = match &value {
            Value::Number(number) => number.as_i64().or_else(|| {
                let float = number.as_f64()?;
                let whole = float.fract() == 0.0 && float.abs() <= 9e15;
                // Whole and small enough: the conversion loses nothing.
                whole.then_some(float as i64)
            }),
            Value::String(text) => text.trim().parse::<i64>().ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let Some(number) = number else {
            self.field_error(name, "Input should be a valid integer", "int_type");
            return None;
        };
        match u64::try_from(number) {
            Ok(number) if range.contains(&number) => Some(number),
            Ok(number) if number > *range.end() => {
                let msg = format!("Input should be less than or equal to {}", range.end());
                self.field_error(name, msg, "less_than_equal");
                None
            }
            Ok(_) | Err(_) => {
                let msg = format!("Input should be greater than or equal to {}", range.start());
                self.field_error(name, msg, "greater_than_equal");
                None
            }
        }
    }

    /// A boolean, or a word that stands for one.
    pub(super) fn boolean(&mut self, name: &str) -> Option<bool> {
        let value = self.take(name)?;
        let read = match &value {
            Value::Bool(value) => Some(*value),
            Value::String(word) => parse_boolean(word),
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
        };
        if read.is_none() {
            self.field_error(name, "Input should be a valid boolean", "bool_type");
        }
        read
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => {
                self.field_error(name, "Input should be a valid string", "string_type");
                None
            }
        }
    }

    /// An object.
    pub(super) fn object(&mut self, name: &str) -> Option<Map<String, Value>> {
        match self.take(name)? {
            Value::Object(fields) => Some(fields),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::String(_) => {
                self.field_error(name, "Input should be a valid dictionary", "dict_type");
                None
            }
        }
    }

    /// An object whose values are texts. A value is not repeated: it may be a secret.
    pub(super) fn texts(&mut self, name: &str) -> Option<BTreeMap<String, String>> {
        let fields = self.object(name)?;
        let mut texts = BTreeMap::new();
        for (key, value) in fields {
            if let Value::String(text) = value {
                texts.insert(key, text);
            } else {
                let path = [PathStep::Field(name.to_owned()), PathStep::Field(key)];
                self.error(&path, "Input should be a valid string", "string_type");
            }
        }
        Some(texts)
    }

    /// A list.
    pub(super) fn list(&mut self, name: &str) -> Option<Vec<Value>> {
        match self.take(name)? {
            Value::Array(items) => Some(items),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Object(_)
            | Value::String(_) => {
                self.field_error(name, "Input should be a valid list", "list_type");
                None
            }
        }
    }

    /// All is well, or every field that is not.
    pub(super) fn finish(self) -> Result<(), Problem> {
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::Unprocessable(self.errors)) }
    }
}

/// The words for true and false that InstaVM's server understands.
pub(super) fn parse_boolean(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}
