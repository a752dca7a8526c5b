//! `[sources.<name>]`.

mod i2c;
mod modbus;
mod port;
mod serial;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::fault::Problem;
use super::node::{LISTEN_FORM, address, in_memory, is_local};
use super::note::Remark;
use super::reader::{Given, Section, invalid, value_or};
use super::subscriptions::{Overlaps, subscriptions};
use super::{files, urls};
use crate::source::port::Place;
use crate::source::{self, Settings, listen, mqtt};

/// `protocol` where the operator does not say: what every broker speaks.
const DEFAULT_PROTOCOL: mqtt::Protocol = mqtt::Protocol::V311;
/// The longest payload that can be asked for; packets up to this size are read.
const MOST_PAYLOAD_BYTES: u64 = 16 << 20;
/// rumqttc refuses less; a lost connection is noticed soon enough.
const LEAST_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The protocol counts seconds in 16 bits.
const MOST_KEEP_ALIVE: Duration = Duration::from_secs(65_535);
/// Each client costs a task and its buffers; beyond this a gateway's memory and file descriptors end.
const MOST_CLIENTS: u64 = 65_535;
/// The longest client id. The protocol has room for more, brokers often have not.
const MOST_CLIENT_ID_BYTES: usize = 256;

/// Types of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mqtt,
    Listen,
    Serial,
    I2c,
    Modbus,
}

/// One source; `None` if it is too faulty to be one.
pub(super) fn source(name: &str, section: &Section<'_, '_>, agent_id: &str) -> Option<Settings> {
    let settings = match kind(section)? {
        Kind::Mqtt => mqtt(name, section, agent_id).map(Settings::Mqtt),
        Kind::Listen => listen(name, section).map(Settings::Listen),
        Kind::Serial => serial::serial(name, section).map(Settings::Serial),
        Kind::I2c => i2c::source(name, section).map(Settings::I2c),
        Kind::Modbus => modbus::modbus(name, section).map(Settings::Modbus),
    };
    section.finish();
    settings
}

/// The type, or the one that was probably meant, so that the rest can be checked too.
fn kind(section: &Section<'_, '_>) -> Option<Kind> {
    const FORM: &str = "type = \"mqtt\", \"mqtt-listen\", \"serial\", \"i2c\" or \"modbus\"";
    const KINDS: [(&str, Kind); 5] = [
        ("mqtt", Kind::Mqtt),
        ("mqtt-listen", Kind::Listen),
        ("serial", Kind::Serial),
        ("i2c", Kind::I2c),
        ("modbus", Kind::Modbus),
    ];
    section.require("type", FORM);
    section.choice_or_meant("type", FORM, &KINDS)
}

fn mqtt(name: &str, section: &Section<'_, '_>, agent_id: &str) -> Option<mqtt::Settings> {
    let report = section.report;
    section.require("url", urls::BROKER.expected);
    let url = section.text("url", urls::BROKER.expected);
    let parsed = url.as_ref().and_then(|given| urls::url(report, given, &urls::BROKER));
    let tls = files::client_tls(section);
    let secure = parsed.as_ref().is_some_and(|url| url.scheme() == "mqtts");
    if let Some(parsed) = &parsed
        && tls.is_some()
        && !secure
        && let Some(item) = section.item("tls")
    {
        report.fault(&item.place, Problem::TlsUnused { scheme: parsed.scheme().to_owned() });
    }
    let username = section.text("username", "a user name").map(|given| given.value.to_owned());
    let password = section.secret_item("password").and_then(files::secret);
    if section.has("password") {
        section.require("username", "a user name beside the password");
    }
    if let (Some(url), Some(item)) = (&parsed, section.item("password"))
        && urls::is_readable_on_its_way(url)
    {
        report.note(&item.place, Remark::SecretInClear { scheme: "mqtts" });
    }
    let protocols = [("3.1.1", mqtt::Protocol::V311), ("5", mqtt::Protocol::V5)];
    let protocol = value_or(section.choice("protocol", "\"3.1.1\" or \"5\"", &protocols), DEFAULT_PROTOCOL);
    let keep_alive = section.duration("keep_alive", LEAST_KEEP_ALIVE..=MOST_KEEP_ALIVE);
    if let Some(given) = &keep_alive
        && given.value.subsec_nanos() != 0
    {
        invalid(report, &given.place, None, "whole seconds, as the protocol counts them");
    }
    let max_payload = section.size("max_payload", 1..=MOST_PAYLOAD_BYTES);
    let client_id = client_id(section).unwrap_or_else(|| format!("holdfast-{agent_id}-{name}"));
    let subscriptions = subscriptions(section, Overlaps::SentTwice);
    let url = parsed?;
    Some(mqtt::Settings {
        name: name.to_owned(),
        host: url.host_str()?.trim_matches(['[', ']']).to_owned(),
        port: url.port().unwrap_or(if secure { 8883 } else { 1883 }),
        tls: secure.then(|| tls.unwrap_or_default()),
        username,
        password,
        client_id,
        protocol,
        keep_alive: value_or(keep_alive, mqtt::Settings::DEFAULT_KEEP_ALIVE),
        max_payload_bytes: in_memory(max_payload, mqtt::Settings::DEFAULT_MAX_PAYLOAD_BYTES),
        subscriptions,
    })
}

fn client_id(section: &Section<'_, '_>) -> Option<String> {
    const FORM: &str = "1 to 256 bytes without spaces or control characters, of its own at this broker";
    let given = section.text("client_id", FORM)?;
    let id = given.value;
    let odd = |char: char| char.is_control() || char.is_whitespace();
    if id.is_empty() || id.len() > MOST_CLIENT_ID_BYTES || id.contains(odd) {
        invalid(section.report, &given.place, None, FORM);
        return None;
    }
    Some(id.to_owned())
}

fn listen(name: &str, section: &Section<'_, '_>) -> Option<listen::Settings> {
    let report = section.report;
    section.require("listen", LISTEN_FORM);
    let listen = section.text("listen", LISTEN_FORM);
    let open = value_or(section.flag("open"), false);
    let tls = files::server_tls(section);
    let users_file = files::users(section);
    let max_clients = section.number("max_clients", 1..=MOST_CLIENTS);
    let max_payload = section.size("max_payload", 1..=MOST_PAYLOAD_BYTES);
    let subscriptions = subscriptions(section, Overlaps::Harmless);
    let listen = listen?;
    let address = address(report, &listen)?;

    let asks_who = section.has("users") || tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
    if !is_local(address) && !asks_who && !open {
        let remedy = "add users or tls.client_ca_file, listen on 127.0.0.1, or write open = true to let everybody publish";
        report.fault(&listen.place, Problem::Open { address: address.to_string(), remedy });
    }
    if !is_local(address) && section.has("users") && !section.has("tls") {
        report.note(&listen.place, Remark::PasswordsInClear);
    }
    Some(listen::Settings {
        name: name.to_owned(),
        listen: address,
        tls,
        users_file,
        max_clients: in_memory(max_clients, listen::Settings::DEFAULT_MAX_CLIENTS),
        max_payload_bytes: in_memory(max_payload, listen::Settings::DEFAULT_MAX_PAYLOAD_BYTES),
        subscriptions,
    })
}

/// Reports sources that would get into each other's way.
pub(super) fn check_together(sources: &[(Given<Settings>, &Section<'_, '_>)], admin: Option<SocketAddr>) {
    let mut addresses: BTreeMap<SocketAddr, String> = BTreeMap::new();
    let mut clients: BTreeMap<(&str, u16, &str), &str> = BTreeMap::new();
    let mut lines: BTreeMap<String, (&str, Sharing)> = BTreeMap::new();
    if let Some(admin) = admin {
        addresses.insert(admin, "admin.listen".to_owned());
    }
    for (source, section) in sources {
        let place = |key| section.item(key).map_or_else(|| source.place.clone(), |item| item.place);
        match &source.value {
            Settings::Listen(settings) => {
                // Port 0 is another one each time.
                let taken = addresses.get(&settings.listen).filter(|_| settings.listen.port() != 0);
                if let Some(other) = taken {
                    let address = settings.listen.to_string();
                    section
                        .report
                        .fault(&place("listen"), Problem::AddressTaken { address, other: other.clone() });
                } else {
                    addresses.insert(settings.listen, format!("{}.listen", source.place.key));
                }
            }
            Settings::Mqtt(settings) => {
                let client = (settings.host.as_str(), settings.port, settings.client_id.as_str());
                if let Some(other) = clients.insert(client, &settings.name) {
                    let (client_id, other) = (settings.client_id.clone(), other.to_owned());
                    section.report.fault(&place("client_id"), Problem::ClientIdTaken { client_id, other });
                }
            }
            Settings::I2c(_) => {}
            Settings::Serial(source::serial::Settings { name, port, .. })
            | Settings::Modbus(source::modbus::Settings { name, port, .. }) => {
                let is_shared = matches!(&source.value, Settings::Modbus(settings) if !settings.is_rtu());
                let sharing = if is_shared { Sharing::Possible } else { Sharing::Impossible };
                let (other, of_other) = *lines.entry(line(&port.at)).or_insert((name, sharing));
                if other != name && [sharing, of_other].contains(&Sharing::Impossible) {
                    let key = if section.has("url") { "url" } else { "path" };
                    let (port, other) = (port.at.to_string(), format!("sources.{other}"));
                    section.report.fault(&place(key), Problem::LineTaken { port, other });
                }
            }
        }
    }
    i2c::check_together(sources);
}

/// Whether several sources may use one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// A Modbus server on a network tells its clients apart.
    Possible,
    /// There is one line behind it.
    Impossible,
}

/// What is the same for two names of one port, as far as can be told from here.
fn line(at: &Place) -> String {
    match at {
        // Links under /dev/serial lead to the ports themselves.
        Place::Path(path) => match std::fs::canonicalize(path) {
            Ok(path) => path.display().to_string(),
            Err(_) => path.components().collect::<PathBuf>().display().to_string(),
        },
        Place::Tcp { host, port } if host == "localhost" => format!("tcp://127.0.0.1:{port}"),
        Place::Tcp { .. } => at.to_string(),
    }
}
