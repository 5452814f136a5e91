//! The installation of one section: databases, topics and processes of its own, on the private servers of `run.sh`.

use std::time::Duration;

use harness::{Instance, Service, World, env};

use crate::books::Books;
use crate::load::{Load, Names};

/// All that runs. Dropped, it is gone with its data.
pub struct Stage {
    /// Connections of our own to the databases; before the world, which removes them.
    pub books: Books,
    /// The running processes.
    instances: Vec<Instance>,
    /// Databases and topics.
    pub world: World,
    /// Whose accounts and items were put in.
    pub names: Names,
}

impl Stage {
    /// Starts so many instances of every service, with accounts and items that have plenty. No order meets its deadline.
    ///
    /// # Errors
    /// What PostgreSQL says.
    ///
    /// # Panics
    /// When a service does not start.
    pub fn start(name: &str, instances: usize, names: Names) -> Result<Stage, String> {
        // longer than any backlog here lasts: nothing is to be measured but the orders' own way
        Stage::start_with(name, instances, names, &[("ORDER_DEADLINE", "1h")])
    }

    /// The same with these settings, and the services' defaults for the rest.
    ///
    /// # Errors
    /// As [`Stage::start`].
    ///
    /// # Panics
    /// As [`Stage::start`].
    pub fn start_with(
        name: &str,
        instances: usize,
        names: Names,
        settings: &[(&str, &str)],
    ) -> Result<Stage, String> {
        // every topic on all brokers, as `run.sh up` has it
        let brokers = env::setting("KAFKA_BROKERS").split(',').count().to_string();
        let settings = [settings, &[("TOPIC_REPLICATION", brokers.as_str())]].concat();
        let world = World::with(&format!("bench_{name}"), &settings);
        let started: Vec<Instance> = Service::ALL
            .iter()
            .flat_map(|service| (0..instances).map(|_| world.launch(*service, &[])))
            .collect();
        started.iter().for_each(Instance::wait_until_ready);
        let mut books = Books::open(&world)?;
        books.put_in(names)?;
        Ok(Stage {
            books,
            instances: started,
            world,
            names,
        })
    }

    /// The running instances.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// Whether all that was started still runs.
    ///
    /// # Errors
    /// An instance that has ended by itself, with the end of its log.
    pub fn require_alive(&self) -> Result<(), String> {
        let ended = self
            .instances
            .iter()
            .find_map(|instance| Some((instance, instance.process().ended()?)));
        ended.map_or(Ok(()), |(instance, status)| {
            Err(format!(
                "{} ended ({status}):\n{}",
                instance.service().name(),
                instance.process().tail()
            ))
        })
    }

    /// Stops all instances of a service.
    ///
    /// # Panics
    /// When one does not stop within its limit.
    pub fn stop(&mut self, service: Service) {
        for instance in self
            .instances
            .extract_if(.., |instance| instance.service() == service)
        {
            instance.stop();
        }
    }

    /// Stops all that runs.
    ///
    /// # Panics
    /// As [`Stage::stop`].
    pub fn stop_all(&mut self) {
        Service::ALL.iter().for_each(|service| self.stop(*service));
    }

    /// Starts an instance of a service, and does not wait for it.
    ///
    /// # Panics
    /// When the operating system can't start it.
    pub fn launch(&mut self, service: Service) {
        self.instances.push(self.world.launch(service, &[]));
    }

    /// Stops one instance after another, as an operator does, and starts it again on its port; waits between two.
    ///
    /// # Panics
    /// When one does not stop, or does not start.
    pub fn restart_each(&mut self, pause: Duration) {
        for instance in &mut self.instances {
            self.world.restart(instance);
            std::thread::sleep(pause);
        }
    }

    /// A load on all instances of the order service.
    pub fn load(&self, connections: usize) -> Load {
        Load {
            ports: self.order_ports(),
            connections,
            names: self.names,
            repeats: false,
        }
    }

    /// Where the instances of the order service listen.
    pub fn order_ports(&self) -> Vec<u16> {
        let orders = self
            .instances
            .iter()
            .filter(|instance| instance.service() == Service::Order);
        orders.map(Instance::port).collect()
    }
}
