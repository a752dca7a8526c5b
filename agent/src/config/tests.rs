//! What the configuration accepts, refuses, and says.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Config, Environment, Loaded, Note, Remark, parse, parse_bytes};
use crate::forward::settings::Compression;
use crate::ingest::settings::{Payload, Retained};
use crate::secret::Secret;
use crate::source;
use crate::source::mqtt::Protocol;
use crate::stream::Stream;

/// A machine that exists in a test only.
#[derive(Default)]
pub(super) struct Bench {
    pub(super) host_name: String,
    pub(super) variables: BTreeMap<String, String>,
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) locked: Vec<PathBuf>,
    pub(super) folders: Vec<PathBuf>,
}

impl Bench {
    pub(super) fn named() -> Self {
        Self { host_name: "gw".to_owned(), ..Self::default() }
    }

    pub(super) fn file(&mut self, path: &str, contents: &str) {
        self.files.insert(path.into(), contents.into());
    }
}

impl Environment for Bench {
    fn host_name(&self) -> String {
        self.host_name.clone()
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn look(&self, path: &Path) -> io::Result<()> {
        if self.folders.iter().any(|folder| folder == path) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.read(path).map(drop)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if self.locked.iter().any(|locked| locked == path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

pub(super) fn load(text: &str) -> Loaded {
    parse(text, "/etc/h.toml", &Bench::named()).unwrap_or_else(|faults| panic!("{faults}"))
}

pub(super) fn config(text: &str) -> Config {
    load(text).config
}

/// All faults, without the file's name.
pub(super) fn faults_on(bench: &Bench, text: &str) -> Vec<String> {
    let faults = parse(text, "/etc/h.toml", bench).map(|loaded| loaded.config).unwrap_err();
    faults.to_string().lines().map(|line| line.strip_prefix("/etc/h.toml:").unwrap().to_owned()).collect()
}

/// `text` has one fault, which begins and goes on like this.
pub(super) fn check(text: &str, begins: &str, contains: &str) {
    let faults = faults_on(&Bench::named(), text);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    assert!(faults[0].starts_with(begins), "{}", faults[0]);
    assert!(faults[0].contains(contains), "{}", faults[0]);
}

pub(super) const SOURCE: &str =
    "[sources.a]\ntype = \"mqtt\"\nurl = \"mqtt://h\"\nsubscribe = [{ topic = \"t/{device}\" }]\n";
const LISTENER: &str = "[sources.l]\ntype = \"mqtt-listen\"\nsubscribe = [{ topic = \"t/{device}\" }]\n";
const SINK: &str = "[sinks.c]\ntype = \"http\"\nurl = \"https://h/x\"\n";

/// The contract's example, with every key given.
pub(super) const FULL: &str = r#"
[agent]
id = "gw-lab-01"
data_dir = "/data"
[admin]
listen = ""
socket = "/run/a.sock"
[log]
level = "info,holdfast::forward=debug"
format = "json"
[store]
max_size = "64MiB"
max_age = "7d"
when_full = "block"
commit_interval = "250ms"
[dead_letters]
max_size = "1MiB"
max_payload = "1KiB"
[sources.plant]
type = "mqtt"
url = "mqtts://[::1]:9999/"
username = "u"
password = { env = "PW" }
client_id = "me"
protocol = "5"
keep_alive = "10s"
max_payload = "16MiB"
[[sources.plant.subscribe]]
topic = "sensors/{line}/{device}"
qos = 2
payload = "json"
time = "/ts"
timezone = "UTC"
retained = "take"
fields = ["/a", "/b/0"]
max_future = "1m"
[[sources.plant.subscribe]]
topic = "raw/{device}/{field}"
qos = 0
payload = "value"
[[sources.plant.subscribe]]
topic = "lines/csv"
payload = "csv"
columns = ["ts", "", "c"]
delimiter = ";"
time = "/ts"
[[sources.plant.subscribe]]
topic = "lines/text"
payload = "regex"
pattern = 'T=(?<t>[-0-9.]+) (?<id>\S+)'
device = "/id"
[sources.direct]
type = "mqtt-listen"
listen = "0.0.0.0:1883"
open = true
max_clients = 5
subscribe = [{ topic = "x/#", device = "/id" }]
[windows.minute]
size = "1m"
slide = "10s"
lateness = "5s"
allowed_lateness = "1h"
idle = "30s"
max_series = 10
aggregates = ["p99.9", "count", "stddev"]
sources = ["direct", "plant"]
fields = ["a", "b.0"]
[sinks.cloud]
type = "http"
url = "http://h:8080/x?token=1"
streams = ["windows", "readings"]
compression = "gzip"
batch = { records = 10, bytes = "1KiB", wait = "0s" }
retry = { initial = "1s", max = "1s" }
timeout = "5s"
require_ack = true
required = false
headers = { Authorization = "Bearer x", X-Key = { file = "key" } }
"#;

#[test]
fn nothing_is_valid_and_warned_about() {
    let Loaded { config, notes } = load("");
    assert_eq!(config.agent_id, "gw");
    assert_eq!(config.store.data_dir, Path::new("/var/lib/holdfast"));
    assert_eq!(config.admin.listen.unwrap().to_string(), "127.0.0.1:9550");
    assert_eq!(config.admin.socket.as_deref(), Some(Path::new("/var/lib/holdfast/admin.sock")));
    let remarks: Vec<_> = notes.iter().map(|note| note.remark.clone()).collect();
    assert_eq!(remarks, [Remark::NoSource, Remark::NoSink]);
}

#[test]
fn systemd_names_the_folders() {
    let mut bench = Bench::named();
    bench.variables.insert("STATE_DIRECTORY".to_owned(), "/s:/other".to_owned());
    bench.variables.insert("RUNTIME_DIRECTORY".to_owned(), "/r".to_owned());
    let config = parse("", "h.toml", &bench).unwrap().config;
    assert_eq!(config.store.data_dir, Path::new("/s"));
    assert_eq!(config.admin.socket.as_deref(), Some(Path::new("/r/admin.sock")));
}

#[test]
fn a_shell_finds_the_socket_of_the_service() {
    let mut bench = Bench::named();
    bench.folders.push("/run/holdfast".into());
    let socket = |text| parse(text, "h.toml", &bench).unwrap().config.admin.socket.unwrap();
    assert_eq!(socket(""), Path::new("/run/holdfast/admin.sock"));
    assert_eq!(socket("[agent]\ndata_dir = \"/srv/h\""), Path::new("/srv/h/admin.sock"), "another agent's");
}

#[test]
fn every_key_reaches_its_setting() {
    let Loaded { config, notes } = load(FULL);
    assert_eq!(config.admin.listen, None);
    assert_eq!(config.store.commit_interval, Duration::from_millis(250));
    assert_eq!(config.store.dead_letters.max_payload_bytes, 1024);
    let [source::Settings::Mqtt(direct_not), source::Settings::Listen(listener)] = &config.sources[..] else {
        panic!("{:?}", config.sources)
    };
    assert_eq!((direct_not.host.as_str(), direct_not.port), ("::1", 9999));
    assert_eq!(direct_not.tls, Some(crate::tls::ClientSettings::default()));
    assert_eq!(direct_not.password, Some(Secret::Env("PW".to_owned())));
    assert_eq!((direct_not.client_id.as_str(), direct_not.protocol), ("me", Protocol::V5));
    let [json, value, csv, regex] = &direct_not.subscriptions[..] else {
        panic!("{:?}", direct_not.subscriptions)
    };
    assert_eq!((json.topic.filter(), json.qos, json.retained), ("sensors/+/+", 2, Retained::Take));
    assert_eq!(json.fields.as_ref().map(Vec::len), Some(2));
    assert_eq!((value.qos, &value.payload), (0, &Payload::Value));
    assert_eq!(csv.payload.parts().join(","), "ts,,c");
    assert_eq!((regex.payload.parts().join(","), regex.device.is_some()), (",t,id".to_owned(), true));
    assert_eq!((listener.listen.port(), listener.max_clients), (1883, 5));
    let window = &config.windows[0];
    let names: Vec<_> = window.aggregates.iter().map(crate::window::settings::Aggregate::name).collect();
    assert_eq!(names, ["count", "p99.9", "stddev"]);
    assert_eq!((window.slide, window.idle), (Duration::from_secs(10), Duration::from_secs(30)));
    let sink = &config.sinks[0];
    assert_eq!(
        (&sink.streams[..], sink.compression),
        (&[Stream::Windows, Stream::Readings][..], Compression::Gzip)
    );
    assert_eq!(sink.headers[1], ("X-Key".to_owned(), Secret::File("key".into())));
    let remarks: Vec<_> = notes.into_iter().map(|note| note.remark).collect();
    assert!(remarks.contains(&Remark::QosTwo) && remarks.contains(&Remark::QosZero), "{remarks:?}");
    assert!(remarks.contains(&Remark::RelativeSecret { file: "key".to_owned() }));
    assert!(remarks.contains(&Remark::VariableNotSet { name: "PW".to_owned() }));
}

#[test]
fn what_is_not_said_has_its_default() {
    let config = config(&format!("{SOURCE}{SINK}[windows.w]\nsize = \"1m\"\nlateness = \"3s\""));
    let source::Settings::Mqtt(source) = &config.sources[0] else { panic!() };
    assert_eq!(
        (source.port, source.client_id.as_str(), source.protocol),
        (1883, "holdfast-gw-a", Protocol::V311)
    );
    assert_eq!((source.subscriptions[0].qos, &source.subscriptions[0].payload), (1, &Payload::Json));
    assert_eq!(config.windows[0].slide, Duration::from_secs(60));
    assert_eq!(config.windows[0].idle, Duration::from_secs(3));
    assert_eq!(config.sinks[0].streams, [Stream::Alerts, Stream::Windows, Stream::Readings]);
}

#[test]
fn all_faults_come_in_one_go_in_the_order_of_the_file() {
    let text =
        "[store]\nmax_size = \"1GB\"\nmax_age = 30\nmax_aeg = \"1d\"\n[agnet]\n[log]\nformat = \"jsn\"\n";
    let faults = faults_on(&Bench::named(), text);
    let starts: Vec<&str> = faults.iter().map(|fault| fault.split_once("; ").unwrap().0).collect();
    assert_eq!(
        starts,
        [
            "2:12: store.max_size: \"1GB\" is not understood",
            "3:11: store.max_age: 30 is a number",
            "4:1: store.max_aeg: unknown key \"max_aeg\"",
            "5:2: agnet: unknown key \"agnet\"",
            "7:10: log.format: \"jsn\" is not understood",
        ]
    );
    for (fault, meant) in faults.iter().zip(["1GiB", "", "max_age", "agent", "json"]) {
        assert_eq!(fault.contains(&format!("did you mean \"{meant}\"?")), !meant.is_empty(), "{fault}");
        assert!(fault.contains("expected "), "{fault}");
    }
}

#[test]
fn a_broken_line_does_not_hide_the_faults_of_others() {
    let text = "[store]\nmax_size = 1GiB\nmax_age = \"30 days\"\n[sinks.c]\ntype = \"http\"\nurl https\n";
    let faults = faults_on(&Bench::named(), text);
    assert_eq!(faults.len(), 3, "{faults:#?}");
    assert!(faults[0].starts_with("2:12: 1GiB needs quotes; a string is written \"1GiB\""), "{}", faults[0]);
    assert!(faults[1].starts_with("3:11: store.max_age: \"30 days\"") && faults[1].contains("\"30d\""));
    assert!(faults[2].starts_with("6:"), "{}", faults[2]);
    // What stands under a broken header belongs to nobody knows what.
    check("[store\nmax_size = 3\n[sinks.x]\n", "1:7: ", "expected `]`");
    check("[store]\nmax_age = \"1d\"\nmax_age = \"2d\"\n", "3:1: ", "max_age stands here twice");
}

#[test]
fn agent_and_admin_are_checked() {
    check("[agent]\nid = \"a b\"", "2:6: agent.id: \"a b\"", "1 to 64 characters");
    check("[agent]\nid = 7", "2:6: agent.id: 7 is a number", "expected 1 to 64");
    let nameless = faults_on(&Bench { host_name: "my host".to_owned(), ..Bench::default() }, "");
    assert!(
        nameless[0].starts_with("1:1: agent.id: is not set, and the host name, \"my host\""),
        "{nameless:?}"
    );
    check(
        "[admin]\nlisten = \"0.0.0.0:9550\"",
        "2:10: admin.listen: 0.0.0.0:9550 is reachable",
        "open = true",
    );
    check("[admin]\nlisten = \"localhost:80\"", "2:10: admin.listen: ", "did you mean \"127.0.0.1:80\"?");
    config("[admin]\nlisten = \"0.0.0.0:9550\"\nopen = true");
    config("[admin]\nlisten = \"[::ffff:127.0.0.1]:9550\"");
    check("[log]\nlevel = \"inof\"", "2:9: log.level: \"inof\"", "did you mean \"info\"?");
    check("[log]\nlevel = \"a=b=c\"", "2:9: log.level: ", "a filter such as");
    check("[store]\ncommit_interval = \"0s\"", "2:19: store.commit_interval: ", "1ms to 1m");
}

#[test]
fn names_are_unique_across_kinds() {
    check(
        &format!("{SOURCE}[sinks.a]\ntype = \"http\"\nurl = \"http://h\""),
        "5:8: sinks.a: the name \"a\" is taken by the source in line 1",
        "",
    );
    let again = format!("{SOURCE}[sources.a]\nqos = 1\n[log]\nformat = \"jsn\"\n");
    let faults = faults_on(&Bench::named(), &again);
    assert!(faults[0].starts_with("5:10: [sources.a] stands here twice"), "{faults:#?}");
    assert!(faults.iter().any(|fault| fault.starts_with("8:10: log.format")), "{faults:#?}");
    check(&SOURCE.replace(".a]", ".\"a b\"]"), "1:10: sources.\"a b\": ", "a name of 1 to 64");
}

#[test]
fn sources_are_checked() {
    let with = |line: &str| format!("{SOURCE}{line}\n");
    check(&SOURCE.replace("\"mqtt\"", "\"mqt\""), "2:8: sources.a.type: \"mqt\"", "did you mean \"mqtt\"?");
    check(&SOURCE.replace("type = \"mqtt\"\n", ""), "1:1: sources.a.type: is missing", "mqtt-listen");
    check("[sources]\na = 1", "2:5: sources.a: 1 is a number", "[sources.plant]");
    check(&SOURCE.replace("mqtt://h", "h:1883"), "3:7: sources.a.url: \"h:1883\"", "mqtt://127.0.0.1:1883");
    check(&SOURCE.replace("mqtt://h", "mqtt://h/topic"), "3:7: sources.a.url: ", "expected a URL");
    check(&SOURCE.replace("mqtt://h", "mqtt://h:70000"), "3:7: sources.a.url: ", "expected a URL");
    check(&with("keep_alive = \"4s\""), "5:14: sources.a.keep_alive: \"4s\" is out of range", "5s to 65535s");
    check(&with("max_payload = \"17MiB\""), "5:15: sources.a.max_payload: ", "1B to 16MiB");
    check(&with("client_id = \"\""), "5:13: sources.a.client_id: \"\"", "1 to 256 bytes");
    check(&with("password = \"x\""), "1:1: sources.a.username: is missing", "beside the password");
    check(&with("tls = { }"), "5:7: sources.a.tls: tls has no effect on a mqtt:// URL", "mqtts://");
    check(&with("protocol = 5"), "5:12: sources.a.protocol: 5 is a number", "\"3.1.1\" or \"5\"");
    let twin = SOURCE.replace(".a]", ".b]");
    check(
        &format!("{SOURCE}client_id = \"x\"\n{twin}client_id = \"x\""),
        "10:13: sources.b.client_id: \"x\"",
        "sources.a",
    );
    check(
        &SOURCE.replace("[{ topic = \"t/{device}\" }]", "[]"),
        "4:13: sources.a.subscribe: is missing",
        "at least one",
    );
}

#[test]
fn secrets_are_never_shown() {
    let secret = "hunter2";
    let wrong = [
        SOURCE.replace("mqtt://h", "mqtt://u:hunter2@h"),
        SOURCE.replace("mqtt://h", "mqt://u:hunt/hunter2@h"),
        SOURCE.replace("mqtt://h", "u:hunter2@h"),
        format!("{SOURCE}password = hunter2"),
        format!("{SOURCE}password = \"hunter2"),
        format!("{SOURCE}username = \"u\"\npassword = [\"hunter2\"]"),
        format!("{SOURCE}username = \"u\"\npassword = {{ file = 1, hint = \"hunter2\" }}"),
        format!("{SOURCE}passwrod = \"hunter2\""),
        format!("{SOURCE}password =\nhunter2=="),
        format!("{SOURCE}password = \"\nhunter2 hunter2==\n\""),
        format!("{SOURCE}password = \"\nhunter2==\n\""),
        format!("{SOURCE}password = \"\nhunter2=3\n\""),
        format!("{SOURCE}password = \"\"\"\nhunter2=\\q\n"),
        format!("{SINK}headers = \"hunter2\""),
        format!("{SINK}headers = {{ A = hunter2 }}"),
        format!("{SINK}headers = {{ A = \"hunter2\\n\" }}"),
        format!("{SINK}headers = {{ A = [\"hunter2\"] }}"),
        format!("{SINK}[sinks.c.headers]\nA = hunter2"),
        SINK.replace("https://h/x", "ftp://h/x?token=hunter2"),
    ];
    for text in wrong {
        let faults = faults_on(&Bench::named(), &text).join("\n");
        assert!(!faults.contains(secret), "{faults}");
    }
    let loaded = load(&format!("{SINK}headers = {{ A = \"hunter2\" }}"));
    assert!(!format!("{loaded:?}").contains(secret));
}

#[test]
fn secret_files_must_be_there() {
    let with = |password: &str| format!("{SOURCE}username = \"u\"\npassword = {password}");
    check(&with("{ file = \"/no\" }"), "6:21: sources.a.password.file: file \"/no\" does not exist", "");
    check(
        &with("{ file = \"x\", env = \"y\" }"),
        "6:12: sources.a.password: env has no meaning",
        "either file or env",
    );
    check(&with("{ }"), "6:12: sources.a.password: is missing", "{ file =");
    check(&with("{ fil = \"x\" }"), "6:14: sources.a.password.fil: unknown key", "did you mean \"file\"?");
    let mut bench = Bench::named();
    bench.variables.insert("CREDENTIALS_DIRECTORY".to_owned(), "/cred".to_owned());
    let absent = faults_on(&bench, &with("{ file = \"pw\" }"));
    assert!(absent[0].contains("file \"/cred/pw\" does not exist"), "{absent:?}");
    bench.file("/cred/pw", "x");
    parse(&with("{ file = \"pw\" }"), "h.toml", &bench).unwrap();
    bench.locked.push("/locked".into());
    let notes = parse(&with("{ file = \"/locked\" }"), "h.toml", &bench).unwrap().notes;
    assert!(notes.iter().any(|note| matches!(note.remark, Remark::CannotLook { .. })), "{notes:?}");
}

#[test]
fn tls_files_go_together_and_must_be_there() {
    let with = |tls: &str| format!("{}tls = {tls}", SOURCE.replace("mqtt://", "mqtts://"));
    check(
        &with("{ ca_file = \"ca.pem\" }"),
        "5:19: sources.a.tls.ca_file: file \"/etc/ca.pem\" does not exist",
        "PEM",
    );
    let mut bench = Bench::named();
    bench.file("/etc/c", "");
    let half = faults_on(&bench, &with("{ cert_file = \"c\" }"));
    assert_eq!(half, ["5:7: sources.a.tls: cert_file without key_file; expected both or neither"]);
    let listener = format!("{LISTENER}listen = \"127.0.0.1:1\"\ntls = {{ }}");
    assert_eq!(faults_on(&bench, &listener).len(), 2);
}

#[test]
fn listeners_say_whom_they_let_in() {
    let with = |lines: &str| format!("{LISTENER}{lines}");
    check(
        &with("listen = \"0.0.0.0:1883\""),
        "4:10: sources.l.listen: 0.0.0.0:1883 is reachable",
        "open = true",
    );
    check(&with("listen = \":1883\""), "4:10: sources.l.listen: ", "did you mean \"0.0.0.0:1883\"?");
    config(&with("listen = \"0.0.0.0:1883\"\nopen = true"));
    config(&with("listen = \"127.0.0.2:1883\""));
    check(
        &with("listen = \"127.0.0.1:9550\""),
        "4:10: sources.l.listen: 127.0.0.1:9550 is taken by admin.listen",
        "",
    );
    let users = with("listen = \"0.0.0.0:1\"\nusers = { file = \"users.toml\" }");
    check(&users, "5:18: sources.l.users.file: file \"/etc/users.toml\" does not exist", "argon2");
    let mut bench = Bench::named();
    let mut said = |contents: &str| {
        bench.file("/etc/users.toml", contents);
        parse(&users, "/etc/h.toml", &bench).map(|loaded| loaded.notes).map_err(|faults| faults.to_string())
    };
    let notes = said("a = \"$argon2id$\"").unwrap();
    assert!(notes.iter().any(|note| note.remark == Remark::PasswordsInClear), "{notes:?}");
    assert!(said("").unwrap().iter().any(|note| note.remark == Remark::NoUsers));
    assert!(said("a = 1").unwrap_err().contains("has no string for \"a\" (line 1, column 5)"));
    let broken = said("a = secret").unwrap_err();
    assert!(broken.contains("line 1, column 5") && !broken.contains("secret"), "{broken}");
}

#[test]
fn what_proves_who_we_are_is_better_not_sent_readable() {
    let said = |broker: &str, sink: &str| {
        let text = format!(
            "[sources.a]\ntype = \"mqtt\"\nurl = \"{broker}\"\nusername = \"u\"\npassword = \"p\"\n\
             [[sources.a.subscribe]]\ntopic = \"t/{{device}}\"\n\
             [sinks.s]\ntype = \"http\"\nurl = \"{sink}\"\nheaders = {{ X = \"p\" }}\n"
        );
        let in_clear = |note: &Note| match note.remark {
            Remark::SecretInClear { scheme } => Some((note.key.clone(), scheme)),
            _ => None,
        };
        load(&text).notes.iter().filter_map(in_clear).collect::<Vec<_>>()
    };
    let both = [("sources.a.password".to_owned(), "mqtts"), ("sinks.s.headers".to_owned(), "https")];
    assert_eq!(said("mqtt://broker.example.com", "http://10.0.0.7/x"), both);
    for (broker, sink) in [
        ("mqtts://broker.example.com", "https://10.0.0.7/x"),
        ("mqtt://127.0.0.1:1883", "http://localhost:9551/x"),
        ("mqtt://[::1]", "http://[::1]:9551/x"),
    ] {
        assert_eq!(said(broker, sink), [], "{broker} {sink}");
    }
}

#[test]
fn subscriptions_are_checked() {
    let with = |keys: &str| SOURCE.replace("topic = \"t/{device}\"", keys);
    check(&with("topic = \"t/#/x\""), "4:24: sources.a.subscribe[0].topic: \"t/#/x\"", "last");
    check(&with("topic = \"t/{a}/{a}\""), "4:24: sources.a.subscribe[0].topic: ", "expected a topic");
    check(
        &with("topic = \"t/{devcie}\""),
        "4:24: sources.a.subscribe[0].topic: ",
        "did you mean \"t/{device}\"?",
    );
    check(
        &with("topic = \"t/{Device}/#/x\""),
        "4:24: sources.a.subscribe[0].topic: ",
        "did you mean \"t/{device}/#/x\"?",
    );
    // A line break in it does not become one in the message.
    check(&with("topic = \"t\\n{/x\""), "4:24: sources.a.subscribe[0].topic: ", "expected a topic");
    config(&with("topic = \"t/{devcie}\", device = \"/d\""));
    check(
        &with("topc = \"t\", topic = \"t\""),
        "4:16: sources.a.subscribe[0].topc: ",
        "did you mean \"topic\"?",
    );
    check(&with("qos = 1"), "4:14: sources.a.subscribe[0].topic: is missing", "expected a topic");
    check(&with("topic = \"t\", qos = 3"), "4:35: sources.a.subscribe[0].qos: 3 is out of range", "0 to 2");
    check(
        &with("topic = \"t\", time = \"ts\""),
        "4:36: sources.a.subscribe[0].time: ",
        "did you mean \"/ts\"?",
    );
    check(
        &with("topic = \"t\", timezone = \"CEST!\""),
        "4:40: sources.a.subscribe[0].timezone: ",
        "Europe/Berlin",
    );
    check(&with("topic = \"t\", fields = []"), "4:38: sources.a.subscribe[0].fields: []", "JSON pointers");
    check(
        &with("topic = \"t\", payload = \"value\", time = \"/t\""),
        "4:55: sources.a.subscribe[0].time: time has no meaning",
        "",
    );
    check(
        &with("topic = \"t/+\" }, { topic = \"t/{device}\""),
        "4:33: sources.a.subscribe[1]: the topic filter \"t/+\"",
        "twice",
    );
    let notes = load(&with("topic = \"t/+\" }, { topic = \"t/#\"")).notes;
    assert!(notes.iter().any(|note| matches!(note.remark, Remark::Overlap { .. })), "{notes:?}");
}

#[test]
fn windows_are_checked() {
    let with = |lines: &str| format!("{SOURCE}[windows.w]\n{lines}\n");
    check(&with("slide = \"1s\""), "5:1: windows.w.size: is missing", "a duration");
    check(&with("size = \"99ms\""), "6:8: windows.w.size: \"99ms\" is out of range", "100ms");
    check(&with("size = \"1m\"\nslide = \"2m\""), "7:9: windows.w.slide: slide is 2m, above size, 1m", "");
    check(&with("size = \"1m\"\nslide = \"0s\""), "7:9: windows.w.slide: \"0s\" is out of range", "1ms");
    check(
        &with("size = \"30d\"\nslide = \"1s\""),
        "7:9: windows.w.slide: slide is 1s, so each reading is in 2592000",
        "12m",
    );
    check(
        &with("size = \"1m\"\naggregates = [\"avg\"]"),
        "7:15: windows.w.aggregates[0]: \"avg\"",
        "did you mean \"mean\"?",
    );
    check(&with("size = \"1m\"\naggregates = [\"p101\"]"), "7:15: windows.w.aggregates[0]: ", "a quantile");
    check(
        &with("size = \"1m\"\nsources = [\"b\", \"a\"]"),
        "7:12: windows.w.sources[0]: \"b\" is no configured source, so no source feeds this window",
        "one of a",
    );
    check(&with("size = \"1m\"\nsources = []"), "7:11: windows.w.sources: []", "at least one");
    check(
        &with("size = \"1m\"\nfields = [\"/a/b\"]"),
        "7:11: windows.w.fields[0]: ",
        "did you mean \"a.b\"?",
    );
    check("[windows.w]\nsize = \"1m\"", "1:1: windows.w: no source feeds this window", "");
}

#[test]
fn sinks_are_checked() {
    let with = |line: &str| format!("{SINK}{line}\n");
    check(&SINK.replace("\"http\"", "\"htp\""), "2:8: sinks.c.type: ", "did you mean \"http\"?");
    check(&SINK.replace("https://", "htps://"), "3:7: sinks.c.url: ", "did you mean \"https://h/x\"?");
    check(&SINK.replace("https://h/", "https://bücher.example/"), "3:7: sinks.c.url: ", "a host in ASCII");
    assert_eq!(config(&SINK.replace("https://h/", "https://xn--bcher-kva.example/")).sinks.len(), 1);
    check(&with("streams = [\"reading\"]"), "4:12: sinks.c.streams[0]: ", "did you mean \"readings\"?");
    check(
        &with("streams = [\"readings\", \"readings\"]"),
        "4:24: sinks.c.streams[1]: stream \"readings\" stands here twice",
        "",
    );
    check(
        &with("retry = { initial = \"10m\" }"),
        "4:21: sinks.c.retry.initial: initial is 10m, above max, 5m; lower initial or raise max",
        "",
    );
    check(&with("retry = { initial = \"1x\", max = \"20ms\" }"), "4:21: sinks.c.retry.initial: \"1x\"", "");
    check(&with("batch = { records = 0 }"), "4:21: sinks.c.batch.records: 0 is out of range", "1 to 100000");
    check(&with("batch = \"big\""), "4:9: sinks.c.batch: \"big\" is a string", "a table such as");
    check(&with("required = \"yes\""), "4:12: sinks.c.required: \"yes\" is a string", "true or false");
    check(&with("headers = { Content-Type = \"x\" }"), "4:13: sinks.c.headers.Content-Type: ", "sets itself");
    check(&with("headers = { a = \"x\", A = \"x\" }"), "4:22: sinks.c.headers.A: header \"A\"", "twice");
    check(&with("max_age = \"1d\""), "4:1: sinks.c.max_age: unknown key", "expected one of");
    check(&format!("{SINK}[limits.readings]\nmax_age = \"1d\""), "4:2: limits: unknown key", "sinks");
}

#[test]
fn text_that_is_not_utf8_is_located() {
    let faults = parse_bytes(b"[log]\nlevel = \"\xff\"", "h.toml", &Bench::named()).unwrap_err();
    assert_eq!(faults.to_string(), "h.toml:2:10: byte 0xff is not UTF-8; save the file as UTF-8 text");
}

#[test]
fn a_file_that_is_not_there_is_a_fault() {
    let folder = tempfile::tempdir().unwrap();
    let faults = super::load(&folder.path().join("none.toml")).unwrap_err().to_string();
    assert!(faults.contains("none.toml: cannot read the configuration"), "{faults}");
}

#[test]
fn a_stream_may_have_limits_within_the_store_s() {
    let text = "[store]\nmax_size = \"64MiB\"\n[streams.readings]\nmax_size = \"32MiB\"\n[streams.windows]\nmax_age = \"1d\"\n\
                [streams.alerts]\nmax_size = \"64MiB\"\nmax_age = \"30d\"\n";
    let limits = config(text).store.streams;
    assert_eq!((limits[0].max_size_bytes, limits[0].max_age), (Some(32 << 20), None));
    assert_eq!((limits[1].max_size_bytes, limits[1].max_age), (None, Some(Duration::from_secs(86_400))));
    assert_eq!(limits[2], crate::store::settings::StreamLimits::default(), "as the store's, so none");
    check(
        "[streams.readings]\nmax_size = \"2GiB\"\n",
        "2:12: streams.readings.max_size: 2GiB is above store.max_size, 1GiB",
        "lower this or raise that",
    );
    check(
        "[streams.windows]\nmax_age = \"365d\"\n",
        "2:11: streams.windows.max_age: 365d is above store.max_age, 30d",
        "",
    );
    check(
        "[streams.window]\nmax_age = \"1d\"\n",
        "1:10: streams.window: unknown key",
        "did you mean \"windows\"",
    );
    check("[streams.readings]\nmax_sise = \"1MiB\"\n", "2:1: ", "did you mean \"max_size\"");
}
