//! What was damaged on purpose is named.

use super::*;

/// After `damage` a finding of this kind says so.
#[track_caller]
fn check(damage: impl FnOnce(&mut Bench), kind: Kind, text: &str) {
    let mut bench = filled();
    damage(&mut bench);
    let report = bench.verify();
    let is_it = |finding: &Finding| finding.kind == kind && finding.to_string().contains(text);
    assert!(report.findings.iter().any(is_it), "{kind:?} {text}: {:#?}", report.findings);
    assert!(!report.sound);
}

/// After `change` to the books a finding of this kind says so, and no other.
#[track_caller]
fn check_books(change: impl FnOnce(&mut Books), kind: Kind, text: &str) {
    let mut bench = filled();
    bench.cook(change);
    let report = bench.verify();
    // A number that became longer or shorter changes the bytes held, too.
    let is_other = |finding: &&Finding| finding.kind != kind && finding.kind != Kind::Held;
    assert_eq!(report.findings.iter().find(is_other), None, "{kind:?} {text}");
    let is_it = |finding: &Finding| finding.kind == kind && finding.to_string().contains(text);
    assert!(report.findings.iter().any(is_it), "{kind:?} {text}: {:#?}", report.findings);
}

#[test]
fn chunks_that_are_not_as_they_were_written_are_named() {
    let flip = |at: usize| move |bench: &mut Bench| bench.tamper(|t| set(t, 1_301, |bytes| bytes[at] ^= 1));
    check(flip(60), Kind::Chunk, "readings 1301..1400: the checksum");
    check(flip(60), Kind::Wanted, "sink \"a\" still has to get 100 of these");
    check(flip(0), Kind::Chunk, "readings 1301: this is no chunk");
    check(flip(0), Kind::Wanted, "readings 1301..1400");
    check(flip(4), Kind::Chunk, "a chunk has format 0");
    check(
        |bench| {
            bench.tamper(|t| {
                let mut table = t.open_table(READINGS)?;
                let other = table.get(1_401)?.unwrap().value().to_vec();
                table.insert(1_301, other.as_slice())?;
                Ok(())
            });
        },
        Kind::Chunk,
        "readings 1301: the chunk of readings 1401 lies here",
    );
    let rewrite = |count: u32, newest: i64| {
        move |bench: &mut Bench| {
            bench.tamper(|t| {
                set(t, 1_301, |bytes| {
                    let chunk = Chunk::parse(bytes).unwrap();
                    let body = chunk.body().unwrap().into_owned();
                    let newest = Timestamp(chunk.header.newest_received.0 + newest);
                    let note = chunk.note.to_vec();
                    *bytes = Packed::new(body).write(Stream::Readings, Seq(1_301), count, newest, &note);
                })
            });
        }
    };
    check(rewrite(99, 0), Kind::Chunk, "99 records are announced, 100 are there");
    check(rewrite(100, 1), Kind::Chunk, "newest time of receipt");
}

#[test]
fn rows_that_are_missing_or_too_many_are_named() {
    let remove = |bench: &mut Bench| {
        bench.tamper(|t| {
            t.open_table(READINGS)?.remove(1_301)?;
            Ok(())
        });
    };
    check(remove, Kind::Missing, "readings 1301..1400: 100 records");
    check(remove, Kind::Wanted, "neither held nor declared missing");
    check(remove, Kind::Held, "31 chunks");
    let windows = |bench: &mut Bench| {
        bench.tamper(|t| {
            t.open_table(WINDOWS)?.remove(6)?;
            Ok(())
        });
    };
    check(windows, Kind::Missing, "windows 6..8");
    let overlap = |bench: &mut Bench| {
        bench.tamper(|t| {
            let mut table = t.open_table(READINGS)?;
            let (body, newest) = {
                let row = table.get(1_301)?.unwrap();
                let chunk = Chunk::parse(row.value()).unwrap();
                (chunk.body().unwrap().into_owned(), chunk.header.newest_received)
            };
            let bytes = Packed::new(body).write(Stream::Readings, Seq(1_302), 100, newest, &[]);
            table.insert(1_302, bytes.as_slice())?;
            Ok(())
        });
    };
    check(overlap, Kind::Order, "the chunk before holds these, too");
    let last = |bench: &mut Bench| {
        bench.tamper(|t| {
            t.open_table(READINGS)?.pop_last()?;
            Ok(())
        });
    };
    // The note of the commit before is then the newest one, and not of these rows.
    let mut bench = filled();
    last(&mut bench);
    assert!(!bench.verify().sound);
    check(
        |bench| bench.tamper(|t| set(t, 3_001, |bytes| bytes[60] ^= 1)),
        Kind::Note,
        "moves this store aside",
    );
    check(
        |bench| {
            bench.tamper(|t| {
                t.delete_table(WINDOWS)?;
                Ok(())
            });
        },
        Kind::Table,
        "\"windows\" is missing",
    );
}

#[test]
fn books_that_are_off_are_named() {
    let ledger = |change: fn(&mut ledger::Ledger)| {
        move |books: &mut Books| {
            let sink = books.sinks.get_mut("a").unwrap();
            change(sink.streams.get_mut(&Stream::Readings).unwrap());
        }
    };
    let gap = |first, last| Gap {
        range: SeqRange { first: Seq(first), last: Seq(last) },
        reason: GapReason::ShedSize,
    };
    check_books(
        ledger(|ledger| ledger.delivered += 1),
        Kind::Ledger,
        "sink \"a\": 3010 appended are not 1201 delivered",
    );
    check_books(ledger(|ledger| ledger.shed += 1), Kind::Ledger, "1 shed");
    check_books(ledger(|ledger| ledger.dead_lettered -= 1), Kind::Ledger, "wait to be declared dead letters");
    check_books(ledger(|ledger| ledger.cursor = Seq(4_000)), Kind::Ledger, "the cursor is 4000");
    check_books(
        ledger(|ledger| ledger.pins.push_front(Pin { last: Seq(1_250), gaps: Vec::new(), corrections: 0 })),
        Kind::Ledger,
        "a batch ends at",
    );
    check_books(
        ledger(|ledger| ledger.pins.push_back(Pin { last: Seq(9_999), gaps: Vec::new(), corrections: 0 })),
        Kind::Ledger,
        "a batch ends at 9999",
    );
    check_books(
        |books| {
            let sink = books.sinks.get_mut("a").unwrap();
            let ledger = sink.streams.get_mut(&Stream::Readings).unwrap();
            ledger.ahead = vec![gap(2_000, 2_010), gap(2_005, 2_007)];
            ledger.shed = 14;
        },
        Kind::Ledger,
        "does not lie in order",
    );
    check_books(|books| books.streams[0].held_bytes += 7, Kind::Held, "the books count 31 chunks");
    check_books(|books| books.streams[1].held_chunks += 1, Kind::Held, "windows: the books count 3 chunks");
    check_books(
        |books| books.sources.get_mut("plant").unwrap().stored -= 1,
        Kind::Source,
        "received are not",
    );
    check_books(|books| books.dead_letters.kept += 1, Kind::DeadLetter, "the books count 5 dead letters");
    check_books(|books| books.dead_letters.last_id -= 1, Kind::DeadLetter, "while 3 was the last");
    check_books(|books| books.checkpoint.position = Seq(4_000), Kind::Checkpoint, "up to 4000");
    check_books(|books| books.checkpoint.windows_next = Seq(99), Kind::Checkpoint, "up to 99");
    check_books(|books| books.holes[0].push(gap(50, 60).range), Kind::Order, "readings 50..60");
    let oldest = |bench: &mut Bench| bench.cook(|books| books.streams[0].oldest = Seq(101));
    check(oldest, Kind::Order, "readings 1..100");
    check(oldest, Kind::Recent, "before the oldest reading");
    check_books(|books| books.epoch = Epoch(uuid::Uuid::nil()), Kind::Identity, "no epoch");
}

#[test]
fn other_rows_that_cannot_be_read_are_named() {
    let state = |key: &'static str, value: Option<&'static [u8]>| {
        move |bench: &mut Bench| {
            bench.tamper(|t| {
                let mut table = t.open_table(STATE)?;
                match value {
                    Some(value) => drop(table.insert(key, value)?),
                    None => drop(table.remove(key)?),
                }
                Ok(())
            });
        }
    };
    check(state("format", None), Kind::Identity, "the format is not there");
    check(state("format", Some(&[3])), Kind::Identity, "the row with the format is damaged");
    check(state("format", Some(&[0; 9])), Kind::Identity, "the format cannot be read");
    check(state("identity", None), Kind::Identity, "whose the store is");
    check(state("identity", Some(&[0xff])), Kind::Identity, "cannot be read");
    check(state("recent", Some(&[0xff])), Kind::Recent, "cannot be read");
    check(state("mark/5", Some(&[0xff])), Kind::Checkpoint, "mark/5 cannot be read");
    let letters = |change: fn(&mut redb::Table<'_, u64, &'static [u8]>)| {
        move |bench: &mut Bench| {
            bench.tamper(|t| {
                change(&mut t.open_table(DEAD_LETTERS)?);
                Ok(())
            });
        }
    };
    check(letters(|table| drop(table.remove(2))), Kind::DeadLetter, "the books count 4 dead letters");
    check(
        letters(|table| drop(table.insert(2, [0xff].as_slice()))),
        Kind::DeadLetter,
        "dead letter 2 cannot be read",
    );
    let moved = |table: &mut redb::Table<'_, u64, &'static [u8]>| {
        let bytes = table.remove(2).unwrap().unwrap().value().to_vec();
        drop(table.insert(9, bytes.as_slice()));
    };
    check(letters(moved), Kind::DeadLetter, "dead letter 2 lies in the row of 9");
}

#[test]
fn files_that_are_no_store_any_more_are_named_with_what_can_be_found_in_them() {
    let file = |change: fn(&mut Vec<u8>)| {
        move |bench: &mut Bench| {
            let path = bench.close().join("store.redb");
            let mut bytes = std::fs::read(&path).unwrap();
            change(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
        }
    };
    check(file(Vec::clear), Kind::Unopenable, "the file is empty");
    check(file(|bytes| bytes.fill(b'x')), Kind::Unopenable, "cannot be opened");
    check(file(|bytes| bytes.truncate(5_000)), Kind::Unopenable, "cannot be opened");
    let mut bench = filled();
    file(|bytes| bytes[..4_096].fill(0))(&mut bench);
    let scanned = bench.verify().scanned.unwrap();
    assert!(scanned.chunks >= 32 && scanned.records >= 3_018, "{scanned:?}");
}

#[test]
fn only_so_many_findings_are_listed() {
    let mut bench = filled();
    bench.tamper(|t| {
        for n in 0..29 {
            set(t, n * 100 + 1, |bytes| bytes[60] ^= 1)?;
        }
        Ok(())
    });
    let report = bench.verify();
    assert_eq!(report.findings.iter().filter(|finding| finding.kind == Kind::Chunk).count(), 20);
    assert_eq!(report.more_findings, 9);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..proptest::test_runner::Config::with_cases(24) })]
    #[test]
    fn a_flipped_byte_is_found_or_changes_nothing(place in 0.0..1.0_f64, bit in 0..8_u32) {
        let mut bench = filled();
        let before = bench.export(&ALL).0;
        let path = bench.close().join("store.redb");
        let mut bytes = std::fs::read(&path).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place")]
        let at = (place * bytes.len() as f64) as usize;
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, &bytes).unwrap();
        // A newer format of redb's is an answer, too.
        let verified = verify(bench.close(), &|_, _| None, &Progress::none());
        if verified.is_ok_and(|report| report.sound) {
            assert!(bench.export(&ALL).0 == before, "byte {at}");
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "nothing was written");
    }
}
