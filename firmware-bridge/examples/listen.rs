//! A host in a hundred lines: prints what a node says, acknowledges it, and checks that nothing is missing.
//!
//! `listen SOCKET [COUNT]` connects to a Unix socket, such as QEMU's `-serial unix:SOCKET,server=on,wait=on`. With COUNT it
//! ends after so many records; halfway it forgets all but what a crash would leave, as if it had been started again.
#![expect(clippy::print_stdout, reason = "that is its purpose")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use firmware_bridge::host::{Happening, Host, Now, Position, Settings};

/// The longest silence of a node that works.
const SILENCE: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("usage: listen SOCKET [COUNT]")?;
    let count: Option<u64> = arguments.next().map(|count| count.parse()).transpose()?;
    let mut port = UnixStream::connect(&socket)?;
    port.set_read_timeout(Some(Duration::from_millis(20)))?;

    let clock = Clock::start();
    let mut host = Host::new(Settings::default(), []);
    let (mut last, mut taken, mut restarts) = (None::<Position>, 0, 0);
    let mut heard = clock.now().monotonic_us;
    let mut buffer = [0; 4096];
    while count.is_none_or(|count| taken < count) {
        let length = match port.read(&mut buffer) {
            Ok(0) => return Err("the node has hung up".into()),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        let now = clock.now();
        let mut input = &buffer[..length];
        let mut durable = None;
        while let Some(happening) = host.next(&mut input, &now) {
            let position = match happening {
                Happening::Hello(node) => {
                    println!("{node:?}");
                    continue;
                }
                Happening::Log { level, uptime_ms, text } => {
                    println!("{uptime_ms} ms: {level:?}: {text}");
                    continue;
                }
                Happening::Gap(gap) => {
                    println!(
                        "{} records from {} on will not come: {:?}",
                        gap.count(),
                        gap.first.0,
                        gap.reason
                    );
                    gap.position
                }
                Happening::Event(event) => {
                    println!("{:?}", event);
                    event.position
                }
                Happening::Sample(sample) => {
                    let age_us = now.wall_us - sample.position.wall_us;
                    println!("{} {age_us} µs ago {:?}", sample.position.seq.0, sample.values);
                    let before = last.as_ref().filter(|last| last.boot == sample.position.boot);
                    if before.is_some_and(|before| before.seq.next() != sample.position.seq) {
                        return Err(format!("{before:?}, then {:?}", sample.position).into());
                    }
                    taken += 1;
                    sample.position
                }
            };
            heard = now.monotonic_us;
            last = Some(position.clone());
            durable = Some(position);
        }
        // Here a host would wait for its disk.
        if let Some(position) = durable {
            host.durable(&position);
        }
        if restarts == 0 && count.is_some_and(|count| taken > count / 2) {
            println!("started again");
            restarts += 1;
            host = Host::new(Settings { session: 1_000, ..Settings::default() }, last.clone());
        }
        let mut out = Vec::new();
        host.transmit(&now, &mut out);
        port.write_all(&out)?;
        if Duration::from_micros(now.monotonic_us - heard) > SILENCE {
            return Err("the node is silent".into());
        }
    }
    println!("{:?}", host.counts());
    Ok(())
}

/// The time of this machine.
struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "an example without the agent's clock")]
    fn start() -> Self {
        Self(Instant::now())
    }

    #[expect(clippy::disallowed_methods, reason = "an example without the agent's clock")]
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Now {
            monotonic_us: micros(self.0.elapsed()),
            wall_us: i64::try_from(micros(wall)).unwrap_or(i64::MAX),
            is_synced: true,
        }
    }
}
