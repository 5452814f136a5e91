//! The running system: calls, stopping and starting by `run.sh`, waiting. Settings come from the environment.

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::config::Config;
use shared::event::Service;
use shared::shutdown::{self, Shutdown};
use uuid::Uuid;

use crate::client::Client;

/// For a state to come about. Normally a fraction of a second; a consumer that comes back may first have to wait for
/// its group to notice that its predecessor is gone.
const LIMIT: Duration = Duration::from_secs(30);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);
/// For one call of `run.sh`, whose own waits for a service end before.
const RUN_LIMIT: Duration = Duration::from_secs(100);

/// The three services, and who of them was stopped here.
pub struct Stage {
    /// The order service's settings; brokers and topics are the same for all.
    pub config: Config,
    order: Client,
    payment: Client,
    stock: Client,
    run_sh: PathBuf,
    interrupted: Shutdown,
    stopped: Vec<&'static str>,
    /// Balance and stock by row, as they were before its order.
    before: HashMap<usize, (i64, i64)>,
    /// Makes this run's names its own.
    suffix: String,
}

/// A placed order, and what user and item had before.
pub struct Order {
    /// Its id.
    pub id: String,
    /// Its user's name.
    pub user: String,
    /// Its item's name.
    pub item: String,
    /// The balance before.
    pub balance: i64,
    /// The stock before.
    pub in_stock: i64,
}

impl Stage {
    /// The system that the environment's settings describe; it must run.
    ///
    /// # Errors
    /// Bad settings, or a service that does not answer.
    pub fn new() -> Result<Stage, String> {
        let config = |service| Config::from_env(service).map_err(|error| error.to_string());
        let (order, payment, stock) = (
            config(Service::Order)?,
            config(Service::Payment)?,
            config(Service::Stock)?,
        );
        let (stop, interrupted) = shutdown::channel();
        stop.on_signals(Duration::ZERO)
            .map_err(|error| format!("signal handlers: {error}"))?;
        let stage = Stage {
            order: Client::new(&order),
            payment: Client::new(&payment),
            stock: Client::new(&stock),
            config: order,
            run_sh: run_sh(),
            interrupted,
            stopped: vec![],
            before: HashMap::new(),
            suffix: Uuid::now_v7().simple().to_string().split_off(24),
        };
        stage
            .order
            .get("/orders?limit=1")
            .map_err(|error| format!("{error}\nstart the system: ./run.sh up --detach"))?;
        Ok(stage)
    }

    fn names(&self, row: usize) -> (String, String) {
        (
            format!("demo-user-{row}-{}", self.suffix),
            format!("demo-item-{row}-{}", self.suffix),
        )
    }

    /// Gives a row's user a balance and its item a stock, and looks at what they have then.
    ///
    /// # Errors
    /// The calls'.
    pub fn put_in(&mut self, row: usize, balance: i64, in_stock: i64) -> Result<(), String> {
        let (user, item) = self.names(row);
        self.payment
            .put(&format!("/accounts/{user}"), &json!({ "balance": balance }))?;
        self.stock
            .put(&format!("/items/{item}"), &json!({ "quantity": in_stock }))?;
        self.before
            .insert(row, (self.balance(&user)?, self.in_stock(&item)?));
        Ok(())
    }

    /// Places a row's order.
    ///
    /// # Errors
    /// The call's.
    pub fn place(&self, row: usize, price: i64, quantity: i64) -> Result<Order, String> {
        let (user, item) = self.names(row);
        let body =
            json!({"userName": user, "itemName": item, "price": price, "quantity": quantity});
        let placed = self.order.place(&body)?;
        let id = placed["orderId"]
            .as_str()
            .ok_or(format!("no orderId in {placed}"))?
            .to_string();
        let (balance, in_stock) = self.before[&row];
        Ok(Order {
            id,
            user,
            item,
            balance,
            in_stock,
        })
    }

    // ---- looking

    fn order(&self, order: &Order) -> Result<Value, String> {
        self.order.get(&format!("/orders/{}", order.id))
    }

    /// The status of payment's record of this order.
    ///
    /// # Errors
    /// The call's; also if payment has not heard of it.
    pub fn payment(&self, order: &Order) -> Result<String, String> {
        Ok(text(
            &self.payment.get(&format!("/payments/{}", order.id))?,
            "status",
        ))
    }

    /// The status of stock's record of this order.
    ///
    /// # Errors
    /// The call's; also if stock has not heard of it.
    pub fn reservation(&self, order: &Order) -> Result<String, String> {
        Ok(text(
            &self.stock.get(&format!("/reservations/{}", order.id))?,
            "status",
        ))
    }

    /// A user's balance.
    ///
    /// # Errors
    /// The call's.
    pub fn balance(&self, user: &str) -> Result<i64, String> {
        number(&self.payment.get(&format!("/accounts/{user}"))?, "balance")
    }

    /// An item's stock.
    ///
    /// # Errors
    /// The call's.
    pub fn in_stock(&self, item: &str) -> Result<i64, String> {
        number(&self.stock.get(&format!("/items/{item}"))?, "quantity")
    }

    /// The order as soon as it and its sides are `wanted`; as it stands when the time is over.
    ///
    /// # Errors
    /// The call's, or an interruption.
    pub fn wait_for(&self, order: &Order, wanted: [&str; 3]) -> Result<Value, String> {
        let is = |seen: &Value| {
            ["orderStatus", "paymentStatus", "stockStatus"].map(|field| text(seen, field)) == wanted
        };
        self.look_until(|| self.order(order), is)
    }

    /// The order as soon as it is settled; as it stands when the time is over.
    ///
    /// # Errors
    /// The call's, or an interruption.
    pub fn wait_until_settled(&self, order: &Order) -> Result<Value, String> {
        self.look_until(|| self.order(order), |seen| seen["settled"] == true)
    }

    /// Looks until it is `enough`, or the time is over; answers what was seen last.
    ///
    /// # Errors
    /// Of the look, or an interruption.
    pub fn look_until<T>(
        &self,
        mut look: impl FnMut() -> Result<T, String>,
        enough: impl Fn(&T) -> bool,
    ) -> Result<T, String> {
        let end = Instant::now() + LIMIT;
        loop {
            let seen = look()?;
            if enough(&seen) || Instant::now() > end {
                return Ok(seen);
            }
            self.pause()?;
        }
    }

    fn pause(&self) -> Result<(), String> {
        if self.interrupted.wait(LOOK) {
            Err("interrupted".into())
        } else {
            Ok(())
        }
    }

    // ---- stopping and starting

    /// Stops a service, all its instances.
    ///
    /// # Errors
    /// What `run.sh` says.
    pub fn stop(&mut self, service: &'static str) -> Result<(), String> {
        self.stopped.push(service);
        self.run("stop", service)
    }

    /// Starts a service that was stopped, and waits until it answers.
    ///
    /// # Errors
    /// What `run.sh` says.
    pub fn start(&mut self, service: &'static str) -> Result<(), String> {
        self.run("start", service)?;
        self.stopped.retain(|stopped| *stopped != service);
        Ok(())
    }

    /// Leaves the system as it was found, also after an error or Ctrl-C.
    ///
    /// # Errors
    /// Who could not be started, and how to.
    pub fn start_what_was_stopped(&mut self) -> Result<(), String> {
        let mut failed = vec![];
        for service in std::mem::take(&mut self.stopped) {
            println!("\nstarting {service} again");
            if let Err(error) = self.run("start", service) {
                failed.push(format!(
                    "{error}\n{service} is still stopped. Start it: {} start {service}",
                    self.run_sh.display()
                ));
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("\n"))
        }
    }

    fn run(&self, action: &str, service: &str) -> Result<(), String> {
        let what = format!("{} {action} {service}", self.run_sh.display());
        let mut command = Command::new(&self.run_sh);
        command
            .args([action, service])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // a group of its own: Ctrl-C ends the demo, not a stop or start half-way
        command.process_group(0);
        let mut child = command
            .spawn()
            .map_err(|error| format!("{what}: {error}"))?;
        let end = Instant::now() + RUN_LIMIT;
        while child
            .try_wait()
            .map_err(|error| format!("{what}: {error}"))?
            .is_none()
        {
            if Instant::now() > end {
                let _ = child.kill();
                return Err(format!(
                    "{what} has not ended within {} s",
                    RUN_LIMIT.as_secs()
                ));
            }
            std::thread::sleep(LOOK);
        }
        let output = child
            .wait_with_output()
            .map_err(|error| format!("{what}: {error}"))?;
        let said = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{what}: {}\n{said}", output.status))
        }
    }
}

/// `RUN_SH`, as `run.sh` itself sets it; else the checkout this was built from.
fn run_sh() -> PathBuf {
    let checkout = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../run.sh"));
    std::env::var_os("RUN_SH").map_or(checkout, PathBuf::from)
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or("?").to_string()
}

fn number(value: &Value, field: &str) -> Result<i64, String> {
    value[field]
        .as_i64()
        .ok_or(format!("no {field} in {value}"))
}
