//! Who calls and with which object: InstaVM accepts the key in the body, so the two are read together.

use axum::extract::{FromRequest, Request};
use serde_json::{Map, Value};
use skerry_control::{Caller, Error};
use skerry_model::ErrorKind;

use super::{
    error_body::Problem,
    validation::{FieldError, Fields},
};
use crate::{
    ApiState, Fault, auth,
    extract::{PathStep, parse_json, read_body},
};

/// Extractor: the caller and the fields of the JSON body. With a key in a header the body of a
/// stranger is not read; without one it is read for its `api_key`, and nothing is said about its
/// faults to somebody who has none.
pub(super) struct AuthenticatedBody {
    pub(super) caller: Caller,
    pub(super) fields: Fields,
}

impl FromRequest<ApiState> for AuthenticatedBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        let (caller, object) = read(request, state, object).await?;
        Ok(Self { caller, fields: Fields::new(object) })
    }
}

/// As [`AuthenticatedBody`], where every field may be left out and so the body too.
pub(super) struct AuthenticatedOptionalBody {
    pub(super) caller: Caller,
    pub(super) fields: Fields,
}

impl FromRequest<ApiState> for AuthenticatedOptionalBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        let object = |text: &[u8]| {
            if text.iter().all(u8::is_ascii_whitespace) { Ok(Map::new()) } else { object(text) }
        };
        let (caller, object) = read(request, state, object).await?;
        Ok(Self { caller, fields: Fields::new(object) })
    }
}

async fn read(
    request: Request,
    state: &ApiState,
    object: impl Fn(&[u8]) -> Result<Map<String, Value>, Problem>,
) -> Result<(Caller, Map<String, Value>), Problem> {
    let headers = request.headers().clone();
    if auth::credential(&headers, None).is_some() {
        let caller = auth::caller(state, &headers).await?;
        let object = object(&read_body(request, state).await?)?;
        return Ok((caller, object));
    }
    let object = object(&read_body(request, state).await?);
    let key = object.as_ref().ok().and_then(|fields| fields.get("api_key")?.as_str());
    let Some(key) = key else {
        return Err(Error::new(ErrorKind::Unauthenticated).into());
    };
    let caller = auth::caller_with_key(state, &headers, Some(key)).await?;
    Ok((caller, object?))
}

fn object(text: &[u8]) -> Result<Map<String, Value>, Problem> {
    let problem = |msg: &str, kind| {
        let loc = vec![PathStep::Field("body".to_owned())];
        Problem::Unprocessable(vec![FieldError { loc, msg: msg.to_owned(), kind }])
    };
    match parse_json(text).map_err(Fault::BadJson)? {
        Value::Object(fields) => Ok(fields),
        Value::Null => Err(problem("Field required", "missing")),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Err(problem(
            "Input should be a valid dictionary or object to extract fields from",
            "model_attributes_type",
        )),
    }
}
