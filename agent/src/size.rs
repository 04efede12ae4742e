//! Sizes as people write them: `5G 2Gi 1000M 512Mi`, bare bytes, `T` to `K`.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Whole MiB, rounded up: what is asked for fits.
    pub const fn mib_ceil(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a size such as 5G, 2Gi, 1000M or 512Mi is wanted")]
pub struct SizeError;

impl FromStr for Size {
    type Err = SizeError;

    /// `K M G T` are powers of 1000, `Ki Mi Gi Ti` of 1024; a trailing `B` is allowed.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let number: u64 = digits.parse().map_err(|_| SizeError)?;
        let factor: u64 = match unit.trim().trim_end_matches('B') {
            "" => 1,
            "K" | "k" => 1000,
            "M" => 1000u64.pow(2),
            "G" => 1000u64.pow(3),
            "T" => 1000u64.pow(4),
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(SizeError),
        };
        number.checked_mul(factor).map(Self).ok_or(SizeError)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n % (1 << 30) == 0 => write!(f, "{}Gi", n >> 30),
            n if n > 0 && n % (1 << 20) == 0 => write!(f, "{}Mi", n >> 20),
            n => write!(f, "{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_spelling_parses() {
        for (text, bytes) in [
            ("5G", 5_000_000_000),
            ("2Gi", 2 << 30),
            ("1000M", 1_000_000_000),
            ("512Mi", 512 << 20),
            ("5 GiB", 5 << 30),
            ("64K", 64_000),
            ("1Ti", 1 << 40),
            ("4096", 4096),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "G", "-5G", "5X", "1.5G", "5GG", "99999999999999999999", "20000000Ti"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError), "{text:?}");
        }
    }

    #[test]
    fn rounding_never_makes_a_disk_too_small() {
        assert_eq!("5G".parse::<Size>().map(Size::mib_ceil), Ok(4769));
        assert_eq!(Size::from_mib(3).mib_ceil(), 3);
        assert_eq!(Size::from_mib(5 << 10).to_string(), "5Gi");
    }
}
