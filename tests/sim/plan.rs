//! What a run is like: drawn from its seed before it begins.

use std::time::Duration;

/// How the disk is, how much may go wrong, what is configured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Things that happen.
    pub(crate) steps: usize,
    /// Until the next, at most.
    pub(crate) longest_pause: Duration,
    /// How long a commit takes.
    pub(crate) disk_takes: Duration,
    pub(crate) limit: Limit,
    pub(crate) commit_interval: Duration,
    pub(crate) batch_records: u64,
    pub(crate) compression: &'static str,
    pub(crate) require_ack: bool,
    pub(crate) allowed_lateness: Duration,
    pub(crate) slide: Duration,
    /// Clients of the listener; the broker is one peer more.
    pub(crate) clients: usize,
    pub(crate) in_flight: usize,
    /// Bytes of text in each message.
    pub(crate) padding: usize,
    /// Whether a second sink comes and goes.
    pub(crate) second_sink: bool,
    /// Whether sinks refuse some records for good.
    pub(crate) poison: bool,
    pub(crate) chaos: Chaos,
}

/// What the store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// All there is.
    None,
    /// So many bytes; the oldest is given up.
    Shed(u64),
    /// So many bytes; nothing is taken above.
    Block(u64),
    /// Nothing older.
    Age(Duration),
}

/// How likely each kind of trouble is: weights of the steps.
#[derive(Clone, Debug)]
pub(crate) struct Chaos {
    pub(crate) publish: u32,
    pub(crate) disconnect: u32,
    pub(crate) disk: u32,
    pub(crate) power: u32,
    pub(crate) kill: u32,
    pub(crate) restart: u32,
    pub(crate) cloud: u32,
    pub(crate) clock: u32,
}

impl Plan {
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let limit = match random.u32(..20) {
            0 | 1 => Limit::Shed(random.u64(60_000..200_000)),
            2 => Limit::Block(random.u64(60_000..200_000)),
            3 => Limit::Age(Duration::from_secs(random.u64(20..120))),
            _ => Limit::None,
        };
        let mut weight = |often: u32| if random.u32(..4) == 0 { 0 } else { random.u32(1..=often) };
        let chaos = Chaos {
            publish: 30,
            disconnect: weight(8),
            disk: weight(4),
            power: weight(4),
            kill: weight(3),
            restart: weight(4),
            cloud: weight(8),
            clock: weight(2),
        };
        let is_long = random.u32(..10) == 0;
        Self {
            seed,
            steps: if is_long { random.usize(100..300) } else { random.usize(15..80) },
            longest_pause: Duration::from_millis(pick(&mut random, &[20, 300, 1_500, 6_000])),
            disk_takes: Duration::from_millis(pick(&mut random, &[0, 1, 3, 30, 400])),
            padding: if limit == Limit::None { random.usize(..40) } else { random.usize(100..1_500) },
            limit,
            commit_interval: Duration::from_millis(pick(&mut random, &[50, 1_000, 1_000, 5_000])),
            batch_records: pick(&mut random, &[1, 3, 20, 1_000]),
            compression: pick(&mut random, &["zstd", "gzip", "none"]),
            require_ack: random.u32(..4) == 0,
            allowed_lateness: Duration::from_secs(pick(&mut random, &[0, 0, 4])),
            slide: Duration::from_secs(pick(&mut random, &[10, 10, 5])),
            clients: random.usize(0..4),
            in_flight: pick(&mut random, &[1, 4, 20]),
            second_sink: random.u32(..3) == 0,
            poison: random.u32(..4) == 0,
            chaos,
        }
    }

    /// A run to which nothing happens by itself.
    pub(crate) fn quiet(limit: Limit) -> Self {
        let chaos =
            Chaos { publish: 0, disconnect: 0, disk: 0, power: 0, kill: 0, restart: 0, cloud: 0, clock: 0 };
        Self {
            seed: 0,
            steps: 0,
            longest_pause: Duration::ZERO,
            disk_takes: Duration::from_millis(1),
            limit,
            commit_interval: Duration::from_secs(1),
            batch_records: 5,
            compression: "none",
            require_ack: false,
            allowed_lateness: Duration::from_secs(2),
            slide: Duration::from_secs(5),
            clients: 1,
            in_flight: 4,
            padding: if limit == Limit::None { 10 } else { 1_200 },
            second_sink: true,
            poison: true,
            chaos,
        }
    }

    /// True if `sink` may miss readings by rule: one that is not required does so also where others block.
    pub(crate) fn may_shed_for(&self, sink: &str) -> bool {
        match self.limit {
            Limit::None => false,
            Limit::Shed(_) | Limit::Age(_) => true,
            Limit::Block(_) => sink != "cloud",
        }
    }
}

pub(crate) fn pick<T: Copy>(random: &mut fastrand::Rng, choices: &[T]) -> T {
    choices[random.usize(..choices.len())]
}
