//! Many parked records replayed at one request: the open ones that a filter selects, oldest first, each in a
//! transaction of its own. Records that another session holds are passed over. With `dryRun=true` each transaction is
//! rolled back at the end, so it shows what would come of each by itself.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::db::pool::Pool;
use crate::dead_letter::replay::{Ask, Replay, Replayer, Verdict};
use crate::dead_letter::{self, Filter, LetterState};
use crate::error::Result;

/// After so long no further one is begun: the answer is to reach who asked.
const TIME: Duration = Duration::from_secs(10);

/// Which records to replay, and how.
pub struct AskMany<'a> {
    /// Which; of these the open ones.
    pub filter: Filter,
    /// Only those behind this number.
    pub after: i64,
    /// So many at most.
    pub limit: i64,
    /// Who asks.
    pub actor: &'a str,
    /// Only to see what would come of it: nothing is changed.
    pub dry_run: bool,
}

/// What became of them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replays {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// How many open records behind `after` fit, those included that are left for the next request.
    pub matched: i64,
    /// Those that were replayed, in this order.
    pub replayed: Vec<Replayed>,
    /// Those that were not, and why.
    pub skipped: Vec<Skipped>,
    /// What to pass as `after` to go on; none: nothing is left.
    pub next: Option<i64>,
}

/// A record that was replayed.
#[derive(Serialize)]
pub struct Replayed {
    /// Its number.
    pub id: i64,
    /// What it came to.
    #[serde(flatten)]
    pub replay: Replay,
}

/// A record that was not replayed.
#[derive(Serialize)]
pub struct Skipped {
    /// Its number.
    pub id: i64,
    /// Why not.
    pub detail: String,
}

/// Replays what is asked for; returns what was done, and how it ended.
///
/// # Errors
/// The first one that is neither a record's fault nor somebody's who holds it makes an end of it: the records before are done,
/// this and those behind are not.
pub fn replay_many(pool: &Pool, replayer: &Replayer, ask: &AskMany<'_>) -> (Replays, Result<()>) {
    let mut done = Replays {
        dry_run: ask.dry_run,
        matched: 0,
        replayed: vec![],
        skipped: vec![],
        next: None,
    };
    let end = go_through(pool, replayer, ask, &mut done);
    (done, end)
}

fn go_through(
    pool: &Pool,
    replayer: &Replayer,
    ask: &AskMany<'_>,
    done: &mut Replays,
) -> Result<()> {
    let open = Filter {
        state: Some(LetterState::Open),
        ..ask.filter.clone()
    };
    let (ids, matched) =
        pool.with(|session| dead_letter::find_oldest(session, &open, ask.after, ask.limit))?;
    done.matched = matched;
    done.next = ids.last().copied().filter(|_| matched > ids.len() as i64);
    let (until, mut last) = (Instant::now() + TIME, ask.after);
    for id in ids {
        if Instant::now() > until {
            done.next = Some(last);
            return Ok(());
        }
        last = id;
        let one = Ask {
            id,
            actor: ask.actor,
            force: false,
            dry_run: ask.dry_run,
            wait: false,
        };
        let skipped = match pool.once(|session| replayer.replay(session, &one)) {
            Ok(Verdict::Done(replay)) => {
                done.replayed.push(Replayed { id, replay });
                continue;
            }
            Ok(Verdict::Refused(detail)) => detail,
            Ok(Verdict::Unknown) => "it is no longer there".into(),
            // somebody holds it, or a row that it is about: those behind are not to wait
            Err(error) if error.is_lock_timeout() => error.for_clients(),
            Err(error) => return Err(error),
        };
        done.skipped.push(Skipped {
            id,
            detail: skipped,
        });
    }
    Ok(())
}
