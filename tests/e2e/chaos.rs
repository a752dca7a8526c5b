//! Everything at once, at random from a printed seed: a cloud that does whatever clouds do, poison records, kills, stops,
//! cut connections. At the end every record is where the books say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::cloud::{Answer, Request};
use harness::{Agent, Cloud, Journal, Sensor};
use tokio::task::JoinSet;

use crate::{HOLDFAST, listener};

/// Times that the agent is killed or stopped in one test.
const ENDS: usize = 8;

/// Records that the cloud refuses for good.
fn is_poison(record: &serde_json::Value) -> bool {
    record["fields"]["n"].as_u64().is_some_and(|n| n % 97 == 13)
}

/// What a cloud does on a bad day.
fn whatever(random: &mut fastrand::Rng, request: &Request) -> Answer {
    if request.records().iter().any(is_poison) {
        return Answer::refuse(if random.bool() { 422 } else { 400 }, "no");
    }
    let first = request.first();
    match random.u8(0..20) {
        0 => Answer::refuse(503, ""),
        1 => Answer::refuse(429, "").with_header("Retry-After", "0"),
        2 => Answer::refuse(200, "").dropping(),
        3 => Answer::take().dropping(),
        4 => Answer::take().half_said(),
        5 => Answer::take().hanging(),
        6 => Answer::refuse(401, ""),
        7 => Answer::refuse(302, ""),
        8 if request.records().len() > 1 => Answer::refuse(413, ""),
        9 | 10 => Answer::take_until(random.u64(first..=request.last())),
        11 => Answer::take().saying(204, ""),
        _ => Answer::take(),
    }
}

/// Lets everything happen, then lets everything drain. Returns the books and how many readings are acknowledged.
async fn bad_day(store: &str, cloud: &Cloud, journal: &Journal) -> (harness::books::Status, Agent) {
    let mut random = harness::random();
    let port = harness::free_port();
    let mut moods = random.fork();
    let mut away = 0_u32;
    cloud.script(move |request| {
        away = if moods.u8(0..60) == 0 { moods.u32(0..100) } else { away.saturating_sub(1) };
        if away > 0 { Answer::refuse(503, "") } else { whatever(&mut moods, request) }
    });
    let sink = cloud.sink(
        "timeout = \"200ms\"\nretry = { initial = \"10ms\", max = \"50ms\" }\nbatch = { records = 40, wait = \"20ms\" }",
    );
    let sink = sink.replacen("retry = { initial = \"50ms\", max = \"200ms\" }\n", "", 1);
    let window =
        "[windows.minute]\nsize = \"1m\"\nlateness = \"0s\"\nidle = \"200ms\"\nfields = [\"temperature\"]\n";
    let config = format!("[store]\ncommit_interval = \"30ms\"\n{store}{}{window}{sink}", listener(port));
    let mut agent = Agent::started(HOLDFAST, &config).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut publishing = JoinSet::new();
    for device in ["a", "b", "c"] {
        let (mut sensor, stop, mut random) =
            (Sensor::new(device, port, journal), Arc::clone(&stop), random.fork());
        publishing.spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let count = random.u64(1..60);
                sensor.publish(n + 1..=n + count).await;
                n += count;
                if random.u8(0..10) == 0 {
                    // Sent, and cut off before the acknowledgement is read.
                    n += 1;
                    drop(sensor.send(n).await);
                    sensor.cut();
                }
            }
            sensor.publish([]).await;
        });
    }
    for _ in 0..ENDS {
        let (acked, requests) = (journal.acked_count(), cloud.request_count());
        let (further, batches) = (random.usize(1..500), random.usize(1..20));
        harness::wait_for("something to happen", harness::DEADLINE, async || {
            (journal.acked_count() >= acked + further && cloud.request_count() >= requests + batches)
                .then_some(())
        })
        .await;
        if random.u8(0..4) == 0 {
            assert_eq!(agent.stop().await.code(), Some(0));
        } else {
            agent.kill();
        }
        agent.start().await;
        agent.status().await.assert_balanced();
    }
    stop.store(true, Ordering::Relaxed);
    publishing.join_all().await;
    cloud.script(|request| {
        let is_refused = request.records().iter().any(is_poison);
        if is_refused { Answer::refuse(422, "no") } else { Answer::take() }
    });
    let status = agent.drained("readings", journal.acked_count() as u64).await;
    assert_eq!(status.appended("readings"), journal.acked_count() as u64, "nothing is stored twice");
    cloud.assert_well_formed();
    // Numbers are records or gaps, and every gap was declared, at the latest by a batch of gaps alone.
    let appended = status.appended("readings");
    harness::wait_for("every number to be accounted for", harness::DEADLINE, async || {
        let gaps: u64 = cloud.gaps("readings").iter().map(|gap| gap.last - gap.first + 1).sum();
        (cloud.count("readings") as u64 + gaps == appended).then_some(())
    })
    .await;
    (status, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_bad_day_every_record_is_where_the_books_say() {
    let (cloud, journal) = (Cloud::start().await, Journal::default());
    let (status, _agent) = bad_day("", &cloud, &journal).await;
    let poison = journal.acked_marks().into_iter().filter(|(_, n)| n % 97 == 13).count() as u64;
    assert_eq!((status.ledger("readings", "dead_lettered"), status.ledger("readings", "shed")), (poison, 0));
    assert_eq!(status.number("/dead_letters/kept"), poison);
    assert!(cloud.gaps("readings").iter().all(|gap| gap.reason == "dead-letter"));
    journal.forget(|(_, n)| n % 97 == 13);
    journal.assert_exactly_once(&cloud);

    let mut revisions: BTreeMap<String, u64> = BTreeMap::new();
    for record in cloud.records("windows") {
        let place = format!("{} {}", record["device"], record["start"]);
        let next = revisions.entry(place).or_insert(0);
        assert_eq!(record["revision"], *next, "{record}");
        *next += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_bad_day_with_a_small_store_what_is_missing_is_declared() {
    let (cloud, journal) = (Cloud::start().await, Journal::default());
    let (status, _agent) = bad_day("max_size = \"64KiB\"\n", &cloud, &journal).await;
    let shed: u64 = cloud
        .gaps("readings")
        .iter()
        .filter(|gap| gap.reason == "shed:size")
        .map(|gap| gap.last - gap.first + 1)
        .sum();
    assert_eq!(status.ledger("readings", "shed"), shed);
    println!("{shed} of {} shed", status.appended("readings"));
    assert_eq!(cloud.count("readings") as u64, status.ledger("readings", "delivered"));
}
