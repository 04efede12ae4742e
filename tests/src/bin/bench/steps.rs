//! Where the agent's own time goes: medians of the steps that it logs of each operation.

use std::time::Duration;

use serde_json::{Value, json};
use wrenn_tests::stats::{Summary, summarize};

/// One step of one operation, in the order of the first time it was done.
#[derive(Debug, PartialEq)]
pub struct Step {
    pub operation: String,
    pub name: String,
    pub took: Summary,
}

/// All steps of all finished operations.
pub fn of_log(log: &str) -> Vec<Step> {
    let mut found: Vec<(String, String, Vec<Duration>)> = Vec::new();
    for line in log.lines() {
        let (Some(operation), Some(steps)) = (quoted(line, "operation="), quoted(line, "steps_ms=")) else {
            continue;
        };
        for (name, millis) in steps.split(' ').filter_map(|step| step.split_once('=')) {
            let Ok(millis) = millis.parse::<f64>() else { continue };
            let took = Duration::from_secs_f64(millis / 1000.0);
            match found.iter_mut().find(|(of, known, _)| of == operation && known == name) {
                Some((_, _, samples)) => samples.push(took),
                None => found.push((operation.to_owned(), name.to_owned(), vec![took])),
            }
        }
    }
    let step = |(operation, name, samples): (String, String, Vec<Duration>)| {
        Some(Step { operation, name, took: summarize(&samples)? })
    };
    found.into_iter().filter_map(step).collect()
}

/// Every sample of one step of one operation, in their order.
pub fn samples(log: &str, operation: &str, step: &str) -> Vec<Duration> {
    let finished = log.lines().filter(|line| quoted(line, "operation=") == Some(operation));
    let steps = finished.filter_map(|line| quoted(line, "steps_ms="));
    let of_step = |steps: &str| {
        let (_, millis) =
            steps.split(' ').filter_map(|one| one.split_once('=')).find(|(name, _)| *name == step)?;
        millis.parse::<f64>().ok().map(|millis| Duration::from_secs_f64(millis / 1000.0))
    };
    steps.filter_map(of_step).collect()
}

/// The value of a quoted field.
fn quoted<'a>(line: &'a str, field: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(field)?;
    rest.strip_prefix('"')?.split('"').next()
}

pub fn markdown(steps: &[Step]) -> String {
    let mut operations: Vec<&str> = steps.iter().map(|step| step.operation.as_str()).collect();
    operations.dedup();
    let mut text = "Where the agent's time goes (medians, ms):".to_owned();
    for operation in operations {
        let of = steps.iter().filter(|step| step.operation == operation);
        let shown: Vec<String> = of.map(|step| format!("{} {:.1}", step.name, step.took.median)).collect();
        text.push_str(&format!("\n- {operation}: {}", shown.join(", ")));
    }
    text
}

pub fn as_json(steps: &[Step]) -> Value {
    let one =
        |step: &Step| json!({ "operation": step.operation, "step": step.name, "medianMs": step.took.median });
    steps.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_the_log_in_their_order() {
        let log = r#"INFO capsule{id=cl-1}: done operation="create" total_ms=9.0 steps_ms="slot+disk=1.0 restore=3.0"
INFO something else
INFO capsule{id=cl-2}: done operation="create" total_ms=9.0 steps_ms="slot+disk=2.0 restore=5.0"
INFO capsule{id=cl-2}: done operation="destroy" total_ms=9.0 steps_ms="""#;
        assert_eq!(
            markdown(&of_log(log)),
            "Where the agent's time goes (medians, ms):\n- create: slot+disk 1.5, restore 4.0"
        );
        assert_eq!(samples(log, "create", "restore"), [3, 5].map(Duration::from_millis));
        assert!(samples(log, "create", "nothing").is_empty());
    }
}
