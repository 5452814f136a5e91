//! An upgrade without a stop: instances of an earlier version run first, then beside those of this version, on the schema that
//! these have migrated; old and new take the lead from one another under load, until none of the old ones is left.
//!
//! `./run.sh proof` builds the earlier version, of the commit that `scripts/check.sh` names, and says where in `UPGRADE_FROM_BIN_DIR`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use harness::{Instance, Service, World, until};

use crate::instances::{CLIENTS, assert_traded, trade};

/// Orders between two steps.
const BETWEEN: usize = 5;

fn earlier() -> PathBuf {
    let folder = std::env::var_os("UPGRADE_FROM_BIN_DIR").map(PathBuf::from);
    folder
        .expect("UPGRADE_FROM_BIN_DIR is not set: ./run.sh proof builds the services of an earlier version and sets it")
}

/// The old and the new instances of one installation, and what the clients have done so far.
struct Upgrade<'a> {
    world: &'a World,
    earlier: &'a Path,
    done: &'a AtomicUsize,
}

impl Upgrade<'_> {
    /// From an old instance that leads and a new one beside it to a new one alone: the lead passes to the new one, back to an
    /// old one, and to a new one again, by a kill and by stops.
    fn roll(&self, old: &Instance, new: &Instance) {
        let service = old.service();
        let variable = format!("{}_PORT", service.name().to_uppercase());
        assert_leads(old);
        self.wait_for_orders();
        old.kill();
        assert_leads(new);
        self.wait_for_orders();
        let back = self.world.start_of(
            self.earlier,
            service,
            &[(&variable, &old.port().to_string())],
        );
        self.wait_for_orders();
        stop(new);
        assert_leads(&back);
        self.wait_for_orders();
        let last = self
            .world
            .start_with(service, &[(&variable, &new.port().to_string())]);
        self.wait_for_orders();
        stop(&back);
        assert_leads(&last);
        self.wait_for_orders();
    }

    fn wait_for_orders(&self) {
        let before = self.done.load(Ordering::Relaxed);
        until("orders between two steps", || {
            self.done.load(Ordering::Relaxed) >= before + BETWEEN
        });
    }
}

fn assert_leads(instance: &Instance) {
    instance.wait_for_log("leading: producer");
}

fn stop(instance: &Instance) {
    assert_eq!(instance.stop().code(), Some(0), "{}", instance.log());
}

/// The clients end with it, also when a step has failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs the services of an earlier version, which ./run.sh proof builds"]
fn instances_of_an_earlier_version_run_beside_new_ones_and_are_rolled_away_without_loss_or_repetition()
 {
    let (world, earlier) = (World::new("upgrade"), earlier());
    let old = Service::ALL.map(|service| world.start_of(&earlier, service, &[]));
    let [order, payment, stock] = &old;
    payment.api().put_balance("ann", 1_000_000);
    stock.api().put_quantity("tea", 1_000_000);
    let new = Service::ALL.map(|service| world.start(service));
    // on the schema that the new ones have migrated, asked of either
    for instance in [order, &new[0]] {
        let order_id = instance.api().place("ann", "tea", 3, 2);
        assert_eq!(instance.api().settled(order_id)["orderStatus"], "COMPLETED");
    }
    let ports = [order.port(), new[0].port()];
    let (stop, done) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    let placed: usize = thread::scope(|scope| {
        let over = Over(stop);
        let trade = |client| scope.spawn(move || trade(&ports, client, stop, done));
        let clients: Vec<_> = (0..CLIENTS).map(trade).collect();
        let upgrade = Upgrade {
            world: &world,
            earlier: &earlier,
            done,
        };
        old.iter()
            .zip(&new)
            .for_each(|(old, new)| upgrade.roll(old, new));
        drop(over);
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum()
    });
    assert_traded(&world, placed + 2);
}
