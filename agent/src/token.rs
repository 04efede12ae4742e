//! The secret that a capsule's envd asks of its host: 32 random bytes, hexadecimal in metadata and on disk.

use std::fmt;

use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use serde::{Deserialize, Serialize};
use tonic::metadata::{Ascii, MetadataValue};

const BYTES: usize = 32;

/// Shown to nobody: neither `Debug` nor logs print it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token([u8; BYTES]);

#[derive(Debug, thiserror::Error)]
#[error("a token is 64 hexadecimal digits")]
pub struct TokenError;

impl Token {
    /// From the kernel's generator.
    pub fn generate() -> Result<Self, SysError> {
        let mut bytes = [0; BYTES];
        SysRng.try_fill_bytes(&mut bytes)?;
        Ok(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// As every call into the guest carries it.
    pub fn metadata(&self) -> Option<MetadataValue<Ascii>> {
        let mut value = MetadataValue::try_from(String::from(self.clone())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Token {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        let mut bytes = [0; BYTES];
        if text.len() != 2 * BYTES || !text.is_ascii() {
            return Err(TokenError);
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| TokenError)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_is_not_shown() {
        let token = Token::generate().unwrap();
        assert_eq!(Token::try_from(String::from(token.clone())).unwrap(), token);
        assert_ne!(Token::generate().unwrap(), token);
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert!(Token::try_from("00".to_owned()).is_err());
    }
}
