//! What is refused of a document before the engine sees it. The engine takes a document apart at once, each fragment as
//! often as it is spread, and only then compares with its limits; what schemas say of themselves it gives away for next
//! to nothing.

mod text;
mod weight;

use async_graphql::{
    Request, ServerError, ServerResult,
    parser::types::{ExecutableDocument, OperationType, Selection},
};

/// Levels of nesting, of brackets in the text and of selections with their fragments. The engine's own limit for the
/// latter is lower: this one is what a stack can take.
const DEEPEST: usize = 100;

/// Parses the document, which the engine then takes as it is, and refuses what would cost too much or would not be
/// carried out as it stands.
pub(crate) fn check(request: &mut Request) -> ServerResult<()> {
    text::check(&request.query)?;
    let document = request.parsed_query()?;
    weight::check(document)?;
    check_subscriptions(document)
}

/// The engine would open a stream for each field, and none for those in fragments.
fn check_subscriptions(document: &ExecutableDocument) -> ServerResult<()> {
    for (_, operation) in document.operations.iter() {
        let roots = &operation.node.selection_set;
        let one_field = match roots.node.items.as_slice() {
            [root] => matches!(root.node, Selection::Field(_)) && root.node.directives().is_empty(),
            _ => false,
        };
        if operation.node.ty == OperationType::Subscription && !one_field {
            let message = "a subscription has exactly one field, outside of fragments and without directives";
            return Err(ServerError::new(message, Some(roots.pos)));
        }
    }
    Ok(())
}

fn nested_too_deep() -> ServerError {
    ServerError::new(format!("the document is nested more than {DEEPEST} levels deep"), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message, if it is refused.
    fn refusal(document: &str) -> Option<String> {
        check(&mut Request::new(document)).err().map(|error| error.message)
    }

    #[test]
    fn a_subscription_has_one_field() {
        for document in [
            "subscription { hosts { id } }",
            "subscription a { hosts { id } } subscription b { hosts { id } } query c { a b }",
        ] {
            assert_eq!(refusal(document), None, "{document}");
        }
        for document in [
            "subscription { a: hosts { id } b: hosts { id } }",
            "subscription { hosts { id } hosts { name } }",
            "subscription { ...F } fragment F on Subscription { hosts { id } }",
            "subscription { ... on Subscription { hosts { id } } }",
            "subscription { hosts @skip(if: true) { id } }",
            "query a { b } subscription c { d e }",
        ] {
            let message = refusal(document).expect(document);
            assert!(message.contains("exactly one field"), "{message}");
        }
    }

    #[test]
    fn what_was_parsed_is_not_parsed_again() {
        let mut request = Request::new("{ a }");
        check(&mut request).expect("is fine");
        request.query.clear();
        assert_eq!(request.parsed_query().expect("is there").operations.iter().count(), 1);
    }

    #[test]
    fn syntax_errors_keep_their_place() {
        let error = check(&mut Request::new("{ a")).expect_err("is no document");
        assert_eq!(error.locations.len(), 1, "{error:?}");
    }
}
