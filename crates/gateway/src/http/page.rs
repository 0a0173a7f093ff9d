//! What a visitor sees when there is nothing to be passed on.

use axum::{body::Body, response::IntoResponse};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

/// Why there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    BadHost,
    BadMethod,
    Unknown,
    Forbidden,
    NotRunning,
    Unavailable,
    Waking,
    Busy,
    NothingListens(u16),
    NoAnswer(u16),
    TooSlow(u16),
    Internal,
}

/// In which form the visitor wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Html,
    Json,
}

impl Wanted {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accepts = |kind: &str| {
            let values = headers.get_all(header::ACCEPT).iter();
            values.filter_map(|value| value.to_str().ok()).any(|value| value.contains(kind))
        };
        if accepts("application/json") && !accepts("text/html") { Self::Json } else { Self::Html }
    }

    pub(super) fn page(self, page: Page) -> Response<Body> {
        let (status, code, title, text) = page.words();
        let mut response = match self {
            Self::Json => {
                // A question has its mark.
                let stop = if title.ends_with('?') { "" } else { "." };
                let message = format!("{title}{stop} {text}");
                let body = serde_json::json!({ "error": { "code": code, "message": message } });
                axum::Json(body).into_response()
            }
            Self::Html => axum::response::Html(html(status, title, &text)).into_response(),
        };
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        // So that a client can tell our answers from those of the server inside.
        headers.insert("x-skerry-error", HeaderValue::from_static(code));
        match page {
            Page::Waking | Page::Busy | Page::Unavailable => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Page::BadHost
            | Page::BadMethod
            | Page::Unknown
            | Page::Forbidden
            | Page::NotRunning
            | Page::NothingListens(_)
            | Page::NoAnswer(_)
            | Page::TooSlow(_)
            | Page::Internal => {}
        }
        response
    }
}

impl Page {
    /// In the form that the request's headers ask for.
    pub(super) fn answer(self, headers: &HeaderMap) -> Response<Body> {
        Wanted::of(headers).page(self)
    }

    fn words(self) -> (StatusCode, &'static str, &'static str, String) {
        let (status, code, title, text) = match self {
            Self::BadHost => (
                StatusCode::BAD_REQUEST,
                "bad_host",
                "Which host?",
                "The request names more than one host.",
            ),
            Self::BadMethod => (
                StatusCode::NOT_IMPLEMENTED,
                "bad_method",
                "Not passed on",
                "CONNECT is passed on for WebSockets alone.",
            ),
            Self::Unknown => (
                StatusCode::NOT_FOUND,
                "unknown",
                "Nothing is published here",
                "The address is wrong, or what was here has been taken away.",
            ),
            Self::Forbidden => (
                StatusCode::FORBIDDEN,
                "forbidden",
                "This is private",
                "Its owner can give you an address with a token in it.",
            ),
            Self::NotRunning => (
                StatusCode::SERVICE_UNAVAILABLE,
                "not_running",
                "The workspace does not run",
                "Visits do not wake it. Its owner can start it.",
            ),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "The workspace cannot be reached",
                "It cannot be reached or woken now. Try again in a while.",
            ),
            Self::Waking => (
                StatusCode::SERVICE_UNAVAILABLE,
                "waking",
                "The workspace is waking up",
                "It takes longer than a request can wait. Try again.",
            ),
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "Too many visitors",
                "The workspace has as many connections as it can have. Try again.",
            ),
            Self::NothingListens(port) => {
                let text = format!(
                    "The workspace runs, and no program in it listens on port {port} of \
                     localhost or of all addresses."
                );
                return (StatusCode::BAD_GATEWAY, "nothing_listens", "Nothing listens", text);
            }
            Self::NoAnswer(port) => {
                let text =
                    format!("What listens on port {port} of the workspace gave no HTTP answer.");
                return (StatusCode::BAD_GATEWAY, "no_answer", "No answer", text);
            }
            Self::TooSlow(port) => {
                let text = format!("What listens on port {port} of the workspace took too long.");
                return (StatusCode::GATEWAY_TIMEOUT, "too_slow", "No answer in time", text);
            }
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Something broke",
                "It is not your fault, and it is in the log of the server.",
            ),
        };
        (status, code, title, text.to_owned())
    }
}

/// Every word in it is our own.
fn html(status: StatusCode, title: &str, text: &str) -> String {
    let number = status.as_u16();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:32em;margin:15vh auto;\
         padding:0 1em;color:#222;background:#fff}}small{{color:#767676}}\
         @media(prefers-color-scheme:dark){{body{{color:#ddd;background:#111}}}}</style>\n\
         <h1>{title}</h1>\n<p>{text}</p>\n<small>{number} &middot; Skerry</small>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_accepts_json_and_no_html_gets_json() {
        for (accept, wanted) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", Wanted::Html),
            ("application/json", Wanted::Json),
            ("application/json, text/html", Wanted::Html),
            ("*/*", Wanted::Html),
        ] {
            let headers =
                HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(Wanted::of(&headers), wanted, "{accept}");
        }
        assert_eq!(Wanted::of(&HeaderMap::new()), Wanted::Html);
    }
}
