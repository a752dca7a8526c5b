//! Who is let in.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{self, ConnectReturnCode as Code4};
use rumqttc::v5::mqttbytes::v5::{self, ConnectReturnCode as Code5};

use super::super::users;
use super::bench::{Bench, Memory, PAYLOAD, Raw, child, connect_v4, connect_v5, settings, within};
use crate::source::State;
use crate::tls;

async fn code4(bench: &Bench, connect: v4::Connect) -> Code4 {
    let mut client = Raw::open(bench).await;
    client.send4(&v4::Packet::Connect(connect)).await;
    match client.read4().await {
        Some(v4::Packet::ConnAck(ack)) => ack.code,
        other => panic!("{other:?}"),
    }
}

async fn code5(
    bench: &Bench,
    connect: v5::Connect,
    will: Option<v5::LastWill>,
    login: Option<v5::Login>,
) -> Code5 {
    let mut client = Raw::open(bench).await;
    client.send5(&v5::Packet::Connect(connect, will, login)).await;
    match client.read5().await {
        Some(v5::Packet::ConnAck(ack)) => ack.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_users_with_the_right_password_are_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.toml");
    std::fs::write(&file, format!("ada = \"{}\"\n", users::hash("secret").unwrap())).unwrap();
    let bench =
        Bench::with(super::super::Settings { users_file: Some(file), ..settings() }, Memory::OfNobody).await;

    let login4 = |user: &str, password: &str| {
        let mut connect = connect_v4("a");
        connect.set_login(user, password);
        connect
    };
    assert_eq!(code4(&bench, login4("ada", "secret")).await, Code4::Success);
    assert_eq!(code4(&bench, login4("ada", "wrong")).await, Code4::BadUserNamePassword);
    assert_eq!(code4(&bench, login4("eve", "secret")).await, Code4::BadUserNamePassword);
    assert_eq!(code4(&bench, connect_v4("a")).await, Code4::NotAuthorized);

    let login5 = |password| Some(v5::Login::new("ada", password));
    assert_eq!(code5(&bench, connect_v5("a"), None, login5("secret")).await, Code5::Success);
    assert_eq!(code5(&bench, connect_v5("a"), None, login5("wrong")).await, Code5::BadUserNamePassword);
    assert_eq!(code5(&bench, connect_v5("a"), None, None).await, Code5::NotAuthorized);
    bench.stopped().await;
}

#[tokio::test]
async fn a_connect_that_cannot_be_served_is_told_why() {
    let bench = Bench::new().await;
    let mut nameless = connect_v4("");
    nameless.clean_session = false;
    assert_eq!(code4(&bench, nameless).await, Code4::BadClientId);
    assert_eq!(code4(&bench, connect_v4(&"x".repeat(257))).await, Code4::BadClientId);
    assert_eq!(code4(&bench, connect_v4("a\u{1}")).await, Code4::BadClientId);
    let will = v5::LastWill::new("a/#", "", rumqttc::v5::mqttbytes::QoS::AtMostOnce, false, None);
    assert_eq!(code5(&bench, connect_v5("a"), Some(will), None).await, Code5::TopicNameInvalid);
    let properties = v5::ConnectProperties {
        authentication_method: Some("SCRAM".to_owned()),
        ..v5::ConnectProperties::new()
    };
    let connect = v5::Connect { properties: Some(properties), ..connect_v5("a") };
    assert_eq!(code5(&bench, connect, None, None).await, Code5::BadAuthenticationMethod);
    // MQTT 3.1.
    let mut old = Raw::open(&bench).await;
    old.send(b"\x10\x0f\0\x06MQIsdp\x03\x02\0\x3c\0\x01a").await;
    let Some(v4::Packet::ConnAck(ack)) = old.read4().await else { panic!() };
    assert_eq!(ack.code, Code4::RefusedProtocolVersion);
    bench.stopped().await;
}

#[tokio::test]
async fn long_connects_wait_for_one_another_and_short_ones_do_not() {
    let bench = Bench::new().await;
    // A CONNECT of the longest length, and nothing more of it: sixteen of them are all that there is room for.
    let mut begun = Vec::new();
    for _ in 0..16 {
        let mut client = Raw::open(&bench).await;
        client.send(b"\x10\xfc\xff\x0f\0\x04MQTT\x04\x02\0\x3c").await;
        begun.push(client);
    }
    let will = v4::LastWill {
        topic: "a/b".into(),
        message: vec![b'x'; 60_000].into(),
        qos: QoS::AtMostOnce,
        retain: false,
    };
    let mut long = Raw::open(&bench).await;
    let connect = v4::Connect { last_will: Some(will), ..connect_v4("long") };
    let mut bytes = BytesMut::new();
    v4::Packet::Connect(connect).write(&mut bytes, 1 << 24).unwrap();
    let (head, rest) = bytes.split_at(1_000);
    long.send(head).await;
    let silence = tokio::time::timeout(Duration::from_millis(300), async {
        long.send(rest).await;
        long.read4().await
    });
    assert!(silence.await.is_err(), "there is no room");
    assert_eq!(code4(&bench, connect_v4("short")).await, Code4::Success);

    drop(begun);
    let Some(v4::Packet::ConnAck(ack)) = long.read4().await else { panic!("no answer") };
    assert_eq!(ack.code, Code4::Success);
    bench.stopped().await;
}

#[tokio::test]
async fn a_nameless_v5_client_gets_a_name() {
    let bench = Bench::new().await;
    let (_client, ack) = Raw::v5(&bench, connect_v5(""), None).await;
    let name = ack.properties.unwrap().assigned_client_identifier.unwrap();
    assert!(name.starts_with("auto-"), "{name}");
    bench.stopped().await;
}

#[tokio::test]
async fn more_than_max_clients_are_turned_away_until_one_leaves() {
    let mut bench =
        Bench::with(super::super::Settings { max_clients: 1, ..settings() }, Memory::OfNobody).await;
    let (mut first, _) = Raw::v4(&bench, connect_v4("a")).await;
    assert_eq!(code4(&bench, connect_v4("b")).await, Code4::ServiceUnavailable);
    assert_eq!(code5(&bench, connect_v5("b"), None, None).await, Code5::QuotaExceeded);
    first.send4(&v4::Packet::Disconnect).await;
    bench.clients(0).await;
    assert_eq!(code4(&bench, connect_v4("b")).await, Code4::Success);
    bench.stopped().await;
}

#[tokio::test]
async fn a_session_is_present_for_who_keeps_one_and_is_known() {
    let keeping = |id: &str| {
        let mut connect = connect_v4(id);
        connect.clean_session = false;
        connect
    };
    let bench = Bench::new().await;
    assert!(!Raw::v4(&bench, keeping("a")).await.1, "nobody has seen it before");
    assert!(Raw::v4(&bench, keeping("a")).await.1);
    assert!(!Raw::v4(&bench, connect_v4("a")).await.1, "a clean session never is");
    assert!(!Raw::v4(&bench, keeping("a")).await.1, "and ends the one before");
    bench.stopped().await;

    // After a restart, the store remembers.
    let bench = Bench::with(settings(), Memory::OfEverybody).await;
    assert!(Raw::v4(&bench, keeping("a")).await.1);
    let resuming = |expiry| {
        let properties =
            v5::ConnectProperties { session_expiry_interval: expiry, ..v5::ConnectProperties::new() };
        v5::Connect { clean_start: false, properties: Some(properties), ..connect_v5("b") }
    };
    // Its sessions end with the connection: it would have to hang up on being told of one.
    assert!(!Raw::v5(&bench, resuming(None), None).await.1.session_present);
    assert!(Raw::v5(&bench, resuming(Some(60)), None).await.1.session_present);
    bench.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_in_use_is_a_state_and_is_tried_again() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let mut bench = Bench::unbound(super::super::Settings { listen, ..settings() }, Memory::OfNobody);
    {
        let report = within("a report", bench.report.wait_for(|report| report.settled)).await.unwrap();
        assert_eq!((report.state, report.address), (State::Disconnected, None));
        assert!(report.last_error.as_ref().unwrap().contains(&listen.to_string()));
    }
    drop(taken);
    let report =
        within("listening", bench.report.wait_for(|report| report.address == Some(listen))).await.unwrap();
    assert_eq!((report.state, report.last_error.clone()), (State::Connected, None));
    drop(report);
    bench.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_users_file_is_misconfigured_and_lets_nobody_in() {
    let file = Some(PathBuf::from("/nonexistent/users.toml"));
    let mut bench =
        Bench::unbound(super::super::Settings { users_file: file, ..settings() }, Memory::OfNobody);
    let report = within("a report", bench.report.wait_for(|report| report.settled)).await.unwrap();
    assert_eq!((report.state, report.address), (State::Misconfigured, None));
    drop(report);
    bench.stopped().await;
}

/// A CA, and what it signed, made by the openssl command.
struct Papers(tempfile::TempDir);

impl Papers {
    fn new() -> Self {
        let papers = Self(tempfile::tempdir().unwrap());
        std::fs::write(papers.file("ext"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
            .unwrap();
        papers.openssl("req -x509 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem");
        for name in ["server", "client"] {
            papers.openssl(&format!("req -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"));
            papers.openssl(&format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"
            ));
        }
        papers
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let new_key = if arguments.starts_with("req") {
            "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
        } else {
            ""
        };
        let output = Command::new("openssl")
            .args(arguments.split(' ').take(1))
            .args(new_key.split_whitespace())
            .args(arguments.split(' ').skip(1))
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn over_tls_only_clients_with_a_certificate_are_let_in_where_that_is_asked_for() {
    let papers = Papers::new();
    let with_ca = |client_ca_file| super::super::Settings {
        tls: Some(tls::ServerSettings {
            cert_file: papers.file("server.pem"),
            key_file: papers.file("server.key"),
            client_ca_file,
        }),
        ..settings()
    };
    let send = |bench: &Bench, more: &[&str]| {
        let port = bench.address.port().to_string();
        let mut arguments = vec!["-h", "localhost", "-p", &port, "-t", "a/b", "-m", PAYLOAD, "-q", "1"];
        arguments.extend_from_slice(&["--cafile", "ca.pem"]);
        arguments.extend_from_slice(more);
        child(papers.0.path(), "mosquitto_pub", &arguments)
    };

    let mut open = Bench::with(with_ca(None), Memory::OfNobody).await;
    let sent = send(&open, &[]);
    open.store(1).await;
    assert_eq!(within("mosquitto_pub", sent).await.unwrap(), Some(0));
    open.stopped().await;

    let mut closed = Bench::with(with_ca(Some(papers.file("ca.pem"))), Memory::OfNobody).await;
    assert_ne!(within("mosquitto_pub", send(&closed, &[])).await.unwrap(), Some(0));
    closed.assert_nothing_more();
    let sent = send(&closed, &["--cert", "client.pem", "--key", "client.key"]);
    closed.store(1).await;
    assert_eq!(within("mosquitto_pub", sent).await.unwrap(), Some(0));
    closed.stopped().await;
}
