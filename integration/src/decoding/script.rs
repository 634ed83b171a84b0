//! What is done on the leader while it is decoded: SQL for several sessions, made from a seed.
//!
//! One driver issues the steps in their order, each after the one before has ended, so that a seed
//! gives the same transactions in the same order on every server. Nothing in it depends on when or
//! where it runs: no clock, no random numbers of the server, no object numbers in values.
//!
//! ```text
//!            round 1                                   between     round 2
//! lane 0     begin . . insert . savepoint . . commit │ alter    │ begin . .
//! lane 1     . begin . . . alter . . insert . commit │ checkpoint
//! its other  . . . . alter . commit . .              │
//! upkeep     . . . checkpoint . . . . vacuum . .     │
//! ```
//!
//! No step waits for a lock, unless it is meant to: a lane owns rows of the shared tables (every
//! key it has inserted) and tables of its own, and the shape of what is shared changes only between
//! rounds.

use rand::RngExt;
use rand::rngs::StdRng;

use crate::seed::Seed;

mod pieces;
mod setup;
mod shapes;
mod tables;
mod values;

pub use values::{COMMON_TYPES, RARE_TYPES};

/// How many transactions are open at once, not counting those of lanes' other sessions.
const LANES: usize = 4;

/// The session that belongs to no lane.
const UPKEEP: usize = 2 * LANES;

/// The table that only transactions and savepoints write to that are rolled back.
pub const NEVER: &str = "never";

/// Prefix of the message that stands behind every `ROLLBACK TO SAVEPOINT`: without, nothing tells
/// in what was decoded that it happened.
pub const ROLLED_BACK: &str = "rolled back";

/// How a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Well.
    Run,
    /// With an error.
    Fail,
    /// Not yet: it waits for a lock. When it goes on is not fixed among the steps that follow, so
    /// it should not commit by itself: a `commit` behind [`Action::Finish`] has its place.
    Block,
    /// As [`Action::Run`], of the step that waited; it has no SQL of its own.
    Finish,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which connection.
    pub session: usize,
    /// How it ends.
    pub action: Action,
    /// Its SQL.
    pub sql: String,
}

/// Which replica identity tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identities {
    /// One of each kind.
    Mixed,
    /// All have `FULL`, so that `test_decoding` has complete old rows; all else is the same.
    Full,
}

/// Steps in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Script {
    /// The script of a seed. In a round each lane does one piece of work; `rounds` should be enough
    /// for each to do every kind several times, see [`Script::PIECES`].
    #[must_use]
    pub fn generate(seed: Seed, rounds: usize, identities: Identities) -> Self {
        let mut generator = Generator::new(seed, identities);
        let mut script = Self { steps: generator.set_up() };
        let mut orders: Vec<Vec<usize>> = vec![Vec::new(); LANES];
        for _ in 0..rounds {
            let lanes: Vec<Vec<Step>> = (0..LANES)
                .map(|lane| {
                    if orders[lane].is_empty() {
                        orders[lane] = generator.shuffled(Self::PIECES);
                    }
                    let piece = orders[lane].pop().expect("just filled");
                    generator.piece(piece, lane)
                })
                .collect();
            script.steps.extend(generator.mixed(lanes));
            script.steps.extend(generator.between_rounds());
        }
        script
    }

    /// How many kinds of work there are.
    pub const PIECES: usize = pieces::COUNT;
}

/// What becomes a script.
struct Generator {
    random: StdRng,
    identities: Identities,
    /// For names that are used once.
    number: u32,
    tables: Vec<tables::Table>,
}

impl Generator {
    fn new(seed: Seed, identities: Identities) -> Self {
        let tables = setup::tables();
        Self { random: seed.generator(), identities, number: 0, tables }
    }

    fn next_number(&mut self) -> u32 {
        self.number += 1;
        self.number
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    /// In so many of a hundred cases.
    fn in_percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            let other = self.below(at + 1);
            order.swap(at, other);
        }
        order
    }

    /// The lanes' steps and a little upkeep, each lane's in its order.
    fn mixed(&mut self, lanes: Vec<Vec<Step>>) -> Vec<Step> {
        let upkeep = (0..2).map(|_| {
            let table = self.below(self.tables.len());
            let sql = match self.below(4) {
                0 => "checkpoint".to_owned(),
                1 => format!("vacuum (truncate off, freeze) {}", self.tables[table].name),
                // Where this page is written, the next record of it carries an image.
                _ => format!("vacuum (truncate off) {}", self.tables[table].name),
            };
            Step { session: UPKEEP, action: Action::Run, sql }
        });
        let mut rest: Vec<_> = vec![upkeep.collect::<Vec<_>>().into_iter()];
        rest.extend(lanes.into_iter().map(Vec::into_iter));
        let mut mixed = Vec::new();
        loop {
            rest.retain(|lane| lane.len() > 0);
            if rest.is_empty() {
                return mixed;
            }
            // One lane goes on for a while: neighbours in WAL are of one transaction, or of many.
            let (lane, steps) = (self.below(rest.len()), 1 + self.below(3));
            mixed.extend(rest[lane].by_ref().take(steps));
        }
    }
}

/// The steps of one lane, written.
#[derive(Default)]
struct Lane {
    number: usize,
    steps: Vec<Step>,
}

impl Lane {
    fn new(number: usize) -> Self {
        Self { number, steps: Vec::new() }
    }

    fn push(&mut self, session: usize, action: Action, sql: impl Into<String>) {
        self.steps.push(Step { session, action, sql: sql.into() });
    }

    fn run(&mut self, sql: impl Into<String>) {
        self.push(self.number, Action::Run, sql);
    }

    fn fail(&mut self, sql: impl Into<String>) {
        self.push(self.number, Action::Fail, sql);
    }

    /// In the lane's other session.
    fn other(&mut self, sql: impl Into<String>) {
        self.push(self.number + LANES, Action::Run, sql);
    }

    fn other_blocks(&mut self, sql: impl Into<String>) {
        self.push(self.number + LANES, Action::Block, sql);
    }

    fn other_finishes(&mut self) {
        self.push(self.number + LANES, Action::Finish, "");
    }

    fn upkeep(&mut self, sql: impl Into<String>) {
        self.push(UPKEEP, Action::Run, sql);
    }

    fn roll_back_to(&mut self, savepoint: &str) {
        self.run(format!("insert into {NEVER} values ('in savepoint {savepoint}')"));
        self.run(format!("rollback to savepoint {savepoint}"));
        self.run(format!("select pg_logical_emit_message(true, '{ROLLED_BACK}', '{savepoint}')"));
    }

    fn roll_back(&mut self) {
        self.run(format!("insert into {NEVER} values ('in a transaction')"));
        self.run("rollback");
    }
}
