//! A check of an answer's outline before the codec sees it.
//!
//! The codec crate reserves memory for as many elements as an array claims to have. Four hostile or garbled bytes
//! would make it ask for hundreds of gigabytes, and a failed allocation ends the process. So each answer is first
//! walked along its layout, which allocates nothing: what passes has no array longer than its own bytes.

use crate::wire::primitive::{Malformed, Reader, TOO_SHORT};

/// One field of an answer, in a flexible version unless said otherwise (KIP-482).
pub(crate) enum Shape {
    /// So many bytes.
    Fixed(usize),
    /// A COMPACT_STRING or COMPACT_BYTES, nullable or not.
    Compact,
    /// A COMPACT_ARRAY of such elements, nullable or not.
    Array(&'static [Shape]),
    /// A STRING of a non-flexible version.
    OldString,
    /// An ARRAY of a non-flexible version.
    OldArray(&'static [Shape]),
    /// The tagged fields; those that hold arrays are named with their own layout.
    Tags(&'static [(u32, &'static [Shape])]),
}

/// Whether these bytes have this outline. What follows after it is let pass, as the codec does.
pub(crate) fn check(bytes: &[u8], shape: &[Shape]) -> Result<(), Malformed> {
    walk(&mut Reader::new(bytes), shape)
}

fn walk(reader: &mut Reader<'_>, shape: &[Shape]) -> Result<(), Malformed> {
    shape.iter().try_for_each(|field| field.walk(reader))
}

impl Shape {
    fn walk(&self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        match self {
            Shape::Fixed(length) => reader.take(*length).map(drop),
            Shape::Compact => skip_compact(reader),
            Shape::OldString => reader.string().map(drop),
            Shape::Array(element) => {
                let length = reader.unsigned_varint()?.saturating_sub(1);
                walk_elements(reader, element, length as usize)
            }
            Shape::OldArray(element) => {
                let length = usize::try_from(reader.i32()?).map_err(|_| "an array is null")?;
                walk_elements(reader, element, length)
            }
            Shape::Tags(known) => walk_tags(reader, known),
        }
    }
}

fn skip_compact(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let length = reader.unsigned_varint()?.saturating_sub(1);
    reader.take(length as usize).map(drop)
}

/// Every element takes a byte at least, so a claimed length beyond the bytes left is refused before the walk.
fn walk_elements(
    reader: &mut Reader<'_>,
    element: &[Shape],
    length: usize,
) -> Result<(), Malformed> {
    if length > reader.remaining() {
        return Err(TOO_SHORT);
    }
    (0..length).try_for_each(|_| walk(reader, element))
}

fn walk_tags(reader: &mut Reader<'_>, known: &[(u32, &'static [Shape])]) -> Result<(), Malformed> {
    for _ in 0..reader.unsigned_varint()? {
        let tag = reader.unsigned_varint()?;
        let length = reader.unsigned_varint()?;
        let field = reader.take(length as usize)?;
        if let Some((_, shape)) = known.iter().find(|(number, _)| *number == tag) {
            check(field, shape)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_longer_than_its_bytes_is_refused() {
        let shape = [Shape::Array(&[Shape::Fixed(4)])];
        assert!(check(&[0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3, 4], &shape).is_err());
        assert!(check(&[2, 1, 2, 3, 4], &shape).is_ok());
        assert!(check(&[0], &shape).is_ok());
    }

    #[test]
    fn an_array_inside_a_tag_is_checked_too() {
        let shape = [Shape::Tags(&[(0, &[Shape::Array(&[Shape::Fixed(4)])])])];
        assert!(check(&[1, 0, 1, 200], &shape).is_err());
        assert!(check(&[1, 7, 1, 200], &shape).is_ok());
    }
}
