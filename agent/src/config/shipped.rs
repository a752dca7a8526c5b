//! The files that are shipped, `config/holdfast.toml` and `config/examples/*.toml`, say what the code does.

use std::path::Path;

use super::fault::Problem;
use super::tests::Bench;
use super::{Config, Loaded, parse};

const SHIPPED: &str = include_str!("../../../config/holdfast.toml");

/// Removes `mark` from the beginning of lines.
fn without(mark: &str, text: &str) -> String {
    text.lines().map(|line| line.strip_prefix(mark).unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// The machine that the shipped file describes.
fn gateway() -> Bench {
    let mut bench = Bench { host_name: "gw-lab-01".to_owned(), ..Bench::default() };
    bench.variables.insert("RUNTIME_DIRECTORY".to_owned(), "/run/holdfast".to_owned());
    bench.file("/etc/holdfast/users.toml", "sensor = \"$argon2id$...\"");
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        bench.file(&format!("/etc/holdfast/{file}"), "");
    }
    bench
}

fn load(text: &str) -> Loaded {
    parse(text, "/etc/holdfast/holdfast.toml", &gateway()).unwrap_or_else(|faults| panic!("{faults}"))
}

fn built_in() -> Config {
    load("").config
}

#[test]
fn the_shipped_file_changes_nothing() {
    assert_eq!(load(SHIPPED).config, built_in());
}

#[test]
fn its_commented_out_settings_are_the_defaults() {
    let text = without("# ", SHIPPED);
    assert!(text.contains("\nmax_age = \"30d\"\n"));
    assert_eq!(load(&text).config, built_in());
}

#[test]
fn its_examples_work_and_say_the_defaults() {
    let examples = without("#| ", SHIPPED);
    let config = load(&examples).config;
    assert_eq!((config.sources.len(), config.windows.len(), config.sinks.len()), (7, 1, 1));
    assert_eq!(config.sources[0].subscriptions().len(), 4);
    let all = without("# ", &examples);
    assert_ne!(all, examples);
    assert_eq!(load(&all).config, config);
}

#[test]
fn it_names_every_key() {
    // An unknown key in each table makes the reader tell which it knows.
    let examples = without("# ", &without("#| ", SHIPPED));
    let mut text = String::from("unknown = 1\n");
    for line in examples.lines() {
        text.push_str(
            &line.replace(" }", ", unknown = 1 }").replace("{field}", "x").replace("{device}", "y"),
        );
        text.push('\n');
        if line.starts_with('[') {
            text.push_str("unknown = 1\n");
        }
    }
    let faults = parse(&text, "/etc/holdfast/holdfast.toml", &gateway()).unwrap_err();
    let mut sections = 0;
    for fault in &faults.0 {
        let Problem::UnknownKey { expected, .. } = &fault.problem else { continue };
        sections += 1;
        for key in expected {
            let names_it = SHIPPED.contains(&format!(" {key} = "))
                || SHIPPED.contains(&format!("[{key}"))
                || SHIPPED.contains(&format!(".{key}]]"));
            assert!(names_it, "{}: {key} is not in the shipped file", fault.key);
        }
    }
    assert!(sections >= 18, "{sections} sections: {faults}");
}

#[test]
fn each_example_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let loaded = parse(&text, &path.display().to_string(), &Bench::default());
        let config = loaded.unwrap_or_else(|faults| panic!("{faults}")).config;
        assert!(!config.sources.is_empty() && !config.windows.is_empty() && !config.sinks.is_empty());
        count += 1;
    }
    assert_eq!(count, 4);
}
