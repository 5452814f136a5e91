//! The compression of batches, with pure Rust codecs: LZ4 when writing, all of them when reading, with a limit against bombs.

use std::io::{Read, Write};

use bytes::Bytes;

/// The most a batch may hold when uncompressed. Brokers take batches of 1 MiB by default; a thousandfold is an attack.
const LIMIT: u64 = 256 << 20;

/// The first bytes of the framing that snappy-java, and so Kafka's Java client, puts around snappy blocks; a version
/// and the lowest compatible version follow, four bytes each.
const XERIAL: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: usize = 16;

/// The codec's number in a batch's attributes.
pub(crate) const LZ4: i16 = 3;

/// One frame, where that is smaller.
pub(crate) fn lz4(plain: &[u8]) -> Option<Vec<u8>> {
    let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::with_capacity(plain.len()));
    frame.write_all(plain).ok()?;
    frame
        .finish()
        .ok()
        .filter(|packed| packed.len() < plain.len())
}

/// The records of a batch as they were before compression. `attributes` are the batch's; its lowest three bits
/// name the codec. The error is a phrase that says what is wrong.
pub(crate) fn decompress(attributes: i16, bytes: Bytes) -> Result<Bytes, String> {
    let (mut plain, mut rest) = (Vec::new(), &*bytes);
    match attributes & 7 {
        0 => return Ok(bytes),
        1 => read("gzip", flate2::read::MultiGzDecoder::new(rest), &mut plain)?,
        2 => plain = snappy(rest)?,
        // frames, one after another; each decoder ends with its own
        LZ4 => {
            while !rest.is_empty() {
                read(
                    "lz4",
                    lz4_flex::frame::FrameDecoder::new(&mut rest),
                    &mut plain,
                )?;
            }
        }
        4 => {
            while !rest.is_empty() {
                let decoder = ruzstd::decoding::StreamingDecoder::new(&mut rest);
                read(
                    "zstd",
                    decoder.map_err(|error| format!("zstd: {error}"))?,
                    &mut plain,
                )?;
            }
        }
        other => return Err(format!("compression codec {other} is unknown")),
    }
    Ok(plain.into())
}

/// Appends what the source holds to `plain`.
fn read(codec: &str, source: impl Read, plain: &mut Vec<u8>) -> Result<(), String> {
    let room = (LIMIT + 1).saturating_sub(plain.len() as u64);
    source
        .take(room)
        .read_to_end(plain)
        .map_err(|error| format!("{codec}: {error}"))?;
    within_limit(codec, plain.len())
}

fn within_limit(codec: &str, length: usize) -> Result<(), String> {
    if length as u64 > LIMIT {
        Err(format!("{codec}: more than {LIMIT} bytes"))
    } else {
        Ok(())
    }
}

/// Blocks, each behind its length, within xerial framing; or one bare block, which other clients write.
fn snappy(bytes: &[u8]) -> Result<Vec<u8>, String> {
    if !bytes.starts_with(XERIAL) {
        return snappy_block(bytes);
    }
    let mut plain = Vec::new();
    let mut rest = bytes
        .get(XERIAL_HEADER..)
        .ok_or("snappy: the header ends too early")?;
    while !rest.is_empty() {
        let (length, tail) = rest
            .split_first_chunk::<4>()
            .ok_or("snappy: a length ends too early")?;
        let length = u32::from_be_bytes(*length) as usize;
        let block = tail.get(..length).ok_or("snappy: a block ends too early")?;
        plain.extend(snappy_block(block)?);
        within_limit("snappy", plain.len())?;
        rest = &tail[length..];
    }
    Ok(plain)
}

fn snappy_block(block: &[u8]) -> Result<Vec<u8>, String> {
    let length = snap::raw::decompress_len(block).map_err(|error| format!("snappy: {error}"))?;
    // The length is only claimed; snappy packs 64 bytes into 3 at best, so more than 32 times the block is a lie.
    if length > block.len().saturating_mul(32) + 64 {
        return Err(format!(
            "snappy: {} bytes claim to hold {length}",
            block.len()
        ));
    }
    let plain = snap::raw::Decoder::new().decompress_vec(block);
    plain.map_err(|error| format!("snappy: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_one_after_another_are_read_to_the_last() {
        let lz4 = |text: &str| {
            let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
            std::io::Write::write_all(&mut frame, text.as_bytes()).unwrap();
            frame.finish().unwrap()
        };
        let zstd = |text: &str| {
            ruzstd::encoding::compress_to_vec(
                text.as_bytes(),
                ruzstd::encoding::CompressionLevel::Fastest,
            )
        };
        let frames = |one: &dyn Fn(&str) -> Vec<u8>| {
            Bytes::from([one("one, "), one(""), one("two")].concat())
        };
        assert_eq!(decompress(3, frames(&lz4)).unwrap(), "one, two");
        assert_eq!(decompress(4, frames(&zstd)).unwrap(), "one, two");
        assert!(decompress(3, Bytes::from([&lz4("one")[..], b"no frame"].concat())).is_err());
    }

    #[test]
    fn a_snappy_block_that_claims_gigabytes_is_refused() {
        // The length is a varint: 4,294,967,295.
        let refused =
            decompress(2, Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0])).unwrap_err();
        assert!(refused.contains("claim to hold 4294967295"), "{refused}");
    }

    #[test]
    fn a_gzip_bomb_is_refused_at_the_limit() {
        use std::io::Write;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let zeros = vec![0u8; 1 << 20];
        (0..=LIMIT >> 20).for_each(|_| packed.write_all(&zeros).unwrap());
        let refused = decompress(1, Bytes::from(packed.finish().unwrap())).unwrap_err();
        assert!(refused.contains("more than"), "{refused}");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_in_any_codec(codec in 0i16..8, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decompress(codec, Bytes::from(bytes));
        }

        #[test]
        fn random_xerial_blocks_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let framed = [XERIAL, &[0, 0, 0, 1, 0, 0, 0, 1], &bytes[..]].concat();
            let _ = decompress(2, Bytes::from(framed));
        }
    }
}
