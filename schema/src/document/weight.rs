//! How many values a document asks for, reckoned without spreading its fragments.

use std::collections::HashMap;

use async_graphql::{
    Name, Pos, Positioned, ServerError, ServerResult,
    parser::types::{ExecutableDocument, FragmentDefinition, Selection, SelectionSet},
};

use super::{DEEPEST, nested_too_deep};

/// In all. What tools ask about the whole schema is a good half of it.
const MOST: u64 = 100_000;

pub(super) fn check(document: &ExecutableDocument) -> ServerResult<()> {
    let mut weights = Weights { fragments: &document.fragments, known: HashMap::new() };
    let mut all = 0u64;
    for (_, operation) in document.operations.iter() {
        let weight = weights.of_set(&operation.node.selection_set.node, Place::Data, 0)?;
        all = all.saturating_add(weight);
    }
    // The engine looks at each for itself as well, also at those that are not spread.
    for (name, fragment) in &document.fragments {
        all = all.saturating_add(weights.of_fragment(name, fragment.pos, Place::Data, 0)?);
    }
    if all > MOST {
        let message = format!(
            "the document asks for more than {MOST} values, fragments counted wherever they are spread and what \
             the schema says of itself by how much it is"
        );
        return Err(ServerError::new(message, None));
    }
    Ok(())
}

/// Where in an answer a selection stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// Outside of what the schema says of itself: lists are multiplied by the engine, in its reckoning of complexity.
    Data,
    /// Below `__schema`, by lists alone: everything is met once.
    Whole,
    /// At a type that was named or referred to, which may be the largest, and be met again and again.
    Any,
}

impl Place {
    /// Of the items of a field.
    fn below(self, field: &str) -> Self {
        match (self, field) {
            (Self::Data, "__schema") => Self::Whole,
            (Self::Data, "__type") => Self::Any,
            (Self::Data, _) => Self::Data,
            (Self::Whole, "types" | "directives" | "fields" | "args" | "inputFields" | "enumValues") => {
                Self::Whole
            }
            (Self::Whole | Self::Any, _) => Self::Any,
        }
    }

    /// Items of a field: on the average where everything is met once, elsewhere the most there are.
    fn items(self, field: &str) -> u64 {
        let (average, most) = match field {
            "types" => (128, 128),
            "directives" => (8, 8),
            "fields" => (4, 64),
            "args" => (1, 10),
            "inputFields" => (2, 20),
            "enumValues" => (2, 30),
            "interfaces" => (1, 2),
            "possibleTypes" => (1, 20),
            _ => (1, 1),
        };
        match self {
            Self::Data => 1,
            Self::Whole => average,
            Self::Any => most,
        }
    }
}

struct Weights<'a> {
    fragments: &'a HashMap<Name, Positioned<FragmentDefinition>>,
    /// Nothing: it is being reckoned.
    known: HashMap<(&'a str, Place), Option<u64>>,
}

impl<'a> Weights<'a> {
    fn of_set(&mut self, set: &'a SelectionSet, place: Place, level: usize) -> ServerResult<u64> {
        if level > DEEPEST {
            return Err(nested_too_deep());
        }
        let mut all = 0u64;
        for selection in &set.items {
            let below = match &selection.node {
                Selection::Field(field) => {
                    let name = field.node.name.node.as_str();
                    let set = &field.node.selection_set.node;
                    self.of_set(set, place.below(name), level + 1)?.saturating_mul(place.items(name))
                }
                Selection::InlineFragment(fragment) => {
                    self.of_set(&fragment.node.selection_set.node, place, level + 1)?
                }
                Selection::FragmentSpread(spread) => {
                    let name = &spread.node.fragment_name;
                    self.of_fragment(&name.node, name.pos, place, level + 1)?
                }
            };
            all = all.saturating_add(below).saturating_add(1);
        }
        Ok(all)
    }

    fn of_fragment(&mut self, name: &'a str, at: Pos, place: Place, level: usize) -> ServerResult<u64> {
        match self.known.get(&(name, place)) {
            Some(Some(weight)) => return Ok(*weight),
            Some(None) => {
                let message = format!("the fragment \"{name}\" is spread within itself");
                return Err(ServerError::new(message, Some(at)));
            }
            None => {}
        }
        // One that is missing is the engine's to complain of.
        let Some(fragment) = self.fragments.get(name) else { return Ok(0) };
        self.known.insert((name, place), None);
        let weight = self.of_set(&fragment.node.selection_set.node, place, level)?;
        self.known.insert((name, place), Some(weight));
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use async_graphql::parser::parse_query;
    use serde_json::Value;

    use super::*;

    fn refusal(document: &str) -> Option<String> {
        check(&parse_query(document).expect("is a document")).err().map(|error| error.message)
    }

    /// Each fragment spreads the next one `times` times.
    fn chain(length: usize, times: usize) -> String {
        let mut document = "{ ...F0 }".to_owned();
        for number in 0..length {
            let spreads = format!("...F{} ", number + 1).repeat(times);
            write!(document, " fragment F{number} on Query {{ {spreads} }}").expect("fits");
        }
        document + &format!(" fragment F{length} on Query {{ __typename }}")
    }

    #[test]
    fn fragments_count_wherever_they_are_spread() {
        assert_eq!(refusal(&chain(8, 2)), None);
        for (length, times) in [(31, 3), (31, 2), (2, 400), (80, 100)] {
            let message = refusal(&chain(length, times)).expect("is too much");
            assert!(message.contains("more than 100000 values"), "{message}");
        }
        let unused = chain(16, 3).replacen("{ ...F0 }", "{ a }", 1);
        assert!(refusal(&unused).is_some(), "the engine would look at them all the same");
    }

    #[test]
    fn fragments_end() {
        for endless in [
            "{ ...F } fragment F on Query { ...F }",
            "{ a } fragment F on Query { a { ... { ...G } } } fragment G on Query { ...F }",
        ] {
            let message = refusal(endless).expect("has no end");
            assert!(message.contains("within itself"), "{message}");
        }
        let message = refusal(&chain(3000, 1)).expect("is deep");
        assert!(message.contains("levels deep"), "{message}");
        assert_eq!(refusal("{ ...F }"), None, "this is said by the engine");
    }

    #[test]
    fn what_the_schema_says_of_itself_counts_by_how_much_it_is() {
        let names: String = (0..1000).map(|number| format!("a{number}: __typename ")).collect();
        let nested = "possibleTypes { interfaces { ".repeat(9) + "name" + &"}".repeat(18);
        let spread = "fragment F on __Type { fields { type { fields { args { name } } } } }";
        for much in [
            format!("{{ __schema {{ types {{ {names} }} }} }}"),
            format!("{{ __type(name: \"Node\") {{ {nested} }} }}"),
            format!("{{ __schema {{ types {{ ...F }} }} }} {spread}"),
        ] {
            assert!(refusal(&much).is_some(), "{much}");
        }
        assert_eq!(refusal(&format!("{{ viewer {{ {names} }} }}")), None, "that is the engine's to reckon");
        assert_eq!(
            refusal("{ __type(name: \"Capsule\") { fields { args { type { ofType { name } } } } } }"),
            None
        );
    }

    /// How many items lists have: all together, and the longest.
    #[derive(Default)]
    struct Lengths {
        lists: u64,
        items: u64,
        longest: u64,
    }

    impl Lengths {
        fn add(&mut self, list: &Value) {
            let length = list.as_array().map_or(0, |items| items.len() as u64);
            self.lists += 1;
            self.items += length;
            self.longest = self.longest.max(length);
        }
    }

    #[tokio::test]
    async fn lists_of_the_schema_are_no_longer_than_reckoned() {
        const LISTS: [&str; 5] = ["fields", "inputFields", "enumValues", "interfaces", "possibleTypes"];
        let query = "{ __schema { directives { args { name } } types {
            fields(includeDeprecated: true) { args { name } } inputFields { name }
            enumValues(includeDeprecated: true) { name } interfaces { name } possibleTypes { name }
        } } }";
        let answer = crate::builder().finish().execute(query).await;
        let schema =
            answer.into_result().expect("is told").data.into_json().expect("is JSON")["__schema"].take();
        let mut seen: HashMap<&str, Lengths> = HashMap::new();
        seen.entry("types").or_default().add(&schema["types"]);
        seen.entry("directives").or_default().add(&schema["directives"]);
        for directive in schema["directives"].as_array().expect("a list") {
            seen.entry("args").or_default().add(&directive["args"]);
        }
        for of in schema["types"].as_array().expect("a list") {
            for list in LISTS {
                seen.entry(list).or_default().add(&of[list]);
            }
            for field in of["fields"].as_array().into_iter().flatten() {
                seen.entry("args").or_default().add(&field["args"]);
            }
        }
        for (list, lengths) in seen {
            let Lengths { lists, items, longest } = lengths;
            assert!(lists > 0 && items <= lists * Place::Whole.items(list), "{list}: {items} in {lists}");
            assert!(longest <= Place::Any.items(list), "{list}: {longest}");
        }
    }
}
