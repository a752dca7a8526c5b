//! TLS wherever readings travel: from a broker, from a sensor, to the cloud. Who is not known is not let in, nor believed.

use std::process::Command;

use harness::tls::{Front, Papers};
use harness::{Agent, Broker, Cloud, process};

use crate::{BATCH, HOLDFAST, STORE, client, listener};

/// `tls = { … }` with these papers.
fn tls(papers: &Papers, keys: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        keys.iter().map(|(key, name)| format!("{key} = \"{}\"", papers.file(name).display())).collect();
    format!("tls = {{ {} }}", pairs.join(", "))
}

/// A message to this port, as mosquitto_pub sends it.
fn message(port: u16, n: u64) -> Command {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "localhost", "-p", &port.to_string(), "-q", "1", "-t", "sensors/d1/telemetry"]);
    command.args(["-m", &format!("{{\"ts\":{},\"n\":{n}}}", 1_795_147_200 + n)]);
    command
}

/// The same by one who trusts the CA of these papers.
fn over_tls(port: u16, papers: &Papers, n: u64) -> Command {
    let mut command = message(port, n);
    command.arg("--cafile").arg(papers.file("ca.pem"));
    command
}

/// The same by one who also shows a certificate.
fn by_a_client(port: u16, papers: &Papers, n: u64) -> Command {
    let mut command = over_tls(port, papers, n);
    command.arg("--cert").arg(papers.file("client.pem")).arg("--key").arg(papers.file("client.key"));
    command
}

/// Whether it could be sent.
async fn is_taken(command: Command) -> bool {
    process::run(command).await.status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_come_from_a_broker_that_asks_for_certificates() {
    let (papers, cloud) = (Papers::new(), Cloud::start().await);
    let file = |name: &str| papers.file(name).display().to_string();
    let broker = Broker::with(&format!(
        "allow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true",
        file("ca.pem"),
        file("server.pem"),
        file("server.key")
    ))
    .await;
    let url = format!("mqtts://localhost:{}", broker.port);
    let with = |keys: &[(&str, &str)]| {
        let source = client(&url).replace("[[", &format!("{}\n[[", tls(&papers, keys)));
        format!("{STORE}{source}{}", cloud.sink(BATCH))
    };
    // Without papers it is not let in.
    let mut agent = Agent::started(HOLDFAST, &with(&[("ca_file", "ca.pem")])).await;
    let status = agent.wait_for("a refusal", |status| status.source_state("plant") != "starting").await;
    assert_ne!(status.source_state("plant"), "connected");
    agent.stop().await;

    let ours = [("ca_file", "ca.pem"), ("cert_file", "client.pem"), ("key_file", "client.key")];
    agent.configure(&with(&ours));
    agent.start().await;
    agent.wait_for("a connection", |status| status.source_state("plant") == "connected").await;
    for n in 1..=20 {
        assert!(is_taken(by_a_client(broker.port, &papers, n)).await);
    }
    agent.drained("readings", 20).await;
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_takes_readings_of_clients_whose_certificates_it_knows() {
    let (papers, cloud, port) = (Papers::new(), Cloud::start().await, harness::free_port());
    let keys = [("cert_file", "server.pem"), ("key_file", "server.key"), ("client_ca_file", "ca.pem")];
    let source = listener(port).replace("[[", &format!("{}\n[[", tls(&papers, &keys)));
    let agent = Agent::started(HOLDFAST, &format!("{STORE}{source}{}", cloud.sink(BATCH))).await;
    for n in 1..=20 {
        assert!(is_taken(by_a_client(port, &papers, n)).await);
    }
    assert!(!is_taken(over_tls(port, &papers, 21)).await);
    assert!(!is_taken(message(port, 22)).await, "in the clear there is nobody to talk to");
    let status = agent.drained("readings", 20).await;
    assert_eq!(status.appended("readings"), 20);
    cloud.assert_well_formed();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cloud_is_believed_by_its_certificate_alone() {
    let (papers, strange, cloud) = (Papers::new(), Papers::new(), Cloud::start().await);
    let (front, port) = (Front::of(cloud.port(), &papers).await, harness::free_port());
    let with = |papers: &Papers| {
        let plain = format!("http://127.0.0.1:{}/", cloud.port());
        let lines = format!("{BATCH}\n{}", tls(papers, &[("ca_file", "ca.pem")]));
        let sink = cloud.sink(&lines).replace(&plain, &format!("https://localhost:{}/", front.port));
        format!("{STORE}{}{sink}", listener(port))
    };
    // It trusts somebody else.
    let mut agent = Agent::started(HOLDFAST, &with(&strange)).await;
    for n in 1..=20 {
        assert!(is_taken(message(port, n)).await);
    }
    agent.wait_for("it to be noticed", |status| status.sink_state("cloud") == "retrying").await;
    assert_eq!(cloud.request_count(), 0, "nothing is said to whom we do not know");
    agent.stop().await;

    agent.configure(&with(&papers));
    agent.start().await;
    let status = agent.drained("readings", 20).await;
    assert_eq!(status.sink_state("cloud"), "up");
    cloud.assert_well_formed();
}
