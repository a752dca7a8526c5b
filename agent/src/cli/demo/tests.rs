//! The demo with an agent of a hundred lines: a listener and a serial line that are acknowledged, a list, and a loop that posts it.

use std::sync::Mutex;

use firmware_bridge::host::{Happening, Host, Now};
use firmware_bridge::value::Value;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::forward;
use crate::source::{self, State, port};
use crate::store::ledger::{Ledger, SinkBooks};
use crate::store::nodes::{Missed, NodeChange, NodeId, NodePosition};

/// What the small agent holds: device and payload of each reading, in order.
type Held = Arc<Mutex<Vec<(String, String)>>>;

/// Answers one client's MQTT packets (QoS 1, one filled packet at a time) until it goes.
async fn serve(mut client: TcpStream, held: Held) -> std::io::Result<()> {
    let mut version = 4;
    loop {
        let kind = client.read_u8().await? >> 4;
        let mut length = 0_usize;
        for place in 0.. {
            let byte = client.read_u8().await?;
            length |= usize::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                break;
            }
        }
        let mut packet = vec![0; length];
        client.read_exact(&mut packet).await?;
        match kind {
            1 => {
                version = packet[6];
                let accepted: &[u8] = if version == 5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] };
                client.write_all(accepted).await?;
            }
            3 => {
                let topic_end = 2 + usize::from(u16::from_be_bytes([packet[0], packet[1]]));
                let topic = std::str::from_utf8(&packet[2..topic_end]).unwrap();
                // Version 5 has a length of properties here: none.
                let payload = &packet[topic_end + 2 + usize::from(version == 5)..];
                let device = topic.rsplit('/').next().unwrap().to_owned();
                held.lock().unwrap().push((device, String::from_utf8(payload.to_vec()).unwrap()));
                client.write_all(&[0x40, 2, packet[topic_end], packet[topic_end + 1]]).await?;
            }
            12 => client.write_all(&[0xd0, 0]).await?,
            _ => return Ok(()),
        }
    }
}

/// Takes what the node at `path` says, whenever it is plugged in.
async fn serve_node(path: PathBuf, held: Held, report: watch::Sender<source::Report>) {
    let mut host = Host::new(firmware_bridge::host::Settings::default(), []);
    let clock = Clock::system();
    let start = clock.monotonic();
    let now = || Now {
        monotonic_us: u64::try_from(start.elapsed().as_micros()).unwrap(),
        wall_us: clock.wall().0,
        is_synced: true,
    };
    let settings = port::Settings::at(port::Place::Path(path));
    loop {
        report.send_modify(|report| report.state = State::Unplugged);
        let Ok(mut opened) = port::open(&settings).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        report.send_modify(|report| report.state = State::Connected);
        let mut buffer = [0; 1_024];
        loop {
            let mut out = Vec::new();
            host.transmit(&now(), &mut out);
            if opened.stream.write_all(&out).await.is_err() {
                break;
            }
            let mut bytes = match timeout(Duration::from_millis(50), opened.stream.read(&mut buffer)).await {
                Ok(Ok(count)) if count > 0 => &buffer[..count],
                Ok(_) => break,
                Err(_) => continue,
            };
            let mut last = None;
            while let Some(happening) = host.next(&mut bytes, &now()) {
                if let Happening::Sample(sample) = happening {
                    let Value::Int(n) = sample.values.as_slice()[0] else { panic!("n is a number") };
                    held.lock().unwrap().push((NODE.to_owned(), format!("{{\"n\":{n}}}")));
                    last = Some(sample.position);
                }
            }
            last.iter().for_each(|position| host.durable(position));
        }
        host.disconnected();
    }
}

fn books(appended: usize, delivered: usize) -> Books {
    let number = |count: usize| u64::try_from(count).unwrap();
    let mut books = Books::default();
    books.streams[Stream::Readings.index()].next = Seq(number(appended) + 1);
    let ledger = Ledger { cursor: Seq(number(delivered) + 1), delivered: number(delivered), ..Ledger::new() };
    let streams = [(Stream::Readings, ledger)].into();
    books.sinks.insert("cloud".into(), SinkBooks { streams, ..SinkBooks::default() });
    books
}

/// Posts what `held` has beyond `delivered`; how much is delivered then.
async fn forward(client: &reqwest::Client, url: &str, held: &Held, delivered: usize) -> Option<usize> {
    let records: Vec<String> = held.lock().unwrap()[delivered..]
        .iter()
        .enumerate()
        .map(|(index, (device, payload))| {
            format!(r#"{{"seq":{},"device":"{device}","fields":{payload}}}"#, delivered + index + 1)
        })
        .collect();
    if records.is_empty() {
        return Some(delivered);
    }
    let last = delivered + records.len();
    let body = format!(
        r#"{{"format":1,"agent":"demo","epoch":"0b8c5b1e-6f0a-4d59-9c69-0f5b3c6f7a10","stream":"readings","first":{},"last":{last},"records":[{}]}}"#,
        delivered + 1,
        records.join(",")
    );
    let request = client.post(url).header("content-type", "application/json").body(body);
    let answer = request.send().await.ok()?;
    answer.status().is_success().then_some(last)
}

async fn small_agent(config: String) -> anyhow::Result<Running> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let config: serde_json::Value = toml::from_str(&config).unwrap();
    let url = config["sinks"]["cloud"]["url"].as_str().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let direct = listener.local_addr()?;
    let held = Held::default();
    let (told, books_seen) = watch::channel(Arc::new(books(0, 0)));
    let (report, sink) = watch::channel(forward::Report::default());
    let mut tasks = JoinSet::new();
    let port = config["sources"][SERIAL]["path"].as_str().unwrap().into();
    let (serial_report, serial) = watch::channel(source::Report::default());
    tasks.spawn(serve_node(port, Arc::clone(&held), serial_report));
    let clients = Arc::clone(&held);
    tasks.spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(client, Arc::clone(&clients)));
        }
    });
    tasks.spawn(async move {
        let (client, mut delivered) = (reqwest::Client::new(), 0);
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let outcome = forward(&client, &url, &held, delivered).await;
            delivered = outcome.unwrap_or(delivered);
            let state = if outcome.is_some() { forward::State::Up } else { forward::State::Retrying };
            report.send_modify(|report| report.state = state);
            told.send_replace(Arc::new(books(held.lock().unwrap().len(), delivered)));
        }
    });
    let stop = Box::pin(async move {
        tasks.shutdown().await;
        Ok(())
    });
    Ok(Running { direct, admin: None, books: books_seen, sink, serial, stop })
}

fn args() -> Args {
    Args {
        duration: Some(Duration::from_millis(3_000)),
        cloud_outage: Some(Duration::from_millis(1_000)),
        sensors: 4,
        rate: 200,
        seed: 1,
        listen_admin: None,
    }
}

#[tokio::test]
async fn an_outage_is_shown_and_the_books_balance_at_the_end() {
    let mut out = Vec::new();
    let mut screen = Screen::new(&mut out, Kind::Terminal);
    let verdict = show(&args(), CancellationToken::new(), &mut screen, small_agent).await.unwrap();
    let out = String::from_utf8(out).unwrap();
    assert_eq!(verdict.faults, Vec::<String>::new(), "{out}");
    for expected in [
        "cut off",
        "OUTAGE",
        "cloud retrying",
        "cloud is back",
        "the node is unplugged",
        "| node unplugged",
        "plugged in again",
        "draining",
        "books balanced: ",
    ] {
        assert!(out.contains(expected), "{expected} is not in {out}");
    }
    let acked = out.split("books balanced: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(acked.parse::<u64>().unwrap() > 200, "{acked}");
}

#[tokio::test]
async fn an_agent_that_ends_by_itself_is_an_error() {
    let gone = async |config: String| {
        let mut running = small_agent(config).await?;
        let (_, books) = watch::channel(Arc::new(Books::default()));
        running.books = books;
        Ok(running)
    };
    let mut screen = Screen::new(Vec::new(), Kind::Plain);
    let error = show(&args(), CancellationToken::new(), &mut screen, gone).await.unwrap_err();
    assert!(error.to_string().contains("ended by itself"), "{error}");
}

/// Two sensors, three messages, all well.
fn all_well() -> (Vec<(String, Tally)>, Books, Received) {
    let tally = |count| Tally { published: count, acked: count };
    let sensors = vec![("a".to_owned(), tally(2)), ("b".to_owned(), tally(1))];
    let received = Received {
        lines: [("readings", 3)].into(),
        messages: [("a".to_owned(), [1, 2].into()), ("b".to_owned(), [1].into())].into(),
        ..Received::default()
    };
    (sensors, books(3, 3), received)
}

#[test]
fn whatever_is_off_is_named() {
    type World = (Vec<(String, Tally)>, Books, Received);
    let check = |change: fn(&mut World), expected: &str| {
        let mut world = all_well();
        change(&mut world);
        let faults = verdict::judge(&world.0, &world.1, &world.2).faults;
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected} is not in {faults:?}");
    };
    let (sensors, books, received) = all_well();
    assert_eq!(verdict::judge(&sensors, &books, &received).faults, Vec::<String>::new());
    check(|world| world.0[0].1.acked = 1, "a: 1 never acknowledged");
    check(|world| world.0[0].1 = Tally { published: 3, acked: 3 }, "a: 3 acknowledged, but 2 received");
    check(
        |world| drop(world.2.messages.insert("b".into(), [9].into())),
        "message 9 was received but never sent",
    );
    check(|world| world.2.twice = 1, "received twice");
    check(|world| world.2.unexplained = 4, "4 numbers are missing");
    check(|world| *world.2.lines.get_mut("readings").unwrap() = 4, "3 delivered, but 4 in");
    check(|world| world.1 = self::books(3, 2), "1 still to be delivered");
    let ledger: fn(&mut World) -> &mut Ledger =
        |world| world.1.sinks.get_mut("cloud").unwrap().streams.get_mut(&Stream::Readings).unwrap();
    check(
        |world| {
            let id = NodeId { source: SERIAL.into(), node: NODE.into() };
            let position = NodePosition { boot: 1, seq: 3, ..NodePosition::default() };
            let missed = Missed { dropped: 2, ..Missed::default() };
            world.1.nodes.apply(&NodeChange { id, position, missed }, 1);
        },
        "press-1: 2 samples were given up",
    );
    let mut world = all_well();
    ledger(&mut world).delivered = 2;
    assert!(verdict::judge(&world.0, &world.1, &world.2).faults[0].contains("appended is not"));
}

#[test]
fn the_receivers_files_are_counted_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let line = |device: &str, number: u64| {
        format!("{{\"seq\":1,\"device\":\"{device}\",\"fields\":{{\"x\":1.5,\"n\":{number}}}}}\n")
    };
    let foreign = "{\"seq\":1,\"device\":\"mine\",\"fields\":{\"x\":1}}\n".to_owned();
    file("readings.ndjson", &[line("a", 1), line("a", 2), line("a", 2), line("b", 1), foreign].concat());
    file(
        "gaps.ndjson",
        "{\"epoch\":\"e\",\"stream\":\"readings\",\"first\":2,\"last\":4,\"reason\":\"unexplained\"}\n",
    );
    let received = Received::read(folder.path()).unwrap();
    assert_eq!(received.lines["readings"], 5);
    assert_eq!((received.lines["windows"], received.twice, received.unexplained), (0, 1, 3));
    assert_eq!(received.messages["a"], [1, 2].into());
}

#[test]
fn durations_and_addresses_of_the_command_line() {
    assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
    assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
    for bad in ["", "s", "30", "-1s", "1.5s", "0s", "30 s", "99999999999999999999s", "9999999999h", "1d"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
    assert_eq!(loopback("0"), Ok("127.0.0.1:0".parse().unwrap()));
    assert_eq!(loopback("[::1]:9550"), Ok("[::1]:9550".parse().unwrap()));
    assert!(loopback("0.0.0.0:80").is_err() && loopback("here").is_err());
}
