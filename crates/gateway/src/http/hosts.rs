//! Which requests are visits: told by the host alone.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Request, header, uri::Authority};
use skerry_internal_api::{PreviewAddress, RESERVED_LABELS};
use skerry_model::HostName;

use crate::domains::ServedNames;

/// How visitors reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Encrypted, here or by a proxy in front.
    Https,
}

impl Scheme {
    /// As in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The hosts under which ports are visited.
#[derive(Clone, Debug)]
pub struct PreviewHosts {
    /// Ports are labels directly below these, lower case.
    pub domains: Vec<String>,
    /// Hosts below those domains that are the server's own, lower case; beside the
    /// [`RESERVED_LABELS`] below each.
    pub own: Vec<String>,
    /// Names that people have brought.
    pub brought: Arc<ServedNames>,
    /// How visitors reach the listener in the clear, as servers inside are told: a proxy in front may
    /// have encrypted.
    pub scheme: Scheme,
}

/// What a host leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meant {
    /// A label below our domains.
    Label(String),
    /// A name somebody has brought.
    Domain(HostName),
}

impl Meant {
    /// The port; `None` if the label can be none's.
    pub(super) fn address(self) -> Option<PreviewAddress> {
        match self {
            Self::Label(label) => PreviewAddress::parse(&label),
            Self::Domain(name) => Some(PreviewAddress::Domain(name)),
        }
    }
}

/// What the host of a request says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A port.
    Preview {
        /// Which.
        meant: Meant,
        /// The host as it was sent, with its port.
        host: HeaderValue,
    },
    /// More than one host, one of them a port's: the two sides of a proxy could take different ones.
    Ambiguous,
    /// The server's own.
    Other,
}

impl PreviewHosts {
    pub(super) fn named(&self, request: &Request<Body>) -> Named {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let target = request.uri().authority().map(Authority::as_str);
        let (first, second) = (hosts.next(), hosts.next());
        let of_target = target.and_then(|text| self.meant(text));
        let of_header = |value: &HeaderValue| value.to_str().ok().and_then(|text| self.meant(text));
        if second.is_some() {
            let mut all = request.headers().get_all(header::HOST).iter();
            let touches_us = of_target.is_some() || all.any(|value| of_header(value).is_some());
            return if touches_us { Named::Ambiguous } else { Named::Other };
        }
        let of_header = first.and_then(of_header);
        let agree = match (target, first) {
            (Some(target), Some(host)) => target.as_bytes().eq_ignore_ascii_case(host.as_bytes()),
            (None, _) | (_, None) => true,
        };
        if !agree && (of_target.is_some() || of_header.is_some()) {
            return Named::Ambiguous;
        }
        let host = target.and_then(|text| HeaderValue::from_str(text).ok()).or(first.cloned());
        match (of_target.or(of_header), host) {
            (Some(meant), Some(host)) => Named::Preview { meant, host },
            (None, _) | (_, None) => Named::Other,
        }
    }

    /// What a port's host leads to.
    fn meant(&self, authority: &str) -> Option<Meant> {
        let authority: Authority = authority.parse().ok()?;
        // Credentials in front of a host are nobody's.
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let label = self.domains.iter().find_map(|domain| {
            let label = host.strip_suffix(domain)?.strip_suffix('.')?;
            (!label.is_empty() && !label.contains('.')).then_some(label)
        });
        let Some(label) = label else { return self.brought.find(&host).map(Meant::Domain) };
        let is_own = RESERVED_LABELS.contains(&label) || self.own.contains(&host);
        (!is_own).then(|| Meant::Label(label.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brought() -> Arc<ServedNames> {
        let names = ServedNames::default();
        names.replace([HostName::parse("www.example.com").unwrap()].into());
        Arc::new(names)
    }

    fn hosts() -> PreviewHosts {
        PreviewHosts {
            domains: vec!["localhost".to_owned(), "preview.localhost".to_owned()],
            own: vec!["box.localhost".to_owned()],
            brought: brought(),
            scheme: Scheme::Http,
        }
    }

    fn named(uri: &str, sent: &[&str]) -> Named {
        let mut request = Request::builder().uri(uri);
        for host in sent {
            request = request.header("host", *host);
        }
        hosts().named(&request.body(Body::empty()).unwrap())
    }

    fn preview(label: &str, host: &'static str) -> Named {
        let meant = Meant::Label(label.to_owned());
        Named::Preview { meant, host: HeaderValue::from_static(host) }
    }

    #[test]
    fn a_name_that_was_brought_is_a_port_and_what_is_below_it_is_not() {
        let name = HostName::parse("www.example.com").unwrap();
        for host in ["www.example.com", "WWW.Example.com.:70"] {
            let meant = Meant::Domain(name.clone());
            let host_value = HeaderValue::from_static(host);
            assert_eq!(named("/", &[host]), Named::Preview { meant, host: host_value }, "{host}");
        }
        for host in ["example.com", "a.www.example.com", "www.example.com.evil.test"] {
            assert_eq!(named("/", &[host]), Named::Other, "{host}");
        }
        assert_eq!(named("http://localhost/", &["www.example.com"]), Named::Ambiguous);
        assert_eq!(named("/", &["www.example.com", "localhost"]), Named::Ambiguous);
    }

    #[test]
    fn a_label_below_the_domain_is_a_port_in_any_case_and_with_any_port() {
        assert_eq!(named("/", &["blog.localhost"]), preview("blog", "blog.localhost"));
        assert_eq!(named("/", &["Blog.LocalHost.:70"]), preview("blog", "Blog.LocalHost.:70"));
        assert_eq!(named("/", &["b.preview.localhost"]), preview("b", "b.preview.localhost"));
        let sent = named("http://blog.localhost:70/x", &["blog.localhost:70"]);
        assert_eq!(sent, preview("blog", "blog.localhost:70"));
        assert_eq!(named("http://blog.localhost/x", &[]), preview("blog", "blog.localhost"));
    }

    #[test]
    fn every_other_host_is_the_servers_own() {
        for host in [
            "localhost",
            "localhost:70",
            "oblien.localhost",
            "api.localhost",
            "box.localhost",
            "a.b.localhost",
            "blog.localhost.example.com",
            "bloglocalhost",
            "user@blog.localhost",
            "127.0.0.1",
            "[::1]:70",
            "",
        ] {
            assert_eq!(named("/", &[host]), Named::Other, "{host}");
        }
        assert_eq!(named("/", &[]), Named::Other);
        assert_eq!(named("/", &["localhost", "localhost"]), Named::Other);
    }

    #[test]
    fn two_hosts_of_which_one_is_a_ports_are_none() {
        assert_eq!(named("/", &["localhost", "blog.localhost"]), Named::Ambiguous);
        assert_eq!(named("/", &["blog.localhost", "blog.localhost"]), Named::Ambiguous);
        assert_eq!(named("http://blog.localhost/", &["localhost"]), Named::Ambiguous);
        assert_eq!(named("http://localhost/", &["blog.localhost"]), Named::Ambiguous);
    }
}
