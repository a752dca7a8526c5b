//! Secrets, certificates and other files that a configuration points to.

use std::io;
use std::path::{Path, PathBuf};

use super::fault::Problem;
use super::note::Remark;
use super::reader::{Given, Item, Section};
use super::report::Report;
use crate::secret::Secret;
use crate::tls;

/// The password or header value at `item`: a string, or where to find it.
pub(super) fn secret(item: Item<'_, '_>) -> Option<Secret> {
    const FORM: &str = "a string, { file = \"…\" } or { env = \"…\" }";
    if let toml::de::DeValue::String(text) = item.value {
        return Some(Secret::Inline(text.clone().into_owned()));
    }
    let section = item.section(FORM)?;
    let file = section.text("file", "the path of a file that holds the secret");
    let env = section.text("env", "the name of an environment variable");
    section.finish();
    match (file, env) {
        (Some(_), Some(_)) => {
            let why = "a secret has one place: either file or env";
            section.report.fault(&section.place, Problem::Pointless { key: "env", why });
            None
        }
        (Some(file), None) => secret_file(section.report, &file),
        (None, Some(name)) => secret_variable(section.report, &name),
        (None, None) => {
            if section.is_empty() {
                section.report.fault(&section.place, Problem::Missing { expected: FORM });
            }
            None
        }
    }
}

fn secret_file(report: &Report<'_>, given: &Given<&str>) -> Option<Secret> {
    let path = Path::new(given.value);
    if given.value.is_empty() {
        let problem = Problem::Invalid {
            text: "\"\"".to_owned(),
            nearest: None,
            expected: "the path of a file".to_owned(),
        };
        report.fault(&given.place, problem);
        return None;
    }
    let folder = report.environment.variable("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
    match (path.is_absolute(), folder) {
        (true, _) => must_exist(report, given, path, "the file of a secret"),
        (false, Some(folder)) => {
            must_exist(
                report,
                given,
                &Path::new(&folder).join(path),
                "the file of a secret in $CREDENTIALS_DIRECTORY",
            );
        }
        (false, None) => report.note(&given.place, Remark::RelativeSecret { file: given.value.to_owned() }),
    }
    Some(Secret::File(path.to_owned()))
}

fn secret_variable(report: &Report<'_>, given: &Given<&str>) -> Option<Secret> {
    if given.value.is_empty() || given.value.contains(['=', '\0']) {
        super::reader::invalid(report, &given.place, None, "the name of an environment variable");
        return None;
    }
    if report.environment.variable(given.value).is_none() {
        report.note(&given.place, Remark::VariableNotSet { name: given.value.to_owned() });
    }
    Some(Secret::Env(given.value.to_owned()))
}

/// Reports a file that is not there. One that this user cannot look at may be there for the service's.
fn must_exist(report: &Report<'_>, given: &Given<&str>, path: &Path, expected: &'static str) {
    let Err(error) = report.environment.look(path) else { return };
    let path = path.display().to_string();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            report.note(&given.place, Remark::CannotLook { file: path, reason: error.to_string() });
        }
        io::ErrorKind::NotFound => {
            report.fault(
                &given.place,
                Problem::BadFile { path, reason: "does not exist".to_owned(), expected },
            );
        }
        io::ErrorKind::IsADirectory => {
            report.fault(&given.place, Problem::BadFile { path, reason: "is a folder".to_owned(), expected });
        }
        _ => report.fault(
            &given.place,
            Problem::BadFile { path, reason: format!("cannot be read: {error}"), expected },
        ),
    }
}

/// The file at `key`, relative to the configuration file's folder, reported if it is not there.
fn file(section: &Section<'_, '_>, key: &'static str, expected: &'static str) -> Option<PathBuf> {
    let given = section.text(key, expected)?;
    let path = section.report.beside_file(given.value);
    must_exist(section.report, &given, &path, expected);
    Some(path)
}

/// A client's `tls` table; `None` if there is none.
pub(super) fn client_tls(parent: &Section<'_, '_>) -> Option<tls::ClientSettings> {
    let section = parent.section("tls", "a table such as { ca_file = \"ca.pem\" }");
    section.given_place()?;
    let ca_file = file(&section, "ca_file", "a PEM file of certificates to trust");
    let (cert_file, key_file) = pair(&section);
    section.finish();
    Some(tls::ClientSettings { ca_file, cert_file, key_file })
}

/// A listener's `tls` table; `None` if there is none or it is faulty.
pub(super) fn server_tls(parent: &Section<'_, '_>) -> Option<tls::ServerSettings> {
    let section =
        parent.section("tls", "a table such as { cert_file = \"cert.pem\", key_file = \"key.pem\" }");
    section.given_place()?;
    let (cert_file, key_file) = pair(&section);
    let client_ca_file =
        file(&section, "client_ca_file", "a PEM file of authorities whose clients are let in");
    section.finish();
    if !section.has("cert_file") && !section.has("key_file") {
        section.require("cert_file", "a PEM file of our certificate chain");
        section.require("key_file", "a PEM file of its key");
    }
    Some(tls::ServerSettings { cert_file: cert_file?, key_file: key_file?, client_ca_file })
}

/// A certificate and its key, which go together.
fn pair(section: &Section<'_, '_>) -> (Option<PathBuf>, Option<PathBuf>) {
    let cert_file = file(section, "cert_file", "a PEM file of our certificate chain");
    let key_file = file(section, "key_file", "a PEM file of the certificate's key");
    let half = match (section.has("cert_file"), section.has("key_file")) {
        (true, false) => Some(("cert_file", "key_file")),
        (false, true) => Some(("key_file", "cert_file")),
        (true, true) | (false, false) => None,
    };
    if let Some((present, absent)) = half {
        section.report.fault(&section.place, Problem::HalfPair { present, absent });
    }
    (cert_file, key_file)
}

/// The `users` table: where names and hashes are kept. The file's form is checked, the hashes are not.
pub(super) fn users(parent: &Section<'_, '_>) -> Option<PathBuf> {
    const FORM: &str = "a table such as { file = \"users.toml\" }";
    const CONTENTS: &str = "a TOML file of lines name = \"argon2 hash\"";
    let section = parent.section("users", FORM);
    section.given_place()?;
    let given = section.text("file", "the path of a TOML file of users");
    section.require("file", "the path of a TOML file of users");
    section.finish();
    let given = given?;
    let report = section.report;
    let path = report.beside_file(given.value);
    let bad = |reason: String| {
        let path = path.display().to_string();
        report.fault(&given.place, Problem::BadFile { path, reason, expected: CONTENTS });
    };
    match report.environment.read(&path) {
        Ok(contents) => match count_users(&contents) {
            Ok(0) => report.note(&given.place, Remark::NoUsers),
            Ok(_) => {}
            Err(reason) => bad(reason),
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let file = path.display().to_string();
            report.note(&given.place, Remark::CannotLook { file, reason: error.to_string() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => bad("does not exist".to_owned()),
        Err(error) => bad(format!("cannot be read: {error}")),
    }
    Some(path)
}

/// How many users the file names, or what is wrong with it, without a word of its contents beside names.
fn count_users(contents: &[u8]) -> Result<usize, String> {
    let text = str::from_utf8(contents).map_err(|_| "is not UTF-8 text".to_owned())?;
    let lines = super::lines::Lines::of(text);
    let at = |offset: usize| {
        let position = lines.position(offset);
        format!("line {}, column {}", position.line, position.column)
    };
    let table = toml::de::DeTable::parse(text).map_err(|error| {
        format!("is not TOML: {}: {}", at(error.span().map_or(0, |span| span.start)), error.message())
    })?;
    for (name, value) in table.get_ref() {
        if !value.get_ref().is_str() {
            return Err(format!("has no string for {:?} ({})", name.get_ref(), at(value.span().start)));
        }
    }
    Ok(table.get_ref().len())
}
