//! The origin of a position: the physical database that wrote it. A copy of a database has its original's installation,
//! and only one of the two may go on. [`OriginState::judge`] decides which one; `docs/restoring.md` has the cases.
//!
//! An origin is the cluster's system identifier, the database's oid, the cluster's timeline, and the number of the last
//! takeover. All roles may read these from PostgreSQL 14 to 18, unless an administrator has revoked it.
//!
//! * Every promotion raises the timeline, and nothing else does. So a standby that was promoted goes on by itself, also
//!   when it has lost its tail.
//! * Any other contradiction stops the service. `--take-over` ([`take_over`]) notes what is accepted and raises the
//!   number, by which the other copy is refused.
//! * Two physical copies have the same origin, and both may go on storing. They share Kafka's transactional id, though,
//!   and Kafka gives a leadership (producer id and epoch) once, to one relay. Each database notes those of its own
//!   relays before they publish.
//!
//! **Must not be changed**: the last positions are read first, then the database's own state. Other instances may go on
//! storing meanwhile, so a position that is read later could be newer than that state.

use std::fmt;
use std::str::FromStr;

use postgres::error::SqlState;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::db::migrations;
use crate::db::{Query, Session, Tx};
use crate::error::{Error, Result};

/// Which physical database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    cluster: Cluster,
    /// The database's oid.
    database: u32,
    /// The cluster's timeline; 0: not known.
    timeline: u32,
    /// The number of the last takeover; 0: there was none.
    takeover: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cluster {
    /// Its system identifier.
    System(i64),
    /// Where that may not be read: the transaction that made the table `install`. A restored dump has another one.
    Install(u32),
}

impl Cluster {
    /// Whether it is certain that the two differ: identifiers of two kinds can't be compared.
    fn differs(self, other: Cluster) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other) && self != other
    }
}

/// Short, because every transaction of the relay carries it: `7712376514795047735.16390.1`, then `.2` after two takeovers.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cluster {
            Cluster::System(id) => write!(f, "{id}")?,
            Cluster::Install(transaction) => write!(f, "x{transaction}")?,
        }
        write!(f, ".{}.{}", self.database, self.timeline)?;
        if self.takeover > 0 {
            write!(f, ".{}", self.takeover)?;
        }
        Ok(())
    }
}

impl FromStr for Origin {
    type Err = String;

    /// What a later version adds behind is let pass.
    fn from_str(text: &str) -> std::result::Result<Origin, String> {
        let mut parts = text.split('.');
        let parsed = (|| {
            let cluster = parts.next()?;
            let cluster = match cluster.strip_prefix('x') {
                Some(transaction) => Cluster::Install(transaction.parse().ok()?),
                None => Cluster::System(cluster.parse().ok()?),
            };
            let (database, timeline) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let takeover = parts.next().map_or(Some(0), |number| number.parse().ok())?;
            Some(Origin {
                cluster,
                database,
                timeline,
                takeover,
            })
        })();
        parsed.ok_or_else(|| format!("{text:?} names no database"))
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Origin, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Origin {
    /// The cluster's timeline; 0: not known.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// In words, for people.
    pub fn describe(&self) -> String {
        let cluster = match self.cluster {
            Cluster::System(id) => id.to_string(),
            Cluster::Install(_) => "without a readable identifier".into(),
        };
        let timeline = if self.timeline > 0 {
            self.timeline.to_string()
        } else {
            "unknown".into()
        };
        format!(
            "database {} of cluster {cluster}, timeline {timeline}",
            self.database
        )
    }
}

/// Whose leadership it was under which a position was written: Kafka's producer id and epoch.
pub type Leader = (i64, i32);

/// What the database at hand is, and how far it has come. Times are written as `ce_time` is, so they compare as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginState {
    /// What its positions carry.
    pub origin: Origin,
    /// The last stored time; none: nothing was stored yet.
    pub last_stored: Option<String>,
    /// What the last takeover has accepted of others, up to this stored time.
    pub accepted_to: Option<String>,
    /// Of each producer id the last epoch that a relay of this database had.
    pub leaders: Vec<Leader>,
}

/// The earliest time that is written as `ce_time` is.
pub const EPOCH: &str = "1970-01-01T00:00:00.000000Z";

const TIME: &str = r#"'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"#;

/// Reads it. Positions that are held against it must have been read before: other instances may go on storing.
///
/// # Errors
/// What PostgreSQL says; [`Error::LostRace`] on a standby, which can't publish.
pub fn read(session: &mut Session) -> Result<OriginState> {
    let last_stored = format!(
        "to_char((timestamptz 'epoch' + greatest(c.last_value, a.last_value) * interval '1 microsecond')
                     at time zone 'UTC', {TIME})
           from outbox_clock c, outbox_clock_ahead a where greatest(c.last_value, a.last_value) > 1"
    );
    // `--check` may look at a schema of a version before
    let last_stored = match migrations::has_table(session, "outbox_clock_ahead")? {
        true => last_stored,
        false => format!(
            "to_char(last_stored_at at time zone 'UTC', {TIME}) from outbox_clock where isfinite(last_stored_at)"
        ),
    };
    let sql = format!(
        "select (select oid from pg_database where datname = current_database()), pg_is_in_recovery(),
                (select xmin::text::bigint from install), (select {last_stored})"
    );
    let row = &session.query(&sql, &[])?[0];
    let (database, in_recovery, install, last_stored) = (
        row.get(0),
        row.get(1),
        row.get::<_, i64>(2) as u32,
        row.get(3),
    );
    if in_recovery {
        return Err(Error::LostRace("the database is a standby".into()));
    }
    let system = allowed(session, "select system_identifier from pg_control_system()")?;
    let timeline =
        "select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint";
    let timeline = allowed(session, timeline)?.map_or(0, |timeline| timeline as u32);
    let cluster = system.map_or(Cluster::Install(install), Cluster::System);
    let origin = Origin {
        cluster,
        database,
        timeline,
        takeover: 0,
    };
    let state = OriginState {
        origin,
        last_stored,
        accepted_to: None,
        leaders: vec![],
    };
    // `--check` may look at a schema that has no such tables yet
    if migrations::has_table(session, "takeover")? {
        with_takeovers(state, session)
    } else {
        Ok(state)
    }
}

fn with_takeovers(state: OriginState, session: &mut Session) -> Result<OriginState> {
    let last = format!(
        "select number, to_char(accepted_to at time zone 'UTC', {TIME}) from takeover order by number desc limit 1"
    );
    let last = session.query(&last, &[])?;
    let (takeover, accepted_to) = last
        .first()
        .map_or((0, None), |row| (row.get(0), row.get(1)));
    let leaders = session.query("select producer_id, epoch from leadership", &[])?;
    let leaders = leaders.iter().map(|row| (row.get(0), row.get(1))).collect();
    Ok(OriginState {
        origin: Origin {
            takeover,
            ..state.origin
        },
        accepted_to,
        leaders,
        ..state
    })
}

/// Notes a leadership, before anything is published under it.
pub fn note_leader(session: &mut Session, (producer_id, epoch): Leader) -> Result<()> {
    let sql = "insert into leadership (producer_id, epoch) values ($1, $2)
               on conflict (producer_id) do update set epoch = excluded.epoch, begun_at = clock_timestamp()";
    session.execute(sql, &[&producer_id, &epoch]).map(drop)
}

/// A number that only some may ask for; none where we may not, or where the server does not have it.
fn allowed(session: &mut Session, sql: &str) -> Result<Option<i64>> {
    const DENIED: [SqlState; 3] = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::FEATURE_NOT_SUPPORTED,
    ];
    match session.query(sql, &[]) {
        Ok(rows) => Ok(Some(rows[0].get(0))),
        Err(Error::Database(error)) if error.code().is_some_and(|code| DENIED.contains(code)) => {
            log::warn!(
                "{}: a copy of this database in another place may not be distinguished from it",
                Error::Database(error)
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Why the database at hand is not the one that wrote last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another database has taken over since.
    TakenOver,
    /// Another one that was taken over has stored more since then.
    StoredSince,
    /// Another physical database: a clone, a restored dump, an upgraded cluster.
    OtherDatabase,
    /// The same one after a promotion: this is an old primary.
    OldPrimary,
    /// The same one, but later than this one: this is an older snapshot, or a physical copy.
    OlderCopy,
    /// The same one, under a leadership that this one knows nothing of: a physical copy, or this is one.
    OtherLeader,
}

/// What a position says about the database at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It may go on.
    Own,
    /// It may go on: a standby that was promoted without all that the primary had written.
    LostTail,
    /// It may not.
    Refused(Refusal),
}

impl OriginState {
    /// Judges a position of `origin`, which this leader has published, and whose record was stored at that time.
    pub fn judge(&self, origin: Origin, leader: Option<Leader>, stored: Option<&str>) -> Judgement {
        let (here, refused) = (self.origin, Judgement::Refused);
        let is_later = |than: &Option<String>| stored.is_some() && stored > than.as_deref();
        if origin.takeover != here.takeover {
            return match origin.takeover > here.takeover {
                true => refused(Refusal::TakenOver),
                false if is_later(&self.accepted_to) => refused(Refusal::StoredSince),
                false => Judgement::Own,
            };
        }
        if origin.database != here.database || origin.cluster.differs(here.cluster) {
            return refused(Refusal::OtherDatabase);
        }
        let known = origin.timeline > 0 && here.timeline > 0;
        if known && origin.timeline > here.timeline {
            return refused(Refusal::OldPrimary);
        }
        let is_later = is_later(&self.last_stored);
        if known && origin.timeline < here.timeline {
            return if is_later {
                Judgement::LostTail
            } else {
                Judgement::Own
            };
        }
        if is_later {
            return refused(Refusal::OlderCopy);
        }
        let is_other = leader.is_some_and(|(id, epoch)| {
            !self
                .leaders
                .iter()
                .any(|ours| ours.0 == id && ours.1 >= epoch)
        });
        if is_other {
            refused(Refusal::OtherLeader)
        } else {
            Judgement::Own
        }
    }
}

/// Takes over from these origins what they had stored until then: from now on the positions of the database carry a number
/// above theirs, which is returned.
pub fn take_over(
    tx: &mut Tx<'_>,
    state: &OriginState,
    origins: &[Origin],
    accepted_to: &str,
) -> Result<i32> {
    let last = origins
        .iter()
        .map(|origin| origin.takeover)
        .fold(state.origin.takeover, i32::max);
    let (number, origins): (_, Vec<String>) =
        (last + 1, origins.iter().map(ToString::to_string).collect());
    let sql = "insert into takeover (number, origins, accepted_to) values ($1, $2, $3::text::timestamptz)";
    tx.execute(sql, &[&number, &origins, &accepted_to])?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Origin = Origin {
        cluster: Cluster::System(77),
        database: 5,
        timeline: 3,
        takeover: 2,
    };

    #[test]
    fn an_origin_is_read_as_it_was_written_and_what_a_later_version_adds_is_let_pass() {
        let install = Origin {
            cluster: Cluster::Install(734),
            timeline: 0,
            takeover: 0,
            ..HERE
        };
        for (origin, text) in [
            (HERE, "77.5.3.2"),
            (
                Origin {
                    takeover: 0,
                    ..HERE
                },
                "77.5.3",
            ),
            (
                Origin {
                    cluster: Cluster::System(i64::MAX),
                    ..HERE
                },
                "9223372036854775807.5.3.2",
            ),
            (install, "x734.5.0"),
        ] {
            assert_eq!(
                (origin.to_string().as_str(), text.parse()),
                (text, Ok(origin))
            );
        }
        assert_eq!("77.5.3.2.more".parse(), Ok(HERE));
        for text in [
            "",
            "77",
            "77.5",
            "77.5.",
            "77.5.3.",
            "x.5.3",
            "77.-5.3",
            "77.5.three",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    /// A database that last stored at 12:00 and has taken over what others had stored until 09:00.
    fn state() -> OriginState {
        let time = |hour: &str| Some(format!("2026-01-02T{hour}:00:00.000000Z"));
        OriginState {
            origin: HERE,
            last_stored: time("12"),
            accepted_to: time("09"),
            leaders: vec![(4001, 7), (5000, 0)],
        }
    }

    fn judged(origin: Origin, stored: &str) -> Judgement {
        state().judge(
            origin,
            Some((4001, 7)),
            Some(&format!("2026-01-02T{stored}.000000Z")),
        )
    }

    #[test]
    fn the_database_s_own_positions_are_its_own_up_to_its_last_stored_time() {
        assert_eq!(judged(HERE, "12:00:00"), Judgement::Own);
        assert_eq!(
            judged(
                Origin {
                    timeline: 1,
                    ..HERE
                },
                "12:00:00"
            ),
            Judgement::Own,
            "before a promotion"
        );
        assert_eq!(
            state().judge(HERE, None, None),
            Judgement::Own,
            "not known when"
        );
        let fresh = OriginState {
            last_stored: None,
            ..state()
        };
        assert_eq!(
            fresh.judge(HERE, None, Some("2026")),
            Judgement::Refused(Refusal::OlderCopy)
        );
    }

    #[test]
    fn what_the_database_does_not_know_of_is_a_lost_tail_after_a_promotion_and_else_a_later_copy_s()
    {
        let late = "12:00:01";
        assert_eq!(judged(HERE, late), Judgement::Refused(Refusal::OlderCopy));
        assert_eq!(
            judged(
                Origin {
                    timeline: 2,
                    ..HERE
                },
                late
            ),
            Judgement::LostTail
        );
        for timeline in [0, 4] {
            let refusal = if timeline == 0 {
                Refusal::OlderCopy
            } else {
                Refusal::OldPrimary
            };
            assert_eq!(
                judged(Origin { timeline, ..HERE }, late),
                Judgement::Refused(refusal)
            );
        }
        assert_eq!(
            judged(
                Origin {
                    timeline: 4,
                    ..HERE
                },
                "00:00:00"
            ),
            Judgement::Refused(Refusal::OldPrimary)
        );
        assert_eq!(
            judged(
                Origin {
                    timeline: 0,
                    ..HERE
                },
                "12:00:00"
            ),
            Judgement::Own
        );
    }

    #[test]
    fn a_leadership_that_the_database_does_not_know_of_was_a_copy_s_unless_it_was_before_a_promotion()
     {
        let judged = |origin, leader| {
            state().judge(origin, Some(leader), Some("2026-01-02T12:00:00.000000Z"))
        };
        for known in [(4001, 7), (4001, 6), (5000, 0)] {
            assert_eq!(judged(HERE, known), Judgement::Own);
        }
        for unknown in [(4001, 8), (5000, 1), (4000, 0)] {
            assert_eq!(
                judged(HERE, unknown),
                Judgement::Refused(Refusal::OtherLeader)
            );
            assert_eq!(
                judged(
                    Origin {
                        timeline: 2,
                        ..HERE
                    },
                    unknown
                ),
                Judgement::Own
            );
        }
    }

    #[test]
    fn another_database_is_refused_however_early_it_stored() {
        let refused = Judgement::Refused(Refusal::OtherDatabase);
        assert_eq!(
            judged(
                Origin {
                    database: 6,
                    ..HERE
                },
                "00:00:00"
            ),
            refused
        );
        assert_eq!(
            judged(
                Origin {
                    cluster: Cluster::System(78),
                    timeline: 1,
                    ..HERE
                },
                "00:00:00"
            ),
            refused
        );
        let unknown = Origin {
            cluster: Cluster::Install(734),
            ..HERE
        };
        assert_eq!(
            judged(unknown, "12:00:00"),
            Judgement::Own,
            "the identifier's kind has changed"
        );
        assert_eq!(
            judged(
                Origin {
                    database: 6,
                    ..unknown
                },
                "12:00:00"
            ),
            refused
        );
    }

    #[test]
    fn of_two_the_one_that_took_over_last_goes_on() {
        let other = Origin {
            cluster: Cluster::System(78),
            database: 6,
            timeline: 9,
            takeover: 1,
        };
        assert_eq!(judged(other, "09:00:00"), Judgement::Own, "accepted");
        assert_eq!(
            judged(other, "09:00:01"),
            Judgement::Refused(Refusal::StoredSince)
        );
        let refused = Judgement::Refused(Refusal::TakenOver);
        assert_eq!(
            judged(
                Origin {
                    takeover: 3,
                    ..other
                },
                "00:00:00"
            ),
            refused
        );
        assert_eq!(
            judged(
                Origin {
                    takeover: 3,
                    timeline: 1,
                    ..HERE
                },
                "00:00:00"
            ),
            refused
        );
    }
}
