//! Packet filter and address translation: the same rules in every namespace, one table on the host.

use std::{borrow::Cow, net::Ipv4Addr};

use nftables::{
    batch::Batch,
    expr::{
        BinaryOperation, CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix,
        SetItem,
    },
    helper::{NftablesError, apply_ruleset},
    schema::{Chain, FlushObject, NfCmd, NfListObject, Nftables, Rule, Table},
    stmt::{
        AnonymousCounter, CTCount, Counter, JumpTarget, Limit, Match, Meter, NAT, Operator, Reject,
        RejectType, Statement,
    },
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode},
};

use super::{
    address::{GUEST_ADDRESS, GUESTS, LINKS, NAMESPACE_ADDRESS, VETH_PREFIX},
    namespace::{TAP, UPLINK},
};

/// The table of what holds for every slot, on the host and in each namespace.
pub(super) const TABLE: &str = "wrenn";

// Priorities of nft(8): where translation and filters stand in the order of things.
pub(super) const PRIORITY_DNAT: i32 = -100;
pub(super) const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;

/// Where name servers listen.
pub(super) const DNS_PORT: u16 = 53;

/// Bytes a second that a guest may send, and how many at once beyond those of one second: the kernel's bucket for bytes
/// holds both (`nft_limit_init` in net/netfilter/nft_limit.c).
const TX_RATE: u32 = 200_000_000;
const TX_BURST: u32 = 100_000_000;
/// The lifetime of a packet that is tracked in the namespace and goes no further: a connection that it resets would be over
/// here, and stand for five days on the host.
const LAST_TTL: u32 = 1;
/// Connections to outside that one guest may have. The host tracks those of all guests in one table (262144 on most
/// hosts), and what does not fit there is dropped, whoever it belongs to.
const MAX_CONNECTIONS: u32 = 4096;
/// Connections by TCP that one guest may begin a second, and how many at once: of those that ended none is counted, and
/// each is remembered for two minutes. With both bounds one guest has less than a sixteenth of the table.
const TCP_RATE: u32 = 50;
const TCP_BURST: u32 = 2048;

/// What no guest may reach: this host's networks (private ranges), its cloud's metadata service and
/// everything else link-local, its loopback, multicast and what is reserved.
const FORBIDDEN: [(Ipv4Addr, u8); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    // Azure's metadata and agents' service.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    // Of the protocols themselves, and Oracle's metadata among them.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

pub(super) type Rules = Nftables<'static>;
type Expr = Expression<'static>;
pub(super) type Stmt = Statement<'static>;

pub fn apply(rules: &Rules) -> Result<(), NftablesError> {
    apply_ruleset(rules)
}

/// In every namespace, replacing what was there:
/// ```text
/// ingress      from the guest, more than its rate     → drop, before anything else looks at it
///              about to expire                        → drop
/// prerouting   from the host to 10.11.0.0/16          → the guest
/// input        from the guest, not by its own address → drop
///              answers                                → pass
///              questions that a policy sends here     → pass, as many as it may have
///              anything else                          → drop
/// forward      from the guest, not by its own address → drop
///              of no connection that could be         → drop
///              answers                                → pass
///              of a connection that began elsewhere   → reset
///              more connections than it may have      → drop
///              begun faster than it may               → drop
///              to a name server                       → pass
///              to what is forbidden                   → refused
/// postrouting  to the guest                           → comes from the namespace's end of its link
///              to the host                            → comes from the slot's address
/// ```
/// What is forbidden is so on the host as well; there, other programs may take all rules away.
pub fn namespace_rules(name_servers: &[Ipv4Addr]) -> Rules {
    let mut batch = Batch::new();
    guard_ingress(&mut batch);
    add_table(&mut batch, TABLE);
    batch.add_cmd(NfCmd::Flush(FlushObject::Table(table(TABLE))));
    add_hook(&mut batch, TABLE, "prerouting", NfChainType::NAT, NfHook::Prerouting, PRIORITY_DNAT);
    add_hook(&mut batch, TABLE, "input", NfChainType::Filter, NfHook::Input, PRIORITY_FILTER);
    add_hook(&mut batch, TABLE, "forward", NfChainType::Filter, NfHook::Forward, PRIORITY_FILTER);
    add_hook(&mut batch, TABLE, "postrouting", NfChainType::NAT, NfHook::Postrouting, PRIORITY_SNAT);
    let spoofed = || compare(Operator::NEQ, address("saddr"), literal(GUEST_ADDRESS));
    let mut add = |chain, statements| add_rule(&mut batch, TABLE, chain, statements);
    let dnat = Statement::DNAT(Some(to_address(GUEST_ADDRESS)));
    add("prerouting", vec![input_is(UPLINK), destination_in(&[GUESTS]), dnat]);
    // An answer to whoever it says it comes from would leave the host past every policy.
    add("input", vec![input_is(TAP), spoofed(), drop()]);
    add("input", vec![input_is(TAP), is_answer(), accept()]);
    // Nothing but the policy's own redirection changes where a guest's packets go.
    let question = || vec![input_is(TAP), connection("status", &["dnat"])];
    add("input", [question(), vec![more_connections_than(MAX_CONNECTIONS), drop()]].concat());
    add("input", [question(), vec![accept()]].concat());
    add("input", vec![input_is(TAP), drop()]);
    add("forward", vec![input_is(TAP), spoofed(), drop()]);
    // Nobody would translate its address.
    add("forward", vec![input_is(TAP), connection("state", &["invalid"]), drop()]);
    add("forward", vec![input_is(TAP), is_answer(), accept()]);
    // A guest that was restored may send on connections of an earlier life, which another guest may go on with: the
    // kernel would take them up where they are.
    add("forward", vec![input_is(TAP), no_tcp_flag("syn"), reset()]);
    add("forward", vec![input_is(TAP), more_connections_than(MAX_CONNECTIONS), drop()]);
    let over_tcp = compare(Operator::EQ, meta(MetaKey::L4proto), Expression::String("tcp".into()));
    add("forward", vec![input_is(TAP), over_tcp, faster_than(TCP_RATE, TCP_BURST), drop()]);
    for statements in to_name_servers(name_servers) {
        add("forward", [vec![input_is(TAP)], statements].concat());
    }
    add("forward", vec![input_is(TAP), destination_in(&FORBIDDEN), refuse()]);
    let snat = Statement::SNAT(Some(to_address(NAMESPACE_ADDRESS)));
    add("postrouting", vec![output_is(TAP), snat]);
    add("postrouting", vec![output_is(UPLINK), Statement::Masquerade(None)]);
    batch.to_nftables()
}

/// Drops what a guest sends beyond its rate where it comes in, so that a flood costs the host no more than that; and what
/// would be known only halfway out.
fn guard_ingress(batch: &mut Batch<'static>) {
    let table = Table { family: NfFamily::NetDev, name: TABLE.into(), handle: None };
    batch.add(NfListObject::Table(table.clone()));
    batch.add_cmd(NfCmd::Flush(FlushObject::Table(table)));
    batch.add(NfListObject::Chain(Chain {
        family: NfFamily::NetDev,
        table: TABLE.into(),
        name: "ingress".into(),
        _type: Some(NfChainType::Filter),
        hook: Some(NfHook::Ingress),
        dev: Some(TAP.into()),
        prio: Some(PRIORITY_FILTER),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    }));
    let over = Statement::Limit(Limit {
        rate: TX_RATE,
        rate_unit: Some("bytes".into()),
        per: Some("second".into()),
        burst: Some(TX_BURST),
        burst_unit: Some("bytes".into()),
        inv: Some(true),
    });
    let expiring = compare(Operator::LEQ, payload("ip", "ttl"), Expression::Number(LAST_TTL));
    let counter = Statement::Counter(Counter::Anonymous(Some(AnonymousCounter::default())));
    for statements in [vec![over, counter, drop()], vec![expiring, drop()]] {
        batch.add(NfListObject::Rule(Rule {
            family: NfFamily::NetDev,
            table: TABLE.into(),
            chain: "ingress".into(),
            expr: statements.into(),
            ..Rule::default()
        }));
    }
}

/// On the host, for all slots of all agents on it, replacing what was there:
/// ```text
/// input        from a guest: answers to what the host began, nothing else
/// forward      from a guest → `egress`; to a guest: answers, nothing else
/// egress       answers; more connections than it may have → drop; name servers; forbidden ranges → drop; the rest may
///              pass
/// postrouting  from a guest to anywhere else → comes from this host
/// ```
pub fn host_rules(name_servers: &[Ipv4Addr]) -> Rules {
    let any_veth = || Cow::from(format!("{VETH_PREFIX}*"));
    let from_guest = || compare(Operator::EQ, meta(MetaKey::Iifname), Expression::String(any_veth()));
    let to_guest = || compare(Operator::EQ, meta(MetaKey::Oifname), Expression::String(any_veth()));

    let mut batch = Batch::new();
    add_table(&mut batch, TABLE);
    batch.add_cmd(NfCmd::Flush(FlushObject::Table(table(TABLE))));
    add_hook(&mut batch, TABLE, "input", NfChainType::Filter, NfHook::Input, PRIORITY_FILTER);
    add_hook(&mut batch, TABLE, "forward", NfChainType::Filter, NfHook::Forward, PRIORITY_FILTER);
    add_hook(&mut batch, TABLE, "postrouting", NfChainType::NAT, NfHook::Postrouting, PRIORITY_SNAT);
    let egress =
        Chain { family: NfFamily::IP, table: TABLE.into(), name: "egress".into(), ..Chain::default() };
    batch.add(NfListObject::Chain(egress));

    let mut add = |chain, statements| add_rule(&mut batch, TABLE, chain, statements);
    // What a guest began while there were no rules is no answer.
    let in_reply = compare(Operator::EQ, tracked("direction"), Expression::String("reply".into()));
    add("input", vec![from_guest(), is_answer(), in_reply, accept()]);
    add("input", vec![from_guest(), drop()]);
    let to_egress = Statement::Jump(JumpTarget { target: "egress".into() });
    add("forward", vec![from_guest(), to_egress]);
    add("forward", vec![to_guest(), is_answer(), accept()]);
    add("forward", vec![to_guest(), drop()]);
    add("egress", vec![is_answer(), accept()]);
    // The namespace counts as well. Its table and this one need not tell the same: packets get lost in between.
    let of_each_guest = Statement::Meter(Meter {
        name: "connections".into(),
        key: address("saddr"),
        stmt: Box::new(more_connections_than(MAX_CONNECTIONS)),
    });
    add("egress", vec![of_each_guest, drop()]);
    for statements in to_name_servers(name_servers) {
        add("egress", statements);
    }
    add("egress", vec![destination_in(&FORBIDDEN), drop()]);
    add("egress", vec![to_guest(), drop()]);
    add("egress", vec![accept()]);
    let from_links = compare(Operator::EQ, address("saddr"), set(&[LINKS]));
    let elsewhere = compare(Operator::NEQ, meta(MetaKey::Oifname), Expression::String(any_veth()));
    add("postrouting", vec![from_links, elsewhere, Statement::Masquerade(None)]);
    batch.to_nftables()
}

/// Takes the host's table away.
pub fn no_host_rules() -> Rules {
    without(TABLE)
}

/// Takes a table away that may be there.
pub(super) fn without(name: &'static str) -> Rules {
    let mut batch = Batch::new();
    // Deleting what is not there is an error, adding what is there is none.
    add_table(&mut batch, name);
    batch.delete(NfListObject::Table(table(name)));
    batch.to_nftables()
}

/// One rule for each server and protocol: questions for names are accepted.
pub(super) fn to_name_servers(servers: &[Ipv4Addr]) -> impl Iterator<Item = Vec<Stmt>> {
    servers.iter().flat_map(|server| {
        ["udp", "tcp"].map(|protocol| {
            let to_server = compare(Operator::EQ, address("daddr"), literal(*server));
            vec![to_server, port_is(protocol, DNS_PORT), accept()]
        })
    })
}

pub(super) fn table(name: &'static str) -> Table<'static> {
    Table { family: NfFamily::IP, name: name.into(), handle: None }
}

pub(super) fn add_table(batch: &mut Batch<'static>, name: &'static str) {
    batch.add(NfListObject::Table(table(name)));
}

pub(super) fn add_hook(
    batch: &mut Batch<'static>,
    table: &'static str,
    name: &'static str,
    kind: NfChainType,
    hook: NfHook,
    priority: i32,
) {
    batch.add(NfListObject::Chain(Chain {
        family: NfFamily::IP,
        table: table.into(),
        name: name.into(),
        _type: Some(kind),
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    }));
}

pub(super) fn add_rule(
    batch: &mut Batch<'static>,
    table: &'static str,
    chain: &'static str,
    statements: Vec<Stmt>,
) {
    batch.add(NfListObject::Rule(Rule {
        family: NfFamily::IP,
        table: table.into(),
        chain: chain.into(),
        expr: statements.into(),
        ..Rule::default()
    }));
}

pub(super) fn accept() -> Stmt {
    Statement::Accept(None)
}

pub(super) fn drop() -> Stmt {
    Statement::Drop(None)
}

/// Tells the guest, so that a program in it fails at once with the reason.
pub(super) fn refuse() -> Stmt {
    let prohibited = RejectCode::AdminProhibited;
    Statement::Reject(Some(Reject::new(Some(RejectType::ICMP), Some(prohibited))))
}

pub(super) fn compare(op: Operator, left: Expr, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op })
}

pub(super) fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

pub(super) fn payload(protocol: &'static str, field: &'static str) -> Expr {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(super) fn address(field: &'static str) -> Expr {
    payload("ip", field)
}

pub(super) fn literal(address: Ipv4Addr) -> Expr {
    Expression::String(address.to_string().into())
}

pub(super) fn set(ranges: &[(Ipv4Addr, u8)]) -> Expr {
    let prefix = |&(address, length): &(Ipv4Addr, u8)| {
        let prefix = Prefix { addr: Box::new(literal(address)), len: u32::from(length) };
        SetItem::Element(Expression::Named(NamedExpression::Prefix(prefix)))
    };
    Expression::Named(NamedExpression::Set(ranges.iter().map(prefix).collect()))
}

pub(super) fn destination_in(ranges: &[(Ipv4Addr, u8)]) -> Stmt {
    compare(Operator::EQ, address("daddr"), set(ranges))
}

pub(super) fn input_is(interface: &'static str) -> Stmt {
    compare(Operator::EQ, meta(MetaKey::Iifname), Expression::String(interface.into()))
}

pub(super) fn port_is(protocol: &'static str, port: u16) -> Stmt {
    compare(Operator::EQ, payload(protocol, "dport"), Expression::Number(port.into()))
}

fn output_is(interface: &'static str) -> Stmt {
    compare(Operator::EQ, meta(MetaKey::Oifname), Expression::String(interface.into()))
}

/// Belongs to a connection that was allowed when it began.
pub(super) fn is_answer() -> Stmt {
    connection("state", &["established", "related"])
}

/// Is in one of these states, or has one of these marks.
fn connection(key: &'static str, values: &[&'static str]) -> Stmt {
    let values = values.iter().map(|value| Expression::String((*value).into())).collect();
    compare(Operator::IN, tracked(key), Expression::List(values))
}

/// What is tracked of a packet's connection.
fn tracked(key: &'static str) -> Expr {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), ..CT::default() }))
}

/// Of a TCP packet only.
fn no_tcp_flag(flag: &'static str) -> Stmt {
    let flags = BinaryOperation::AND(payload("tcp", "flags"), Expression::String(flag.into()));
    compare(Operator::EQ, Expression::BinaryOperation(Box::new(flags)), Expression::Number(0))
}

fn reset() -> Stmt {
    Statement::Reject(Some(Reject { _type: Some(RejectType::TCPReset), expr: None }))
}

fn more_connections_than(most: u32) -> Stmt {
    Statement::CTCount(CTCount { val: Expression::Number(most), inv: Some(true) })
}

/// More packets a second, or more at once.
pub(super) fn faster_than(rate: u32, burst: u32) -> Stmt {
    Statement::Limit(Limit {
        rate,
        rate_unit: None,
        per: Some("second".into()),
        burst: Some(burst),
        burst_unit: None,
        inv: Some(true),
    })
}

fn to_address(address: Ipv4Addr) -> NAT<'static> {
    NAT { addr: Some(literal(address)), family: None, port: None, flags: None }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nftables::{helper::get_current_ruleset, schema::NfObject};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Tables, chains and rules of the thread's namespace.
    fn count() -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for object in get_current_ruleset().unwrap().objects.iter() {
            match object {
                NfObject::ListObject(NfListObject::Table(_)) => counts.0 += 1,
                NfObject::ListObject(NfListObject::Chain(_)) => counts.1 += 1,
                NfObject::ListObject(NfListObject::Rule(_)) => counts.2 += 1,
                _ => {}
            }
        }
        counts
    }

    #[test]
    fn the_hosts_rules_may_be_set_again_and_go_as_one() {
        assert!(nix::unistd::geteuid().is_root(), "packet filters need root");
        // In a namespace of its own, so that the host's stay as they are.
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let servers = [Ipv4Addr::new(10, 0, 0, 53)];
            apply(&host_rules(&servers)).unwrap();
            assert_eq!(count(), (1, 4, 13));
            apply(&host_rules(&[])).unwrap();
            assert_eq!(count(), (1, 4, 11), "replaced, not added to");
            apply(&no_host_rules()).unwrap();
            apply(&no_host_rules()).unwrap();
            assert_eq!(count(), (0, 0, 0));
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }
}
