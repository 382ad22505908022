//! vswitchd's control socket, for who looks often: ovs-appctl takes longer to start than vswitchd to answer.

use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the control socket (JSON-RPC, as in ovs-appctl(8)).
pub struct Unixctl(UnixStream);

impl Unixctl {
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| format!("cannot reach {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Unixctl(stream))
    }

    /// Runs a command and returns what it printed.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let request = json!({ "method": command, "params": arguments, "id": 0 });
        (&self.0).write_all(request.to_string().as_bytes())?;
        let mut replies = serde_json::Deserializer::from_reader(BufReader::new(&self.0)).into_iter::<Value>();
        let reply = replies.next().with_context(|| format!("{command}: no reply"))??;
        ensure!(reply["error"].is_null(), "{command}: {}", reply["error"]);
        Ok(reply["result"].as_str().unwrap_or_default().to_owned())
    }
}
