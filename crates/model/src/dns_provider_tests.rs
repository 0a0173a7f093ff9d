use super::*;

const UPDATES: [(&str, &str); 3] = [
    ("RFC2136_NAMESERVER", "ns.example.com"),
    ("RFC2136_TSIG_KEY", "acme."),
    ("RFC2136_TSIG_SECRET", "c2VjcmV0"),
];

fn access(kind: DnsProviderKind, said: &[(&str, &str)]) -> Result<DnsAccess, Invalid> {
    let said = said.iter().map(|(key, value)| ((*key).to_owned(), Secret::new(*value)));
    DnsAccess::new(kind, said.collect())
}

fn updates(more: &[(&str, &str)]) -> Result<DynamicUpdates, Invalid> {
    let said = [UPDATES.as_slice(), more].concat();
    match access(DnsProviderKind::Rfc2136, &said)?.provider()? {
        DnsProvider::Rfc2136(updates) => Ok(updates),
        DnsProvider::Cloudflare(_) => panic!("another provider"),
    }
}

#[test]
fn dynamic_updates_are_signed_with_a_key_that_has_a_name() {
    let found = updates(&[]).unwrap();
    assert_eq!(found.server.to_string(), "ns.example.com:53");
    assert_eq!((found.key_name.as_str(), found.key.expose()), ("acme", "c2VjcmV0"));
    assert_eq!((found.algorithm, found.zone), (TsigAlgorithm::HmacSha256, None));
    assert_eq!(found.settle, Duration::from_secs(10));
    let found = updates(&[
        ("RFC2136_TSIG_ALGORITHM", "hmac-sha512."),
        ("RFC2136_ZONE", "Example.com"),
        ("RFC2136_PROPAGATION_SECONDS", "0"),
    ]);
    let found = found.unwrap();
    assert_eq!(found.algorithm, TsigAlgorithm::HmacSha512);
    assert_eq!(found.zone.unwrap().as_str(), "example.com");
    assert_eq!(found.settle, Duration::ZERO);
}

#[test]
fn a_name_server_is_a_name_or_an_address_with_a_port_or_without() {
    for (text, is) in [
        ("ns.example.com:5353", "ns.example.com:5353"),
        ("192.0.2.1", "192.0.2.1:53"),
        ("192.0.2.1:5353", "192.0.2.1:5353"),
        ("2001:db8::1", "[2001:db8::1]:53"),
        ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
    ] {
        assert_eq!(NameServer::parse(text).unwrap().to_string(), is);
    }
    for text in
        ["", ":53", "ns.example.com:0", "ns.example.com:x", "[::1]", "a b", "[ns]:53", "1.2"]
    {
        assert_eq!(NameServer::parse(text), None, "{text}");
    }
}

#[test]
fn what_is_missing_wrong_or_not_known_is_refused_without_being_repeated() {
    let secret = "hunter2hunter2";
    for (more, problem) in [
        (("RFC2136_TSIG_ALGORITHM", "hmac-md5"), "RFC2136_TSIG_ALGORITHM is not acceptable"),
        (("RFC2136_PROPAGATION_SECONDS", "301"), "RFC2136_PROPAGATION_SECONDS is not acceptable"),
        ((secret, "RFC2136_ZONE"), "1 of the entries are not known"),
    ] {
        let refused = updates(&[more]).unwrap_err();
        assert_eq!((refused.field, refused.problem.as_str()), ("dns_credentials", problem));
        assert!(!refused.to_string().contains(secret));
    }
    for missing in 0..UPDATES.len() {
        let mut said = UPDATES.to_vec();
        let (key, _) = said.remove(missing);
        let refused = access(DnsProviderKind::Rfc2136, &said).unwrap_err();
        assert_eq!(refused.problem, format!("{key} is missing"));
    }
    for wrong in ["", "c2VjcmV", "c2Vj!mV0", "====", "c2VjcmV0\n"] {
        let said = [UPDATES[0], UPDATES[1], ("RFC2136_TSIG_SECRET", wrong)];
        let refused = access(DnsProviderKind::Rfc2136, &said).unwrap_err();
        assert_eq!(refused.problem, "RFC2136_TSIG_SECRET is not acceptable", "{wrong:?}");
    }
}

#[test]
fn a_token_of_cloudflare_is_what_can_stand_in_a_header() {
    let with = |token| access(DnsProviderKind::Cloudflare, &[("CLOUDFLARE_API_TOKEN", token)]);
    let DnsProvider::Cloudflare(found) = with("abc_123").unwrap().provider().unwrap() else {
        panic!("another provider")
    };
    assert_eq!(found.token.expose(), "abc_123");
    for wrong in ["", "two words", "a\r\nb", &"x".repeat(513)] {
        assert_eq!(with(wrong).unwrap_err().field, "dns_credentials");
    }
    access(DnsProviderKind::Cloudflare, &[]).unwrap_err();
}

#[test]
fn an_unknown_provider_is_told_which_there_are() {
    let refused = DnsProviderKind::parse("route53").unwrap_err();
    assert_eq!((refused.field, refused.allowed.as_str()), ("dns_provider", "cloudflare, rfc2136"));
    for kind in DnsProviderKind::ALL {
        assert_eq!(DnsProviderKind::parse(kind.as_str()), Ok(kind));
    }
}

#[test]
fn what_was_said_is_in_no_log() {
    let access = access(DnsProviderKind::Cloudflare, &[("CLOUDFLARE_API_TOKEN", "hunter2")]);
    let access = access.unwrap();
    let shown = format!("{access:?} {:?}", access.provider().unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(!shown.contains("TOKEN"), "{shown}");
}
