use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn domain() -> CustomDomain {
    CustomDomain {
        id: DomainId::from_u128(1),
        number: 0,
        account_id: AccountId::from_u128(2),
        port_id: PublishedPortId::from_u128(3),
        name: HostName::parse("www.example.com").unwrap(),
        proof: "abc".to_owned(),
        dns_provider: None,
        proven_at: None,
        certificate_not_after: None,
        failures: 0,
        last_error: None,
        next_attempt_at: None,
        created_at: at(0),
        revision: 1,
    }
}

fn certificate(from: i64, until: i64) -> KeyedCertificate {
    let key = Secret::new("the key");
    KeyedCertificate { chain: String::new(), key, not_before: at(from), not_after: at(until) }
}

#[test]
fn only_names_of_sites_that_are_not_the_servers_are_taken() {
    let ours = ["preview.test".to_owned(), "skerry.example.com".to_owned()];
    for (text, name) in [
        ("www.Example.com.", "www.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("notpreview.test", "notpreview.test"),
    ] {
        assert_eq!(check_domain_name(text, &ours).unwrap().as_str(), name);
    }
    let long = format!("{}example.com", "a.".repeat(120));
    for bad in [
        "localhost",
        "",
        "127.0.0.1",
        "*.example.com",
        "_acme-challenge.example.com",
        "a b.example.com",
        "preview.test",
        "x.preview.test",
        "skerry.example.com",
        "https://example.com",
        "example.com:443",
        &long,
    ] {
        assert_eq!(check_domain_name(bad, &ours).unwrap_err().field, "domain", "{bad}");
    }
}

#[test]
fn a_name_is_proven_by_its_own_text_alone() {
    let domain = domain();
    assert_eq!(domain.challenge_name(), "_skerry-challenge.www.example.com");
    let texts = |text: &str| [text.to_owned(), "v=spf1 -all".to_owned()];
    assert!(domain.is_proven_by(&texts("skerry-domain-verification=abc")));
    for wrong in ["", "abc", "skerry-domain-verification=abcd", "skerry-domain-verification="] {
        assert!(!domain.is_proven_by(&texts(wrong)), "{wrong}");
    }
}

#[test]
fn a_domain_goes_from_pending_over_verified_to_issued_and_back_when_its_certificate_ends() {
    let mut domain = domain();
    domain.miss_proof("no such\u{7} name");
    assert_eq!(domain.state(at(1)), DomainState::Pending);
    assert_eq!(domain.last_error.as_deref(), Some("no such name"));
    assert!(!domain.is_due(at(1)));
    domain.prove(at(2), Issuance::Automatic);
    assert_eq!((domain.state(at(2)), domain.last_error.clone()), (DomainState::Verified, None));
    assert!(domain.is_due(at(2)));
    domain.fail_issue("refused", at(3));
    assert_eq!(domain.state(at(3)), DomainState::Failed);
    assert!(!domain.is_due(at(4)));
    domain.issue(&certificate(0, 90_000), at(5));
    assert_eq!((domain.failures, domain.state(at(5))), (0, DomainState::Issued));
    assert_eq!(domain.next_attempt_at, Some(at(60_000)));
    domain.fail_issue("refused", at(60_000));
    assert_eq!(domain.state(at(60_001)), DomainState::Issued, "while the one before is good");
    assert_eq!(domain.state(at(90_000)), DomainState::Failed);
}

#[test]
fn without_automatic_certificates_none_is_ever_due() {
    let mut domain = domain();
    domain.prove(at(2), Issuance::None);
    assert_eq!((domain.state(at(2)), domain.next_attempt_at), (DomainState::Verified, None));
}

#[test]
fn pauses_between_failures_grow_to_half_a_day() {
    let mut domain = domain();
    domain.prove(at(0), Issuance::Automatic);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        domain.fail_issue("refused", at(0));
        pauses.push(domain.next_attempt_at.unwrap().as_second() / 60);
    }
    assert_eq!(pauses, [4, 8, 16, 32, 64, 128, 256, 512, 720, 720, 720, 720]);
    domain.failures = u32::MAX;
    domain.fail_issue("refused", at(0));
    assert_eq!(domain.next_attempt_at, Some(at(12 * 3600)));
}

#[test]
fn a_certificate_that_is_nearly_over_is_renewed_after_a_pause() {
    let mut domain = domain();
    domain.prove(at(0), Issuance::Automatic);
    domain.issue(&certificate(0, 90), at(80));
    assert_eq!(domain.next_attempt_at, Some(at(140)));
}

#[test]
fn whoever_asks_again_and_again_gets_one_attempt_a_minute() {
    let mut domain = domain();
    domain.prove(at(0), Issuance::Automatic);
    domain.fail_issue("refused", at(0));
    domain.hurry(at(10));
    assert_eq!(domain.state(at(10)), DomainState::Verified);
    domain.hurry(at(20));
    assert_eq!(domain.next_attempt_at, Some(at(70)));
    domain.issue(&certificate(0, 90_000), at(70));
    domain.hurry(at(80));
    assert_eq!(domain.next_attempt_at, Some(at(60_000)), "there is one");
}

#[test]
fn a_key_is_not_printed() {
    assert!(!format!("{:?}", certificate(0, 1)).contains("the key"));
}
