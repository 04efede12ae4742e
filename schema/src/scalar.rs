//! The schema's own scalars.

use std::collections::BTreeMap;

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

/// A whole number that may pass 2^53, as a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BigInt(pub u64);

/// A whole number that may pass 2^53, as a string.
#[Scalar]
impl ScalarType for BigInt {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::String(text) => text.parse().map(Self).map_err(|_| {
                InputValueError::custom(format!("`{text}` is no whole number from 0 to 2^64-1"))
            }),
            Value::Number(number) => number.as_u64().map(Self).ok_or_else(|| {
                InputValueError::custom(format!("{number} is no whole number from 0 to 2^64-1"))
            }),
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    // Asked with the argument's name at hand, which `parse` is not: so the error can name the field.
    fn is_valid(value: &Value) -> bool {
        Self::parse(value.clone()).is_ok()
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

impl serde::Serialize for BigInt {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Bytes, base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base64(pub Bytes);

/// Bytes, base64.
#[Scalar]
impl ScalarType for Base64 {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::String(text) = &value else {
            return Err(InputValueError::expected_type(value));
        };
        STANDARD
            .decode(text)
            .map(|bytes| Self(bytes.into()))
            .map_err(|error| InputValueError::custom(format!("not base64: {error}")))
    }

    // Asked with the argument's name at hand, which `parse` is not: so the error can name the field.
    fn is_valid(value: &Value) -> bool {
        matches!(value, Value::String(text) if STANDARD.decode(text).is_ok())
    }

    fn to_value(&self) -> Value {
        Value::String(STANDARD.encode(&self.0))
    }
}

/// Labels: a flat map of strings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

/// Labels: a flat map of strings.
#[Scalar]
impl ScalarType for Labels {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::Object(map) = value else {
            return Err(InputValueError::expected_type(value));
        };
        map.into_iter()
            .map(|(name, value)| match value {
                Value::String(text) => Ok((name.to_string(), text)),
                _ => Err(InputValueError::custom(format!("the value of `{name}` is no string"))),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    // Asked with the argument's name at hand, which `parse` is not: so the error can name the field.
    fn is_valid(value: &Value) -> bool {
        Self::parse(value.clone()).is_ok()
    }

    fn to_value(&self) -> Value {
        Value::Object(
            self.0
                .iter()
                .map(|(name, value)| (async_graphql::Name::new(name), Value::String(value.clone())))
                .collect(),
        )
    }
}
