//! Bodies that have to be JSON objects.
//!
//! A struct's derived `Deserialize` also accepts an array of its fields in order, which no dialect
//! documents: `["x"]` would be a workspace named `x`. [`Object`] accepts objects alone, and names no
//! Rust type in its complaint.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A `T` read from a JSON object and from nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::parse_json;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default)]
        sizes: Option<Object<Sizes>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sizes {
        memory: u32,
    }

    #[test]
    fn an_object_is_read_and_an_array_in_its_place_is_refused() {
        let sizes = Some(Object(Sizes { memory: 1 }));
        let read = parse_json::<Object<Body>>(br#"{"sizes":{"memory":1}}"#);
        assert_eq!(read, Ok(Object(Body { sizes })));

        for text in [&br#"[{"memory":1}]"#[..], br#"{"sizes":[1]}"#, b"7", b""] {
            let problem = parse_json::<Object<Body>>(text).expect_err("not an object");
            assert!(problem.message().ends_with("expected a JSON object"), "{problem}");
        }
        assert_eq!(parse_json::<Option<Object<Body>>>(b""), Ok(None));
    }

    #[test]
    fn the_path_to_a_wrong_field_is_kept() {
        let path = |text: &[u8]| parse_json::<Object<Body>>(text).expect_err("wrong").path_text();
        assert_eq!(path(br#"{"sizes":{"memory":"x"}}"#), "sizes.memory");
        assert_eq!(path(br#"{"sizes":{"memory":1,"color":2}}"#), "sizes.color");
        assert_eq!(path(br#"{"color":2}"#), "color");
    }
}
