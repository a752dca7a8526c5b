//! The source against a real mosquitto; the ingest room is played by hand, so that each test says what is durable when.

mod broker;
mod room;
mod scripted;

use std::process::Command;
use std::time::Duration;

use rumqttc::QoS;
use tokio::time::timeout;

use self::broker::{Broker, Publisher, Retain, free_port};
use self::room::{DEADLINE, Memory, Source, hash, hashes, in_both, settings};
use super::{Protocol, Settings, SubscriptionMemory};
use crate::ingest::inlet::{Batch, Outcome};
use crate::ingest::{Delivery, Resent};
use crate::secret::Secret;
use crate::source::State;
use crate::tls;
use crate::tls::tests::make_certificates;

async fn publish_numbers(publisher: &mut Publisher, numbers: std::ops::Range<u32>) -> Vec<u64> {
    let payloads: Vec<String> = numbers.map(|n| format!("{{\"v\":{n}}}")).collect();
    let texts: Vec<&str> = payloads.iter().map(String::as_str).collect();
    publisher.publish("t/a", &texts).await;
    texts.iter().map(|text| hash("t/a", text)).collect()
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
    in_both(unacknowledged_comes_again).await;
}

#[tokio::test]
async fn only_the_durable_part_is_acknowledged_in_the_order_of_arrival() {
    in_both(|protocol| async move {
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
    })
    .await;
}

#[tokio::test]
async fn many_acks_in_a_row_free_the_brokers_window_again_and_again() {
    in_both(|protocol| async move {
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
    })
    .await;
}

#[tokio::test]
async fn qos_0_takes_a_place_but_needs_no_ack() {
    in_both(|protocol| async move {
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
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_restarts_is_found_again_and_subscribed_anew() {
    in_both(|protocol| async move {
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
    })
    .await;
}

#[tokio::test]
async fn what_is_configured_no_more_is_unsubscribed() {
    in_both(|protocol| async move {
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
    })
    .await;
}

#[tokio::test]
async fn what_the_broker_retained_is_no_new_reading() {
    in_both(|protocol| async move {
        let broker = Broker::start().await;
        let mut publisher = broker.publisher();
        // Were it taken for a message, it would be rejected.
        let payload = b"{no JSON".to_vec();
        publisher.publish_with("t/a", QoS::AtLeastOnce, Retain::Yes, payload).await;
        let memory = Memory::default();
        for _ in 0..2 {
            let mut source = Source::connected(settings(broker.port, protocol, &["t/+"]), &memory).await;
            assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "{no JSON")]);
            let outcomes = source.held.iter().flat_map(|batch| &batch.items).map(|item| &item.outcome);
            assert!(outcomes.into_iter().all(|it| matches!(it, Outcome::Skipped | Outcome::SessionLost)));
            source.settle();
            source.stop().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_shared_subscription_works() {
    in_both(|protocol| async move {
        let broker = Broker::start().await;
        let topic = "$share/group/t/+";
        let mut source =
            Source::connected(settings(broker.port, protocol, &[topic]), &Memory::default()).await;
        broker.publisher().publish("t/a", &["1"]).await;
        assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "1")]);
    })
    .await;
}

#[tokio::test]
async fn a_wrong_password_is_a_misconfiguration_until_it_is_mended() {
    in_both(|protocol| async move {
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
    })
    .await;
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
    publisher.publish_with("t/a", QoS::AtLeastOnce, Retain::No, vec![b'1'; 17 << 20]).await;
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
    publisher.publish_with("t/a", QoS::AtLeastOnce, Retain::No, vec![b'1'; 17 << 20]).await;
    publisher.publish("t/a", &["1"]).await;
    assert_eq!(hashes(&source.takes(1).await), [hash("t/a", "1")]);
    assert_eq!(source.report.borrow().state, State::Connected);
}

#[tokio::test]
async fn a_payload_of_many_megabytes_below_the_limit_is_taken() {
    in_both(|protocol| async move {
        let broker = Broker::start().await;
        let mut source =
            Source::connected(settings(broker.port, protocol, &["t/+"]), &Memory::default()).await;
        let payload = "x".repeat(16 << 20);
        let expected = hash("t/a", &payload);
        broker.publisher().publish_with("t/a", QoS::AtLeastOnce, Retain::No, payload.into_bytes()).await;
        assert_eq!(hashes(&source.takes(1).await), [expected]);
    })
    .await;
}

#[tokio::test]
async fn tls_with_a_private_ca_and_a_client_certificate_works_and_without_them_says_what_is_missing() {
    in_both(|protocol| async move {
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
    })
    .await;
}

#[tokio::test]
async fn a_room_without_room_is_said_and_the_connection_is_kept() {
    let broker = Broker::start().await;
    let mut settings = settings(broker.port, Protocol::V311, &["t/+"]);
    settings.keep_alive = Duration::from_secs(1);
    let mut source = Source::connected(settings, &Memory::default()).await;
    let mut publisher = broker.publisher();
    let held = fill_the_budget(&mut source, &mut publisher).await;
    assert!(source.reaches(State::Blocked).await.settled);
    // Twice as long as a broker waits for a ping. This is no sleep for luck: nothing must happen.
    let changed = timeout(Duration::from_secs(3), source.report.changed()).await;
    assert!(changed.is_err(), "{:?}", source.report.borrow());

    drop(held);
    source.reaches(State::Connected).await;
}

/// Publishes until the room takes no more; the batches that it took.
async fn fill_the_budget(source: &mut Source, publisher: &mut Publisher) -> Vec<Batch> {
    let payload = vec![b'['; 64 << 10];
    let mut held = Vec::new();
    loop {
        publisher.publish_with("t/a", QoS::AtLeastOnce, Retain::No, payload.clone()).await;
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
