//! What the leader's database connection does while Kafka is written to, on a thread of its own: delete the published rows
//! that are due, then prefetch the next rows.

use std::thread::{Builder, scope};

use crossbeam_channel::bounded;

use crate::error::{Error, Result};
use crate::outbox::Row;

/// What the database does while Kafka is written to.
pub struct Overlap<D, R> {
    /// Deletes published rows, if any are due.
    pub delete: Option<D>,
    /// Prefetches rows, if more are likely to wait.
    pub read: Option<R>,
}

impl<D: Fn() -> Result<()> + Sync, R: Fn() -> Result<Vec<Row>> + Sync> Overlap<D, R> {
    /// Calls `write`, which gets a function that waits until the delete is done and returns its result. Returns what
    /// was prefetched: nothing if there was no need, or it could not be read; the next call returns that error.
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
        let (report, reported) = bounded(1);
        scope(|scope| {
            // it owns `report`: a panic in it ends the wait, too
            match Builder::new().name(thread).spawn_scoped(scope, move || {
                let deleted = self.delete();
                let sound = deleted.is_ok();
                let _ = report.send(deleted);
                if sound { self.read() } else { Vec::new() }
            }) {
                Ok(overlap) => {
                    let written = write(&|| {
                        reported.recv().unwrap_or_else(|_| {
                            Err(Error::Panic(
                                "the thread that deletes published rows is gone".into(),
                            ))
                        })
                    });
                    let prefetched = overlap.join().unwrap_or_default();
                    written.map(|()| prefetched)
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
        let overlap = Overlap {
            delete: Some(delete),
            read: None::<Read>,
        };
        let done = overlap.run("beside".into(), |deleted| deleted());
        done.map_or_else(
            |error| error.to_string(),
            |prefetched| format!("{} rows prefetched", prefetched.len()),
        )
    }

    #[test]
    fn a_failed_delete_and_one_that_panics_are_returned() {
        assert_eq!(outcome(|| Ok(())), "0 rows prefetched");
        assert_eq!(outcome(|| Err(Error::Fatal("kept".into()))), "kept");
        assert!(
            outcome(|| panic!("torn")).contains("the thread that deletes published rows is gone")
        );
    }
}
