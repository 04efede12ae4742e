//! What a guest can reach: the outside as its policy says, and never its host, its neighbours or what is link-local.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wrenn_tests::graphql::Client;
use wrenn_tests::outside::{Outside, PORT};
use wrenn_tests::stack::{CapsuleRecord, Stack};
use wrenn_tests::wait;

/// Where envd listens in every guest.
const ENVD_PORT: u16 = wrenn_proto::ENVD_PORT;

/// What a guest waits for an answer; one that comes at all comes at once.
const GUEST_PATIENCE_SEC: u32 = 3;

/// On a busy machine the way may take a moment to be open.
const OPEN: Duration = Duration::from_secs(30);

pub async fn the_outside_is_reached_as_the_policy_says(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let outside = Outside::start(stack.scope())?;
    let [one, two] = outside.addresses;
    let both = format!("{}/29", Ipv4Addr::from(u32::from(one) & !7));
    let cases: [(&str, Value, [bool; 2]); 6] = [
        ("no policy", Value::Null, [true, true]),
        ("an empty one", json!({}), [true, true]),
        ("nothing at all", json!({ "denyAll": true }), [false, false]),
        ("only one", json!({ "denyAll": true, "allow": [one.to_string()] }), [true, false]),
        ("all but one", json!({ "deny": [format!("{two}/32")] }), [true, false]),
        ("allowed goes before denied", json!({ "allow": [one.to_string()], "deny": [both] }), [true, false]),
    ];
    for (what, policy, expected) in cases {
        let id = client.create(json!({ "egress": policy })).await?.id;
        holds(client, &id, &outside, expected).await.with_context(|| what.to_owned())?;
        client.destroy(&id).await?;
    }

    // It is the capsule's, not the life's: it comes back with it, and copies have it too.
    let policy = json!({ "denyAll": true, "allow": [one.to_string()] });
    let id = client.create(json!({ "egress": policy })).await?.id;
    client.pause(&id).await?;
    client.resume(&id).await?;
    holds(client, &id, &outside, [true, false]).await.context("after a pause")?;
    let copy = client.fork(&id, 1).await?.remove(0).id;
    holds(client, &copy, &outside, [true, false]).await.context("in a fork")?;
    // Whoever gets the network slot of one with a policy has none of it.
    client.destroy(&id).await?;
    client.destroy(&copy).await?;
    for _ in 0..3 {
        let next = client.create(json!({})).await?.id;
        holds(client, &next, &outside, [true, true]).await.context("in a slot used before")?;
        client.destroy(&next).await?;
    }
    Ok(())
}

pub async fn a_policy_that_makes_no_sense_is_refused(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let query = "mutation($input: CreateCapsuleInput!) { createCapsule(input: $input) { capsule { id } } }";
    for entry in ["", "10.0.0.0/33", "300.1.2.3", "::1", "not a name", "http://example.com"] {
        for list in ["allow", "deny"] {
            let input = json!({ "egress": { list: [entry] }, "labels": { "test": "senseless" } });
            let refused = client.refused(query, json!({ "input": input })).await?;
            ensure!(refused.first().code() == "INVALID_INPUT", "{list} {entry:?}: {refused}");
            ensure!(refused.first().field() == Some("egress"), "{list} {entry:?}: {refused}");
        }
    }
    ensure!(client.capsules(json!({ "labels": { "test": "senseless" } })).await?.is_empty());
    Ok(())
}

/// Whatever a policy allows: the host's services by every address it has, other capsules, their envd, link-local
/// addresses.
pub async fn host_and_neighbours_are_out_of_reach(stack: Arc<Stack>) -> Result<()> {
    let client = stack.client();
    let outside = Outside::start(stack.scope())?;
    // A service of the host that is open to everybody else.
    let service = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a service of the host")?;
    let service = service.local_addr()?.port();
    let everything = json!({ "allow": ["0.0.0.0/0", "169.254.169.254", outside.host.to_string()] });
    for policy in [Value::Null, everything] {
        let id = client.create(json!({ "egress": policy })).await?.id;
        let neighbour = client.create(json!({})).await?.id;
        holds(client, &id, &outside, [true, true]).await?;
        let guest = record(&stack, &neighbour)?.guest_address();
        let own = record(&stack, &id)?.guest_address();
        let link = link_of(own);
        // Control plane and agent listen on loopback: where they would listen for guests, others stand for them.
        let [api, agent] = [port_of(&client.websocket_url())?, port_of(stack.host().address())?];
        let _stand_ins = [
            TcpListener::bind((link, api)).context("in the control plane's place")?,
            TcpListener::bind((link, agent)).context("in the agent's place")?,
        ];
        for (what, address, port) in [
            ("the host by a public address", outside.host, service),
            ("the host by its end of the link", link, service),
            ("the control plane", link, api),
            ("the agent", link, agent),
            ("the host by the guest's gateway", Ipv4Addr::new(169, 254, 0, 22), service),
            ("another capsule's envd", guest, ENVD_PORT),
            ("its own envd from outside", own, ENVD_PORT),
        ] {
            let reached = connects(client, &id, address, port).await?;
            ensure!(!reached, "a guest reaches {what} ({address}:{port})");
        }
        let neighbours_link = Ipv4Addr::from(u32::from(link_of(guest)) + 1);
        datagrams_stay_away_from_the_host(client, &id, [outside.host, link]).await?;
        datagrams_stay_away_from(client, &neighbour, &id, [guest, neighbours_link]).await?;
        metadata_is_only_its_own(&stack, &id).await?;
        // What is denied is denied, not broken.
        holds(client, &id, &outside, [true, true]).await?;
        ensure!(client.sh(&neighbour, "echo here").await? == "here");
        client.destroy(&id).await?;
        client.destroy(&neighbour).await?;
    }
    Ok(())
}

/// The host's end of the link of a guest's slot: they are numbered as the slots are, in pairs of 10.12.0.0/16 of which the
/// host's is even.
fn link_of(guest: Ipv4Addr) -> Ipv4Addr {
    let [_, _, high, low] = guest.octets();
    let [high, low] = (u16::from_be_bytes([high, low]) * 2).to_be_bytes();
    Ipv4Addr::new(10, 12, high, low)
}

async fn datagrams_stay_away_from_the_host(client: &Client, id: &str, host: [Ipv4Addr; 2]) -> Result<()> {
    let service = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a service of the host")?;
    service.set_nonblocking(true)?;
    let port = service.local_addr()?.port();
    for address in host {
        say(client, id, address, port).await?;
        // It would have come before the end of the command, which takes the same way.
        ensure!(service.recv(&mut [0]).is_err(), "a guest's datagrams reach the host at {address}");
    }
    Ok(())
}

/// From one guest to another, by each of the addresses that lead to it.
async fn datagrams_stay_away_from(
    client: &Client,
    to: &str,
    from: &str,
    addresses: [Ipv4Addr; 2],
) -> Result<()> {
    const PORT: u16 = 9;
    let before = unasked(client, to).await?;
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"here", (addresses[0], PORT))?;
    wait::until_true("a datagram of the host arriving", OPEN, async || {
        Ok(unasked(client, to).await? > before)
    })
    .await?;
    let before = unasked(client, to).await?;
    for address in addresses {
        say(client, from, address, PORT).await?;
        ensure!(unasked(client, to).await? == before, "a guest's datagrams reach another by {address}");
    }
    Ok(())
}

/// How many datagrams came to a guest where nobody listens.
async fn unasked(client: &Client, id: &str) -> Result<u64> {
    let counted =
        client.sh(id, "awk '$1 == \"Udp:\" { count = $3 } END { print count }' /proc/net/snmp").await?;
    counted.parse().with_context(|| counted.clone())
}

/// Sends a few datagrams, however they fare.
async fn say(client: &Client, id: &str, address: Ipv4Addr, port: u16) -> Result<()> {
    let line =
        format!("for i in 1 2 3; do bash -c 'echo here > /dev/udp/{address}/{port}'; done 2>/dev/null; true");
    client.sh(id, &line).await.map(drop)
}

/// Where clouds keep what they tell their machines, credentials of the host among it.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Asks whoever is there for all it has, as the second version of the protocol wants it: with a token.
const ASK_METADATA: &str = r#"timeout 20 bash -c '
    say() { exec 3<>/dev/tcp/169.254.169.254/80 && printf "%s\r\n" "$@" "Host: metadata" "" >&3 && timeout 3 cat <&3; }
    token=$(say "PUT /latest/api/token HTTP/1.1" "X-metadata-token-ttl-seconds: 60" | tail -n 1) || true
    say "GET / HTTP/1.1" "Accept: application/json" "X-metadata-token: $token" | tail -n 1' 2>/dev/null; true"#;

/// The metadata of the host's cloud is out of reach. With Firecracker the VMM itself answers there, and says no more
/// than who the guest is.
async fn metadata_is_only_its_own(stack: &Stack, id: &str) -> Result<()> {
    let client = stack.client();
    if !stack.vmm().await?.starts_with("firecracker") {
        ensure!(
            !connects(client, id, METADATA, 80).await?,
            "a guest reaches the metadata of the host's cloud"
        );
        return Ok(());
    }
    let said = client.sh(id, ASK_METADATA).await?;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("not JSON: `{said}`"))?;
    let known = said.as_object().context("metadata is an object")?;
    ensure!(
        said["capsule"] == id && known.keys().all(|key| ["capsule", "template"].contains(&&**key)),
        "{said}"
    );
    Ok(())
}

fn record(stack: &Stack, id: &str) -> Result<CapsuleRecord> {
    CapsuleRecord::read(&stack.host_of(id)?.record_path(id))
}

/// Of an address or URL that ends in a port, perhaps with a path behind it.
fn port_of(url: &str) -> Result<u16> {
    let authority = url.rsplit_once("//").map_or(url, |(_, rest)| rest);
    let (_, port) = authority.split('/').next().and_then(|host| host.rsplit_once(':')).context("no port")?;
    port.parse().with_context(|| url.to_owned())
}

/// Which of the two addresses outside answer.
async fn holds(client: &Client, id: &str, outside: &Outside, expected: [bool; 2]) -> Result<()> {
    for (address, expected) in outside.addresses.into_iter().zip(expected) {
        if expected {
            wait::until_true(format!("{address} answering"), OPEN, async || {
                Ok(ask(client, id, address, PORT).await?.as_deref() == Some(&*address.to_string()))
            })
            .await?;
        } else {
            let answer = ask(client, id, address, PORT).await?;
            ensure!(answer.is_none(), "{address} answers {answer:?} in spite of the policy");
        }
    }
    Ok(())
}

/// The first line that somebody says at this address.
async fn ask(client: &Client, id: &str, address: Ipv4Addr, port: u16) -> Result<Option<String>> {
    let line = format!(
        "timeout {GUEST_PATIENCE_SEC} bash -c 'exec 3<>/dev/tcp/{address}/{port} && read -r line <&3 && echo $line' 2>/dev/null; true"
    );
    let said = client.sh(id, &line).await?;
    Ok((!said.is_empty()).then_some(said))
}

/// Whether anybody accepts a connection there, with or without a word.
async fn connects(client: &Client, id: &str, address: Ipv4Addr, port: u16) -> Result<bool> {
    let line = format!(
        "timeout {GUEST_PATIENCE_SEC} bash -c 'exec 3<>/dev/tcp/{address}/{port} && echo open' 2>/dev/null; true"
    );
    Ok(client.sh(id, &line).await? == "open")
}
