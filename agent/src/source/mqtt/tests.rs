//! The source against a real mosquitto; the ingest room is played by hand, so that each test says what is durable when.

mod broker;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rumqttc::QoS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use self::broker::{Broker, Publisher, free_port};
use super::{Protocol, Settings, SubscriptionMemory, run};
use crate::clock::Clock;
use crate::ingest::inlet::{Batch, Outcome};
use crate::ingest::topic::Template;
use crate::ingest::{Delivery, Intake, Resent, SourceSpec, Subscription};
use crate::secret::Secret;
use crate::source::{Report, State};
use crate::tls;

/// Nothing here takes this long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(30);
/// The versions that each case runs in.
const PROTOCOLS: [Protocol; 2] = [Protocol::V311, Protocol::V5];

/// Remembers subscriptions in memory.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<String>>>);

impl SubscriptionMemory for Memory {
    fn previous(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
    async fn remember(&self, filters: Vec<String>) {
        *self.0.lock().unwrap() = filters;
    }
}

fn settings(port: u16, protocol: Protocol, topics: &[&str]) -> Settings {
    let subscription = |topic: &&str| Subscription::new(Template::parse(topic).unwrap());
    Settings {
        name: "plant".to_owned(),
        host: "127.0.0.1".to_owned(),
        port,
        tls: None,
        username: None,
        password: None,
        client_id: "holdfast-test-plant".to_owned(),
        protocol,
        keep_alive: Settings::DEFAULT_KEEP_ALIVE,
        max_payload_bytes: Settings::DEFAULT_MAX_PAYLOAD_BYTES,
        subscriptions: topics.iter().map(subscription).collect(),
    }
}

/// A message as it reached the ingest room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    hash: u64,
    delivery: Delivery,
}

impl Seen {
    fn packet_id(self) -> u16 {
        match self.delivery {
            Delivery::Acknowledged { packet_id, .. } => packet_id,
            Delivery::AtMostOnce => 0,
        }
    }

    fn is_resent(self) -> bool {
        matches!(self.delivery, Delivery::Acknowledged { resent: Resent::Perhaps, .. })
    }
}

/// What the inlet's hash of a message is.
fn hash(topic: &str, payload: &str) -> u64 {
    xxh3_64(format!("{topic}\0{payload}").as_bytes())
}

/// A running source, and the ingest room in the hands of the test.
struct Source {
    report: watch::Receiver<Report>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    batches: mpsc::Receiver<Batch>,
    /// Batches that were taken and not declared durable.
    held: Vec<Batch>,
    sessions_lost: usize,
}

impl Source {
    fn start(settings: Settings, memory: &Memory) -> Self {
        let spec = Arc::new(SourceSpec {
            name: settings.name.as_str().into(),
            subscriptions: settings.subscriptions.clone().into(),
            max_payload_bytes: settings.max_payload_bytes,
            kept_payload_bytes: 1 << 10,
        });
        let (intake, batches) = Intake::new(Clock);
        let (sender, report) = watch::channel(Report::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(settings, spec, intake, memory.clone(), sender, stop.clone(), Clock));
        Self { report, stop, task, batches, held: Vec::new(), sessions_lost: 0 }
    }

    /// A source that is connected and subscribed.
    async fn connected(settings: Settings, memory: &Memory) -> Self {
        let mut source = Self::start(settings, memory);
        source.reaches(State::Connected).await;
        source
    }

    async fn reaches(&mut self, state: State) -> Report {
        let reached = timeout(DEADLINE, self.report.wait_for(|report| report.state == state)).await;
        let reached = reached.map(|report| report.unwrap().clone());
        reached.unwrap_or_else(|_| panic!("not {state:?} but {:?}", self.report.borrow()))
    }

    /// The next `count` messages, none of which is durable yet.
    async fn takes(&mut self, count: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let batch = timeout(DEADLINE, self.batches.recv()).await.expect("no message comes").unwrap();
            for item in &batch.items {
                if let Outcome::SessionLost = item.outcome {
                    self.sessions_lost += 1;
                } else {
                    seen.push(Seen { hash: item.hash, delivery: item.delivery });
                }
            }
            self.held.push(batch);
        }
        assert_eq!(seen.len(), count, "more came than were asked for");
        seen
    }

    /// Declares all that was taken durable.
    fn settle(&mut self) {
        for mut batch in self.held.drain(..) {
            batch.permits.take();
            batch.durable.send_replace(batch.up_to);
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.task).await.expect("it does not stop").unwrap();
    }
}

async fn publish_numbers(publisher: &mut Publisher, numbers: std::ops::Range<u32>) -> Vec<u64> {
    let payloads: Vec<String> = numbers.map(|n| format!("{{\"v\":{n}}}")).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    publisher.publish("t/a", &texts).await;
    texts.iter().map(|text| hash("t/a", text)).collect()
}

fn hashes(seen: &[Seen]) -> Vec<u64> {
    seen.iter().map(|seen| seen.hash).collect()
}

/// A second session after a first one that ended without acks: everything comes again, marked, in order.
async fn unacknowledged_comes_again(protocol: Protocol) {
    let broker = Broker::start().await;
    let memory = Memory::default();
    let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
    let mut publisher = broker.publisher();
    let sent = publish_numbers(&mut publisher, 0..20).await;
    let first = source.takes(20).await;
    assert_eq!(hashes(&first), sent);
    assert!(first.iter().all(|seen| !seen.is_resent()));
    assert_eq!(source.sessions_lost, 1, "the broker knew nothing of us");
    source.task.abort();

    let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
    let again = source.takes(20).await;
    assert_eq!(hashes(&again), sent);
    assert!(again.iter().all(|seen| seen.is_resent()));
    assert_eq!(source.sessions_lost, 0, "the broker knew us");
    source.settle();
    source.stop().await;

    let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
    let next = publish_numbers(&mut publisher, 20..21).await;
    let seen = source.takes(1).await;
    assert_eq!(hashes(&seen), next, "what was acknowledged does not come again");
    assert!(!seen[0].is_resent());
}

#[tokio::test]
async fn what_is_not_durable_is_not_acknowledged_and_comes_again() {
    for protocol in PROTOCOLS {
        unacknowledged_comes_again(protocol).await;
    }
}

#[tokio::test]
async fn only_the_durable_part_is_acknowledged_in_the_order_of_arrival() {
    for protocol in PROTOCOLS {
        let broker = Broker::start().await;
        let memory = Memory::default();
        let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
        let mut publisher = broker.publisher();
        let durable = publish_numbers(&mut publisher, 0..7).await;
        assert_eq!(hashes(&source.takes(7).await), durable);
        let pending = source.held.drain(..).collect::<Vec<_>>();
        let rest = publish_numbers(&mut publisher, 7..12).await;
        assert_eq!(hashes(&source.takes(5).await), rest);
        source.held.clear();
        source.held.extend(pending);
        source.settle();
        // Stopping waits for the other five, in vain, and sends what is due before it leaves.
        source.stop().await;

        let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
        assert_eq!(hashes(&source.takes(5).await), rest, "{protocol:?}");
    }
}

#[tokio::test]
async fn many_acks_in_a_row_free_the_brokers_window_again_and_again() {
    for protocol in PROTOCOLS {
        let broker = Broker::start().await;
        let mut source =
            Source::connected(settings(broker.port, protocol, &["t/+"]), &Memory::default()).await;
        let mut publisher = broker.publisher();
        // Ten times the window of 100, so that it takes acks to get the rest.
        let sent = publish_numbers(&mut publisher, 0..1_000).await;
        let mut seen = Vec::new();
        while seen.len() < sent.len() {
            let batch =
                timeout(DEADLINE, source.batches.recv()).await.expect("the window stays full").unwrap();
            seen.extend(batch.items.iter().filter(|item| !matches!(item.outcome, Outcome::SessionLost)).map(
                |item| {
                    assert!(matches!(item.delivery, Delivery::Acknowledged { resent: Resent::No, .. }));
                    item.hash
                },
            ));
            source.held.push(batch);
            source.settle();
        }
        assert_eq!(seen, sent);
        source.stop().await;
    }
}

#[tokio::test]
async fn qos_0_takes_a_place_but_needs_no_ack() {
    for protocol in PROTOCOLS {
        let broker = Broker::start().await;
        let memory = Memory::default();
        let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
        let mut publisher = broker.publisher();
        publisher.publish_unprotected("t/a", "1").await;
        publisher.publish("t/a", &["2"]).await;
        publisher.publish_unprotected("t/a", "3").await;
        publisher.publish("t/a", &["4"]).await;
        let seen = source.takes(4).await;
        assert_eq!(hashes(&seen), ["1", "2", "3", "4"].map(|payload| hash("t/a", payload)));
        assert_eq!(seen[0].delivery, Delivery::AtMostOnce);
        assert_eq!(seen[2].delivery, Delivery::AtMostOnce);
        source.settle();
        source.stop().await;
        let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
        publisher.publish("t/a", &["5"]).await;
        assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "5")]);
    }
}

#[tokio::test]
async fn a_broker_that_restarts_is_found_again_and_subscribed_anew() {
    for protocol in PROTOCOLS {
        let mut broker = Broker::start().await;
        let mut source =
            Source::connected(settings(broker.port, protocol, &["t/+"]), &Memory::default()).await;
        broker.stop_and_forget();
        let report = source.reaches(State::Disconnected).await;
        assert!(report.last_error.is_some() && report.settled);
        broker.restart().await;
        let report = source.reaches(State::Connected).await;
        assert_eq!(report.last_error, None);

        broker.publisher().publish("t/a", &["1"]).await;
        assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "1")]);
        assert_eq!(source.sessions_lost, 2, "a broker without a session of ours is told to the room");
    }
}

#[tokio::test]
async fn what_is_configured_no_more_is_unsubscribed() {
    for protocol in PROTOCOLS {
        let broker = Broker::start().await;
        let memory = Memory::default();
        let source = Source::connected(settings(broker.port, protocol, &["old/+", "t/+"]), &memory).await;
        assert_eq!(memory.previous(), ["old/+", "t/+"], "remembered before it is subscribed");
        source.stop().await;

        let mut publisher = broker.publisher();
        publisher.publish("old/a", &["queued while we were away"]).await;
        let mut source = Source::connected(settings(broker.port, protocol, &["t/+", "new/+"]), &memory).await;
        // What the session had queued still comes; the subscription itself is gone.
        assert_eq!(hashes(&source.takes(1).await), [hash("old/a", "queued while we were away")]);
        publisher.publish("old/a", &["not wanted"]).await;
        publisher.publish("new/a", &["wanted"]).await;
        assert_eq!(hashes(&source.takes(1).await), [hash("new/a", "wanted")]);
        source.settle();
        source.stop().await;
        assert_eq!(memory.previous(), ["t/+", "new/+"]);
    }
}

#[tokio::test]
async fn a_shared_subscription_works() {
    for protocol in PROTOCOLS {
        let broker = Broker::start().await;
        let topic = "$share/group/t/+";
        let mut source =
            Source::connected(settings(broker.port, protocol, &[topic]), &Memory::default()).await;
        broker.publisher().publish("t/a", &["1"]).await;
        assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "1")]);
    }
}

#[tokio::test]
async fn a_wrong_password_is_a_misconfiguration_until_it_is_mended() {
    for protocol in PROTOCOLS {
        let broker = Broker::prepared("password_file {dir}/users", |dir| {
            std::fs::write(dir.join("secret"), "wrong\n").unwrap();
            let users = dir.join("users");
            let mut command = Command::new("mosquitto_passwd");
            command.arg("-b").arg("-c").arg(&users).args(["plant", "right"]);
            assert!(command.status().unwrap().success());
        })
        .await;
        let mut settings = settings(broker.port, protocol, &["t/+"]);
        settings.username = Some("plant".to_owned());
        settings.password = Some(Secret::File(broker.file("secret")));
        let mut source = Source::start(settings, &Memory::default());
        let error = source.reaches(State::Misconfigured).await.last_error.unwrap();
        assert!(error.contains("check username and password"), "{error}");

        std::fs::write(broker.file("secret"), "right\n").unwrap();
        source.reaches(State::Connected).await;
    }
}

#[tokio::test]
async fn an_unreadable_password_is_a_misconfiguration() {
    let mut settings = settings(free_port(), Protocol::V311, &["t/+"]);
    settings.password = Some(Secret::File("/nonexistent/secret".into()));
    let mut source = Source::start(settings, &Memory::default());
    let error = source.reaches(State::Misconfigured).await.last_error.unwrap();
    assert!(error.contains("/nonexistent/secret"), "{error}");
}

#[tokio::test]
async fn an_empty_client_id_is_a_misconfiguration() {
    let mut settings = settings(free_port(), Protocol::V311, &["t/+"]);
    settings.client_id.clear();
    let mut source = Source::start(settings, &Memory::default());
    let error = source.reaches(State::Misconfigured).await.last_error.unwrap();
    assert!(error.contains("client_id is empty"), "{error}");
}

#[tokio::test]
async fn a_packet_above_the_limit_is_named_and_overcome_when_it_is_gone() {
    let mut broker = Broker::start().await;
    let mut source =
        Source::connected(settings(broker.port, Protocol::V311, &["t/+"]), &Memory::default()).await;
    let mut publisher = broker.publisher();
    publisher.publish_with("t/a", QoS::AtLeastOnce, false, vec![b'1'; 17 << 20]).await;
    let error = source.reaches(State::PacketTooLarge).await.last_error.unwrap();
    assert!(error.contains("16777216"), "{error}");

    broker.stop_and_forget();
    broker.restart().await;
    source.reaches(State::Connected).await;
    broker.publisher().publish("t/a", &["1"]).await;
    assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "1")]);
}

#[tokio::test]
async fn in_mqtt_5_the_broker_keeps_packets_above_the_limit_to_itself() {
    let broker = Broker::start().await;
    let mut source =
        Source::connected(settings(broker.port, Protocol::V5, &["t/+"]), &Memory::default()).await;
    let mut publisher = broker.publisher();
    publisher.publish_with("t/a", QoS::AtLeastOnce, false, vec![b'1'; 17 << 20]).await;
    publisher.publish("t/a", &["1"]).await;
    assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "1")]);
    assert_eq!(source.report.borrow().state, State::Connected);
}

#[tokio::test]
async fn a_payload_of_many_megabytes_below_the_limit_is_taken() {
    for protocol in PROTOCOLS {
        let broker = Broker::start().await;
        let mut source =
            Source::connected(settings(broker.port, protocol, &["t/+"]), &Memory::default()).await;
        let payload = "x".repeat(16 << 20);
        let expected = hash("t/a", &payload);
        broker.publisher().publish_with("t/a", QoS::AtLeastOnce, false, payload.into_bytes()).await;
        assert_eq!(hashes(&source.takes(1).await), [expected]);
    }
}

#[tokio::test]
async fn tls_with_a_private_ca_and_a_client_certificate_works_and_without_them_says_what_is_missing() {
    for protocol in PROTOCOLS {
        let lines = "allow_anonymous true\ncafile {dir}/ca.pem\ncertfile {dir}/server.pem\n\
                     keyfile {dir}/server.key\nrequire_certificate true";
        let broker = Broker::prepared(lines, make_certificates).await;
        let mut plain = settings(broker.port, protocol, &["t/+"]);
        plain.host = "localhost".to_owned();
        let file = |name: &str| Some(broker.file(name));
        let full = tls::ClientSettings {
            ca_file: file("ca.pem"),
            cert_file: file("client.pem"),
            key_file: file("client.key"),
        };

        let mut source =
            Source::connected(Settings { tls: Some(full.clone()), ..plain.clone() }, &Memory::default())
                .await;
        source.report.mark_unchanged();
        source.stop().await;

        let stranger = tls::ClientSettings { ca_file: file("client.pem"), ..full.clone() };
        let mut source = Source::start(Settings { tls: Some(stranger), ..plain.clone() }, &Memory::default());
        let error = source.reaches(State::Misconfigured).await.last_error.unwrap();
        assert!(error.contains("set tls.ca_file"), "{error}");
        source.stop().await;

        let nameless = tls::ClientSettings { ca_file: file("ca.pem"), ..Default::default() };
        let mut source = Source::start(Settings { tls: Some(nameless), ..plain.clone() }, &Memory::default());
        let report = timeout(DEADLINE, source.report.wait_for(|report| report.settled)).await;
        let error = report.unwrap().unwrap().last_error.clone().unwrap();
        assert!(error.contains("certificate"), "{error}");
        source.stop().await;

        let mut source = Source::start(plain, &Memory::default());
        let error = source.reaches(State::Disconnected).await.last_error.unwrap();
        assert!(error.contains("TLS"), "{error}");
        source.stop().await;
    }
}

fn make_certificates(dir: &Path) {
    let openssl = |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = Command::new("openssl").args(&arguments).current_dir(dir).output();
        let output = output.expect("these tests make their certificates with openssl: install it");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"));
    std::fs::write(dir.join("san"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    for name in ["server", "client"] {
        openssl(&format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out {name}.pem"
        ));
    }
}

#[tokio::test]
async fn a_refused_subscription_is_named_while_the_others_work() {
    for protocol in PROTOCOLS {
        // mosquitto itself refuses no SUBSCRIBE for lack of permission, so the broker is played by hand.
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut source = Source::start(settings(port, protocol, &["a", "b"]), &Memory::default());
        let mut socket = accept(&listener).await;
        read_packet(&mut socket).await;
        socket.write_all(connack(protocol)).await.unwrap();
        let subscribe = read_packet(&mut socket).await;
        let code = if protocol == Protocol::V5 { 0x87 } else { 0x80 };
        socket.write_all(&suback(protocol, &subscribe, &[1, code])).await.unwrap();
        let error = source.reaches(State::Misconfigured).await.last_error.unwrap();
        assert!(error.contains("refused to subscribe \"b\""), "{error}");

        let publish: &[u8] = match protocol {
            Protocol::V311 => b"\x32\x06\x00\x01a\x00\x07x",
            Protocol::V5 => b"\x32\x07\x00\x01a\x00\x07\x00x",
        };
        socket.write_all(publish).await.unwrap();
        let seen = source.takes(1).await;
        assert_eq!((seen[0].hash, seen[0].packet_id()), (hash("a", "x"), 7));
        source.settle();
        assert_eq!(read_packet(&mut socket).await, [0x40, 2, 0, 7]);
    }
}

#[tokio::test]
async fn who_is_kicked_at_once_backs_off() {
    for protocol in PROTOCOLS {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut source = Source::start(settings(port, protocol, &["a"]), &Memory::default());
        let began = Clock.monotonic();
        for _ in 0..5 {
            let mut socket = accept(&listener).await;
            read_packet(&mut socket).await;
            socket.write_all(connack(protocol)).await.unwrap();
            let subscribe = read_packet(&mut socket).await;
            socket.write_all(&suback(protocol, &subscribe, &[1])).await.unwrap();
            source.reaches(State::Connected).await;
            drop(socket);
            let error = source.reaches(State::Disconnected).await.last_error.unwrap();
            assert!(error.contains("client_id"), "{error}");
        }
        // At least a tenth of 0.5, 1, 2, 4 seconds; a loop without pauses takes milliseconds.
        assert!(began.elapsed() >= Duration::from_millis(750), "{:?}", began.elapsed());
        source.stop().await;
    }
}

#[tokio::test]
async fn a_release_of_an_unknown_qos_2_message_is_answered_at_the_second_connection() {
    for protocol in PROTOCOLS {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut source = Source::start(settings(port, protocol, &["a"]), &Memory::default());
        for attempt in 0..2 {
            let mut socket = accept(&listener).await;
            read_packet(&mut socket).await;
            socket.write_all(connack(protocol)).await.unwrap();
            let subscribe = read_packet(&mut socket).await;
            socket.write_all(&suback(protocol, &subscribe, &[1])).await.unwrap();
            socket.write_all(&[0x62, 2, 0, 9]).await.unwrap();
            if attempt == 0 {
                source.reaches(State::Disconnected).await;
            } else {
                assert_eq!(read_packet(&mut socket).await, [0x70, 2, 0, 9]);
                // And a QoS 2 message of the old subscription goes its way.
                let publish: &[u8] = match protocol {
                    Protocol::V311 => b"\x34\x06\x00\x01a\x00\x07x",
                    Protocol::V5 => b"\x34\x07\x00\x01a\x00\x07\x00x",
                };
                socket.write_all(publish).await.unwrap();
                source.takes(1).await;
                source.settle();
                assert_eq!(read_packet(&mut socket).await, [0x50, 2, 0, 7]);
                socket.write_all(&[0x62, 2, 0, 7]).await.unwrap();
                assert_eq!(read_packet(&mut socket).await, [0x70, 2, 0, 7]);
            }
        }
    }
}

#[tokio::test]
async fn what_arrives_together_with_the_end_of_the_connection_is_kept() {
    for protocol in PROTOCOLS {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut source = Source::start(settings(port, protocol, &["a"]), &Memory::default());
        let mut socket = accept(&listener).await;
        read_packet(&mut socket).await;
        socket.write_all(connack(protocol)).await.unwrap();
        let subscribe = read_packet(&mut socket).await;
        let mut last = suback(protocol, &subscribe, &[1]);
        for _ in 0..3 {
            last.extend_from_slice(match protocol {
                Protocol::V311 => b"\x30\x04\x00\x01ax",
                Protocol::V5 => b"\x30\x05\x00\x01a\x00x",
            });
        }
        // A reserved packet type: the connection is over.
        last.extend_from_slice(&[0x00, 0x00]);
        socket.write_all(&last).await.unwrap();
        assert_eq!(hashes(&source.takes(3).await), [hash("a", "x"); 3]);
        source.reaches(State::Disconnected).await;
    }
}

#[tokio::test]
async fn a_topic_that_is_not_utf_8_does_no_lasting_harm() {
    for protocol in PROTOCOLS {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut source = Source::start(settings(port, protocol, &["a"]), &Memory::default());
        let mut socket = accept(&listener).await;
        read_packet(&mut socket).await;
        socket.write_all(connack(protocol)).await.unwrap();
        let subscribe = read_packet(&mut socket).await;
        socket.write_all(&suback(protocol, &subscribe, &[1])).await.unwrap();
        match protocol {
            Protocol::V311 => {
                socket.write_all(b"\x32\x06\x00\x01\xff\x00\x07x").await.unwrap();
                let error = source.reaches(State::Disconnected).await.last_error.unwrap();
                assert!(error.contains("not UTF-8"), "{error}");
            }
            Protocol::V5 => {
                socket.write_all(b"\x32\x07\x00\x01\xff\x00\x07\x00x").await.unwrap();
                assert_eq!(hashes(&source.takes(1).await), [hash("\u{fffd}", "x")]);
                source.settle();
                assert_eq!(read_packet(&mut socket).await, [0x40, 2, 0, 7]);
            }
        }
    }
}

#[tokio::test]
async fn a_broker_that_never_answers_does_not_hold_up_the_stop() {
    for protocol in PROTOCOLS {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let source = Source::start(settings(port, protocol, &["a"]), &Memory::default());
        let mut socket = accept(&listener).await;
        read_packet(&mut socket).await;
        source.stop.cancel();
        timeout(Duration::from_secs(2), source.task).await.expect("the stop waits for the broker").unwrap();
    }
}

#[tokio::test]
async fn a_room_without_room_stops_the_reading_but_neither_the_pings_nor_the_memory() {
    let broker = Broker::start().await;
    let mut settings = settings(broker.port, Protocol::V311, &["t/+"]);
    settings.keep_alive = Duration::from_secs(1);
    let mut source = Source::connected(settings, &Memory::default()).await;
    let mut publisher = broker.publisher();
    // Ten rejected payloads of 1 MiB and a bit take the budget: nothing of it is given back.
    let held: Vec<Batch> = fill_the_budget(&mut source, &mut publisher).await;
    let blocked = source.reaches(State::Blocked).await;
    assert!(blocked.settled);
    // Twice as long as a broker waits for a ping.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(source.report.borrow().state, State::Blocked, "the connection is kept");

    drop(held);
    source.reaches(State::Connected).await;
}

/// Publishes until the room takes no more; the batches that it took.
async fn fill_the_budget(source: &mut Source, publisher: &mut Publisher) -> Vec<Batch> {
    let payload = vec![b'['; 64 << 10];
    let mut held = Vec::new();
    loop {
        publisher.publish_with("t/a", QoS::AtLeastOnce, false, payload.clone()).await;
        match timeout(Duration::from_millis(1_500), source.batches.recv()).await {
            Ok(batch) => {
                let batch = batch.unwrap();
                // Acknowledged, so that the broker's window does not fill up; the budget stays taken.
                batch.durable.send_replace(batch.up_to);
                held.push(batch);
            }
            Err(_) => return held,
        }
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(DEADLINE, listener.accept()).await.expect("nobody connects").unwrap().0
}

/// One packet with a length of one byte, as all our own are.
async fn read_packet(socket: &mut TcpStream) -> Vec<u8> {
    let read = async {
        let mut packet = vec![0; 2];
        socket.read_exact(&mut packet).await.unwrap();
        assert!(packet[1] < 0x80, "a longer packet than expected");
        packet.resize(2 + usize::from(packet[1]), 0);
        socket.read_exact(&mut packet[2..]).await.unwrap();
        packet
    };
    timeout(DEADLINE, read).await.expect("no packet comes")
}

fn connack(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::V311 => &[0x20, 2, 0, 0],
        Protocol::V5 => &[0x20, 3, 0, 0, 0],
    }
}

fn suback(protocol: Protocol, subscribe: &[u8], codes: &[u8]) -> Vec<u8> {
    assert_eq!(subscribe[0], 0x82, "that is no SUBSCRIBE: {subscribe:?}");
    let mut body = vec![subscribe[2], subscribe[3]];
    if protocol == Protocol::V5 {
        body.push(0);
    }
    body.extend_from_slice(codes);
    let mut packet = vec![0x90, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    packet
}
