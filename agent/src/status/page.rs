//! The page: one document with everything in it, a snapshot of the status included.
//!
//! With JavaScript the snapshot is drawn at once and then kept fresh by polling; without, the text of `holdfast status`
//! stands there and the browser reloads it.

use std::fmt::Write as _;

use super::Status;
use super::text;

const TEMPLATE: &str = include_str!("page.html");

/// A page, and the policy under which its own script and style run and nothing else does.
pub(super) struct Rendered {
    pub(super) html: String,
    pub(super) policy: String,
}

/// The page with the snapshot `status`.
pub(super) fn render(status: &Status) -> Rendered {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    Rendered { html: filled(&nonce, status), policy }
}

/// The template with its `{{places}}` filled, in one pass: what is filled in is never searched for places.
fn filled(nonce: &str, status: &Status) -> String {
    let mut out = String::with_capacity(TEMPLATE.len() + (16 << 10));
    let mut parts = TEMPLATE.split("{{");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (place, rest) = part.split_once("}}").unwrap_or((part, ""));
        match place {
            "nonce" => out.push_str(nonce),
            "agent" => escape_html(&text::shown(&status.agent), &mut out),
            "text" => escape_html(&text::render(status), &mut out),
            "json" => escape_json(&serde_json::to_string(status).unwrap_or_default(), &mut out),
            // A test sees to it that there is no other.
            _ => {}
        }
        out.push_str(rest);
    }
    out
}

/// Text as HTML.
fn escape_html(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
}

/// JSON as the content of a script element: nothing in it can end the element or begin a comment.
fn escape_json(json: &str, out: &mut String) {
    for c in json.chars() {
        match c {
            // Outside of strings, JSON has none of these; within, the escape means the same.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("writing to a String cannot fail");
            }
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::fixture;

    #[test]
    fn every_place_of_the_template_is_known_and_the_page_is_small() {
        let places: Vec<&str> =
            TEMPLATE.split("{{").skip(1).map(|part| part.split_once("}}").unwrap().0).collect();
        for place in places {
            assert!(["nonce", "agent", "text", "json"].contains(&place), "{place}");
        }
        assert!(TEMPLATE.len() <= 40 << 10, "{} bytes", TEMPLATE.len());
    }

    #[test]
    fn the_page_asks_nobody_else_and_never_parses_values_as_html() {
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "//cdn",
            "@import",
            " style=\"",
        ] {
            assert!(!TEMPLATE.contains(forbidden), "{forbidden}");
        }
        let without_namespaces = TEMPLATE.replace("http://www.w3.org/2000/svg", "");
        assert!(!without_namespaces.contains("http://") && !without_namespaces.contains("https://"));
    }

    #[tokio::test]
    async fn hostile_names_and_errors_cannot_leave_their_place() {
        let hostile = [
            "</script><script>alert(1)</script>",
            "</pre></noscript><img src=x onerror=alert(1)>",
            "<!--<script>",
            "\"'&amp;\u{2028}\u{1b}[2J\0",
            "{{nonce}}{{json}}",
            "]]>\u{202e}gnp.exe",
        ];
        for name in hostile {
            let (rooms, inputs) = fixture::rooms();
            rooms.windows.send_replace(fixture::windows(name));
            rooms.plant.send_modify(|report| report.last_error = Some(name.to_owned()));
            rooms.cloud.send_modify(|report| report.last_error = Some(name.to_owned()));
            let status = Status::read(&inputs);

            let html = render(&status).html;
            let tags = |text: &str| {
                ["<script", "</script", "<img", "</pre", "</noscript", "<!--"]
                    .map(|tag| text.matches(tag).count())
            };
            assert_eq!(tags(&html), tags(TEMPLATE), "{name:?}");
            assert!(!html.contains(['\u{1b}', '\0']), "{name:?}");

            let (_, from) = html.split_once("type=\"application/json\">").unwrap();
            let (json, _) = from.split_once("</script>").unwrap();
            let read: Status = serde_json::from_str(json).unwrap();
            assert_eq!(read, status);
            assert_eq!(read.newest_windows[0].device, name);
        }
    }
}
