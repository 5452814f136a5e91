//! Waking threads that are blocked in a call of this crate.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// Wakes blocked calls. Clones share one state: hand clones to the client objects, keep one to stop them.
///
/// After [`interrupt`](Interrupt::interrupt) every call of those objects, blocked or new, returns
/// [`Error::Interrupted`], for good. Only making a connection can't be woken; it ends within the connect timeout.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    interrupted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    interrupted: bool,
    next_id: u64,
    sockets: HashMap<u64, TcpStream>,
}

impl Interrupt {
    /// One that has not been interrupted yet.
    pub fn new() -> Interrupt {
        Interrupt::default()
    }

    /// Shuts down every socket of the objects that share this state and wakes their pauses. Doing it twice is harmless.
    pub fn interrupt(&self) {
        let mut state = self.lock();
        state.interrupted = true;
        for socket in state.sockets.values() {
            // A socket that is gone already needs no waking.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.shared.interrupted.notify_all();
    }

    /// Whether [`interrupt`](Interrupt::interrupt) was called.
    pub fn is_interrupted(&self) -> bool {
        self.lock().interrupted
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_interrupted() {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Sleeps this long, or until the interrupt: then `Err(Interrupted)`.
    pub(crate) fn sleep(&self, pause: Duration) -> Result<()> {
        let interrupted = &self.shared.interrupted;
        let slept = interrupted.wait_timeout_while(self.lock(), pause, |state| !state.interrupted);
        let (state, _) = slept.unwrap_or_else(PoisonError::into_inner);
        if state.interrupted {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Has this socket shut down on interrupt, until the registration is dropped. `None`: too late, or the system
    /// gives no second handle of the socket.
    pub(crate) fn register(&self, socket: &TcpStream) -> Option<Registration> {
        let clone = socket.try_clone().ok()?;
        let mut state = self.lock();
        if state.interrupted {
            return None;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.sockets.insert(id, clone);
        Some(Registration {
            interrupt: self.clone(),
            id,
        })
    }

    /// The state is valid after every statement, so a panic elsewhere under the lock does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket's place in the list of those to shut down.
#[derive(Debug)]
pub(crate) struct Registration {
    interrupt: Interrupt,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.interrupt.lock().sockets.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_ends_a_pause_at_once() {
        let interrupt = Interrupt::new();
        let other = interrupt.clone();
        let sleeper = std::thread::spawn(move || other.sleep(Duration::from_secs(60)));
        interrupt.interrupt();
        assert!(matches!(sleeper.join().unwrap(), Err(Error::Interrupted)));
    }
}
