//! Requests sent at their moments, whatever becomes of those before: an open loop, for loads above what a service takes.
//!
//! A few threads drive all connections without blocking: `epoll(7)` once a tick, then whatever is due is sent. A request
//! whose moment finds no free connection is counted and never sent: clients, too, have no more connections than that.
//! It shares the machine with the service, so it is cheap: no thread is woken for a request or an answer.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use uuid::Uuid;

use crate::wire::{self, WireAnswer};

/// More than one, so that the load gets its share of the processors beside a service with many threads.
const THREADS: usize = 2;
/// How often is looked what is due and what has come: moments can be late by so much.
const TICK: Duration = Duration::from_millis(2);
/// For a connection to be made, and for the last answers after the last request: the services answer in 10 s or so.
const LIMIT: Duration = Duration::from_secs(30);
/// Texts that are kept of answers other than 202, by thread.
const KEPT: usize = 500;

/// An open loop.
#[derive(Clone)]
pub struct Flood {
    /// The order service's instances, in turn.
    pub ports: Vec<u16>,
    /// Keep-alive connections, all together.
    pub connections: usize,
    /// Requests a second.
    pub rate: f64,
    /// From the first moment to the last.
    pub time: Duration,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Counted from 0, in the order of the moments.
    pub number: usize,
    /// When it was meant to be sent.
    pub start: Instant,
    /// When it was.
    pub sent: Instant,
    /// When its answer was read.
    pub answered: Instant,
    /// The answer's status.
    pub status: u16,
    /// The order that it names.
    pub order_id: Option<Uuid>,
}

/// What came of it.
pub struct Flooded {
    /// The first moment.
    pub began: Instant,
    /// By their numbers.
    pub answered: Vec<Answered>,
    /// Numbers of those that found no free connection.
    pub not_sent: Vec<usize>,
    /// Numbers of those that were sent and not answered: their connection broke, or the time was over.
    pub lost: Vec<usize>,
    /// Some answers other than 202, whole, with the numbers of their requests.
    pub refusals: Vec<(usize, String)>,
}

impl Flood {
    /// Sends `requests`, over and over, and returns when the last one is answered.
    ///
    /// # Errors
    /// When the connections can't be made at the start.
    pub fn run(&self, requests: &[Vec<u8>]) -> io::Result<Flooded> {
        let mut drivers = (0..THREADS)
            .map(|thread| self.driver(thread, requests))
            .collect::<io::Result<Vec<_>>>()?;
        let began = Instant::now();
        std::thread::scope(|scope| {
            drivers
                .iter_mut()
                .for_each(|driver| drop(scope.spawn(|| driver.drive(began))))
        });
        let mut all = Flooded {
            began,
            answered: vec![],
            not_sent: vec![],
            lost: vec![],
            refusals: vec![],
        };
        for Driver {
            answered,
            not_sent,
            lost,
            refusals,
            ..
        } in drivers
        {
            all.answered.extend(answered);
            all.not_sent.extend(not_sent);
            all.lost.extend(lost);
            all.refusals.extend(refusals);
        }
        all.answered
            .sort_unstable_by_key(|answered| answered.number);
        Ok(all)
    }

    fn driver<'r>(&'r self, thread: usize, requests: &'r [Vec<u8>]) -> io::Result<Driver<'r>> {
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let ports = (thread..self.connections)
            .step_by(THREADS)
            .map(|number| self.ports[number % self.ports.len()]);
        let connections = ports
            .enumerate()
            .map(|(place, port)| Connection::open(port, place, &ready));
        let connections = connections.collect::<io::Result<Vec<_>>>()?;
        Ok(Driver {
            flood: self,
            requests,
            next: thread,
            ready,
            free: (0..connections.len()).collect(),
            connections,
            answered: vec![],
            not_sent: vec![],
            lost: vec![],
            refusals: vec![],
        })
    }

    fn moment(&self, began: Instant, number: usize) -> Instant {
        began + Duration::from_secs_f64(number as f64 / self.rate)
    }
}

/// A thread's part: every [`THREADS`]th request, on connections of its own.
struct Driver<'r> {
    flood: &'r Flood,
    requests: &'r [Vec<u8>],
    /// The number of the next request.
    next: usize,
    /// Tells on which connections something can be read, by their places.
    ready: OwnedFd,
    connections: Vec<Connection>,
    /// The last one that came free is taken first: few are used as long as few are needed.
    free: Vec<usize>,
    answered: Vec<Answered>,
    not_sent: Vec<usize>,
    lost: Vec<usize>,
    refusals: Vec<(usize, String)>,
}

struct Connection {
    port: u16,
    place: usize,
    stream: TcpStream,
    /// Whether the server has said that it takes no further request on it.
    closes: bool,
    /// The request that is under way.
    sent: Option<Sent>,
    received: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Sent {
    number: usize,
    start: Instant,
    at: Instant,
}

impl Driver<'_> {
    fn drive(&mut self, began: Instant) {
        let end = began + self.flood.time;
        let mut tick = began;
        loop {
            self.receive();
            self.send_what_is_due(began, end);
            let now = Instant::now();
            let idle = self.free.len() == self.connections.len();
            if now >= end + LIMIT || now >= end && idle {
                break;
            }
            tick = (tick + TICK).max(now);
            std::thread::sleep(tick.saturating_duration_since(now));
        }
        self.lost.extend(
            self.connections
                .iter()
                .filter_map(|connection| Some(connection.sent?.number)),
        );
    }

    fn send_what_is_due(&mut self, began: Instant, end: Instant) {
        loop {
            let start = self.flood.moment(began, self.next);
            if start >= end || start > Instant::now() {
                return;
            }
            match self.free.pop() {
                None => self.not_sent.push(self.next),
                Some(place) => self.send(place, start),
            }
            self.next += THREADS;
        }
    }

    fn send(&mut self, place: usize, start: Instant) {
        let request = &self.requests[self.next % self.requests.len()];
        match self.connections[place].send(
            &self.ready,
            request,
            Sent {
                number: self.next,
                start,
                at: Instant::now(),
            },
        ) {
            Ok(()) => {}
            Err(_) => {
                self.lost.push(self.next);
                self.free.push(place);
            }
        }
    }

    /// Reads what has come, without waiting.
    fn receive(&mut self) {
        let mut events = Vec::with_capacity(self.connections.len().max(1));
        // interrupted: at the next tick
        let _ = epoll::wait(
            &self.ready,
            rustix::buffer::spare_capacity(&mut events),
            Some(&Timespec::default()),
        );
        for event in events {
            let connection = &mut self.connections[event.data.u64() as usize];
            // a server closes idle ones, too
            if connection.sent.is_none() {
                continue;
            }
            match connection.receive() {
                Ok(None) => continue,
                Ok(Some(answered)) => {
                    if answered.status != 202 && self.refusals.len() < KEPT {
                        self.refusals.push((answered.number, connection.text()));
                    }
                    self.answered.push(answered);
                }
                Err(_) => self
                    .lost
                    .extend(connection.sent.take().map(|sent| sent.number)),
            }
            self.free.push(connection.place);
        }
    }
}

impl Connection {
    fn open(port: u16, place: usize, ready: &OwnedFd) -> io::Result<Connection> {
        Ok(Connection {
            port,
            place,
            stream: connect(port, place, ready)?,
            closes: false,
            sent: None,
            received: vec![],
        })
    }

    /// A request is small: the kernel takes it at once, or the connection is of no use.
    fn send(&mut self, ready: &OwnedFd, request: &[u8], sent: Sent) -> io::Result<()> {
        if self.closes || !self.is_open() {
            self.stream = connect(self.port, self.place, ready)?;
            self.closes = false;
        }
        self.received.clear();
        self.stream.write_all(request)?;
        self.sent = Some(sent);
        Ok(())
    }

    /// A server closes connections that were idle for long, or when it stops.
    fn is_open(&self) -> bool {
        self.stream
            .peek(&mut [0])
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The answer once it is whole.
    fn receive(&mut self) -> io::Result<Option<Answered>> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.received.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        let Some(WireAnswer {
            status,
            order_id,
            closes,
            ..
        }) = wire::parse(&self.received)?
        else {
            return Ok(None);
        };
        let Some(Sent { number, start, at }) = self.sent.take() else {
            return Ok(None);
        };
        self.closes = closes;
        Ok(Some(Answered {
            number,
            start,
            sent: at,
            answered: Instant::now(),
            status,
            order_id,
        }))
    }

    /// The last answer, whole.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }
}

fn connect(port: u16, place: usize, ready: &OwnedFd) -> io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    epoll::add(
        ready,
        &stream,
        epoll::EventData::new_u64(place as u64),
        epoll::EventFlags::IN,
    )?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that answers each request of a connection after this time, with this text.
    fn server(pause: Duration, answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a client");
                std::thread::spawn(move || {
                    let mut bytes = [0; 1024];
                    while matches!(stream.read(&mut bytes), Ok(count) if count > 0) {
                        std::thread::sleep(pause);
                        stream
                            .write_all(answer.as_bytes())
                            .expect("a client that reads");
                    }
                });
            }
        });
        port
    }

    #[test]
    fn every_request_is_answered_or_not_sent_and_a_busy_connection_takes_no_second_one() {
        // two connections, each taken for at least 200 ms: of 50 requests in 500 ms at most six find one
        let port = server(
            Duration::from_millis(200),
            "HTTP/1.1 503 Unavailable\r\nContent-Length: 4\r\n\r\nfull",
        );
        let flood = Flood {
            ports: vec![port],
            connections: 2,
            rate: 100.0,
            time: Duration::from_millis(500),
        };
        let flooded = flood.run(&[b"x".to_vec()]).expect("connections");
        let mut numbers: Vec<usize> = flooded
            .answered
            .iter()
            .map(|answered| answered.number)
            .collect();
        assert!((2..=6).contains(&numbers.len()), "{numbers:?}");
        assert_eq!(flooded.refusals.len(), numbers.len());
        assert!(
            flooded
                .refusals
                .iter()
                .all(|(_, text)| text.ends_with("full"))
        );
        assert!(
            flooded
                .answered
                .iter()
                .all(|a| a.status == 503 && a.start <= a.sent && a.sent <= a.answered)
        );
        numbers.extend(flooded.not_sent);
        numbers.sort_unstable();
        assert_eq!(numbers, (0..50).collect::<Vec<usize>>());
        assert_eq!(flooded.lost, [0; 0]);
    }

    #[test]
    fn a_connection_that_the_server_closed_is_made_anew() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a client");
                let mut bytes = [0; 1024];
                if matches!(stream.read(&mut bytes), Ok(count) if count > 0) {
                    let answer =
                        b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer).expect("a client that reads");
                }
            }
        });
        let flood = Flood {
            ports: vec![port],
            connections: 1,
            rate: 20.0,
            time: Duration::from_millis(500),
        };
        let flooded = flood.run(&[b"x".to_vec()]).expect("a connection");
        assert!(
            flooded.answered.len() >= 2,
            "only {} answers",
            flooded.answered.len()
        );
        assert_eq!(flooded.lost, [0; 0]);
    }
}
