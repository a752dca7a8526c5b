//! What stays and why; what goes in parts.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::reading::Timestamp;
use crate::store::work::{Group, Letter};
use crate::store::{FailingDisk, WindowsPresence};
use crate::stream::{Epoch, SeqRange};

const CONFIG: &str = "[dead_letters]\nmax_payload = \"1KiB\"\n\
    [sources.plant]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:9\"\n\
    [[sources.plant.subscribe]]\ntopic = \"t/{device}\"\ntime = \"/ts\"\n\
    [sinks.cloud]\ntype = \"http\"\nurl = \"http://127.0.0.1:9/\"\nstreams = [\"readings\"]\n";

fn config(dir: &TempDir) -> Config {
    let dir = dir.path();
    let text = format!(
        "[agent]\nid = \"gw\"\ndata_dir = \"{dir}\"\n[admin]\nlisten = \"\"\nsocket = \"{dir}/a.sock\"\n{CONFIG}",
        dir = dir.display()
    );
    crate::config::parse(&text, "test.toml", &crate::config::System).unwrap().config
}

async fn offline(dir: &TempDir) -> Offline {
    let config = config(dir);
    assert!(Offline::open(&config, Clock::system()).await.is_err(), "a command makes no store");
    drop(open_store(&config, None, None, Clock::system(), Published::default()).await.unwrap());
    Offline::open(&config, Clock::system()).await.unwrap().unwrap()
}

fn of_source(source: &str, topic: &str, payload: &str) -> Letter {
    Letter {
        time: Timestamp(1_795_148_112_123_000),
        origin: DeadLetterOrigin::Source { source: source.into(), topic: topic.into() },
        reason: "it was".into(),
        payload: payload.as_bytes().to_vec(),
        payload_bytes: payload.len() as u64,
        payload_hash: 0,
    }
}

fn of_sink(sink: &str, stream: Stream, seq: u64, payload: &str) -> Letter {
    let (epoch, first) = (Epoch(uuid::Uuid::nil()), Seq(seq));
    let range = SeqRange { first, last: first };
    let origin = DeadLetterOrigin::Sink { sink: sink.into(), stream, epoch, range, status: 400 };
    Letter { origin, ..of_source("", "", payload) }
}

async fn keep(offline: &Offline, rejected: Vec<Letter>) {
    offline.letters.store.append(Group { rejected, ..Group::default() }).await.unwrap();
}

const RECORD: &str = "{\"seq\":5,\"time\":\"2026-11-20T04:15:12.123000Z\",\
    \"received\":\"2026-11-20T04:15:12.140211Z\",\"source\":\"plant\",\"device\":\"d\",\"tags\":{},\
    \"fields\":{\"whole\":3.0,\"count\":3}}";

#[tokio::test]
async fn what_cannot_be_replayed_stays_with_its_reason() {
    let dir = TempDir::new().unwrap();
    let offline = offline(&dir).await;
    let good = "{\"ts\":1795148100,\"a\":1}";
    let cases = [
        (of_source("gone", "t/d", good), "it is of a source"),
        (of_source("plant", "other/d", good), "no subscription of its source takes its topic"),
        (of_source("plant", "t/d", "{"), "it still cannot be decoded"),
        (of_source("plant", "t/d", "{\"ts\":1795148100,\"a\":null}"), "there is no value in it"),
        (of_source("plant", "t/d", &format!("{{\"a\":\"{}\"}}", "x".repeat(2_000))), "it was kept cut"),
        (of_sink("gone", Stream::Readings, 5, RECORD), "the sink that refused it is not configured"),
        (of_sink("cloud", Stream::Windows, 5, RECORD), "the sink that refused it is not configured"),
        (of_sink("cloud", Stream::Readings, 6, RECORD), "it is not the record it is said to be"),
        (of_sink("cloud", Stream::Readings, 5, "{}"), "the record cannot be read back"),
    ];
    let expected: Vec<&str> = cases.iter().map(|(_, why)| *why).collect();
    keep(&offline, cases.iter().map(|(letter, _)| letter.clone()).collect()).await;
    let done = offline.replay(Selection::of(&[])).await.unwrap();
    assert_eq!((done.replayed, done.next), (0, None));
    let why: Vec<&str> = done.stayed.iter().map(|stayed| stayed.why.as_str()).collect();
    assert_eq!(why[0], "its source is not configured any more");
    for (why, expected) in why.iter().zip(expected).skip(1) {
        assert!(why.starts_with(expected), "{why} is not {expected}");
    }
    assert!(done.stayed[2].detail.as_deref().unwrap().contains("not JSON"));
    let books = Arc::clone(&offline.letters.store.books().borrow());
    assert_eq!((books.dead_letters.kept, books.stream(Stream::Readings).next), (9, Seq(1)));
    offline.close().await;
}

#[tokio::test]
async fn a_record_comes_back_as_it_was_and_keeps_the_first_number_it_had() {
    let dir = TempDir::new().unwrap();
    let offline = offline(&dir).await;
    let again = RECORD.replace(
        "\"fields\":{\"whole\":3.0,\"count\":3}}",
        "\"fields\":{\"whole\":3.0},\"replay_of\":{\"epoch\":\"00000000-0000-0000-0000-000000000007\",\"seq\":2}}",
    );
    let letters = [RECORD, &again].map(|record| of_sink("cloud", Stream::Readings, 5, record));
    keep(&offline, letters.into()).await;
    assert_eq!(offline.replay(Selection::of(&[])).await.unwrap().replayed, 2);
    let piece = offline.letters.store.reader().piece(Stream::Readings, Seq(1)).unwrap();
    let Some(store::Piece::Readings(_, readings)) = piece else { panic!("it is there") };
    let written = |reading: &Reading| {
        let mut json = Vec::new();
        wire::write_reading(Seq(5), reading, &mut json);
        String::from_utf8(json).unwrap()
    };
    let own = ",\"replay_of\":{\"epoch\":\"00000000-0000-0000-0000-000000000000\",\"seq\":5}}";
    assert_eq!(written(&readings[0]), format!("{}{own}", RECORD.strip_suffix('}').unwrap()));
    assert_eq!(written(&readings[1]), again, "it was replayed before: who knows it knows it as 2");
    assert!(readings.iter().all(Reading::is_replayed));
    offline.close().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_not_left_waiting_for_a_disk_that_begins_to_fail() {
    const LONG: Duration = Duration::from_secs(3_600);
    let (dir, disk) = (TempDir::new().unwrap(), FailingDisk::formatted());
    let (config, published) = (config(&dir), Published::default());
    let (settings, owner) = (config.store.clone(), ("gw", "machine"));
    let windows = WindowsPresence::None;
    let opened = Store::open_on(disk.medium(), settings, owner, windows, Clock::system(), published).unwrap();
    let (letters, writer) = (Letters::new(&opened.store, &config), tokio::spawn(opened.writer.run()));
    drop(opened.store);
    let offline = Offline { letters, writer };
    keep(&offline, vec![of_source("plant", "t/d", "{\"ts\":1795148100,\"a\":1}")]).await;
    disk.fail(disk.operations() + 1, u64::MAX, std::io::ErrorKind::StorageFull);
    let purged = timeout(LONG, offline.purge(Selection::of(&[]))).await.expect("it waits for ever");
    assert!(matches!(purged, Err(Error::Failed)), "{purged:?}");
    let replayed = timeout(LONG, offline.replay(Selection::of(&[]))).await.expect("it waits for ever");
    assert!(matches!(replayed, Err(Error::Failing)), "{replayed:?}");
    timeout(LONG, offline.close()).await.expect("it does not end");
}

#[tokio::test]
async fn many_letters_go_in_parts_and_what_comes_meanwhile_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let offline = offline(&dir).await;
    let letter = |n: usize| of_source("plant", "t/d", &format!("{{\"ts\":{},\"n\":{n}}}", 1_795_148_100 + n));
    keep(&offline, (1..=600).map(letter).collect()).await;
    let mut parts = Vec::new();
    let mut next = Some(Selection::of(&[]));
    while let Some(which) = next {
        let done = offline.replay(which).await.unwrap();
        parts.push(done.replayed);
        next = done.next;
        if parts.len() == 1 {
            keep(&offline, vec![letter(601)]).await;
        }
    }
    assert_eq!(parts, [256, 256, 88]);
    // By id, one twice and one that is gone.
    let ids = Selection::of(&[601, 601, 3]);
    let done = offline.replay(ids).await.unwrap();
    assert_eq!((done.replayed, done.stayed.len(), done.next), (1, 1, None));
    assert_eq!(done.stayed[0].why, "there is no dead letter of this id");
    let books = Arc::clone(&offline.letters.store.books().borrow());
    assert_eq!((books.dead_letters.kept, books.dead_letters.replayed), (0, 601));
    assert_eq!(books.pending("cloud", Stream::Readings), Some(601));
    offline.close().await;
}
