//! Where the VMM has the guest's memory: what it tells the page server about, and numbers of pages for
//! addresses.

use std::ops::Range;

use serde::Deserialize;

use super::source::PAGE;

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("the VMM's list of memory regions is not understood")]
    Syntax(#[from] serde_json::Error),
    #[error("the VMM names no memory region")]
    Empty,
    #[error("memory region {index}: {what}")]
    Region { index: usize, what: String },
}

/// A memory region as Firecracker describes it.
#[derive(Clone, Debug, Deserialize)]
struct Announced {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    /// In bytes; since Firecracker 1.11.
    page_size: Option<u64>,
    /// In bytes too, in spite of its name; from Firecracker 1.7 on, to be removed in 2.0.
    page_size_kib: Option<u64>,
}

impl Announced {
    fn check(&self, source_bytes: u64) -> Result<(), String> {
        // Versions that say nothing know no other size.
        let page_size = self.page_size.or(self.page_size_kib).unwrap_or(PAGE);
        if page_size != PAGE {
            return Err(format!(
                "its pages have {page_size} bytes, only {PAGE} are served: use no huge pages"
            ));
        }
        let numbers = [self.base_host_virt_addr, self.size, self.offset];
        if self.size == 0 || numbers.iter().any(|number| !number.is_multiple_of(PAGE)) {
            return Err(format!("address, size and offset are not whole pages: {numbers:#x?}"));
        }
        if self.base_host_virt_addr.checked_add(self.size).is_none() {
            return Err("it reaches past the end of the address space".to_owned());
        }
        if self.offset.checked_add(self.size).is_none_or(|end| end > source_bytes) {
            let Self { offset, size, .. } = self;
            return Err(format!("bytes {offset}+{size} are not in the snapshot's memory of {source_bytes}"));
        }
        Ok(())
    }
}

/// A stretch of addresses that holds consecutive pages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Region {
    /// Of its first byte, in the VMM.
    address: u64,
    /// Numbers of its pages in the guest's memory as the snapshot has it.
    pages: Range<u64>,
}

impl Region {
    fn end(&self) -> u64 {
        self.address + (self.pages.end - self.pages.start) * PAGE
    }
}

/// All regions, by address.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout(Vec<Region>);

impl Layout {
    /// Checks the VMM's list against the memory there is: the regions must be apart, and of it.
    pub fn parse(json: &[u8], source_bytes: u64) -> Result<Self, LayoutError> {
        let announced: Vec<Announced> = serde_json::from_slice(json)?;
        let mut regions = Vec::with_capacity(announced.len());
        for (index, region) in announced.iter().enumerate() {
            region.check(source_bytes).map_err(|what| LayoutError::Region { index, what })?;
            let first = region.offset / PAGE;
            let pages = first..first + region.size / PAGE;
            regions.push((index, Region { address: region.base_host_virt_addr, pages }));
        }
        if regions.is_empty() {
            return Err(LayoutError::Empty);
        }
        let overlap = |index| LayoutError::Region { index, what: "it overlaps with another".to_owned() };
        regions.sort_by_key(|(_, region)| region.pages.start);
        if let Some(pair) = regions.windows(2).find(|pair| pair[0].1.pages.end > pair[1].1.pages.start) {
            return Err(overlap(pair[1].0));
        }
        regions.sort_by_key(|(_, region)| region.address);
        if let Some(pair) = regions.windows(2).find(|pair| pair[0].1.end() > pair[1].1.address) {
            return Err(overlap(pair[1].0));
        }
        Ok(Self(regions.into_iter().map(|(_, region)| region).collect()))
    }

    /// The page an address belongs to.
    pub fn page_at(&self, address: u64) -> Option<u64> {
        let after = self.0.partition_point(|region| region.address <= address);
        let region = &self.0[after.checked_sub(1)?];
        (address < region.end()).then(|| region.pages.start + (address - region.address) / PAGE)
    }

    /// Where a page is; its neighbours of [`Self::neighbours`] follow each other.
    pub fn address_of(&self, page: u64) -> Option<u64> {
        let region = self.region_of(page)?;
        Some(region.address + (page - region.pages.start) * PAGE)
    }

    /// The pages of the region that a page is in.
    pub fn neighbours(&self, page: u64) -> Option<Range<u64>> {
        self.region_of(page).map(|region| region.pages.clone())
    }

    /// The pages that lie, even in part, between two addresses.
    pub fn pages_between(&self, start: u64, end: u64) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().filter_map(move |region| {
            let (start, end) = (start.max(region.address), end.min(region.end()));
            let page = |bytes: u64| region.pages.start + bytes;
            (start < end)
                .then(|| page((start - region.address) / PAGE)..page((end - region.address).div_ceil(PAGE)))
        })
    }

    /// The pages of `range` by region: those of one item follow each other in the VMM too.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().filter_map(move |region| {
            let (start, end) = (range.start.max(region.pages.start), range.end.min(region.pages.end));
            (start < end).then_some(start..end)
        })
    }

    fn region_of(&self, page: u64) -> Option<&Region> {
        // A guest has a handful of them.
        self.0.iter().find(|region| region.pages.contains(&page))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SOURCE: u64 = 64 * PAGE;

    fn parse(regions: &serde_json::Value) -> Result<Layout, LayoutError> {
        Layout::parse(regions.to_string().as_bytes(), SOURCE)
    }

    /// A guest whose memory has a gap, as above 3 GiB on x86.
    fn two() -> serde_json::Value {
        json!([
            { "base_host_virt_addr": 0x9000_0000_u64, "size": 16 * PAGE, "offset": 0, "page_size": PAGE },
            { "base_host_virt_addr": 0x8000_0000_u64, "size": 48 * PAGE, "offset": 16 * PAGE,
              "page_size": PAGE, "page_size_kib": PAGE },
        ])
    }

    #[test]
    fn addresses_and_pages_are_each_others_inverse() {
        let layout = parse(&two()).unwrap();
        for page in 0..64 {
            let address = layout.address_of(page).unwrap();
            assert_eq!(layout.page_at(address), Some(page));
            assert_eq!(layout.page_at(address + PAGE - 1), Some(page));
            let neighbours = if page < 16 { 0..16 } else { 16..64 };
            assert_eq!(layout.neighbours(page), Some(neighbours));
        }
        assert_eq!(layout.address_of(64), None);
        for outside in [0, 0x8000_0000 - 1, 0x8000_0000 + 48 * PAGE, 0x9000_0000 + 16 * PAGE, u64::MAX] {
            assert_eq!(layout.page_at(outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn a_stretch_of_addresses_is_cut_at_the_regions() {
        let layout = parse(&two()).unwrap();
        let all: Vec<_> = layout.pages_between(0, u64::MAX).collect();
        assert_eq!(all, [16..64, 0..16]);
        let some: Vec<_> = layout.pages_between(0x8000_0000 + 40 * PAGE, 0x9000_0000 + 3 * PAGE).collect();
        assert_eq!(some, [56..64, 0..3]);
        assert_eq!(layout.pieces(10..20).collect::<Vec<_>>(), [16..20, 10..16]);
    }

    #[test]
    fn a_layout_that_cannot_be_served_says_why() {
        let region = |address: u64, size: u64, offset: u64| json!({ "base_host_virt_addr": address, "size": size, "offset": offset, "page_size": PAGE });
        let huge = json!([{ "base_host_virt_addr": 0, "size": 2 << 20, "offset": 0, "page_size": 2 << 20 }]);
        let cases = [
            (json!([]), "names no memory region"),
            (json!({}), "not understood"),
            (json!([{ "size": 4096 }]), "not understood"),
            (huge, "no huge pages"),
            (json!([region(0, 0, 0)]), "not whole pages"),
            (json!([region(100, PAGE, 0)]), "not whole pages"),
            (json!([region(0, PAGE, 64 * PAGE)]), "not in the snapshot's memory"),
            (json!([region(0, PAGE, u64::MAX - PAGE + 1)]), "not in the snapshot's memory"),
            (json!([region(u64::MAX - PAGE + 1, 2 * PAGE, 0)]), "end of the address space"),
            (json!([region(0, 4 * PAGE, 0), region(3 * PAGE, PAGE, 8 * PAGE)]), "region 1: it overlaps"),
            (json!([region(0, 4 * PAGE, 0), region(9 * PAGE, PAGE, 3 * PAGE)]), "region 1: it overlaps"),
        ];
        for (regions, expected) in cases {
            let error = parse(&regions).unwrap_err().to_string();
            assert!(error.contains(expected), "{regions}: {error}");
        }
    }

    #[test]
    fn versions_that_do_not_tell_the_page_size_are_served() {
        let region = json!([{ "base_host_virt_addr": 4096, "size": SOURCE, "offset": 0 }]);
        assert_eq!(parse(&region).unwrap().neighbours(3), Some(0..64));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parser_panic(json in ".{0,200}", numbers: [u64; 6]) {
            let _ = Layout::parse(json.as_bytes(), SOURCE);
            let region = |at: usize| json!({
                "base_host_virt_addr": numbers[at], "size": numbers[at + 1] & !4095, "offset": numbers[at + 2]
            });
            let _ = Layout::parse(json!([region(0), region(3)]).to_string().as_bytes(), u64::MAX);
        }
    }
}
