//! What the leader's database connection does while Kafka is written to, on a thread of its own: delete the published rows
//! that are due, then read the next ones ahead.

use std::thread::{Builder, scope};

use crossbeam_channel::bounded;

use crate::error::{Error, Result};
use crate::outbox::Row;

/// The work for the database.
pub struct Beside<D, R> {
    /// Deletes published rows, if any are due.
    pub delete: Option<D>,
    /// Reads rows ahead, if more are likely to wait.
    pub read: Option<R>,
}

impl<D: Fn() -> Result<()> + Sync, R: Fn() -> Result<Vec<Row>> + Sync> Beside<D, R> {
    /// Calls `write`, which gets a function that waits until the delete is done and tells what came of it. Answers what
    /// was read ahead: nothing if there was no need, or it could not be read, which the next call will tell.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn run(
        &self,
        thread: String,
        write: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<()>,
    ) -> Result<Vec<Row>> {
        if self.delete.is_none() && self.read.is_none() {
            return write(&|| Ok(())).map(|()| Vec::new());
        }
        let (tell, told) = bounded(1);
        scope(|scope| {
            // it owns `tell`: a panic in it ends the wait, too
            let work = move || {
                let deleted = self.delete();
                let sound = deleted.is_ok();
                let _ = tell.send(deleted);
                if sound { self.read() } else { Vec::new() }
            };
            match Builder::new().name(thread).spawn_scoped(scope, work) {
                Ok(beside) => {
                    let gone = |_| {
                        Err(Error::Panic(
                            "the thread that deletes published rows is gone".into(),
                        ))
                    };
                    let written = write(&|| told.recv().unwrap_or_else(gone));
                    let ahead = beside.join().unwrap_or_default();
                    written.map(|()| ahead)
                }
                // no thread to be had: one after the other
                Err(_) => write(&|| self.delete()).map(|()| Vec::new()),
            }
        })
    }

    fn delete(&self) -> Result<()> {
        self.delete.as_ref().map_or(Ok(()), |delete| delete())
    }

    fn read(&self) -> Vec<Row> {
        self.read
            .as_ref()
            .and_then(|read| read().ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = fn() -> Result<Vec<Row>>;

    fn outcome(delete: fn() -> Result<()>) -> String {
        let beside = Beside {
            delete: Some(delete),
            read: None::<Read>,
        };
        let done = beside.run("beside".into(), |deleted| deleted());
        done.map_or_else(
            |error| error.to_string(),
            |ahead| format!("{} rows ahead", ahead.len()),
        )
    }

    #[test]
    fn whoever_waits_for_the_delete_is_told_also_of_its_failure_and_its_panic() {
        assert_eq!(outcome(|| Ok(())), "0 rows ahead");
        assert_eq!(outcome(|| Err(Error::Fatal("kept".into()))), "kept");
        assert!(
            outcome(|| panic!("torn")).contains("the thread that deletes published rows is gone")
        );
    }
}
