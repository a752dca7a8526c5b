//! What operators write wrongly, and what they are told.

use harness::Agent;
use harness::agent::command;

use crate::HOLDFAST;

const FAULTY: &str = r#"
[store]
max_szie = "1GiB"
commit_interval = "1 parsec"

[sources.plant]
type = "mqtt"
url = "mqtt://127.0.0.1"
password = 12345678
subscribe = [{ topic = "a/{devcie}/{device}/{device}" }]

[windows.minute]
size = "1m"
sources = ["plnat"]

[sinks.cloud]
type = "http"
url = "http://127.0.0.1:1/"
streams = ["radings"]
headers = { Authorization = ["Bearer s3cr3t-t0ken"] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_told_at_once_with_its_place() {
    let agent = Agent::new(HOLDFAST, FAULTY);
    let file = agent.config();
    let file = file.to_str().unwrap();
    for program in ["check", "run"] {
        let output = agent.command(&[program]).await;
        assert_eq!(output.status.code(), Some(2), "{program}");
        let told = String::from_utf8(output.stderr).unwrap();
        let faults: Vec<_> = told.lines().filter(|line| line.starts_with(file)).collect();
        for fault in &faults {
            let mut place = fault.strip_prefix(file).unwrap().split(':').skip(1);
            let numbers =
                [place.next(), place.next()].map(|part| part.and_then(|part| part.parse::<u32>().ok()));
            assert!(numbers.iter().all(Option::is_some), "no line and column: {fault}");
        }
        let expected = [
            ("max_szie", "did you mean \"max_size\""),
            ("commit_interval", "1 parsec"),
            ("password", ""),
            ("topic", "device"),
            ("plnat", "did you mean \"plant\""),
            ("radings", "did you mean \"readings\""),
            ("Authorization", ""),
        ];
        for (what, hint) in expected {
            let is_told = faults.iter().any(|fault| fault.contains(what) && fault.contains(hint));
            assert!(is_told, "{program} does not say {what} {hint}:\n{told}");
        }
        assert!(!told.contains("s3cr3t") && !told.contains("12345678"), "a secret is shown:\n{told}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(!stdout.contains("s3cr3t") && !stdout.contains("12345678"), "a secret is shown:\n{stdout}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_the_line_and_column_of_the_fault() {
    let agent = Agent::new(HOLDFAST, "");
    std::fs::write(agent.config(), "[agent]\nid = \"gw\"\n[admin]\n  lisen = \"127.0.0.1:0\"\n").unwrap();
    let output = agent.command(&["check"]).await;
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    let expected = format!("{}:4:3: ", agent.config().display());
    assert!(told.contains(&expected) && told.contains("did you mean \"listen\""), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_file_is_summed_up_on_one_screen() {
    let agent = Agent::new(
        HOLDFAST,
        "[store]\nmax_size = \"2GiB\"\n\
         [sources.plant]\ntype = \"mqtt\"\nurl = \"mqtt://broker.test\"\nusername = \"gw\"\npassword = \"s3cr3t\"\n\
         [[sources.plant.subscribe]]\ntopic = \"sensors/{line}/{device}/telemetry\"\ntime = \"/ts\"\n\
         [windows.minute]\nsize = \"1m\"\naggregates = [\"mean\", \"p95\"]\n\
         [sinks.cloud]\ntype = \"http\"\nurl = \"http://cloud.test/v1\"\nheaders = { Authorization = \"Bearer s3cr3t\" }\n",
    );
    let output = agent.command(&["check"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for what in [
        "gw-e2e",
        "2GiB",
        "broker.test",
        "sensors/+/+/telemetry",
        "minute",
        "1m",
        "mean",
        "p95",
        "http://cloud.test/v1",
        "windows",
        "readings",
    ] {
        assert!(text.contains(what), "the summary lacks {what}:\n{text}");
    }
    assert!(!text.contains("s3cr3t"), "{text}");
    assert!(text.lines().count() <= 40, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_toml_or_not_there_is_a_fault_too() {
    let agent = Agent::new(HOLDFAST, "");
    for text in ["[agent\nid = \"x\"\n", "\u{feff}\0\0\0", "id = ", "[a]\n[a]\n"] {
        std::fs::write(agent.config(), text).unwrap();
        for program in ["check", "run"] {
            let output = agent.command(&[program]).await;
            assert_eq!(output.status.code(), Some(2), "{text:?}");
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(told.contains(&format!("{}:", agent.config().display())), "{told}");
        }
    }
    std::fs::write(agent.config(), [0x66, 0xff, 0xfe]).unwrap();
    assert_eq!(agent.command(&["check"]).await.status.code(), Some(2));
    std::fs::remove_file(agent.config()).unwrap();
    let output = agent.command(&["check"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_usage_ends_with_2_and_help_with_0() {
    for (arguments, code) in [
        (&["--no-such-option"][..], 2),
        (&["frobnicate"], 2),
        (&[], 2),
        (&["--help"], 0),
        (&["run", "--help"], 0),
        (&["--version"], 0),
        (&["demo", "--duration", "soon"], 2),
    ] {
        assert_eq!(command(HOLDFAST, arguments).await.status.code(), Some(code), "{arguments:?}");
    }
}
