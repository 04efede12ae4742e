//! One capsule's egress policy as packet filter rules in its namespace.
//!
//! They are a table of their own beside the one every namespace has: put in place as one, taken away as one.
//! What is forbidden to every guest is not among them; the other table sees to that, and the host.

use std::{collections::HashSet, net::Ipv4Addr};

use nftables::{
    batch::Batch,
    expr::{Expression, MetaKey},
    schema::{FlushObject, NfCmd, NfListObject, Set, SetFlag},
    stmt::{Operator, Statement},
    types::{NfChainType, NfFamily, NfHook},
};

use super::{
    egress::{EgressPolicy, Ipv4Range},
    namespace::TAP,
    rules::{
        DNS_PORT, PRIORITY_DNAT, PRIORITY_FILTER, Rules, accept, add_hook, add_rule, add_table, address,
        compare, destination_in, drop, faster_than, input_is, is_answer, meta, port_is, refuse, table,
        to_name_servers, without,
    },
};

/// Of the policy, beside the one that every namespace has.
pub(super) const TABLE: &str = "egress";
/// Addresses of allowed names that the guest has looked up; they leave by themselves.
pub(super) const HOSTS: &str = "hosts";
/// How many of them one guest may have at a time.
pub(super) const MAX_HOSTS: usize = 4096;

/// Questions for names that a guest may ask a second. A flood of them would keep the agent busy.
const MAX_QUESTIONS: u32 = 1000;

/// Replaces what was there, except for addresses already learnt:
/// ```text
/// prerouting   a question for a name, to whomever → our forwarder (where the policy names hosts)
/// input        too many questions                 → drop
/// forward      not from the guest, or an answer   → pass
///              to what is allowed                 → pass
///              to a name server                   → pass (unless all is denied)
///              to what is denied                  → refused
/// ```
pub fn policy_rules(policy: &EgressPolicy, name_servers: &[Ipv4Addr]) -> Rules {
    let mut batch = Batch::new();
    add_table(&mut batch, TABLE);
    batch.add(NfListObject::Set(Box::new(Set {
        family: NfFamily::IP,
        table: TABLE.into(),
        name: HOSTS.into(),
        flags: Some(HashSet::from([SetFlag::Timeout])),
        // One that is taken out and put in again counts twice meanwhile.
        size: Some(2 * MAX_HOSTS as u32),
        ..Set::default()
    })));
    // Before the translation of every namespace, which is about the other direction.
    add_hook(&mut batch, TABLE, "prerouting", NfChainType::NAT, NfHook::Prerouting, PRIORITY_DNAT - 1);
    add_hook(&mut batch, TABLE, "input", NfChainType::Filter, NfHook::Input, PRIORITY_FILTER + 1);
    add_hook(&mut batch, TABLE, "forward", NfChainType::Filter, NfHook::Forward, PRIORITY_FILTER + 1);
    batch.add_cmd(NfCmd::Flush(FlushObject::Table(table(TABLE))));

    let mut add = |chain, statements| add_rule(&mut batch, TABLE, chain, statements);
    if policy.names_hosts() {
        for protocol in ["udp", "tcp"] {
            let question = || vec![input_is(TAP), port_is(protocol, DNS_PORT)];
            add("prerouting", [question(), vec![Statement::Redirect(None)]].concat());
            add("input", [question(), vec![faster_than(MAX_QUESTIONS, MAX_QUESTIONS), drop()]].concat());
        }
    }
    let not_from_guest = compare(Operator::NEQ, meta(MetaKey::Iifname), Expression::String(TAP.into()));
    add("forward", vec![not_from_guest, accept()]);
    add("forward", vec![is_answer(), accept()]);
    let allowed = prefixes(&policy.allowed_ranges());
    if !allowed.is_empty() {
        add("forward", vec![destination_in(&allowed), accept()]);
    }
    if policy.allows_hosts() {
        let learnt = Expression::String(format!("@{HOSTS}").into());
        add("forward", vec![compare(Operator::EQ, address("daddr"), learnt), accept()]);
    }
    if policy.denies_all() {
        add("forward", vec![refuse()]);
    } else {
        for statements in to_name_servers(name_servers) {
            add("forward", statements);
        }
        let denied = prefixes(&policy.denied_ranges());
        if !denied.is_empty() {
            add("forward", vec![destination_in(&denied), refuse()]);
        }
    }
    batch.to_nftables()
}

/// Takes the policy and all that was learnt for it away.
pub fn no_policy_rules() -> Rules {
    without(TABLE)
}

fn prefixes(ranges: &[Ipv4Range]) -> Vec<(Ipv4Addr, u8)> {
    ranges.iter().map(|range| (range.first(), range.length())).collect()
}
