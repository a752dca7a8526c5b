use super::*;
use crate::status::fixture::rooms;
use crate::stream::Seq;

#[tokio::test]
async fn the_json_is_that_of_the_contract() {
    let (_rooms, inputs) = rooms();
    let json = serde_json::to_value(Status::read(&inputs)).unwrap();
    assert_eq!(json["agent"], "gw-lab-01");
    assert_eq!(json["epoch"], "00000000-0000-0000-0000-000000000007");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["uptime_s"].is_f64());
    assert_eq!(json["state"], "online");
    assert_eq!(json["store"]["bytes"], 123);
    assert_eq!(json["store"]["max_bytes"], 1 << 30);
    assert_eq!(json["store"]["state"], "ok");
    let readings = &json["streams"]["readings"];
    assert_eq!(
        [&readings["appended"], &readings["next_seq"], &readings["oldest_seq"]],
        [1000, 1001, 900],
        "{readings}"
    );
    let plant = &json["sources"]["plant"];
    assert_eq!(plant["state"], "connected");
    let counts = ["received", "stored", "rejected", "redelivered", "skipped"].map(|name| &plant[name]);
    assert_eq!(counts, [1012, 1000, 4, 6, 2]);
    let cloud = &json["sinks"]["cloud"];
    assert_eq!(cloud["state"], "up");
    assert!(cloud["last_error"].is_null() && cloud["next_attempt_s"].is_null());
    let ledger =
        ["delivered", "pending", "dead_lettered", "shed"].map(|name| &cloud["streams"]["readings"][name]);
    assert_eq!(ledger, [985, 10, 1, 4]);
    assert_eq!(cloud["balanced"], true);
    let read: Status = serde_json::from_value(json).unwrap();
    assert_eq!(read.sinks["cloud"].streams["readings"].pending, 10);
}

#[tokio::test]
async fn the_state_is_the_worst_thing_that_is_true() {
    use forward::State as Sink;
    use source::State as Source;
    let check = |store, source, sink, expected: AgentState| {
        let (rooms, inputs) = rooms();
        rooms.store.send_modify(|report| report.state = store);
        rooms.plant.send_modify(|report| report.state = source);
        rooms.cloud.send_modify(|report| report.state = sink);
        assert_eq!(Status::read(&inputs).state, expected, "{store:?} {source:?} {sink:?}");
    };
    check(StoreState::Ok, Source::Connected, Sink::Up, AgentState::Online);
    check(StoreState::Ok, Source::Disconnected, Sink::Up, AgentState::Online);
    for down in [Sink::Retrying, Sink::Unauthorized, Sink::Misconfigured, Sink::Refusing] {
        check(StoreState::Ok, Source::Connected, down, AgentState::Buffering);
        check(StoreState::Shedding, Source::Connected, down, AgentState::Shedding);
        check(StoreState::Ok, Source::Blocked, down, AgentState::Blocked);
        check(StoreState::Blocked, Source::Connected, down, AgentState::Blocked);
        check(StoreState::Failing, Source::Blocked, down, AgentState::StorageFailing);
    }
}

#[tokio::test]
async fn nothing_is_online_before_the_store_is_open() {
    let (rooms, inputs) = rooms();
    let books = rooms.books.send_replace(std::sync::Arc::default());
    let status = Status::read(&inputs);
    assert_eq!((status.state, status.epoch), (AgentState::Blocked, None));
    assert!(status.summary.contains("being opened"), "{}", status.summary);

    rooms.books.send_replace(books);
    let progress = Recovering { done_bytes: 1 << 20, total_bytes: 4 << 20 };
    rooms.store.send_modify(|report| report.recovering = Some(progress));
    let status = Status::read(&inputs);
    assert_eq!(status.state, AgentState::Blocked);
    assert!(status.summary.contains("1.0 MiB of 4.0 MiB"), "{}", status.summary);
}

#[tokio::test]
async fn a_sink_that_is_down_is_named_with_what_waits_for_it() {
    let (rooms, inputs) = rooms();
    let due = inputs.clock.monotonic() + std::time::Duration::from_secs(60);
    rooms.cloud.send_modify(|report| {
        report.state = forward::State::Retrying;
        report.next_attempt = Some(due);
        report.last_error = Some("connection refused".into());
    });
    let status = Status::read(&inputs);
    assert_eq!(status.summary, "cloud does not take data now. Nothing is lost: 10 records wait here.");
    let cloud = &status.sinks["cloud"];
    assert_eq!(cloud.last_error.as_deref(), Some("connection refused"));
    assert!(cloud.next_attempt_s.is_some_and(|due| due > 50.0 && due <= 60.0), "{cloud:?}");
}

#[tokio::test]
async fn sources_that_are_away_are_named_though_the_agent_is_online() {
    let (rooms, inputs) = rooms();
    rooms.plant.send_modify(|report| report.state = source::State::Disconnected);
    let status = Status::read(&inputs);
    assert_eq!(status.state, AgentState::Online);
    assert!(status.summary.ends_with(" Source plant is not connected."), "{}", status.summary);
}

#[tokio::test]
async fn what_is_no_longer_configured_stays_visible_without_a_state() {
    let (_rooms, inputs) = rooms();
    let status = Status::read(&inputs);
    let old = &status.sinks["old"];
    assert_eq!((old.present, old.state), (false, None));
    assert_eq!(old.streams["readings"].delivered, 10);
    assert!(old.balanced);
    let gone = &status.sources["gone"];
    assert_eq!((gone.present, gone.state, gone.received), (false, None, 1012));
    assert_eq!(status.state, AgentState::Online);
    // Configured, and without a message yet.
    assert_eq!((status.sources["direct"].received, status.sources["direct"].clients), (0, Some(3)));
}

#[tokio::test]
async fn books_that_do_not_balance_are_said_so() {
    let (rooms, inputs) = rooms();
    rooms.books.send_modify(|books| {
        let mut wrong = Books::clone(books);
        wrong.sinks.get_mut("cloud").unwrap().streams.get_mut(&Stream::Readings).unwrap().delivered += 1;
        *books = std::sync::Arc::new(wrong);
    });
    let status = Status::read(&inputs);
    assert!(!status.balanced && !status.sinks["cloud"].balanced && status.sinks["old"].balanced);
    let huge = LedgerStatus { delivered: u64::MAX, pending: 1, dead_lettered: 0, shed: 0 };
    assert!(!huge.balances(0), "a sum that overflows is no balance");
}

#[tokio::test]
async fn no_secret_of_an_endpoint_is_shown() {
    let (_rooms, inputs) = rooms();
    let json = serde_json::to_string(&Status::read(&inputs)).unwrap();
    assert!(!json.contains("hunter2"), "{json}");
    let check = |endpoint: &str, shown: &str| assert_eq!(without_credentials(endpoint), shown);
    check("mqtt://user:hunter2@broker:1883", "mqtt://broker:1883");
    check("https://host/v1/x?token=a#b", "https://host/v1/x");
    check("https://user:p@ss@host/a@b", "https://host/a@b");
    check("127.0.0.1:1883", "127.0.0.1:1883");
    check("", "");
}

#[tokio::test]
async fn an_empty_agent_has_a_status() {
    let (rooms, inputs) = rooms();
    let epoch = Epoch(uuid::Uuid::from_u128(7));
    rooms.books.send_replace(std::sync::Arc::new(Books { epoch, ..Books::default() }));
    rooms.sources.send_replace(BTreeMap::new());
    rooms.sinks.send_replace(BTreeMap::new());
    let status = Status::read(&inputs);
    assert_eq!(status.state, AgentState::Online);
    assert!(status.balanced && status.sinks.is_empty() && status.sources.is_empty());
    assert_eq!(status.streams["windows"].next_seq, Seq::FIRST.0);
    assert_eq!(status.summary, "Everything received is stored; no sink is configured.");
}

#[tokio::test]
async fn names_of_states_are_those_of_the_json() {
    let json = |value: serde_json::Value| value.as_str().unwrap().to_owned();
    for state in AgentState::ALL {
        assert_eq!(json(serde_json::to_value(state).unwrap()), state.name());
    }
    for state in source::State::ALL {
        assert_eq!(json(serde_json::to_value(state).unwrap()), state.name());
    }
    for state in forward::State::ALL {
        assert_eq!(json(serde_json::to_value(state).unwrap()), state.name());
    }
    for state in StoreState::ALL {
        assert_eq!(json(serde_json::to_value(state).unwrap()), state.name());
    }
}
