//! Packet filter and address translation: the same rules in every namespace, one table on the host.

use std::{borrow::Cow, net::Ipv4Addr};

use nftables::{
    batch::Batch,
    expr::{CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem},
    helper::{NftablesError, apply_ruleset},
    schema::{Chain, FlushObject, NfCmd, NfListObject, Nftables, Rule, Table},
    stmt::{JumpTarget, Match, NAT, Operator, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};

use super::{
    address::{GUEST_ADDRESS, GUESTS, LINKS, NAMESPACE_ADDRESS, VETH_PREFIX},
    namespace::{TAP, UPLINK},
};

/// The one table, on the host and in each namespace.
const TABLE: &str = "wrenn";

// Priorities of nft(8): where translation and filters stand in the order of things.
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SNAT: i32 = 100;

/// What no guest may reach: this host's networks (private ranges), its cloud's metadata service and
/// everything else link-local, its loopback, multicast and what is reserved.
const FORBIDDEN: [(Ipv4Addr, u8); 9] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

type Rules = Nftables<'static>;
type Expr = Expression<'static>;
type Stmt = Statement<'static>;

pub fn apply(rules: &Rules) -> Result<(), NftablesError> {
    apply_ruleset(rules)
}

/// In every namespace:
/// ```text
/// prerouting   from the host to 10.11.0.0/16          → the guest
/// forward      from the guest, not by its own address → drop
/// postrouting  to the guest                           → comes from the namespace's end of its link
///              to the host                            → comes from the slot's address
/// ```
pub fn namespace_rules() -> Rules {
    let mut batch = Batch::new();
    add_table(&mut batch);
    add_hook(&mut batch, "prerouting", NfChainType::NAT, NfHook::Prerouting, PRIORITY_DNAT);
    add_hook(&mut batch, "forward", NfChainType::Filter, NfHook::Forward, PRIORITY_FILTER);
    add_hook(&mut batch, "postrouting", NfChainType::NAT, NfHook::Postrouting, PRIORITY_SNAT);
    let dnat = Statement::DNAT(Some(to_address(GUEST_ADDRESS)));
    add_rule(&mut batch, "prerouting", vec![input_is(UPLINK), destination_in(&[GUESTS]), dnat]);
    let spoofed = compare(Operator::NEQ, address("saddr"), literal(GUEST_ADDRESS));
    add_rule(&mut batch, "forward", vec![input_is(TAP), spoofed, Statement::Drop(None)]);
    let snat = Statement::SNAT(Some(to_address(NAMESPACE_ADDRESS)));
    add_rule(&mut batch, "postrouting", vec![output_is(TAP), snat]);
    add_rule(&mut batch, "postrouting", vec![output_is(UPLINK), Statement::Masquerade(None)]);
    batch.to_nftables()
}

/// On the host, for all slots of all agents on it, replacing what was there:
/// ```text
/// input        from a guest: answers to what the host began, nothing else
/// forward      from a guest → `egress`; to a guest: answers, nothing else
/// egress       answers; name servers; forbidden ranges → drop; the rest may pass
/// postrouting  from a guest to anywhere else → comes from this host
/// ```
pub fn host_rules(name_servers: &[Ipv4Addr]) -> Rules {
    let any_veth = || Cow::from(format!("{VETH_PREFIX}*"));
    let from_guest = || compare(Operator::EQ, meta(MetaKey::Iifname), Expression::String(any_veth()));
    let to_guest = || compare(Operator::EQ, meta(MetaKey::Oifname), Expression::String(any_veth()));
    let accept = || Statement::Accept(None);
    let drop = || Statement::Drop(None);

    let mut batch = Batch::new();
    add_table(&mut batch);
    batch.add_cmd(NfCmd::Flush(FlushObject::Table(table())));
    add_hook(&mut batch, "input", NfChainType::Filter, NfHook::Input, PRIORITY_FILTER);
    add_hook(&mut batch, "forward", NfChainType::Filter, NfHook::Forward, PRIORITY_FILTER);
    add_hook(&mut batch, "postrouting", NfChainType::NAT, NfHook::Postrouting, PRIORITY_SNAT);
    let egress =
        Chain { family: NfFamily::IP, table: TABLE.into(), name: "egress".into(), ..Chain::default() };
    batch.add(NfListObject::Chain(egress));

    add_rule(&mut batch, "input", vec![from_guest(), is_answer(), accept()]);
    add_rule(&mut batch, "input", vec![from_guest(), drop()]);
    let to_egress = Statement::Jump(JumpTarget { target: "egress".into() });
    add_rule(&mut batch, "forward", vec![from_guest(), to_egress]);
    add_rule(&mut batch, "forward", vec![to_guest(), is_answer(), accept()]);
    add_rule(&mut batch, "forward", vec![to_guest(), drop()]);
    add_rule(&mut batch, "egress", vec![is_answer(), accept()]);
    for server in name_servers {
        for protocol in ["udp", "tcp"] {
            let to_server = compare(Operator::EQ, address("daddr"), literal(*server));
            let port = compare(Operator::EQ, payload(protocol, "dport"), Expression::Number(53));
            add_rule(&mut batch, "egress", vec![to_server, port, accept()]);
        }
    }
    add_rule(&mut batch, "egress", vec![destination_in(&FORBIDDEN), drop()]);
    add_rule(&mut batch, "egress", vec![to_guest(), drop()]);
    add_rule(&mut batch, "egress", vec![accept()]);
    let from_links = compare(Operator::EQ, address("saddr"), set(&[LINKS]));
    let elsewhere = compare(Operator::NEQ, meta(MetaKey::Oifname), Expression::String(any_veth()));
    add_rule(&mut batch, "postrouting", vec![from_links, elsewhere, Statement::Masquerade(None)]);
    batch.to_nftables()
}

/// Takes the host's table away.
pub fn no_host_rules() -> Rules {
    let mut batch = Batch::new();
    // Deleting what is not there is an error, adding what is there is none.
    add_table(&mut batch);
    batch.delete(NfListObject::Table(table()));
    batch.to_nftables()
}

fn table() -> Table<'static> {
    Table { family: NfFamily::IP, name: TABLE.into(), handle: None }
}

fn add_table(batch: &mut Batch<'static>) {
    batch.add(NfListObject::Table(table()));
}

fn add_hook(batch: &mut Batch<'static>, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
    batch.add(NfListObject::Chain(Chain {
        family: NfFamily::IP,
        table: TABLE.into(),
        name: name.into(),
        _type: Some(kind),
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    }));
}

fn add_rule(batch: &mut Batch<'static>, chain: &'static str, statements: Vec<Stmt>) {
    batch.add(NfListObject::Rule(Rule {
        family: NfFamily::IP,
        table: TABLE.into(),
        chain: chain.into(),
        expr: statements.into(),
        ..Rule::default()
    }));
}

fn compare(op: Operator, left: Expr, right: Expr) -> Stmt {
    Statement::Match(Match { left, right, op })
}

fn meta(key: MetaKey) -> Expr {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expr {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn address(field: &'static str) -> Expr {
    payload("ip", field)
}

fn literal(address: Ipv4Addr) -> Expr {
    Expression::String(address.to_string().into())
}

fn set(ranges: &[(Ipv4Addr, u8)]) -> Expr {
    let prefix = |&(address, length): &(Ipv4Addr, u8)| {
        let prefix = Prefix { addr: Box::new(literal(address)), len: u32::from(length) };
        SetItem::Element(Expression::Named(NamedExpression::Prefix(prefix)))
    };
    Expression::Named(NamedExpression::Set(ranges.iter().map(prefix).collect()))
}

fn destination_in(ranges: &[(Ipv4Addr, u8)]) -> Stmt {
    compare(Operator::EQ, address("daddr"), set(ranges))
}

fn input_is(interface: &'static str) -> Stmt {
    compare(Operator::EQ, meta(MetaKey::Iifname), Expression::String(interface.into()))
}

fn output_is(interface: &'static str) -> Stmt {
    compare(Operator::EQ, meta(MetaKey::Oifname), Expression::String(interface.into()))
}

/// Belongs to a connection that was allowed when it began.
fn is_answer() -> Stmt {
    let state = Expression::Named(NamedExpression::CT(CT { key: "state".into(), ..CT::default() }));
    let states = ["established", "related"].map(|state| Expression::String(state.into()));
    compare(Operator::IN, state, Expression::List(states.into()))
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
            assert_eq!(count(), (1, 4, 12));
            apply(&host_rules(&[])).unwrap();
            assert_eq!(count(), (1, 4, 10), "replaced, not added to");
            apply(&no_host_rules()).unwrap();
            apply(&no_host_rules()).unwrap();
            assert_eq!(count(), (0, 0, 0));
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }
}
