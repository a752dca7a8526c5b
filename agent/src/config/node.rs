//! What concerns the agent as a whole: `[agent]`, `[admin]`, `[log]`, `[store]`, `[streams]`, `[dead_letters]`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::filter::Targets;

use super::fault::{Place, Problem};
use super::nearest::nearest;
use super::note::{MAX_SOCKET_PATH_BYTES, Remark};
use super::reader::{Given, Section, invalid, value_or};
use super::report::Report;
use super::units::{show_duration, show_size};
use crate::clock::Trust;
use crate::store::settings::StreamLimits;
use crate::stream::Stream;
use crate::{status, store};

/// `data_dir` where neither the operator nor systemd says.
const DEFAULT_DATA_DIR: &str = "/var/lib/holdfast";
/// `admin.listen` where the operator does not say: this host alone.
const DEFAULT_ADMIN_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9550);
/// Where the service of that folder has its admin socket. Commands are run in a shell, where systemd has set no variable.
const SERVICE_RUNTIME_DIR: &str = "/run/holdfast";
/// The name of the admin socket in its folder.
const SOCKET_NAME: &str = "admin.sock";
/// What a name or id looks like.
pub(super) const NAME_FORM: &str = "1 to 64 characters of A-Z a-z 0-9 . _ -";
/// What an address to listen on looks like.
pub(super) const LISTEN_FORM: &str =
    "an IP address and a port such as \"127.0.0.1:1883\", \"0.0.0.0:1883\" or \"[::]:1883\"";

/// The longest that anything configured in time may last: a hundred years, far from any overflow.
pub(super) const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);
/// Below this there is no room for a store at all.
const LEAST_STORE_BYTES: u64 = 64 << 10;
/// Above this, file offsets and sums of sizes come near their limits.
const MOST_STORE_BYTES: u64 = 1 << 50;
/// Longer intervals would keep senders waiting beyond any time-out of theirs.
const LONGEST_COMMIT_INTERVAL: Duration = Duration::from_secs(60);
/// A kept payload must fit the memory of a gateway.
const MOST_KEPT_PAYLOAD_BYTES: u64 = 16 << 20;

/// How the agent logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A `tracing` filter such as `info` or `info,holdfast::forward=debug`.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::default() }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// True if `name` may name an agent or a component.
pub(super) fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// `[agent]`: its id, its data directory, and whom it trusts with the clock.
pub(super) fn agent(root: &Section<'_, '_>) -> (String, PathBuf, Trust) {
    let section = root.section("agent", "a table [agent]");
    let report = section.report;
    let id = section.text("id", NAME_FORM);
    let id = match id {
        Some(id) => {
            if !is_name(id.value) {
                invalid(report, &id.place, None, NAME_FORM);
            }
            id.value.to_owned()
        }
        None => {
            let host_name = report.environment.host_name();
            if !section.has("id") && !is_name(&host_name) {
                let place = Place { key: section.path("id"), span: section.place.span.clone() };
                report.fault(&place, Problem::NoAgentId { host_name: host_name.clone() });
            }
            host_name
        }
    };
    let data_dir = section
        .text("data_dir", "the path of a folder")
        .and_then(|given| path(report, &given, "the path of a folder"));
    let trusts = [("kernel", Trust::Kernel), ("trusted", Trust::Operator)];
    let trust = value_or(section.choice("clock", "\"kernel\" or \"trusted\"", &trusts), Trust::default());
    section.finish();
    let data_dir = data_dir
        .or_else(|| first_folder(report, "STATE_DIRECTORY"))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    (id, data_dir, trust)
}

/// The path at `given`, from the configuration file's folder.
fn path(report: &Report<'_>, given: &Given<&str>, expected: &'static str) -> Option<PathBuf> {
    if given.value.is_empty() || given.value.contains('\0') {
        invalid(report, &given.place, None, expected);
        return None;
    }
    Some(report.beside_file(given.value))
}

/// The first of the folders in one of systemd's variables (systemd.exec(5): several are separated by colons).
fn first_folder(report: &Report<'_>, variable: &str) -> Option<PathBuf> {
    let folders = report.environment.variable(variable)?;
    folders.split(':').find(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// `[admin]`.
pub(super) fn admin(root: &Section<'_, '_>, data_dir: &Path) -> status::Settings {
    let section = root.section("admin", "a table [admin]");
    let report = section.report;
    let listen = match section.text("listen", LISTEN_FORM) {
        Some(given) if given.value.is_empty() => None,
        Some(given) => address(report, &given).map(|address| Given { value: address, place: given.place }),
        None => Some(Given { value: DEFAULT_ADMIN_LISTEN, place: section.place.clone() }),
    };
    let open = value_or(section.flag("open"), false);
    if let Some(listen) = &listen
        && !open
        && !is_local(listen.value)
    {
        let remedy = "listen on 127.0.0.1, or write open = true to let everybody read the status";
        report.fault(&listen.place, Problem::Open { address: listen.value.to_string(), remedy });
    }
    let socket = match section.text("socket", "the path of a socket, or \"\" for none") {
        Some(given) if given.value.is_empty() => None,
        Some(given) => {
            let socket = path(report, &given, "the path of a socket, or \"\" for none");
            if socket.as_deref().is_some_and(is_too_long) {
                invalid(
                    report,
                    &given.place,
                    None,
                    format!("a path of at most {MAX_SOCKET_PATH_BYTES} bytes"),
                );
            }
            socket
        }
        None => Some(default_socket(&section, data_dir)),
    };
    section.finish();
    status::Settings { listen: listen.map(|listen| listen.value), socket }
}

fn default_socket(section: &Section<'_, '_>, data_dir: &Path) -> PathBuf {
    let environment = section.report.environment;
    let is_of_service = || {
        let found = environment.look(Path::new(SERVICE_RUNTIME_DIR));
        let is_folder = found.is_err_and(|error| error.kind() == io::ErrorKind::IsADirectory);
        is_folder && data_dir == Path::new(DEFAULT_DATA_DIR)
    };
    let folder = first_folder(section.report, "RUNTIME_DIRECTORY")
        .or_else(|| is_of_service().then(|| PathBuf::from(SERVICE_RUNTIME_DIR)))
        .unwrap_or_else(|| data_dir.to_owned());
    let socket = folder.join(SOCKET_NAME);
    if is_too_long(&socket) {
        let place = Place { key: section.path("socket"), span: section.place.span.clone() };
        section.report.note(&place, Remark::SocketPathTooLong { path: socket.display().to_string() });
    }
    socket
}

fn is_too_long(socket: &Path) -> bool {
    socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES
}

/// An address to listen on.
pub(super) fn address(report: &Report<'_>, given: &Given<&str>) -> Option<SocketAddr> {
    let address = given.value.parse().ok();
    if address.is_none() {
        let port = |prefix: &str| given.value.strip_prefix(prefix).filter(|port| port.parse::<u16>().is_ok());
        let nearest = port("localhost:").map(|port| format!("127.0.0.1:{port}"));
        let nearest =
            nearest.or_else(|| port(":").or_else(|| port("*:")).map(|port| format!("0.0.0.0:{port}")));
        invalid(report, &given.place, nearest, LISTEN_FORM);
    }
    address
}

/// True if only this host can reach it.
pub(super) fn is_local(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// `[log]`.
pub(super) fn log(root: &Section<'_, '_>) -> LogSettings {
    const FILTER: &str =
        "a level (error, warn, info, debug, trace, off) or a filter such as \"info,holdfast::forward=debug\"";
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let section = root.section("log", "a table [log]");
    let defaults = LogSettings::default();
    let level = section.text("level", FILTER);
    if let Some(given) = &level {
        let lower = given.value.to_lowercase();
        // A lone word that is no level would be taken for the name of a module, of which nothing else is then logged.
        let near = nearest(given.value, LEVELS).filter(|_| !LEVELS.contains(&lower.as_str()));
        let is_empty = given.value.trim().is_empty();
        if near.is_some() || is_empty || given.value.parse::<Targets>().is_err() {
            invalid(section.report, &given.place, near, FILTER);
        }
    }
    let choices = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = value_or(section.choice("format", "\"text\" or \"json\"", &choices), defaults.format);
    section.finish();
    LogSettings { filter: level.map_or(defaults.filter, |given| given.value.to_owned()), format }
}

/// `[store]`, `[streams]` and `[dead_letters]`.
pub(super) fn store(root: &Section<'_, '_>, data_dir: PathBuf) -> store::Settings {
    let defaults = store::Settings::in_dir(data_dir);
    let section = root.section("store", "a table [store]");
    let max_size = section.size("max_size", LEAST_STORE_BYTES..=MOST_STORE_BYTES);
    let max_age = section.duration("max_age", Duration::from_secs(1)..=LONGEST);
    let policies = [("shed", store::settings::WhenFull::Shed), ("block", store::settings::WhenFull::Block)];
    let when_full = section.choice("when_full", "\"shed\" or \"block\"", &policies);
    let commit_interval =
        section.duration("commit_interval", Duration::from_millis(1)..=LONGEST_COMMIT_INTERVAL);
    section.finish();
    let dead_letters = dead_letters(root, defaults.dead_letters);
    let max_size_bytes = value_or(max_size, defaults.max_size_bytes);
    let max_age = value_or(max_age, defaults.max_age);
    store::Settings {
        max_size_bytes,
        max_age,
        streams: streams(root, max_size_bytes, max_age),
        when_full: value_or(when_full, defaults.when_full),
        commit_interval: value_or(commit_interval, defaults.commit_interval),
        dead_letters,
        data_dir: defaults.data_dir,
    }
}

/// `[streams.<name>]`: limits within the store's. One as high as the store's is none.
fn streams(root: &Section<'_, '_>, max_size_bytes: u64, max_age: Duration) -> [StreamLimits; 3] {
    let all = root.section("streams", "a table such as [streams.readings]");
    let report = all.report;
    let limits = Stream::ALL.map(|stream| {
        let section = all.section(stream.name(), "a table such as { max_size = \"64MiB\" }");
        let own_size = section.size("max_size", LEAST_STORE_BYTES..=MOST_STORE_BYTES);
        let own_age = section.duration("max_age", Duration::from_secs(1)..=LONGEST);
        section.finish();
        if let Some(own) = own_size.as_ref().filter(|own| own.value > max_size_bytes) {
            let (size, max) = (show_size(own.value), show_size(max_size_bytes));
            report.fault(&own.place, Problem::AboveStore { given: size, key: "max_size", max });
        }
        if let Some(own) = own_age.as_ref().filter(|own| own.value > max_age) {
            let (age, max) = (show_duration(own.value), show_duration(max_age));
            report.fault(&own.place, Problem::AboveStore { given: age, key: "max_age", max });
        }
        StreamLimits {
            max_size_bytes: own_size.map(|own| own.value).filter(|own| *own != max_size_bytes),
            max_age: own_age.map(|own| own.value).filter(|own| *own != max_age),
        }
    });
    all.finish();
    limits
}

fn dead_letters(
    root: &Section<'_, '_>,
    defaults: store::settings::DeadLetterSettings,
) -> store::settings::DeadLetterSettings {
    let section = root.section("dead_letters", "a table [dead_letters]");
    let max_size = section.size("max_size", 0..=MOST_STORE_BYTES);
    let max_payload = section.size("max_payload", 0..=MOST_KEPT_PAYLOAD_BYTES);
    section.finish();
    let max_size_bytes = value_or(max_size, defaults.max_size_bytes);
    let max_payload_bytes = in_memory(max_payload, defaults.max_payload_bytes);
    store::settings::DeadLetterSettings { max_size_bytes, max_payload_bytes }
}

/// A number that was bounded to what fits in memory.
pub(super) fn in_memory(given: Option<Given<u64>>, default: usize) -> usize {
    given.map_or(default, |given| usize::try_from(given.value).unwrap_or(usize::MAX))
}
