//! Chunks of window results that are lost on either side of the windows' checkpoint: what is told of them, and the books.

use super::*;
use crate::store::checkpoint::windows_snapshot;

fn declared(books: &Books, sink: &str) -> Vec<(u64, u64)> {
    let ledger = &books.sinks[sink].streams[&Stream::Windows];
    assert!(ledger.ahead.iter().all(|gap| gap.reason == GapReason::Damage), "{ledger:?}");
    ledger.ahead.iter().map(|gap| (gap.range.first.0, gap.range.last.0)).collect()
}

#[test]
fn lost_results_are_declared_to_those_who_lack_them_and_the_books_balance() {
    let mut bench = Bench::new(|_| {});
    bench.append(100);
    for _ in 0..5 {
        bench.windows(3, None);
    }
    bench.windows(3, Some(Checkpoint::default()));
    bench.windows(3, None);
    bench.windows(3, None);
    bench.ledger("a", Stream::Windows, LedgerEvent::Advance(Seq(9)));
    assert_eq!(bench.books().checkpoint.windows_next, Seq(19));
    let spoilt = [4, 7, 16, 19, 22];
    bench.tamper(|t| {
        spoilt.into_iter().for_each(|key| spoil(t, key));
        Ok(())
    });
    // What was emitted since the checkpoint and cannot be read is computed again, and is no reason not to start.
    let books = bench.books();
    let emitted = windows_snapshot(&bench.state().0, &books).unwrap().emitted;
    assert!(emitted.is_empty(), "{emitted:?}");
    bench.windows(3, None);

    for key in spoilt {
        let suspects = vec![(Stream::Windows, Seq(key + 1))];
        bench.commit(&Work { suspects, ..Work::default() });
    }
    let books = bench.books();
    // "a" has 1 to 8.
    assert_eq!(declared(&books, "a"), [(9, 9), (16, 24)]);
    assert_eq!(declared(&books, "b"), [(4, 9), (16, 24)]);
    assert_eq!(books.damage.lost, [0, 15, 0], "somebody wanted all of them");
    for name in ["a", "b"] {
        let ledger = &books.sinks[name].streams[&Stream::Windows];
        assert_eq!(ledger.delivered + ledger.shed + ledger.pending(Seq(28)), 27, "{ledger:?}");
    }
    // Nobody wants the first of these any more.
    bench.tamper(|t| {
        spoil(t, 1);
        Ok(())
    });
    bench.ledger("b", Stream::Windows, LedgerEvent::Advance(Seq(3)));
    bench.commit(&Work { suspects: vec![(Stream::Windows, Seq(1))], ..Work::default() });
    assert_eq!(bench.books().damage.lost, [0, 16, 0], "only what was wanted is lost");
    let report = bench.verify();
    assert!(report.sound, "{:#?}", report.findings);
}

fn spoil(transaction: &redb::WriteTransaction, key: u64) {
    let mut table = transaction.open_table(WINDOWS).unwrap();
    let mut bytes = table.get(key).unwrap().unwrap().value().to_vec();
    bytes[60] ^= 1;
    table.insert(key, bytes.as_slice()).unwrap();
}
