//! Ends a wait for sockets from another thread.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// A pair of sockets: a byte in them is input, which poll(2) sees.
#[derive(Debug)]
pub(crate) struct Wake {
    sender: UnixStream,
    receiver: UnixStream,
}

impl Wake {
    /// Errors: the system's, when it has no more descriptors.
    pub(crate) fn new() -> io::Result<Wake> {
        let (sender, receiver) = UnixStream::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        Ok(Wake { sender, receiver })
    }

    /// Ends the wait that is under way, or the next one.
    pub(crate) fn wake(&self) {
        // where it is full, there is enough
        let _ = (&self.sender).write(&[0]);
    }

    /// What to wait for.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.receiver
    }

    /// Whether it was woken since the last time.
    pub(crate) fn take(&self) -> bool {
        (&self.receiver)
            .read(&mut [0; 64])
            .is_ok_and(|length| length > 0)
    }
}
