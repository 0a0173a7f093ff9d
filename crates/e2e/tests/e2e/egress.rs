//! A hostile guest: a real one, with plain programs, on a network whose internet is played by a
//! namespace. What it is told counts, and what reached that internet.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use skerry_e2e::{
    Options, Server, WORKSPACES, World,
    world::{INTERNAL, METADATA, OTHER, SITE, SITE_V6},
};

const GUEST: &str = include_str!("egress_guest.py");

/// A workspace that tries things.
struct Guest<'a> {
    server: &'a Server,
    id: String,
}

impl<'a> Guest<'a> {
    async fn create(server: &'a Server, world: &World, name: &str) -> Result<Self> {
        let body = json!({ "name": name, "image": "base", "memory_mib": 256 });
        let id = server.create(body).await?;
        let guest = Self { server, id };
        for (path, text) in [("/root/try.py", GUEST), ("/root/certificate", &world.certificate()?)]
        {
            guest.run(&format!("cat > {path} <<'END'\n{text}\nEND")).await?;
        }
        Ok(guest)
    }

    async fn run(&self, script: &str) -> Result<String> {
        Ok(self.server.run(&self.id, script).await?.trim().to_owned())
    }

    /// What one of the tries of `egress_guest.py` comes to.
    async fn told(&self, what: &str) -> Result<String> {
        self.run(&format!("python3 /root/try.py {what}")).await
    }

    /// The same of one that nobody is expected to answer.
    async fn met(&self, what: &str) -> Result<String> {
        self.told(&format!("--silence {what}")).await
    }

    /// What curl prints, and how it ended if not well.
    async fn curl(&self, args: &str) -> Result<String> {
        let curl = "curl -sS --noproxy '*' --connect-timeout 60 --max-time 120";
        let args = format!("--cacert /root/certificate {args}");
        self.run(&format!("{curl} {args} 2>/dev/null || echo refused $?")).await
    }

    async fn addresses(&self, name: &str) -> Result<String> {
        self.run(&format!("getent ahostsv4 {name} | awk '{{print $1}}' | sort -u || true")).await
    }

    async fn may(&self, egress: Value) -> Result<()> {
        let path = format!("{WORKSPACES}/{}/network", self.id);
        self.server.expect(200, "PUT", &path, Some(json!({ "egress": egress }))).await?;
        Ok(())
    }
}

fn only(destinations: &[&str]) -> Value {
    let allow: Vec<Value> = destinations.iter().map(|to| json!({ "to": to })).collect();
    json!({ "internet": "nothing", "allow": allow })
}

#[tokio::test]
async fn a_guest_reaches_what_its_policy_names_and_nothing_else_however_it_tries() -> Result<()> {
    let world = World::start().await?;
    let mut options = Options::booting();
    let uplink = world.uplink();
    let arguments = ["--network", "on", "--uplink", &uplink, "--name-servers", SITE];
    options.arguments.extend(arguments.map(str::to_owned));
    options.arguments.extend(["--private-networks", "192.168.7.0/24"].map(str::to_owned));
    let server = Server::start(options).await?;
    let guest = Guest::create(&server, &world, "hostile").await?;

    names_open_what_they_name(&guest).await?;
    lies_about_names_lead_nowhere(&guest, &world).await?;
    nothing_goes_round_the_names(&guest, &world).await?;
    what_was_refused_is_told(&guest).await?;
    addresses_open_themselves_and_not_what_is_never_reached(&guest, &world).await?;
    what_is_taken_back_ends_while_it_is_used(&guest).await?;

    // Two workspaces that may reach all of the internet do not reach each other.
    let other = Guest::create(&server, &world, "neighbour").await?;
    let path = format!("{WORKSPACES}/{}/network", other.id);
    let network = server.expect(200, "GET", &path, None).await?;
    let address = network["private_address"].as_str().unwrap_or_default().to_owned();
    guest.may(json!({ "internet": "everything" })).await?;
    let serve = "mkfifo /tmp/said; setsid python3 -u -m http.server 8080 </dev/null >/tmp/said 2>&1 & \
                 read line </tmp/said; cat /tmp/said >/dev/null </dev/null & echo $line";
    ensure!(other.run(serve).await?.starts_with("Serving"), "it does not listen");
    let said = guest.curl(&format!("http://{address}:8080/")).await?;
    ensure!(said.starts_with("refused"), "a neighbour is reached: {said}");
    ensure!(guest.curl("https://other.test/").await? == "other", "the internet is not reached");

    // Nothing at all, asked for in another dialect.
    let network = format!("/workspace/{}/network", guest.id);
    let nothing = json!({ "allow_internet": false });
    server.expect(200, "PATCH", &network, Some(nothing)).await?;
    for url in ["http://site.test/", "https://site.test/", &format!("http://{SITE}/")] {
        ensure!(guest.curl(url).await?.starts_with("refused"), "{url}");
    }
    ensure!(guest.addresses("site.test").await?.is_empty(), "a name is resolved");

    ensure!(world.interfaces()?.len() == 2, "one cable: {:?}", world.interfaces()?);
    drop(guest);
    drop(other);
    server.finish().await?;
    ensure!(world.interfaces()? == ["lo"], "left in the world: {:?}", world.interfaces()?);
    Ok(())
}

async fn names_open_what_they_name(guest: &Guest<'_>) -> Result<()> {
    guest.may(only(&["site.test", "*.below.test", "rebound.test"])).await?;
    for (name, address) in [("site.test", SITE), ("a.below.test", SITE)] {
        ensure!(guest.addresses(name).await? == address, "{name}");
        for scheme in ["http", "https"] {
            let said = guest.curl(&format!("{scheme}://{name}/")).await?;
            ensure!(said == "site", "{scheme}://{name}: {said}");
        }
    }
    for name in ["other.test", "below.test", "x.site.test", "rebound.test"] {
        ensure!(guest.addresses(name).await?.is_empty(), "{name} is resolved");
    }
    let ipv6 = guest.run("getent ahostsv6 site.test | grep -v ^::ffff || true").await?;
    ensure!(ipv6.is_empty(), "{ipv6}");
    // What is resolved may be connected to at other ports, too.
    let said = guest.told(&format!("tcp {SITE} 8080")).await?;
    ensure!(said == "site hello", "{said}");
    Ok(())
}

async fn lies_about_names_lead_nowhere(guest: &Guest<'_>, world: &World) -> Result<()> {
    // Another server name, another host, none, at an address that is permitted.
    for lie in [
        format!("-k --resolve other.test:443:{SITE} https://other.test/"),
        format!("-k https://{SITE}/"),
        format!("-k https://{OTHER}/"),
        format!("-k --resolve rebound.test:443:{INTERNAL} https://rebound.test/"),
    ] {
        let said = guest.curl(&lie).await?;
        ensure!(said.starts_with("refused"), "{lie}: {said}");
    }
    for (host, at) in [("other.test", SITE), ("other.test", OTHER), (OTHER, OTHER), ("", SITE)] {
        let status = format!("-o /dev/null -w '%{{http_code}}' -H 'Host: {host}' http://{at}/");
        let said = guest.curl(&status).await?;
        ensure!(["403", "400"].contains(&said.as_str()), "{host} at {at}: {said}");
    }
    // The right name at a wrong address leads to whom it names.
    for (scheme, port) in [("http", 80), ("https", 443)] {
        let elsewhere = format!("--resolve site.test:{port}:{OTHER} {scheme}://site.test/");
        let said = guest.curl(&elsewhere).await?;
        ensure!(said == "site", "{elsewhere}: {said}");
    }
    ensure!(!world.log().contains("other"), "{}", world.log());
    Ok(())
}

async fn nothing_goes_round_the_names(guest: &Guest<'_>, world: &World) -> Result<()> {
    for (what, expected) in [
        // Directly, by an address that no name had.
        (format!("tcp {OTHER} 8080"), "EHOSTUNREACH"),
        // Another resolver, the permitted site's among them, and QUIC.
        (format!("name {OTHER} site.test"), "EHOSTUNREACH"),
        (format!("name {SITE} other.test"), "EHOSTUNREACH"),
        (format!("name {OTHER} site.test tcp"), "EHOSTUNREACH"),
        (format!("udp {SITE} 443 quic"), "EHOSTUNREACH"),
        ("name 10.0.2.1 site.test".to_owned(), "rcode 0"),
        ("name 10.0.2.1 other.test".to_owned(), "rcode 5"),
        ("name 10.0.2.1 other.test tcp".to_owned(), "rcode 5"),
        // The hub, the host behind the cable.
        ("tcp 10.201.0.1 22".to_owned(), "EHOSTUNREACH"),
    ] {
        let said = guest.told(&what).await?;
        ensure!(said == expected, "{what}: {said}");
    }
    // IPv6, with an address and a neighbour that it takes for granted.
    let station = guest.run("ip neigh show 10.0.2.1 | awk '{print $3, $5}'").await?;
    let (_, station) = station.split_once(' ').unwrap_or_default();
    let with_ipv6 = format!(
        "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0 && \
         ip -6 address add 2001:db8:18::2/64 dev eth0 nodad && \
         ip -6 neigh replace {SITE_V6} lladdr {station} dev eth0 && ip -6 route get {SITE_V6}"
    );
    ensure!(guest.run(&with_ipv6).await?.contains("eth0"), "no IPv6 to try with");
    for (what, expected) in
        [(format!("tcp {SITE_V6} 8080"), "silence"), (format!("udp {SITE_V6} 9 six"), "silence")]
    {
        let said = guest.met(&what).await?;
        ensure!(said == expected, "{what}: {said}");
    }
    let log = world.log();
    for never in ["other", "ipv6", "datagram"] {
        ensure!(!log.contains(never), "{never}:\n{log}");
    }
    ensure!(!log.contains("name other"), "{log}");
    Ok(())
}

async fn what_was_refused_is_told(guest: &Guest<'_>) -> Result<()> {
    let path = format!("{WORKSPACES}/{}/network/refusals", guest.id);
    let told = guest.server.expect(200, "GET", &path, None).await?;
    let last = told["last"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (what, name, port) in [
        ("resolution", "other.test", Value::Null),
        ("private_answer", "rebound.test", Value::Null),
        ("connection", "other.test", json!(443)),
        ("connection", "other.test", json!(80)),
    ] {
        let is_it = |one: &Value| {
            (&one["what"], &one["name"], &one["port"]) == (&json!(what), &json!(name), &port)
        };
        ensure!(last.iter().any(is_it), "{what} {name} {port}: {told}");
    }
    for counted in ["refused_packets", "dropped_frames"] {
        ensure!(told[counted].as_u64().is_some_and(|count| count > 0), "{counted}: {told}");
    }
    let log = guest.server.log();
    ensure!(log.contains("refused to a guest") && log.contains(&guest.id), "not logged:\n{log}");
    Ok(())
}

async fn addresses_open_themselves_and_not_what_is_never_reached(
    guest: &Guest<'_>,
    world: &World,
) -> Result<()> {
    let path = format!("{WORKSPACES}/{}/network", guest.id);
    let metadata = json!({ "egress": only(&[METADATA]) });
    let (status, said) = guest.server.request("PUT", &path, Some(metadata)).await?;
    ensure!(status == 400, "a metadata service can be asked for: {said}");

    // All of the internet: neither private networks nor metadata nor the own host are of it.
    guest.may(json!({ "internet": "everything" })).await?;
    let said = guest.curl(&format!("http://{OTHER}/")).await?;
    ensure!(said == "other", "{said}");
    for at in [METADATA, INTERNAL, "10.201.0.2"] {
        for port in [80, 8080] {
            let said = guest.met(&format!("tcp {at} {port}")).await?;
            ensure!(["EHOSTUNREACH", "silence"].contains(&said.as_str()), "{at}:{port}: {said}");
        }
    }
    ensure!(guest.addresses("rebound.test").await?.is_empty(), "a name leads inside");

    // A network that the operator consents to, and of it what is named.
    let to = json!({ "to": INTERNAL, "ports": "80", "transport": "tcp" });
    let udp = json!({ "to": format!("{SITE}/32"), "ports": "9", "transport": "udp" });
    guest.may(json!({ "internet": "nothing", "allow": [to, udp] })).await?;
    let said = guest.curl(&format!("http://{INTERNAL}/")).await?;
    ensure!(said == "internal", "{said}");
    let said = guest.told(&format!("tcp {INTERNAL} 8080")).await?;
    ensure!(said == "EHOSTUNREACH", "{said}");

    // Somebody else's address as its own. The one that is true is heard afterwards.
    guest
        .run("ip address add 198.18.0.9/32 dev eth0; ip address add 10.0.2.99/24 dev eth0")
        .await?;
    for own in ["198.18.0.9", "10.0.2.99"] {
        let said = guest.met(&format!("udp {SITE} 9 spoofed {own}")).await?;
        ensure!(said == "silence", "{own}: {said}");
    }
    let said = guest.told(&format!("udp {SITE} 9 true")).await?;
    ensure!(said == "true", "{said}");
    let log = world.log();
    for never in ["spoofed", "metadata"] {
        ensure!(!log.contains(never), "{never}:\n{log}");
    }
    Ok(())
}

async fn what_is_taken_back_ends_while_it_is_used(guest: &Guest<'_>) -> Result<()> {
    guest.may(only(&["site.test", "other.test"])).await?;
    let change = async {
        guest.run("until test -e /root/held; do sleep 0.1; done").await?;
        guest.may(only(&["site.test"])).await?;
        guest.run("touch /root/changed").await
    };
    let (said, _) = tokio::try_join!(guest.told("hold"), change)?;
    let said: Value = serde_json::from_str(&said)?;
    let expected = json!({
        "tls kept": "200", "line kept": "site after", "http kept": "200",
        "tls lost": "ended", "line lost": "silence", "http lost": "403",
    });
    ensure!(said == expected, "{said}");
    Ok(())
}
