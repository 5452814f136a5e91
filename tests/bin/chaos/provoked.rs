//! Besides the orders: records that nobody can handle, and balances and quantities set anew while orders take from them.

use harness::books::reader_of;
use harness::{Api, Message, Service, TOPICS, World};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::json;
use uuid::Uuid;

use crate::load::{self, Asked, EMPTIED, End, Heard, PLENTY, TOPPED};
use crate::stage::Stage;

/// A record that must be parked.
#[derive(Clone, Debug)]
pub struct Poison {
    /// By whom.
    pub service: &'static str,
    /// Why.
    pub cause: &'static str,
    /// Its message id.
    pub ce_id: String,
    /// Its value.
    pub value: String,
    /// Whether it is on the topic for certain: its answer came.
    pub sure: bool,
}

/// A `PUT` of [`TOPPED`].
#[derive(Clone, Debug)]
pub struct Put {
    /// Of whom.
    pub service: &'static str,
    /// The new balance or quantity; no two are the same.
    pub value: i64,
    /// Whether it was answered with success.
    pub answered: bool,
}

/// Writes one poisoned record.
pub fn poison(world: &World, random: &mut StdRng) -> Poison {
    let (mut message, cause) = if random.random_bool(0.5) {
        garbage(random)
    } else {
        stray_answer(random)
    };
    let ce_id = Uuid::now_v7().to_string();
    message
        .headers
        .iter_mut()
        .filter(|(name, _)| name == "ce_id")
        .for_each(|(_, id)| *id = ce_id.clone().into());
    let value = String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
    let sure = world.try_produce(&message).is_ok();
    Poison {
        service: reader_of(&message.topic).name(),
        cause,
        ce_id,
        value,
        sure,
    }
}

/// Nothing of it can be decoded.
fn garbage(random: &mut StdRng) -> (Message, &'static str) {
    let topic = TOPICS.choose(random).expect("eight");
    let mut message = Message::event(topic, Uuid::now_v7(), "poison", &json!({}));
    message.key = Some(b"no order".to_vec());
    message.value = Some(format!("poison {}", Uuid::now_v7()).into_bytes());
    (message, "UNDECODABLE")
}

/// An answer about an order that never was.
fn stray_answer(random: &mut StdRng) -> (Message, &'static str) {
    let side = ["payment", "stock"].choose(random).expect("two");
    let order_id = Uuid::now_v7();
    let (topic, ce_type) = (format!("{side}.success"), format!("{side}.completed"));
    (
        Message::event(&topic, order_id, &ce_type, &json!({"orderId": order_id})),
        "UNKNOWN_ORDER",
    )
}

/// Orders of each of the two kinds.
const UNDONE: usize = 4;

/// In a tail that will be lost: puts an account or item in, empties another one, and places orders on both. The participant
/// decides these once more when its database has come back without this, and then otherwise. Answers what was asked and heard.
pub fn decided_otherwise_later(stage: &Stage, service: Service, seed: u64) -> Vec<(Asked, Heard)> {
    let late = format!("late-{seed:x}");
    let (table, [name, left]) = match service {
        Service::Order => return vec![],
        Service::Payment => ("account", ["user_name", "balance"]),
        Service::Stock => ("item", ["item_name", "quantity"]),
    };
    let sql = format!(
        "insert into {table} ({name}, {left}, deposited) values ('{late}', {PLENTY}, {PLENTY});
         update {table} set {left} = 0, deposited = deposited - {left} where {name} = '{EMPTIED}'"
    );
    stage
        .db(service)
        .and_then(|mut db| db.batch_execute(&sql))
        .expect("a primary that answers");
    let ports: Vec<u16> = stage
        .members_of(Service::Order)
        .map(|member| member.port)
        .collect();
    let place = |number: usize| {
        let whose = if number.is_multiple_of(2) {
            late.clone()
        } else {
            EMPTIED.to_string()
        };
        let (user, item) = if service == Service::Payment {
            (whose, "hot".into())
        } else {
            ("hot".into(), whose)
        };
        let (key, end) = (format!("undone-{seed:x}-{number}"), End::Either);
        let asked = Asked {
            key,
            user,
            item,
            price: 3,
            quantity: 2,
            end,
            gives_up: false,
            repeats: false,
        };
        let mut heard = Heard::default();
        load::ask_until_accepted(&Api::new(ports[number % ports.len()]), &asked, &mut heard);
        (asked, heard)
    };
    (0..2 * UNDONE).map(place).collect()
}

/// Sets [`TOPPED`] to the `number`th value, at a random instance of payment or stock.
pub fn put(stage: &Stage, number: usize, random: &mut StdRng) -> Put {
    let service = if random.random_bool(0.5) {
        Service::Payment
    } else {
        Service::Stock
    };
    let members: Vec<_> = stage.members_of(service).collect();
    let api = Api::new(members.choose(random).expect("an instance").port);
    let value = PLENTY + 1_000_000 * (1 + number as i64);
    let (path, body) = match service {
        Service::Payment => (format!("/accounts/{TOPPED}"), json!({"balance": value})),
        _ => (format!("/items/{TOPPED}"), json!({"quantity": value})),
    };
    let json = [("content-type", "application/json")];
    let answer = api.call("PUT", &path, &json, Some(body.to_string().as_bytes()));
    Put {
        service: service.name(),
        value,
        answered: answer.is_ok_and(|answer| answer.status == 200),
    }
}
