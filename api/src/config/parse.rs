use std::{
    fmt::{self, Display},
    str::FromStr,
    time::Duration,
};

use figment::{
    Figment,
    value::{Dict, Num, Value},
};

use super::settings::SETTINGS;

/// A wrong value: which, and why. One line.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct ConfigError {
    name: &'static str,
    reason: String,
}

impl ConfigError {
    pub(super) fn new(name: &'static str, reason: impl Into<String>) -> Self {
        Self { name, reason: reason.into().replace('\n', " ") }
    }
}

/// The given values, by name, with the table's defaults behind them.
pub(super) struct Source {
    values: Vec<(&'static str, Vec<String>)>,
}

impl Source {
    pub(super) fn new(figment: Figment) -> Result<Self, ConfigError> {
        let given: Dict =
            figment.extract().map_err(|error| ConfigError::new("WRENN_CONFIG", error.to_string()))?;
        let mut values = Vec::new();
        for setting in SETTINGS {
            if let Some(value) = given.get(setting.name) {
                let texts = texts(value).ok_or_else(|| {
                    ConfigError::new(setting.name, "is not a single value or a list of them")
                })?;
                // Set to nothing is the shell's way to say unset.
                if texts.iter().any(|text| !text.is_empty()) {
                    values.push((setting.name, texts));
                }
            }
        }
        Ok(Self { values })
    }

    fn find(&self, name: &str) -> Option<&[String]> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, texts)| texts.as_slice())
    }

    /// The text that was given, if any.
    pub(super) fn given(&self, name: &'static str) -> Option<String> {
        self.find(name).map(|texts| texts.join(","))
    }

    /// The given value or the default.
    pub(super) fn get<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, ConfigError> {
        self.checked(name, |_| Ok(()))
    }

    /// The same, with a condition on it.
    pub(super) fn checked<T: FromStr<Err: Display>>(
        &self,
        name: &'static str,
        condition: impl Fn(&T) -> Result<(), String>,
    ) -> Result<T, ConfigError> {
        let default = || SETTINGS.iter().find(|setting| setting.name == name).map(|setting| setting.default);
        let text = self.given(name).unwrap_or_else(|| default().unwrap_or_default().to_owned());
        let value = parse(name, &text)?;
        condition(&value).map_err(|reason| ConfigError::new(name, format!("`{text}`: {reason}")))?;
        Ok(value)
    }

    pub(super) fn seconds(&self, name: &'static str, min: u64, max: u64) -> Result<Duration, ConfigError> {
        self.checked(name, between(min, max)).map(Duration::from_secs)
    }

    /// A list: TOML's own, or text separated by commas.
    pub(super) fn list<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<Vec<T>, ConfigError> {
        let texts = self.find(name).unwrap_or_default();
        texts
            .iter()
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| parse(name, text))
            .collect()
    }
}

fn parse<T: FromStr<Err: Display>>(name: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|error| ConfigError::new(name, format!("`{text}`: {error}")))
}

/// A scalar as one text, a list of scalars as several.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(_, values) => values.iter().map(text).collect(),
        scalar => text(scalar).map(|text| vec![text]),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Char(_, char) => Some(char.to_string()),
        Value::Bool(_, bool) => Some(bool.to_string()),
        Value::Num(_, num) => Some(number(*num)),
        Value::Empty(..) => Some(String::new()),
        Value::Dict(..) | Value::Array(..) => None,
    }
}

fn number(num: Num) -> String {
    num.to_i128()
        .map(|number| number.to_string())
        .or_else(|| num.to_u128().map(|number| number.to_string()))
        .or_else(|| num.to_f64().map(|number| number.to_string()))
        .unwrap_or_default()
}

pub(super) fn at_least<T: PartialOrd + fmt::Display>(min: T) -> impl Fn(&T) -> Result<(), String> {
    move |value| if *value >= min { Ok(()) } else { Err(format!("must be at least {min}")) }
}

pub(super) fn between<T: PartialOrd + fmt::Display>(min: T, max: T) -> impl Fn(&T) -> Result<(), String> {
    move |value| {
        if (&min..=&max).contains(&value) { Ok(()) } else { Err(format!("must be from {min} to {max}")) }
    }
}

/// A filter's own parser takes any word for the name of a target; a lone word here is a level.
pub(super) fn log_filter(text: &str) -> Result<tracing_subscriber::EnvFilter, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    for directive in text.split(',').map(str::trim) {
        if !directive.contains('=') && !LEVELS.contains(&directive.to_ascii_lowercase().as_str()) {
            return Err(format!("`{directive}` is not a level ({})", LEVELS.join(", ")));
        }
    }
    tracing_subscriber::EnvFilter::try_new(text).map_err(|error| error.to_string())
}
