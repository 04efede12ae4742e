//! Numbers and addresses of slots.

use std::{fmt, net::Ipv4Addr, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};

/// The guest's own address, the same in every capsule.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The other end of the guest's link; every connection from the host comes from here.
pub const NAMESPACE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Length of the prefix that the two share.
pub const GUEST_LINK_PREFIX: u8 = 30;
/// The guest's, the same in every capsule: locally administered, unicast.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x57, 0x52, 0x4e, 0x00, 0x15];
/// The other end's, the same in every namespace: a restored guest goes on sending to the one it knew.
pub const NAMESPACE_MAC: [u8; 6] = [0x02, 0x57, 0x52, 0x4e, 0x00, 0x16];
/// All namespaces' addresses towards their host.
pub const LINKS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 12, 0, 0), 16);
/// The addresses by which the host reaches its guests.
pub const GUESTS: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 11, 0, 0), 16);

/// Every VMM runs as a user of its own, this plus its slot's number: far above what a distribution
/// gives to people or services, below what it gives to containers.
const FIRST_UID: u32 = 200_000;
/// Of programs that work for no slot: their numbers begin with 1.
pub const NOBODYS_UID: u32 = FIRST_UID;

pub(super) const NAMESPACE_PREFIX: &str = "wrenn-ns-";
pub(super) const VETH_PREFIX: &str = "wrenn-veth";

/// A slot's number, 1 to 32767: the addressing runs out there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct SlotNumber(u16);

/// The number is none of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a slot: they are numbered 1 to 32767")]
pub struct InvalidSlot(pub u16);

impl TryFrom<u16> for SlotNumber {
    type Error = InvalidSlot;

    fn try_from(number: u16) -> Result<Self, InvalidSlot> {
        if (1..=32767).contains(&number) { Ok(Self(number)) } else { Err(InvalidSlot(number)) }
    }
}

impl From<SlotNumber> for u16 {
    fn from(slot: SlotNumber) -> Self {
        slot.0
    }
}

impl fmt::Display for SlotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SlotNumber {
    /// The name of its network namespace.
    pub fn namespace(self) -> String {
        format!("{NAMESPACE_PREFIX}{self}")
    }

    /// The name of the host's end of its link: `wrenn-veth-N`, without the second dash where the number has
    /// five digits, as a name has 15 bytes at most.
    pub fn host_veth(self) -> String {
        let dash = if self.0 < 10_000 { "-" } else { "" };
        format!("{VETH_PREFIX}{dash}{self}")
    }

    /// The reverse of [`host_veth`](Self::host_veth).
    pub(super) fn of_host_veth(name: &str) -> Option<Self> {
        let number: u16 = name.strip_prefix(VETH_PREFIX)?.trim_start_matches('-').parse().ok()?;
        Self::try_from(number).ok().filter(|slot| slot.host_veth() == name)
    }

    /// The reverse of [`namespace`](Self::namespace).
    pub(super) fn of_namespace(name: &str) -> Option<Self> {
        let number: u16 = name.strip_prefix(NAMESPACE_PREFIX)?.parse().ok()?;
        Self::try_from(number).ok().filter(|slot| slot.namespace() == name)
    }

    /// The host's end of the link, the even one of two.
    pub fn host_address(self) -> Ipv4Addr {
        let [high, low] = (self.0 << 1).to_be_bytes();
        Ipv4Addr::new(10, 12, high, low)
    }

    /// The namespace's end of the link, the odd one of two.
    pub fn namespace_address(self) -> Ipv4Addr {
        let [high, low] = (self.0 << 1 | 1).to_be_bytes();
        Ipv4Addr::new(10, 12, high, low)
    }

    /// Where the host reaches the guest.
    pub fn guest_address(self) -> Ipv4Addr {
        let [high, low] = self.0.to_be_bytes();
        Ipv4Addr::new(10, 11, high, low)
    }

    /// User and group of the VMM in this slot.
    pub fn uid(self) -> u32 {
        FIRST_UID + u32::from(self.0)
    }
}

/// The slots one agent may use; agents on one machine have ranges that do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    first: SlotNumber,
    last: SlotNumber,
}

/// The text is not a range of slots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of slots such as 1-999, within 1-32767")]
pub struct InvalidRange(String);

impl FromStr for SlotRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let parse = |text: &str| SlotNumber::try_from(text.parse::<u16>().ok()?).ok();
        text.split_once('-')
            .and_then(|(first, last)| Some(Self { first: parse(first)?, last: parse(last)? }))
            .filter(|range| range.first <= range.last)
            .ok_or_else(|| InvalidRange(text.to_owned()))
    }
}

impl From<SlotNumber> for SlotRange {
    fn from(slot: SlotNumber) -> Self {
        Self { first: slot, last: slot }
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl SlotRange {
    pub fn contains(&self, slot: SlotNumber) -> bool {
        (self.first..=self.last).contains(&slot)
    }

    pub fn len(&self) -> usize {
        self.numbers().len()
    }

    /// Never: a range has at least its first slot.
    pub fn is_empty(&self) -> bool {
        false
    }

    pub(super) fn numbers(&self) -> RangeInclusive<u16> {
        self.first.0..=self.last.0
    }

    pub fn iter(&self) -> impl Iterator<Item = SlotNumber> + use<> {
        self.numbers().map(SlotNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u16) -> SlotNumber {
        SlotNumber::try_from(number).unwrap()
    }

    #[test]
    fn addresses_of_all_slots_differ_and_are_where_they_should_be() {
        let range: SlotRange = "1-32767".parse().unwrap();
        let mut seen = std::collections::HashSet::new();
        for slot in range.iter() {
            assert!(slot.host_veth().len() < 16, "{} is too long", slot.host_veth());
            assert_eq!(SlotNumber::of_host_veth(&slot.host_veth()), Some(slot));
            assert_eq!(SlotNumber::of_namespace(&slot.namespace()), Some(slot));
            assert_eq!(slot.host_address().octets()[3] % 2, 0);
            assert_eq!(u32::from(slot.host_address()) ^ 1, u32::from(slot.namespace_address()));
            for address in [slot.host_address(), slot.namespace_address(), slot.guest_address()] {
                assert!(seen.insert(address), "{address} twice");
            }
        }
        assert_eq!(slot(1).host_address(), Ipv4Addr::new(10, 12, 0, 2));
        assert_eq!(slot(32767).namespace_address(), Ipv4Addr::new(10, 12, 255, 255));
        assert_eq!(slot(300).guest_address(), Ipv4Addr::new(10, 11, 1, 44));
        assert_eq!(slot(7).host_veth(), "wrenn-veth-7");
        for stranger in ["wrenn-veth-07", "wrenn-veth--7", "wrenn-veth7", "wrenn-veth-10000", "wrenn-veth-x"]
        {
            assert_eq!(SlotNumber::of_host_veth(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn only_ranges_of_slots_are_ranges() {
        assert_eq!("1-999".parse::<SlotRange>().unwrap().len(), 999);
        for bad in ["", "1", "0-5", "5-1", "1-32768", "a-b", "1-2-3", "-1-5"] {
            assert!(bad.parse::<SlotRange>().is_err(), "{bad}");
        }
    }
}
