//! Record batches, format version 2 (KIP-98; documented as "Record Batch" in Kafka's message format).
//!
//! Written and read by hand instead of through the codec crate, which drops a batch's last offset (needed to step
//! past batches without records), fails on a truncated last batch, keeps only one of several headers with the same key
//! and reserves memory by numbers that the bytes merely claim.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;

use crate::config::Compression;
use crate::record::{Header, ProducerRecord, Record};
use crate::wire::compression::{LZ4, decompress, lz4};
use crate::wire::primitive::{Malformed, Reader, put_varint, put_varlong, varlong_size};

/// Base offset and length, which the length does not count.
pub(crate) const PREFIX: usize = 8 + 4;
/// A batch's header, its prefix included.
const HEADER: usize = 61;
/// Where the format's version is.
const MAGIC: usize = 16;
/// Where the checksum's own bytes end and the summed ones start: the attributes.
const SUMMED_FROM: usize = 21;

pub(crate) const TRANSACTIONAL: i16 = 1 << 4;
pub(crate) const CONTROL: i16 = 1 << 5;
const LOG_APPEND_TIME: i16 = 1 << 3;

/// Who writes a batch, and which place it has among the writer's batches of that partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) transactional: bool,
    pub(crate) compression: Compression,
}

/// A record on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'r> {
    /// Its place among what was sent with it.
    pub(crate) index: usize,
    pub(crate) record: &'r ProducerRecord,
    /// A header more.
    pub(crate) mark: Option<&'r Header>,
}

/// One batch, of at least one record. Records without a time get `now`, in milliseconds since 1970.
pub(crate) fn encode(entries: &[Entry<'_>], now: i64, writer: &Writer) -> Bytes {
    let times = || {
        entries
            .iter()
            .map(|entry| entry.record.timestamp.unwrap_or(now))
    };
    let (first, last) = (times().min().unwrap_or(now), times().max().unwrap_or(now));
    let size: usize = entries.iter().map(estimated_size).sum();
    let mut batch = BytesMut::with_capacity(HEADER + size);
    put_header(&mut batch, entries.len() as i32, first, last, writer);
    for (offset, (entry, time)) in entries.iter().zip(times()).enumerate() {
        put_record(&mut batch, entry, offset as i32, time.wrapping_sub(first));
    }
    if writer.compression == Compression::Lz4
        && let Some(packed) = lz4(&batch[HEADER..])
    {
        batch.truncate(HEADER);
        batch.put_slice(&packed);
        batch[SUMMED_FROM + 1] |= LZ4 as u8;
    }
    let length = (batch.len() - PREFIX) as i32;
    batch[8..PREFIX].copy_from_slice(&length.to_be_bytes());
    let sum = crc32c::crc32c(&batch[SUMMED_FROM..]);
    batch[SUMMED_FROM - 4..SUMMED_FROM].copy_from_slice(&sum.to_be_bytes());
    batch.freeze()
}

fn put_header(batch: &mut BytesMut, count: i32, first: i64, last: i64, writer: &Writer) {
    batch.put_i64(0); // base offset: the broker's to set
    batch.put_i32(0); // length, filled in at the end
    batch.put_i32(-1); // partition leader epoch: the broker's to set
    batch.put_i8(2); // magic: the format's version
    batch.put_u32(0); // checksum, filled in at the end
    batch.put_i16(if writer.transactional {
        TRANSACTIONAL
    } else {
        0
    });
    batch.put_i32(count - 1); // last offset delta
    batch.put_i64(first);
    batch.put_i64(last);
    batch.put_i64(writer.producer_id);
    batch.put_i16(writer.epoch);
    batch.put_i32(writer.base_sequence);
    batch.put_i32(count);
}

fn put_record(batch: &mut BytesMut, entry: &Entry<'_>, offset: i32, age: i64) {
    let length = 1 + varlong_size(age) + varlong_size(offset.into()) + content_size(entry);
    let record = entry.record;
    put_varint(batch, length as i32);
    batch.put_i8(0); // attributes: none are defined
    put_varlong(batch, age);
    put_varint(batch, offset);
    put_bytes(batch, record.key.as_deref());
    put_bytes(batch, record.value.as_deref());
    put_varint(batch, entry.headers().count() as i32);
    for (key, value) in entry.headers() {
        put_bytes(batch, Some(key.as_bytes()));
        put_bytes(batch, value.as_deref());
    }
}

fn put_bytes(batch: &mut BytesMut, bytes: Option<&[u8]>) {
    put_varint(batch, bytes.map_or(-1, |bytes| bytes.len() as i32));
    batch.put_slice(bytes.unwrap_or_default());
}

impl Entry<'_> {
    fn headers(&self) -> impl Iterator<Item = &Header> {
        self.record.headers.iter().chain(self.mark)
    }
}

/// Key, value and headers of a record as written.
fn content_size(entry: &Entry<'_>) -> usize {
    let headers = entry
        .headers()
        .map(|(key, value)| bytes_size(Some(key.as_bytes())) + bytes_size(value.as_deref()));
    bytes_size(entry.record.key.as_deref())
        + bytes_size(entry.record.value.as_deref())
        + varlong_size(entry.headers().count() as i64)
        + headers.sum::<usize>()
}

fn bytes_size(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varlong_size(bytes.len() as i64) + bytes.len())
}

/// At least what a record takes in a batch, in bytes: its content, and its length, attributes and deltas at their longest.
pub(crate) fn estimated_size(entry: &Entry<'_>) -> usize {
    content_size(entry) + 5 + 1 + 10 + 5
}

/// A batch as it lies in a fetched answer, its header read, its records not yet.
#[derive(Clone, Debug)]
pub(crate) struct RawBatch {
    pub(crate) base_offset: i64,
    /// The last offset that belongs to it; it may have fewer records than offsets, after compaction.
    pub(crate) last_offset: i64,
    pub(crate) producer_id: i64,
    /// Which of the partition's leaders has written it.
    pub(crate) leader_epoch: i32,
    attributes: i16,
    first_timestamp: i64,
    last_timestamp: i64,
    count: i32,
    /// The whole of it, prefix and header included.
    pub(crate) bytes: Bytes,
}

/// What lies at the beginning of fetched bytes.
pub(crate) enum Next {
    /// A whole batch whose checksum is right.
    Batch(RawBatch),
    /// Nothing, or the first part of a batch: brokers cut the last batch off at the size limit.
    End,
    /// A batch that can't be read.
    Corrupt(Corrupt),
}

/// A batch that can't be read.
#[derive(Debug)]
pub(crate) struct Corrupt {
    pub(crate) base_offset: i64,
    /// The last offset it claims, never before its base offset.
    pub(crate) last_offset: i64,
    pub(crate) bytes: Bytes,
    pub(crate) cause: String,
}

/// Takes the next batch off the front of `bytes`. A batch that claims more than `longest` bytes is corrupt: waiting
/// for the rest of it would never end.
pub(crate) fn next_batch(bytes: &mut Bytes, longest: usize) -> Next {
    let mut prefix = Reader::new(bytes);
    let (Ok(base_offset), Ok(length)) = (prefix.i64(), prefix.i32()) else {
        return Next::End;
    };
    let whole = match usize::try_from(length) {
        Ok(length) if length <= longest => length + PREFIX,
        _ => {
            let cause = format!("it claims {length} bytes");
            let bytes = bytes.split_off(0);
            return Next::Corrupt(Corrupt {
                base_offset,
                last_offset: base_offset,
                bytes,
                cause,
            });
        }
    };
    if bytes.len() < whole {
        return Next::End;
    }
    let batch = bytes.split_to(whole);
    match read_header(&batch) {
        Ok(header) => Next::Batch(header),
        Err(cause) => {
            let last_offset = claimed_last_offset(&batch, base_offset);
            Next::Corrupt(Corrupt {
                base_offset,
                last_offset,
                bytes: batch,
                cause,
            })
        }
    }
}

fn read_header(batch: &Bytes) -> Result<RawBatch, String> {
    let magic = batch.get(MAGIC).copied().unwrap_or(0);
    if magic != 2 {
        return Err(format!("message format version {magic} is not supported"));
    }
    if batch.len() < HEADER {
        return Err("its header ends too early".to_owned());
    }
    let mut reader = Reader::new(&batch[SUMMED_FROM - 4..]);
    let stated = reader.u32()?;
    let found = crc32c::crc32c(&batch[SUMMED_FROM..]);
    if stated != found {
        return Err(format!(
            "its checksum is {found:08x}, its header says {stated:08x}"
        ));
    }
    let mut prefix = Reader::new(batch);
    let (base_offset, _length, leader_epoch) = (prefix.i64()?, prefix.i32()?, prefix.i32()?);
    let attributes = reader.i16()?;
    let last_delta = reader.i32()?;
    let (first_timestamp, last_timestamp) = (reader.i64()?, reader.i64()?);
    let producer_id = reader.i64()?;
    let (_epoch, _sequence) = (reader.i16()?, reader.i32()?);
    let count = reader.i32()?;
    let last_offset = base_offset
        .checked_add(last_delta.into())
        .ok_or("its last offset overflows")?;
    if base_offset < 0 || last_delta < 0 {
        return Err("its offsets are negative".to_owned());
    }
    let bytes = batch.clone();
    Ok(RawBatch {
        base_offset,
        last_offset,
        producer_id,
        leader_epoch,
        attributes,
        first_timestamp,
        last_timestamp,
        count,
        bytes,
    })
}

fn claimed_last_offset(batch: &[u8], base_offset: i64) -> i64 {
    if batch.get(MAGIC).is_some_and(|magic| *magic < 2) {
        // formats 0 and 1 have the offset of one message, of several compressed ones the last's
        return base_offset;
    }
    let delta = batch
        .get(SUMMED_FROM + 2..)
        .and_then(|rest| Reader::new(rest).i32().ok());
    base_offset.saturating_add(delta.unwrap_or(0).max(0).into())
}

impl RawBatch {
    /// Whether an attribute is set: [`TRANSACTIONAL`], [`CONTROL`].
    pub(crate) fn is(&self, attribute: i16) -> bool {
        self.attributes & attribute != 0
    }

    /// Whether this control batch is an ABORT marker. Its record's key is a version and a type; type 0 is ABORT.
    pub(crate) fn is_abort_marker(&self) -> Result<bool, Corrupt> {
        let mut records = Vec::new();
        self.decode(0, &mut records)?;
        let key = records
            .first()
            .and_then(|record| record.key.clone())
            .unwrap_or_default();
        let mut reader = Reader::new(&key);
        Ok(matches!((reader.i16(), reader.i16()), (Ok(_), Ok(0))))
    }

    /// Appends the records at `from` and later, and returns how many bytes all records take when uncompressed. If one of them can't be
    /// read, none is appended.
    pub(crate) fn decode(&self, from: i64, into: &mut Vec<Record>) -> Result<usize, Corrupt> {
        let kept = into.len();
        self.try_decode(from, into).map_err(|cause| {
            into.truncate(kept);
            Corrupt {
                base_offset: self.base_offset,
                last_offset: self.last_offset,
                bytes: self.bytes.clone(),
                cause,
            }
        })
    }

    fn try_decode(&self, from: i64, into: &mut Vec<Record>) -> Result<usize, String> {
        let body = decompress(self.attributes, self.bytes.slice(HEADER..))?;
        let mut reader = Reader::new(&body);
        // A record takes 7 bytes at least, whatever the header claims.
        into.reserve((self.count.max(0) as usize).min(body.len() / 7));
        for _ in 0..self.count {
            let record = self.read_record(&mut reader, &body)?;
            if record.offset >= from {
                into.push(record);
            }
        }
        Ok(body.len())
    }

    fn read_record(&self, reader: &mut Reader<'_>, body: &Bytes) -> Result<Record, Malformed> {
        let length =
            usize::try_from(reader.varint()?).map_err(|_| "a record's length is negative")?;
        let mut record = Reader::new(reader.take(length)?);
        record.u8()?; // attributes: none are defined
        let age = record.varlong()?;
        let delta = record.varint()?;
        if delta < 0 || self.last_offset - self.base_offset < i64::from(delta) {
            return Err("a record's offset lies outside its batch");
        }
        Ok(Record {
            offset: self.base_offset + i64::from(delta),
            timestamp: if self.attributes & LOG_APPEND_TIME != 0 {
                self.last_timestamp
            } else {
                self.first_timestamp.wrapping_add(age)
            },
            key: record.varint_bytes()?.map(|key| body.slice_ref(key)),
            value: record.varint_bytes()?.map(|value| body.slice_ref(value)),
            headers: read_headers(&mut record, body)?,
        })
    }
}

fn read_headers(record: &mut Reader<'_>, body: &Bytes) -> Result<Vec<Header>, Malformed> {
    let count = usize::try_from(record.varint()?).map_err(|_| "a header count is negative")?;
    // A header takes 2 bytes at least.
    let mut headers = Vec::with_capacity(count.min(record.remaining() / 2));
    for _ in 0..count {
        let key = record.varint_bytes()?.ok_or("a header's key is null")?;
        let value = record.varint_bytes()?.map(|value| body.slice_ref(value));
        headers.push((header_key(body.slice_ref(key)), value));
    }
    Ok(headers)
}

/// Kafka does not check that a header's key is UTF-8; like the Java client we replace what isn't.
fn header_key(key: Bytes) -> StrBytes {
    StrBytes::from_utf8(key.clone())
        .unwrap_or_else(|_| StrBytes::from_string(String::from_utf8_lossy(&key).into_owned()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A batch of these records, for tests.
    pub(crate) fn batch_of(records: &[ProducerRecord], writer: &Writer) -> Bytes {
        let entry = |(index, record)| Entry {
            index,
            record,
            mark: None,
        };
        let entries: Vec<_> = records.iter().enumerate().map(entry).collect();
        encode(&entries, 0, writer)
    }

    const LONGEST: usize = 1 << 20;
    const WRITER: Writer = Writer {
        producer_id: 7,
        epoch: 1,
        base_sequence: 0,
        transactional: true,
        compression: Compression::None,
    };

    fn record(value: &str) -> ProducerRecord {
        ProducerRecord {
            topic: "t".into(),
            key: Some(Bytes::from_static(b"k")),
            value: Some(Bytes::from(value.to_owned())),
            headers: vec![("h".into(), None)],
            timestamp: Some(1000),
            partition: None,
        }
    }

    fn batch(values: &[&str]) -> Bytes {
        let records: Vec<_> = values.iter().map(|value| record(value)).collect();
        batch_of(&records, &WRITER)
    }

    /// The checksum made right again after a change.
    fn resealed(mut bytes: Vec<u8>) -> Bytes {
        let sum = crc32c::crc32c(&bytes[SUMMED_FROM..]);
        bytes[SUMMED_FROM - 4..SUMMED_FROM].copy_from_slice(&sum.to_be_bytes());
        Bytes::from(bytes)
    }

    fn cause(bytes: Bytes) -> String {
        match next_batch(&mut bytes.clone(), LONGEST) {
            Next::Corrupt(corrupt) => corrupt.cause,
            Next::Batch(batch) => {
                batch
                    .decode(0, &mut Vec::new())
                    .expect_err("it should be corrupt")
                    .cause
            }
            Next::End => "end".to_owned(),
        }
    }

    #[test]
    fn records_are_read_back_from_the_offset_asked_for() {
        let Next::Batch(raw) = next_batch(&mut batch(&["a", "b", "c"]), LONGEST) else {
            panic!("no batch")
        };
        assert!(raw.is(TRANSACTIONAL) && !raw.is(CONTROL));
        assert_eq!(
            (raw.base_offset, raw.last_offset, raw.producer_id),
            (0, 2, 7)
        );
        let mut records = Vec::new();
        raw.decode(1, &mut records).unwrap();
        let values: Vec<_> = records
            .iter()
            .map(|record| record.value.clone().unwrap())
            .collect();
        assert_eq!(values, ["b", "c"]);
        assert_eq!((records[0].offset, records[0].timestamp), (1, 1000));
    }

    #[test]
    fn a_flipped_bit_is_found_by_the_checksum() {
        let mut bytes = batch(&["a"]).to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        assert!(cause(Bytes::from(bytes)).contains("checksum"));
    }

    #[test]
    fn a_batch_cut_off_anywhere_is_the_end_and_no_error() {
        let whole = batch(&["a", "b"]);
        for length in 0..whole.len() {
            assert!(
                matches!(next_batch(&mut whole.slice(..length), LONGEST), Next::End),
                "{length}"
            );
        }
    }

    #[test]
    fn absurd_lengths_and_old_formats_are_corrupt() {
        for length in [-1i32, i32::MAX, i32::MIN] {
            let mut bytes = batch(&["a"]).to_vec();
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
            assert_eq!(
                cause(Bytes::from(bytes)),
                format!("it claims {length} bytes")
            );
        }
        let mut bytes = batch(&["a"]).to_vec();
        bytes[16] = 1;
        assert_eq!(
            cause(Bytes::from(bytes)),
            "message format version 1 is not supported"
        );
        assert_eq!(
            cause(Bytes::from(vec![0; 12])),
            "message format version 0 is not supported"
        );
    }

    #[test]
    fn a_count_beyond_the_records_is_corrupt_and_reserves_nothing() {
        let mut bytes = batch(&["a"]).to_vec();
        bytes[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
        assert_eq!(cause(resealed(bytes)), "it ends too early");
    }

    #[test]
    fn an_unknown_codec_is_named() {
        let mut bytes = batch(&["a"]).to_vec();
        bytes[22] |= 7;
        assert_eq!(cause(resealed(bytes)), "compression codec 7 is unknown");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = Bytes::from(bytes);
            if let Next::Batch(batch) = next_batch(&mut bytes, LONGEST) {
                let _ = batch.decode(0, &mut Vec::new());
            }
        }

        /// Bytes that a broken or hostile peer has sealed with the right checksum, in every codec.
        #[test]
        fn changed_and_resealed_bytes_never_panic(
            codec in 0u8..8,
            changes in prop::collection::vec((SUMMED_FROM..100usize, any::<u8>()), 0..6)
        ) {
            let mut bytes = batch(&["some value", "another value"]).to_vec();
            bytes[22] |= codec;
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) { *place = byte }
            }
            if let Next::Batch(batch) = next_batch(&mut resealed(bytes), LONGEST) {
                let _ = batch.decode(0, &mut Vec::new());
                let _ = batch.is_abort_marker();
            }
        }

        #[test]
        fn what_is_written_is_read_back(
            records in prop::collection::vec(
                (any::<Option<Vec<u8>>>(), any::<Option<Vec<u8>>>(),
                 prop::collection::vec((".{0,5}", any::<Option<Vec<u8>>>()), 0..4), 0i64..1 << 42),
                1..20)
        ) {
            let sent: Vec<ProducerRecord> = records.into_iter().map(|(key, value, headers, timestamp)| ProducerRecord {
                topic: "t".into(),
                key: key.map(Bytes::from),
                value: value.map(Bytes::from),
                headers: headers.into_iter().map(|(key, value)| (key.into(), value.map(Bytes::from))).collect(),
                timestamp: Some(timestamp),
                partition: None,
            }).collect();
            let encoded = batch_of(&sent, &WRITER);
            let estimate: usize = sent.iter().map(|record| estimated_size(&Entry { index: 0, record, mark: None })).sum();
            prop_assert!(encoded.len() <= HEADER + estimate);
            let Next::Batch(raw) = next_batch(&mut encoded.clone(), LONGEST) else { panic!("no batch") };
            let mut read = Vec::new();
            raw.decode(0, &mut read).unwrap();
            prop_assert_eq!(read.len(), sent.len());
            for (at, (read, sent)) in read.into_iter().zip(sent).enumerate() {
                prop_assert_eq!(read.offset, at as i64);
                prop_assert_eq!(Some(read.timestamp), sent.timestamp);
                prop_assert_eq!((read.key, read.value, read.headers), (sent.key, sent.value, sent.headers));
            }
        }
    }
}
