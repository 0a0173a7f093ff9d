use clap::Parser;
use skerry_gateway::domains::AcmeChallenge;

use super::*;

/// `skerry serve` as far as settings go.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// The settings of one setting.
fn file(text: &str) -> Settings {
    toml::from_str(text).unwrap()
}

fn problem(text: &str) -> String {
    format!("{:#}", file(text).resolve().unwrap_err())
}

/// What [`Settings::from_file`] says to a file with this text.
fn file_problem(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skerry.toml");
    std::fs::write(&path, text).unwrap();
    let error = format!("{:#}", Settings::from_file(&path).unwrap_err());
    error.replace(&format!("{}", path.display()), "FILE")
}

#[test]
fn a_flag_is_stronger_than_the_file_and_the_file_than_the_default() {
    let flags = Flags::try_parse_from(["skerry", "--default-image", "node-20"]).unwrap().settings;
    let file = file("default_image = 'base'\nbase_domain = 'example.test'\non_shutdown = 'stop'");
    let config = flags.or(file).resolve().unwrap();
    assert_eq!(config.default_image, "node-20");
    assert_eq!(config.base_domain, "example.test");
    assert_eq!(config.on_shutdown, OnShutdown::Stop);
    assert_eq!(config.listen.to_string(), "127.0.0.1:7070");
}

#[test]
fn the_kernel_can_be_chosen_and_is_the_small_one_if_present_otherwise() {
    let kernel = |text: &str| file(text).resolve().unwrap().kernel;
    assert_eq!(kernel(""), KernelChoice::Auto);
    assert_eq!(kernel("kernel = 'distribution'"), KernelChoice::Distribution);
    assert_eq!(kernel("kernel = 'small'"), KernelChoice::Small);
    assert!(file_problem("kernel = 'large'").contains("distribution"));
}

#[test]
fn tls_is_spoken_with_a_certificate_or_not_at_all() {
    let all = "tls_listen = '127.0.0.1:0'\ntls_cert = '/c.pem'\ntls_key = '/k.pem'";
    let tls = file(all).resolve().unwrap().tls.unwrap();
    assert_eq!(tls.listen.to_string(), "127.0.0.1:0");
    assert_eq!(tls.certificate.unwrap().key, Path::new("/k.pem"));
    for none in ["", "tls_listen = ''"] {
        assert_eq!(file(none).resolve().unwrap().tls, None);
    }
    assert!(problem("tls_listen = '127.0.0.1:0'").contains("tls_cert"));
    assert!(problem("tls_listen = '443'").contains("0.0.0.0:443"));
    assert!(problem("tls_cert = 'c.pem'").contains("together"));
    assert!(problem("tls_cert = 'c.pem'\ntls_key = 'k.pem'").contains("without tls_listen"));
}

#[test]
fn certificates_are_got_from_an_acme_server_that_is_named_and_shown_on_the_encrypted_listener() {
    let all = "tls_listen = '127.0.0.1:0'\nacme_directory = 'https://ca.test/dir'\n\
               acme_contact = 'ops@example.com'\nacme_challenge = 'tls-alpn-01'";
    let with_networks = format!("{all}\ndns_update_networks = ['10.1.0.0/16']");
    let config = file(&with_networks).resolve().unwrap();
    assert_eq!(config.tls.unwrap().certificate, None);
    let acme = config.acme.unwrap();
    assert_eq!((acme.challenge, acme.root), (AcmeChallenge::TlsAlpn01, None));
    assert_eq!(acme.update_networks, ["10.1.0.0/16".parse().unwrap()]);
    assert!(problem(&with_networks.replace("/16", "/33")).contains("dns_update_networks"));
    assert!(problem("dns_update_networks = []").contains("without acme_directory"));
    assert!(problem("acme_directory = 'https://ca.test/dir'").contains("tls_listen"));
    assert!(problem("acme_directory = 'http://ca.test/dir'").contains("https://"));
    assert!(problem("acme_contact = 'a@b'").contains("without acme_directory"));
    assert!(problem(&all.replace("ops@example.com", "ops")).contains("e-mail"));
    assert!(file_problem("acme_challenge = 'dns-01'").contains("http-01"));
}

#[test]
fn there_is_no_way_out_unless_one_is_chosen_and_what_it_opens_is_checked() {
    let uplink = |text: &str| file(text).resolve().unwrap().uplink;
    assert_eq!(uplink("").choice, UplinkChoice::None);
    let chosen = uplink(
        "uplink = 'netns:world'\nprivate_networks = ['192.168.7.0/24']\nname_servers = ['198.18.0.1']",
    );
    assert_eq!(chosen.choice, UplinkChoice::Namespace("world".to_owned()));
    assert_eq!(chosen.private_networks[0].to_string(), "192.168.7.0/24");
    assert_eq!(chosen.name_servers[0].to_string(), "198.18.0.1");
    for (setting, bad) in [
        ("uplink", "'a/b'"),
        ("private_networks", "['198.18.0.0/24']"),
        ("private_networks", "['169.254.0.0/16']"),
        ("name_servers", "['ns.example.org']"),
    ] {
        let refused = file(&format!("{setting} = {bad}")).resolve().unwrap_err();
        assert!(refused.to_string().starts_with(&format!("{setting}: ")), "{refused}");
    }
}

#[test]
fn workspaces_have_no_network_unless_it_is_switched_on_and_its_prefix_is_one() {
    let network = |text: &str| {
        let config = file(text).resolve().unwrap();
        (config.network, config.network_prefix.to_string())
    };
    assert_eq!(network(""), (NetworkChoice::Off, "10.201.0.0/16".to_owned()));
    let chosen = network("network = 'on'\nnetwork_prefix = '172.20.0.0/24'");
    assert_eq!(chosen, (NetworkChoice::On, "172.20.0.0/24".to_owned()));
    for bad in ["10.0.0.0/8", "10.201.0.1/16", "everywhere"] {
        let refused = file(&format!("network_prefix = '{bad}'")).resolve().unwrap_err();
        assert!(refused.to_string().starts_with("network_prefix: "), "{refused}");
    }
    assert!(file_problem("network = 'yes'").contains("on"));
}

#[test]
fn templates_are_of_the_plans_default_size_unless_they_say_otherwise() {
    let config = file(
        "pool_max_warm = 0\n[[templates]]\nimage = 'base'\n\
         [[templates]]\nimage = 'node-20'\nmemory_mib = 2048\ncpu_kind = 'performance'",
    );
    let config = config.resolve().unwrap();
    assert_eq!((config.template_budget_mib, config.pool_max_warm), (4096, 0));
    let shapes: Vec<_> = config
        .templates
        .iter()
        .map(|template| template.shape(None))
        .map(|shape| (shape.vcpu_count.get(), shape.memory_mib.get(), shape.disk_mib.get()))
        .collect();
    assert_eq!(shapes, [(1, 512, 1024), (1, 2048, 1024)]);
    let plan = default_plan(4, 256, 100_000);
    assert_eq!(config.templates[0].shape(Some(&plan)).memory_mib.get(), 256);
    assert!(file_problem("[[templates]]\nimages = 'base'").contains("image"));
}

/// Runs this test binary again with another environment: the process's own is shared by all tests.
fn in_environment(test: &str, variables: &[(&str, &str)]) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("config::tests::{test}"), "--ignored", "--nocapture"])
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

#[test]
fn the_environment_is_stronger_than_the_file_and_weaker_than_a_flag() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("skerry.toml");
    std::fs::write(&file, "default_image = 'of-file'\nbase_domain = 'file.test'\nuid_count = 7")
        .unwrap();
    let variables = [
        ("SKERRY_DEFAULT_IMAGE", "of-environment"),
        ("SKERRY_BASE_DOMAIN", "environment.test"),
        ("SKERRY_BOOTSTRAP_KEY", "sk_of_the_environment"),
        ("SKERRY_CONFIG", file.to_str().unwrap()),
    ];
    in_environment("within_that_environment", &variables);
    in_environment("within_an_environment_with_an_error", &[("SKERRY_LISTEN", "nowhere")]);
}

#[test]
#[ignore = "run by the_environment_is_stronger_than_the_file_and_weaker_than_a_flag"]
fn within_that_environment() {
    let without_flags = Settings::from_environment().unwrap().resolve().unwrap();
    assert_eq!(without_flags.default_image, "of-environment");
    assert_eq!(without_flags.uid_count, 7);
    assert_eq!(without_flags.bootstrap_key.unwrap().expose(), "sk_of_the_environment");

    let flags = Flags::try_parse_from(["skerry", "--default-image", "of-flag"]).unwrap().settings;
    let path = PathBuf::from(std::env::var_os("SKERRY_CONFIG").unwrap());
    let config = flags.or(Settings::from_file(&path).unwrap()).resolve().unwrap();
    assert_eq!(config.default_image, "of-flag");
    assert_eq!(config.base_domain, "environment.test");
    assert_eq!(config.uid_count, 7);
}

#[test]
#[ignore = "run by the_environment_is_stronger_than_the_file_and_weaker_than_a_flag"]
fn within_an_environment_with_an_error() {
    let error = format!("{:#}", Settings::from_environment().unwrap_err());
    assert!(error.contains("nowhere") && error.contains("SKERRY_"), "{error}");
}

#[test]
fn the_help_shows_no_value_of_the_key_in_the_environment() {
    let command = <Flags as clap::CommandFactory>::command();
    let key = command.get_arguments().find(|argument| argument.get_id() == "bootstrap_key");
    assert!(key.unwrap().is_hide_env_values_set());
}

#[test]
fn a_name_the_file_misspells_is_refused_with_its_line() {
    let error = file_problem("listen = '127.0.0.1:1'\ndate_dir = 'x'");
    assert!(error.contains("FILE, line 2") && error.contains("date_dir"), "{error}");
    let error = file_problem("listen = 'nowhere'");
    assert!(error.contains("FILE, line 1") && error.contains("socket address"), "{error}");
}

#[test]
fn a_file_that_does_not_parse_is_told_without_showing_the_key_in_it() {
    for text in [
        "bootstrap_key = sk_hunter2_hunter2",
        "bootstrap_key = 'sk_hunter2_hunter2",
        "bootstrap_key = 'sk_hunter2_hunter2' x",
        "bootstrap_key = ['sk_hunter2_hunter2']",
        "bootstrap_key = 2222222222",
        "bootstrap_key = 2222222222.5",
        "bootstrap_key = 'sk_hunter2_hunter2'\nbootstrap_key = 'sk_hunter2_hunter2'",
    ] {
        let error = file_problem(text);
        assert!(error.contains("FILE, line "), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("2222"), "{text}: {error}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = format!("{:#}", Settings::from_file(Path::new("/nowhere/s.toml")).unwrap_err());
    assert!(error.contains("/nowhere/s.toml"), "{error}");
}

#[test]
fn a_bootstrap_key_that_cannot_be_sent_is_refused_without_printing_it() {
    for key in ["hunter2 hunter2", "hunter2\n", "h\u{fc}nter2", "", &"hunter2".repeat(40)] {
        let key: KeyText = key.parse().unwrap();
        let settings = Settings { bootstrap_key: Some(key), ..Settings::default() };
        assert!(!format!("{settings:?}").contains("nter2"));
        let error = settings.resolve().unwrap_err().to_string();
        assert!(error.contains("without spaces") && !error.contains("nter2"), "{error}");
    }
}

#[test]
fn the_resolved_configuration_shows_no_key_when_it_is_logged() {
    let config = file("bootstrap_key = 'sk_hunter2_hunter2'").resolve().unwrap();
    assert_eq!(config.bootstrap_key.as_ref().unwrap().expose(), "sk_hunter2_hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn values_that_cannot_work_are_refused_with_what_is_allowed() {
    for (text, expected) in [
        ("uid_base = 0", "uid_base must be at least 1000"),
        ("uid_base = 4294967000\nuid_count = 1000", "below 2^32"),
        ("boot_timeout_seconds = 0", "boot_timeout_seconds must be 1 to 3600 seconds"),
        ("stop_grace_seconds = 9223372036854775807", "stop_grace_seconds must be 0 to 3600"),
        ("base_domain = 'http://example.test'", "base_domain must be a domain name"),
        ("base_domain = 'localhost:7070'", "base_domain must be a domain name"),
        ("base_domain = ''", "base_domain must be a domain name"),
        ("public_url = 'example.test'", "public_url must be http:// or https://"),
        ("public_url = 'https://example.test/path'", "public_url must be"),
        ("public_url = 'https://user@example.test'", "public_url must be"),
        ("public_url = 'https:///'", "public_url must be"),
    ] {
        let problem = problem(text);
        assert!(problem.contains(expected), "{text}: {problem}");
    }
    let fine = "public_url = 'https://[::1]:8443/'\nbase_domain = 'a-1.example'\nuid_base = 1000";
    assert_eq!(file(fine).resolve().unwrap().public_url.unwrap(), "https://[::1]:8443");
}

#[test]
fn paths_are_absolute_and_images_are_below_the_data_directory_unless_told_otherwise() {
    let config = file("data_dir = 'here'\nmemory_dir = 'there'").resolve().unwrap();
    let working_dir = std::env::current_dir().unwrap();
    assert_eq!(config.data_dir, working_dir.join("here"));
    assert_eq!(config.image_dir, working_dir.join("here/images"));
    assert_eq!(config.memory_dir.unwrap(), working_dir.join("there"));
    let config = file("data_dir = '/d'\nimage_dir = '/i'").resolve().unwrap();
    assert_eq!((config.data_dir, config.image_dir), ("/d".into(), "/i".into()));
    let empty = file("data_dir = ''").resolve();
    assert!(empty.is_err());
}

#[test]
fn the_default_plan_fits_its_host_however_small_or_large() {
    let plan = default_plan(2, 24_000, 80_000);
    assert_eq!(plan.memory_mib.max, 24_000);
    assert_eq!(plan.disk_mib.max, 80_000);
    assert_eq!(plan.running_pool.memory_mib, 24_000);
    for (cpus, memory_mib, disk_mib) in
        [(1, 0, 0), (1, 100, 300), (1, 511, 1023), (1024, 8_000_000, u64::MAX)]
    {
        let plan = default_plan(cpus, memory_mib, disk_mib);
        plan.check().unwrap_or_else(|problem| panic!("{memory_mib} {disk_mib}: {problem}"));
    }
}
