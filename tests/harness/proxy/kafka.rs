//! A connection to a broker, frame by frame: the brokers' ports in the answers are replaced by those of their proxies.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use super::{Shared, choose, connect, number, wait_while_held};

/// Kafka's numbers of the requests whose answers name brokers.
const METADATA: i16 = 3;
const FIND_COORDINATOR: i16 = 10;

/// The requests under way on a connection, by their numbers. Brokers answer in order.
type Asked = Arc<Mutex<VecDeque<i16>>>;

pub(super) fn serve(
    client: TcpStream,
    broker: &str,
    state: &Shared,
    ports: &Arc<HashMap<i32, i32>>,
) -> io::Result<()> {
    let broker = connect(&client, broker, state)?;
    let (from_client, to_broker) = (client.try_clone()?, broker.try_clone()?);
    let (asking, answering, ports) = (state.clone(), state.clone(), ports.clone());
    let (asked, connection) = (Asked::default(), number(state));
    let answers = asked.clone();
    std::thread::spawn(move || {
        pump(from_client, to_broker, |frame| {
            lock(&asked).push_back(i16::from_be_bytes([frame[4], frame[5]]));
            choose(&asking, connection, frame);
        })
    });
    std::thread::spawn(move || {
        pump(broker, client, |frame| {
            let _ = match lock(&answers).pop_front() {
                Some(METADATA) => replace(frame, &ports, false),
                Some(FIND_COORDINATOR) => replace(frame, &ports, true),
                _ => Some(()),
            };
            wait_while_held(&answering, connection, frame);
        })
    });
    Ok(())
}

fn lock(asked: &Asked) -> std::sync::MutexGuard<'_, VecDeque<i16>> {
    asked
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut before: impl FnMut(&mut [u8])) {
    while let Ok(mut frame) = read_frame(&mut from) {
        before(&mut frame);
        if to.write_all(&frame).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Its length before it.
fn read_frame(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame)?;
    let length = i32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
    frame.resize(4 + usize::try_from(length).map_err(io::Error::other)?, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}

/// Both answers begin alike (Metadata 12, FindCoordinator 4 and later): length, correlation id, tags, throttle time, and an
/// array of brokers: (a coordinator: its key,) number, host, port, (its error code,) a text, tags.
fn replace(frame: &mut [u8], ports: &HashMap<i32, i32>, is_coordinator: bool) -> Option<()> {
    let mut at = 4 + 4 + 1 + 4;
    let count = varint(frame, &mut at)?.checked_sub(1)?;
    for _ in 0..count {
        if is_coordinator {
            skip_string(frame, &mut at)?;
        }
        at += 4;
        skip_string(frame, &mut at)?;
        let port = frame.get_mut(at..at + 4)?;
        let advertised = i32::from_be_bytes(port.try_into().ok()?);
        port.copy_from_slice(&ports.get(&advertised).unwrap_or(&advertised).to_be_bytes());
        at += if is_coordinator { 4 + 2 } else { 4 };
        skip_string(frame, &mut at)?;
        at += 1;
    }
    Some(())
}

/// Kafka's compact strings: the length plus one, zero for null.
fn skip_string(frame: &[u8], at: &mut usize) -> Option<()> {
    *at += varint(frame, at)?.saturating_sub(1);
    Some(())
}

fn varint(frame: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = *frame.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
