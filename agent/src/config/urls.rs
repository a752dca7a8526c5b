//! URLs of brokers and of sinks.

use reqwest::Url;

use super::fault::Problem;
use super::nearest::nearest;
use super::reader::{Given, invalid};
use super::report::Report;

/// What a URL must be.
pub(super) struct Form {
    /// The schemes allowed, the plain one first.
    pub(super) schemes: [&'static str; 2],
    /// What it looks like.
    pub(super) expected: &'static str,
    /// Where credentials go instead of into the URL.
    pub(super) credentials: &'static str,
    /// Whether a path and a query may follow the host.
    pub(super) path: Path,
}

/// What may follow the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// A path, and a query.
    Allowed,
    /// Nothing but a slash.
    Empty,
}

/// A broker's URL.
pub(super) const BROKER: Form = Form {
    schemes: ["mqtt", "mqtts"],
    expected: "a URL such as \"mqtt://127.0.0.1:1883\" or \"mqtts://broker.example.com\"",
    credentials: "use the keys username and password",
    path: Path::Empty,
};

/// A sink's URL.
pub(super) const SINK: Form = Form {
    schemes: ["http", "https"],
    expected: "a URL such as \"https://ingest.example.com/v1/telemetry\"",
    credentials: "use headers = { Authorization = { file = \"…\" } }",
    path: Path::Allowed,
};

/// What a host with other letters should be. We have no tables of Unicode to translate it ourselves.
const HOST_IN_ASCII: &str = "a host in ASCII, such as \"xn--bcher-kva.example\" for \"bücher.example\"";

/// True if what is sent to `url` leaves this host, where others may read it.
pub(super) fn is_readable_on_its_way(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_local = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    !is_local && matches!(url.scheme(), "http" | "mqtt")
}

/// The URL at `given`, or `None` with a fault.
pub(super) fn url(report: &Report<'_>, given: &Given<&str>, form: &Form) -> Option<Url> {
    let text = given.value;
    let after_scheme = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        report.fault(&given.place, Problem::UserinfoInUrl { remedy: form.credentials });
        return None;
    }
    let expected = if authority.is_ascii() { form.expected } else { HOST_IN_ASCII };
    let wrong = |nearest| {
        if text.contains(['@', '?']) {
            // What follows may be a password with a slash in it, or a token.
            let text = "the URL (not shown)".to_owned();
            report.fault(&given.place, Problem::Invalid { text, nearest, expected: expected.to_owned() });
        } else {
            invalid(report, &given.place, nearest, expected);
        }
    };
    let Some((scheme, _)) = text.split_once("://") else {
        wrong(None);
        return None;
    };
    if !form.schemes.contains(&scheme) {
        let near = nearest(scheme, form.schemes).filter(|_| !text.contains(['@', '?']));
        wrong(near.map(|near| format!("{near}://{after_scheme}")));
        return None;
    }
    let url = Url::parse(text).ok().filter(|url| is_as_it_should_be(url, text, form.path));
    if url.is_none() {
        wrong(None);
    }
    url
}

fn is_as_it_should_be(url: &Url, text: &str, path: Path) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host_is_plain = !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    let text_is_plain = !text.contains(|char: char| char.is_whitespace() || char.is_control());
    let rest_is_empty = matches!(url.path(), "" | "/") && url.query().is_none();
    host_is_plain
        && text_is_plain
        && url.port() != Some(0)
        && url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
        && (path == Path::Allowed || rest_is_empty)
}
