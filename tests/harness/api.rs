//! HTTP calls to one instance, blocking, by keep-alive connections.

use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::{Method, Request};
use ureq::{Agent, Body};
use uuid::Uuid;

use crate::contract;
use crate::wait::eventually;

/// No call of the services takes longer: `?wait` is 30 s at most.
const LIMIT: Duration = Duration::from_secs(40);

/// One instance's interface.
#[derive(Clone)]
pub struct Api {
    base: String,
    agent: Agent,
}

/// What was answered, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, null if it is no JSON.
    pub json: Value,
    /// The body as text.
    pub text: String,
}

/// Whether the answer to a `POST /orders` with this status is no order: it was refused, or its outcome is unknown. In both cases it
/// may be repeated with its key.
pub fn is_refusal(status: u16) -> bool {
    status == 503
}

impl Answer {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }
}

impl Api {
    /// The instance that listens on this port of the local machine.
    pub fn new(port: u16) -> Api {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(LIMIT))
            .build();
        Api {
            base: format!("http://127.0.0.1:{port}"),
            agent: config.new_agent(),
        }
    }

    /// `http://host:port`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Any call. `body` is sent as it is; its media type is a header like others.
    ///
    /// # Errors
    /// When no whole answer comes: refused, cut, too late.
    ///
    /// # Panics
    /// When the answer is not as `openapi.yaml` says.
    pub fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        let name = method;
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answered = match body {
            Some(body) => self.agent.run(request.body(body)?),
            None => self.agent.run(request.body(())?),
        };
        let answer = answer(answered?)?;
        contract::check(name, path, &answer);
        Ok(answer)
    }

    /// A call with JSON that must be answered.
    ///
    /// # Panics
    /// When no whole answer comes.
    pub fn json(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let mut headers = headers.to_vec();
        headers.push(("content-type", "application/json"));
        self.call(method, path, &headers, Some(body.to_string().as_bytes()))
            .unwrap_or_else(|error| panic!("{method} {}{path}: {error}", self.base))
    }

    /// `GET`.
    ///
    /// # Panics
    /// When no whole answer comes.
    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], None)
            .unwrap_or_else(|error| panic!("GET {}{path}: {error}", self.base))
    }

    /// `POST` with JSON.
    ///
    /// # Panics
    /// When no whole answer comes.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.json("POST", path, &[], body)
    }

    /// `PUT` with JSON.
    ///
    /// # Panics
    /// When no whole answer comes.
    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.json("PUT", path, &[], body)
    }

    /// Places an order and answers its id.
    ///
    /// # Panics
    /// When it is not accepted.
    pub fn place(&self, user: &str, item: &str, price: i64, quantity: i64) -> Uuid {
        let order =
            json!({"userName": user, "itemName": item, "price": price, "quantity": quantity});
        let answer = self.post("/orders", &order);
        assert_eq!(answer.status, 202, "{}", answer.text);
        let order_id = answer.json["orderId"]
            .as_str()
            .and_then(|id| id.parse().ok());
        order_id.unwrap_or_else(|| panic!("no order id in {}", answer.text))
    }

    /// The order as it stands.
    ///
    /// # Panics
    /// When it does not exist.
    pub fn order(&self, order_id: Uuid) -> Value {
        self.found(&format!("/orders/{order_id}"))
    }

    /// The order once it is settled.
    ///
    /// # Panics
    /// When it does not exist, or does not settle in time.
    pub fn settled(&self, order_id: Uuid) -> Value {
        let path = format!("/orders/{order_id}?wait=10s");
        eventually(&format!("order {order_id} to settle"), || {
            Some(self.found(&path)).filter(|order| order["settled"] == true)
        })
    }

    /// What `path` answers with 200.
    ///
    /// # Panics
    /// When it answers otherwise.
    pub fn found(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.text);
        answer.json
    }

    /// Sets a user's balance (payment).
    ///
    /// # Panics
    /// When it is refused.
    pub fn put_balance(&self, user: &str, balance: i64) {
        self.accepted(&format!("/accounts/{user}"), &json!({ "balance": balance }));
    }

    /// Sets an item's quantity (stock).
    ///
    /// # Panics
    /// When it is refused.
    pub fn put_quantity(&self, item: &str, quantity: i64) {
        self.accepted(&format!("/items/{item}"), &json!({ "quantity": quantity }));
    }

    fn accepted(&self, path: &str, body: &Value) {
        let answer = self.put(path, body);
        assert!(
            matches!(answer.status, 200 | 201),
            "PUT {path}: {}",
            answer.text
        );
    }

    /// A user's balance (payment).
    ///
    /// # Panics
    /// When the user is unknown.
    pub fn balance(&self, user: &str) -> i64 {
        self.found(&format!("/accounts/{user}"))["balance"]
            .as_i64()
            .expect("a number")
    }

    /// An item's quantity (stock).
    ///
    /// # Panics
    /// When the item is unknown.
    pub fn quantity(&self, item: &str) -> i64 {
        self.found(&format!("/items/{item}"))["quantity"]
            .as_i64()
            .expect("a number")
    }
}

fn answer(mut response: ureq::http::Response<Body>) -> Result<Answer, ureq::Error> {
    let text = response
        .body_mut()
        .with_config()
        .limit(64 << 20)
        .lossy_utf8(true)
        .read_to_string()?;
    let text_of =
        |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(Answer {
        status: response.status().as_u16(),
        headers: response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), text_of(value)))
            .collect(),
        json: serde_json::from_str(&text).unwrap_or_default(),
        text,
    })
}
