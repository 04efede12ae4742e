//! The TypeScript SDK and its command line: their own tests, run by Node against the stack.

use std::sync::Arc;

use anyhow::Result;
use wrenn_tests::node;
use wrenn_tests::stack::Stack;

pub async fn passes_its_own_tests(stack: Arc<Stack>) -> Result<()> {
    node::script("test:stack", stack.client()).await
}
