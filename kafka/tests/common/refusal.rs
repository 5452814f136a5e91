//! An answer rewritten: every error code in it replaced, found by the layout of the answers that this client asks for.

use super::proxy::*;

enum Field {
    Skip(usize),
    Error,
    /// COMPACT_STRING or COMPACT_BYTES.
    Compact,
    /// COMPACT_ARRAY.
    Array(&'static [Field]),
    Tags,
}

use Field::{Array, Compact, Error, Skip, Tags};

const TOPIC_ERRORS: &[Field] = &[
    Skip(4),
    Array(&[Compact, Array(&[Skip(4), Error, Tags]), Tags]),
];
const PRODUCED: &[Field] = &[Array(&[
    Compact,
    Array(&[
        Skip(4),
        Error,
        Skip(8 + 8 + 8),
        Array(&[Skip(4), Compact, Tags]),
        Compact,
        Tags,
    ]),
    Tags,
])];
const FETCHED: &[Field] = &[
    Skip(4 + 2 + 4),
    Array(&[
        Skip(16),
        Array(&[
            Skip(4),
            Error,
            Skip(8 + 8 + 8),
            Array(&[Skip(8 + 8), Tags]),
            Skip(4),
            Compact,
            Tags,
        ]),
        Tags,
    ]),
];
const LISTED: &[Field] = &[
    Skip(4),
    Array(&[
        Compact,
        Array(&[Skip(4), Error, Skip(8 + 8 + 4), Tags]),
        Tags,
    ]),
];
const OFFSETS: &[Field] = &[
    Skip(4),
    Array(&[
        Compact,
        Array(&[
            Compact,
            Array(&[Skip(4 + 8 + 4), Compact, Error, Tags]),
            Tags,
        ]),
        Error,
        Tags,
    ]),
];

fn layout(api: i16) -> &'static [Field] {
    match api {
        PRODUCE => PRODUCED,
        FETCH => FETCHED,
        LIST_OFFSETS => LISTED,
        OFFSET_FETCH => OFFSETS,
        OFFSET_COMMIT | ADD_PARTITIONS_TO_TXN | TXN_OFFSET_COMMIT => TOPIC_ERRORS,
        // a throttle time, then the error
        _ => &[Skip(4), Error],
    }
}

/// Puts this code wherever the answer to such a request has one.
pub fn rewrite(answer: &mut [u8], api: i16, code: i16) {
    // correlation id, tags
    let mut at = 4 + 1;
    assert!(
        walk(answer, &mut at, layout(api), code) > 0,
        "no error code in the answer of API {api}"
    );
}

fn walk(answer: &mut [u8], at: &mut usize, fields: &[Field], code: i16) -> usize {
    fields
        .iter()
        .map(|field| step(answer, at, field, code))
        .sum()
}

fn step(answer: &mut [u8], at: &mut usize, field: &Field, code: i16) -> usize {
    match field {
        Skip(length) => *at += length,
        Compact => *at += varint(answer, at).saturating_sub(1),
        Array(element) => {
            return (1..varint(answer, at))
                .map(|_| walk(answer, at, element, code))
                .sum();
        }
        Tags => (0..varint(answer, at)).for_each(|_| {
            varint(answer, at);
            *at += varint(answer, at);
        }),
        Error => {
            answer[*at..*at + 2].copy_from_slice(&code.to_be_bytes());
            *at += 2;
            return 1;
        }
    }
    0
}

fn varint(answer: &[u8], at: &mut usize) -> usize {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = answer[*at];
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}
