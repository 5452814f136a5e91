//! Reading and writing the protocol's primitive types over a byte slice, without panics and without allocating by
//! a length that the bytes merely claim. (Kafka protocol guide, "Protocol Primitive Types".)

use bytes::BufMut;

/// Why bytes can't be read: a phrase for an error's cause.
pub(crate) type Malformed = &'static str;

pub(crate) const TOO_SHORT: Malformed = "it ends too early";

/// A place in a byte slice. Every method moves on by what it read.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        if length > self.remaining() {
            return Err(TOO_SHORT);
        }
        let taken = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| TOO_SHORT)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)
    }

    /// UNSIGNED_VARINT, at most five bytes.
    pub(crate) fn unsigned_varint(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.base128(5)?).map_err(|_| "a varint is out of range")
    }

    /// VARINT: zigzag.
    pub(crate) fn varint(&mut self) -> Result<i32, Malformed> {
        let raw = self.unsigned_varint()?;
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    /// VARLONG: zigzag, at most ten bytes.
    pub(crate) fn varlong(&mut self) -> Result<i64, Malformed> {
        let raw = self.base128(10)?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn base128(&mut self, most_bytes: u32) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for index in 0..most_bytes {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a varint is too long")
    }

    /// BYTES behind a varint length (record format v2): -1 is null.
    pub(crate) fn varint_bytes(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let length = self.varint()?;
        self.nullable(length)
    }

    /// STRING of the non-flexible versions.
    pub(crate) fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = self.i16()?;
        let bytes = self
            .nullable(i32::from(length))?
            .ok_or("a string is null")?;
        std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")
    }

    fn nullable(&mut self, length: i32) -> Result<Option<&'a [u8]>, Malformed> {
        match length {
            -1 => Ok(None),
            _ => self
                .take(usize::try_from(length).map_err(|_| "a length is negative")?)
                .map(Some),
        }
    }
}

/// Writes a VARINT.
pub(crate) fn put_varint(buffer: &mut impl BufMut, value: i32) {
    put_varlong(buffer, i64::from(value));
}

/// Writes a VARLONG. The zigzag form of a small number is the same in 32 and in 64 bits.
pub(crate) fn put_varlong(buffer: &mut impl BufMut, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        buffer.put_u8(raw as u8 | 0x80);
        raw >>= 7;
    }
    buffer.put_u8(raw as u8);
}

/// How many bytes [`put_varlong`] writes.
pub(crate) fn varlong_size(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn varints_are_zigzag_and_little_first() {
        let mut buffer = Vec::new();
        put_varint(&mut buffer, -1);
        put_varint(&mut buffer, 150);
        assert_eq!(buffer, [0x01, 0xac, 0x02]);
    }

    #[test]
    fn a_varint_without_end_is_refused() {
        assert!(Reader::new(&[0xff; 12]).varlong().is_err());
        assert!(Reader::new(&[0xff; 12]).varint().is_err());
        assert!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x7f])
                .varint()
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn a_written_varlong_is_read_back(value: i64) {
            let mut buffer = Vec::new();
            put_varlong(&mut buffer, value);
            prop_assert_eq!(buffer.len(), varlong_size(value));
            prop_assert_eq!(Reader::new(&buffer).varlong(), Ok(value));
        }

        #[test]
        fn a_written_varint_is_read_back(value: i32) {
            let mut buffer = Vec::new();
            put_varint(&mut buffer, value);
            prop_assert_eq!(Reader::new(&buffer).varint(), Ok(value));
        }
    }
}
