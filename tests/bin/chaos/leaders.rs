//! Another broker leads a topic's partitions, by Kafka's own tools.

use harness::broker::tool;
use serde_json::json;
use uuid::Uuid;

use crate::stage::Stage;

/// Brokers of a cluster of several.
const BROKERS: usize = 3;

/// Makes the broker the preferred leader of all partitions, and has the preferred leaders elected.
///
/// # Panics
/// When the tools fail.
pub fn move_to(stage: &Stage, topic: &str, broker: usize) {
    let (brokers, name) = (
        stage.world.brokers(),
        format!("{}{topic}", stage.world.prefix()),
    );
    let replicas: Vec<usize> = (0..BROKERS)
        .map(|step| (broker - 1 + step) % BROKERS + 1)
        .collect();
    let partitions: Vec<_> = (0..3)
        .map(|number| json!({"topic": name, "partition": number, "replicas": replicas}))
        .collect();
    let file = std::env::temp_dir().join(format!("reassign-{}.json", Uuid::new_v4()));
    std::fs::write(
        &file,
        json!({"version": 1, "partitions": partitions}).to_string(),
    )
    .expect("a temporary file");
    let path = file.to_str().expect("UTF-8");
    let place = ["--bootstrap-server", brokers];
    let change = ["--reassignment-json-file", path, "--execute"];
    tool(
        "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
        &[&place[..], &change].concat(),
    );
    let elect = ["--election-type", "preferred", "--path-to-json-file", path];
    tool(
        "org.apache.kafka.tools.LeaderElectionCommand",
        &[&place[..], &elect].concat(),
    );
    std::fs::remove_file(file).expect("ours");
}
