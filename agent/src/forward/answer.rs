//! What an answer means (contract, section 5). Pure.

use std::time::Duration;

use serde::Deserialize;

use super::settings::AckRule;

/// `Retry-After` is honoured up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);

/// What the sink said to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has the batch; perhaps it says what it wants next.
    Delivered(Option<u64>),
    /// It cannot now: the same body again, after a pause (at least the one it asks for).
    Retry(Option<Duration>),
    /// It refuses the records: 400, 422.
    Refused,
    /// The body is too large for it: 413.
    TooLarge,
    /// It refuses our credentials: 401, 403, 407.
    Unauthorized,
    /// It is not what it should be: a redirect, another 4xx.
    Misconfigured,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The beginning of the body.
    pub body: Vec<u8>,
    /// The header `Retry-After`, as a pause from now.
    pub retry_after: Option<Duration>,
}

#[derive(Deserialize)]
struct Next {
    next: u64,
}

impl Answer {
    pub(super) fn verdict(&self, rule: AckRule) -> Verdict {
        match self.status {
            200..=299 => match (self.next(), rule) {
                (None, AckRule::Body) => Verdict::Retry(None),
                (next, AckRule::Body | AckRule::Status) => Verdict::Delivered(next),
            },
            400 | 422 => Verdict::Refused,
            413 => Verdict::TooLarge,
            401 | 403 | 407 => Verdict::Unauthorized,
            408 | 409 | 425 | 429 | 500..=599 => Verdict::Retry(self.retry_after),
            300..=499 => Verdict::Misconfigured,
            _ => Verdict::Retry(None),
        }
    }

    /// What it was, for people.
    pub(super) fn describe(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        if text.is_empty() {
            format!("status {}", self.status)
        } else {
            format!("status {}: {text}", self.status)
        }
    }

    fn next(&self) -> Option<u64> {
        // serde would read a list as the fields in order.
        self.body.trim_ascii_start().strip_prefix(b"{")?;
        serde_json::from_slice::<Next>(&self.body).ok().map(|next| next.next)
    }
}

/// The pause that a `Retry-After` asks for: seconds, or an HTTP date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(value: &str, now: std::time::SystemTime) -> Option<Duration> {
    let value = value.trim();
    let pause = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(pause.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: u16, body: &str, rule: AckRule) -> Verdict {
        let retry_after = Some(Duration::from_secs(7));
        Answer { status, body: body.as_bytes().to_vec(), retry_after }.verdict(rule)
    }

    #[test]
    fn every_status_means_what_the_contract_says() {
        let check =
            |status, expected| assert_eq!(verdict(status, "<html>", AckRule::Status), expected, "{status}");
        let pause = Some(Duration::from_secs(7));
        for status in [200, 201, 202, 204] {
            check(status, Verdict::Delivered(None));
        }
        for status in [408, 409, 425, 429, 500, 502, 503, 504, 599] {
            check(status, Verdict::Retry(pause));
        }
        for status in [301, 302, 307, 308, 404, 405, 410, 415, 418, 451] {
            check(status, Verdict::Misconfigured);
        }
        for status in [401, 403, 407] {
            check(status, Verdict::Unauthorized);
        }
        check(400, Verdict::Refused);
        check(422, Verdict::Refused);
        check(413, Verdict::TooLarge);
    }

    #[test]
    fn a_body_with_next_moves_the_cursor_there() {
        assert_eq!(verdict(200, "{\"next\":12}", AckRule::Status), Verdict::Delivered(Some(12)));
        assert_eq!(verdict(200, "{\"next\":12,\"x\":1}", AckRule::Body), Verdict::Delivered(Some(12)));
        for garbage in ["", "ok", "<html>", "{\"next\":-1}", "{\"next\":\"12\"}", "[12]"] {
            assert_eq!(verdict(200, garbage, AckRule::Status), Verdict::Delivered(None), "{garbage}");
            assert_eq!(verdict(200, garbage, AckRule::Body), Verdict::Retry(None), "{garbage}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
        let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |value: &str, seconds: Option<u64>| {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value}");
        };
        check("3", Some(3));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("999999", Some(3_600));
        check("soon", None);
    }
}
