//! Calls to the running services, for the demo: blocking, by keep-alive connections.

use std::time::Duration;

use serde_json::Value;
use shared::config::Config;
use shared::http::AdminToken;
use ureq::Agent;

/// No call takes longer: the order service answers within 10 s that the database is away, `?wait` is 30 s at most.
const LIMIT: Duration = Duration::from_secs(40);

/// One service, by connections of its own.
pub struct Client {
    base: String,
    agent: Agent,
    /// The operator's, if there is one.
    authorization: Option<String>,
}

impl Client {
    /// The service of these settings, on this machine or where it is bound to. Connects to nothing yet.
    pub fn new(config: &Config) -> Client {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(LIMIT))
            .build();
        Client {
            base: format!("http://{}", config.local_address()),
            agent: agent.new_agent(),
            authorization: config.admin_token.as_ref().map(AdminToken::authorization),
        }
    }

    /// What `path` answers with 200.
    ///
    /// # Errors
    /// Any other answer, or none.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        let url = format!("{}{path}", self.base);
        self.read("GET", &url, self.agent.get(&url).call(), &[200])
    }

    /// Sets an account or an item.
    ///
    /// # Errors
    /// Any answer but 200 and 201, or none.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}{path}", self.base);
        let request = self
            .agent
            .put(&url)
            .header("content-type", "application/json");
        let request = self.authorization.iter().fold(request, |request, value| {
            request.header("authorization", value)
        });
        self.read("PUT", &url, request.send(body.to_string()), &[200, 201])
    }

    /// Places an order.
    ///
    /// # Errors
    /// Any answer but 202, or none.
    pub fn place(&self, order: &Value) -> Result<Value, String> {
        let url = format!("{}/orders", self.base);
        let request = self
            .agent
            .post(&url)
            .header("content-type", "application/json");
        self.read("POST", &url, request.send(order.to_string()), &[202])
    }

    fn read(
        &self,
        method: &str,
        url: &str,
        answered: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        wanted: &[u16],
    ) -> Result<Value, String> {
        let mut response = answered.map_err(|error| format!("{method} {url}: {error}"))?;
        let status = response.status().as_u16();
        // to its end, also if it is an error: else the connection can't be kept
        let text = response
            .body_mut()
            .read_to_string()
            .map_err(|error| format!("{method} {url}: {error}"))?;
        if !wanted.contains(&status) {
            return Err(format!("{method} {url}: {status} {text}"));
        }
        serde_json::from_str(&text).map_err(|error| format!("{method} {url}: {error}: {text}"))
    }
}
