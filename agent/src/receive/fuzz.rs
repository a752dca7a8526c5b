//! Any bytes as a request.

use bytes::Bytes;

use super::batch::{Batch, Encoding};

/// The records of the batch that `bytes` are, if they are one.
pub(crate) fn batch(bytes: &[u8]) -> Option<usize> {
    let (encoding, body) = bytes.split_first()?;
    let encoding = Encoding::from_code(encoding % 3).unwrap_or(Encoding::Identity);
    let batch = Batch::read(&Bytes::copy_from_slice(body), encoding).ok()?;
    assert!(batch.first <= batch.last, "numbers go up: {batch:?}");
    let gaps: u64 = batch.gaps.iter().map(|gap| gap.last - gap.first + 1).sum();
    let records = batch.records.len() as u64;
    assert_eq!(
        batch.last - batch.first + 1,
        records + gaps,
        "every number is a record or missing: {batch:?}"
    );
    for record in &batch.records {
        assert!(batch.text(record).starts_with(b"{"), "a record is an object: {batch:?}");
    }
    Some(batch.records.len())
}
