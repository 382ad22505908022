//! What a port says of itself, as `vhost-user/events` tells it: the lines of its log, kept whatever becomes of those.

use crate::common::TestPort;

/// How many events of this level, `WARN` or so, have these words.
pub fn events(port: &TestPort, level: &str, words: &str) -> usize {
    let tree = port.describe_events();
    let all = tree["events"].as_array().into_iter().flatten();
    let is_one = |event: &&serde_json::Value| {
        event["level"] == level && event["text"].as_str().is_some_and(|text| text.contains(words))
    };
    all.filter(is_one).count()
}
