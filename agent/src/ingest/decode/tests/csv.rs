//! CSV payloads, and any records against a naive reader.

use proptest::prelude::*;

use super::*;
use crate::ingest::settings::{Columns, Delimiter};

fn of(columns: &[&str], delimiter: &str) -> Subscription {
    let columns = Columns::new(columns.iter().copied()).unwrap();
    Subscription { payload: Payload::Csv(columns, Delimiter::new(delimiter).unwrap()), ..json() }
}

fn csv(columns: &[&str]) -> Subscription {
    of(columns, ",")
}

/// `time,t,(skipped),on`, with the time of the device.
fn timed() -> Subscription {
    Subscription { time: pointer("/time"), ..csv(&["time", "t", "", "on"]) }
}

#[test]
fn a_record_is_a_reading() {
    let check = |payload: &str, expected: &str| assert_eq!(said(csv(&["a", "", "c"]), payload), expected);
    check("1,2,3", "plant a=1 c=3");
    check("21.53,x,true\n", "plant a=21.53 c=true");
    check("21.53,x,on\r\n", r#"plant a=21.53 c="on""#);
    check("\u{feff}1,,-3e2\0", "plant a=1 c=-300.0");
    check(" 1 ,2,\t3 ", "plant a=1 c=3");
    check("18446744073709551615,,größe", r#"plant a=18446744073709551615u c="größe""#);
    // What says nothing is dropped.
    check("1,,", "plant a=1");
    check(",,nan", "nothing");
    check(",,", "nothing");
    check("", "nothing");
    check("\r\n", "nothing");
}

#[test]
fn quotes_are_those_of_rfc_4180() {
    let check = |payload: &str, expected: &str| assert_eq!(said(csv(&["a", "b"]), payload), expected);
    check(r#""x,y",2"#, r#"plant a="x,y" b=2"#);
    check(r#""say ""hi""",""""#, r#"rejected: value 2 begins with a quote that nothing closes"#);
    check(r#""say ""hi""","""""""#, r#"plant a="say \"hi\"" b="\"\"""#);
    check("\"two\nlines\",2", r#"plant a="two\nlines" b=2"#);
    check(r#" "1" , " x " "#, r#"plant a=1 b=" x ""#);
    check(
        "\",\"",
        "rejected: the number of values is 1, that of names in `columns` 2; name each value, with \"\" for one to skip",
    );
    check("\",", "rejected: value 1 begins with a quote that nothing closes");
    check("\",2", "rejected: value 1 begins with a quote that nothing closes");
    check(r#""" ,2"#, "plant b=2");
    check(r#"19" rack,5'"#, r#"plant a="19\" rack" b="5'""#);
    check(
        r#"1,"2"3"#,
        "rejected: value 2 goes on with '3' behind its closing quote; a quote within quotes is written \"\"",
    );
}

#[test]
fn a_record_with_other_than_its_values_is_rejected() {
    let check = |payload: &str, found: usize| {
        assert_eq!(rejected(timed(), payload), Rejection::ValueCount { found, columns: 4 }, "{payload}");
    };
    check("1795148112,21.5,", 3);
    check("1795148112", 1);
    check("1795148112,21.5,,true,", 5);
    // Not by what stands in the wrong column.
    check("21.5,oh no,x", 3);
    check("x,1795148112,21.5,,true", 5);
    let reason = Box::new(Rejection::ValueCount { found: 2, columns: 4 });
    assert_eq!(rejected(timed(), "1,2,,true\n\n3,4\n5,6,,true"), Rejection::Record { number: 2, reason });
}

#[test]
fn lines_are_as_many_readings() {
    let check = |payload: &str, expected: &str| assert_eq!(said(csv(&["a", "b"]), payload), expected);
    check("1,2\n3,4", "[plant a=1 b=2 | plant a=3 b=4]");
    check("1,2\r\n3,4\r\n5,6\r\n", "[plant a=1 b=2 | plant a=3 b=4 | plant a=5 b=6]");
    check("1,2\r3,4\r", "[plant a=1 b=2 | plant a=3 b=4]");
    check("\n1,2\n \n\n,\n3,\n", "[plant a=1 b=2 | plant a=3]");
    check("1,2\n,\n", "plant a=1 b=2");
    check(
        "1,\n2,99999999999999999999",
        "rejected: record 2: the integer at \"b\" needs more than 64 bits; send it as a string or as a float",
    );
}

#[test]
fn a_payload_has_a_limit_of_records() {
    let check = |line: &str, limit: usize| {
        let two = || csv(&["a", "b"]);
        let Decoded::Readings(readings) = decode(two(), "sensors/x", line.repeat(limit).as_bytes()) else {
            panic!("readings")
        };
        assert_eq!(readings.len(), limit);
        let reason = Box::new(Rejection::TooManyRecords { limit });
        let record = Rejection::Record { number: limit + 1, reason };
        assert_eq!(rejected(two(), line.repeat(limit + 1)), record);
    };
    check("1,2\n", 8_192);
    check("1,2345678\n", MAX_READINGS);
}

#[test]
fn a_first_line_of_names_is_skipped() {
    let check = |payload: &str, expected: &str| assert_eq!(said(timed(), payload), expected, "{payload}");
    let at = "@1970-01-01T00:00:07.000000Z";
    check("time,t,whatever,on\n", "nothing");
    check("time,t,whatever,on\n7,1.5,x,true", &format!("plant {at} t=1.5 on=true"));
    check(
        "\"time\", t,,on\r\n\r\n7,1.5,x,true\n7,2,,",
        &format!("[plant {at} t=1.5 on=true | plant {at} t=2]"),
    );
    // Nothing else is.
    for payload in ["Time,t,,on", "time,t,,on,x", "time,t,", "7,1,,true\ntime,t,,on"] {
        assert!(said(timed(), payload).starts_with("rejected"), "{payload}");
    }
    check(
        "\"time\",t,,on\n7,2,x",
        "rejected: record 2: the number of values is 3, that of names in `columns` 4; name each value, with \"\" for one to skip",
    );
}

#[test]
fn time_device_and_fields_name_columns() {
    let both =
        || Subscription { device: pointer("/id"), time: pointer("/time"), ..csv(&["id", "time", "a", "b"]) };
    let at = "@2026-11-20T04:15:12.500000Z";
    for time in ["1795148112.5", "1795148112500", "2026-11-20T04:15:12.5Z", "\"2026-11-20 04:15:12.5\""] {
        assert_eq!(said(both(), format!("007,{time},1,x")), format!("007 {at} a=1 b=\"x\""), "{time}");
    }
    let two = "p,7,1,\nq,7,2,\np,7,3,";
    let at = "@1970-01-01T00:00:07.000000Z";
    assert_eq!(said(both(), two), format!("[p {at} a=1 | q {at} a=2 | p {at} a=3]"));
    let pointer = || "/time".to_owned();
    assert_eq!(rejected(both(), "p,,1,2"), Rejection::TimeMissing { pointer: pointer() });
    assert_eq!(rejected(both(), "p,now,1,2"), Rejection::TimeUnreadable { found: "\"now\"".into() });
    assert_eq!(rejected(both(), "p,1e400,1,2"), Rejection::TimeOutOfRange { found: "\"1e400\"".into() });
    let large = "99999999999999999999";
    assert_eq!(
        rejected(both(), format!("p,{large},1,2")),
        Rejection::TimeOutOfRange { found: format!("{large:?}") }
    );
    assert_eq!(rejected(both(), ",7,1,2"), Rejection::DeviceMissing { pointer: "/id".into() });
    // Without a value nobody asks when and who.
    assert_eq!(said(both(), ",,,"), "nothing");

    let fields = |texts: &[&str]| Subscription { fields: with_fields(texts).fields, ..both() };
    assert_eq!(said(fields(&["/b"]), "p,7,1,2"), format!("p {at} b=2"));
    assert_eq!(said(fields(&["/b", "/time"]), "p,7,1,2"), format!("p {at} time=7 b=2"));
    let slash = Subscription { fields: with_fields(&["/m~1s"]).fields, ..csv(&["m/s", "x.y"]) };
    assert_eq!(said(slash, "1,2"), "plant m/s=1");
    let zone = Timezone::from_name("Europe/Berlin").unwrap();
    let local = Subscription { timezone: zone, ..both() };
    assert_eq!(said(local, "p,2026-11-20 05:15:12.5,1,"), "p @2026-11-20T04:15:12.500000Z a=1");
}

#[test]
fn delimiters_may_be_blanks() {
    assert_eq!(said(of(&["a", "b"], ";"), "22,5; 3"), r#"plant a="22,5" b=3"#);
    assert_eq!(said(of(&["a", "b", "c"], "\t"), "\t 2 \t\r\n"), "plant b=2");
    assert_eq!(
        said(of(&["a", "b", "c"], "\t"), "\t\t\n1\t\t3\n\"\t\"\t2\t\n"),
        r#"[plant a=1 c=3 | plant a="\t" b=2]"#
    );
    assert_eq!(said(of(&["a", "b"], " "), "1 2\r\n"), "plant a=1 b=2");
    assert_eq!(said(of(&["a", "b", "c"], " "), "1  \"x \"\n"), r#"plant a=1 c="x ""#);
    assert_eq!(rejected(of(&["a", "b"], " "), "1  2"), Rejection::ValueCount { found: 3, columns: 2 });
}

#[test]
fn names_of_records_are_shared() {
    let mut decoder = decoder([csv(&["a", "b"])]);
    let Decoded::Readings(readings) = decoder.decode("sensors/x", b"1,2\n3,4\n5,", RECEIVED, None) else {
        panic!("readings")
    };
    assert!(Arc::ptr_eq(&readings[0].shape, &readings[1].shape));
    assert_eq!(decoder.memory.shapes_held(), 2);
}

#[test]
fn memory_that_a_giant_took_is_given_back() {
    let mut decoder = decoder([csv(&["a"])]);
    let giant = format!("\"\"\"{}\"", "x".repeat(1 << 20));
    assert!(matches!(decoder.decode("sensors/x", giant.as_bytes(), RECEIVED, None), Decoded::Reading(_)));
    assert!(decoder.scratch.unescaped.capacity() < giant.len() / 8);
}

/// A value as it may be written, and what it says.
fn written() -> impl Strategy<Value = (String, String)> {
    let plain = "[a-z0-9.ü'-]{0,6}".prop_map(|text| (text.clone(), text));
    let blanks = "[ ]{0,2}";
    let padded = (blanks, "[a-z0-9]{1,4}", blanks).prop_map(|(a, text, b)| (format!("{a}{text}{b}"), text));
    let quoted = (blanks, "[a-z0-9 ,;\t\r\n\"ü]{0,8}", blanks)
        .prop_map(|(a, text, b)| (format!("{a}\"{}\"{b}", text.replace('"', "\"\"")), text));
    prop_oneof![4 => plain, 1 => padded, 2 => quoted]
}

/// What a record of `texts` says in columns of these names, naively; `None`: it is rejected.
fn naively(texts: &[String], columns: &[&str]) -> Option<String> {
    let mut line = "plant".to_owned();
    for (name, text) in columns.iter().zip(texts) {
        let bare = value::parse(text, name).ok()?;
        let Some(bare) = bare.filter(|_| !name.is_empty()) else { continue };
        let shown = match bare {
            Value::Int(value) => format!("{value}"),
            Value::Uint(value) => format!("{value}u"),
            Value::Float(value) => format!("{value:?}"),
            Value::Bool(value) => format!("{value}"),
            Value::Text(value) => format!("{value:?}"),
        };
        write!(line, " {name}={shown}").unwrap();
    }
    (texts.len() == columns.len()).then_some(line)
}

proptest! {
    #[test]
    fn any_records_are_what_a_naive_reader_finds(
        records in prop::collection::vec(prop::collection::vec(written(), 1..5), 1..5),
        delimiter in prop::sample::select(vec![",", ";", "|"]),
        end in prop::sample::select(vec!["\n", "\r\n", "\r", "\n\n"]),
    ) {
        let columns = ["A", "", "B"];
        let lines: Vec<String> = records
            .iter()
            .map(|record| record.iter().map(|(written, _)| written.as_str()).collect::<Vec<_>>().join(delimiter))
            .collect();
        // A line of nothing but blanks is none.
        let is_there = |line: &String| !line.trim_ascii().is_empty();
        let expected: Option<Vec<String>> = records
            .iter()
            .zip(&lines)
            .filter(|(_, line)| is_there(line))
            .map(|(record, _)| naively(&record.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>(), &columns))
            .collect();
        let expected = expected.map(|lines| lines.into_iter().filter(|line| line != "plant").collect::<Vec<_>>());
        let payload = lines.join(end);
        let found = said(of(&columns, delimiter), &payload);
        match expected.as_deref() {
            None => prop_assert!(found.starts_with("rejected: "), "{payload:?}: {found}"),
            Some([]) => prop_assert_eq!(found, "nothing", "{:?}", payload),
            Some([one]) => prop_assert_eq!(&found, one, "{:?}", payload),
            Some(many) => prop_assert_eq!(found, format!("[{}]", many.join(" | ")), "{:?}", payload),
        }
    }

    #[test]
    fn no_text_that_looks_like_csv_panics(payload in "[,;\t\r\n \"a\\x000-9.ü]{0,40}", blank in any::<bool>()) {
        for subscription in [of(&["a", "b"], if blank { " " } else { "," }), of(&["a"], "\t"), timed()] {
            prop_assert!(!said(subscription, &payload).is_empty());
        }
    }
}
