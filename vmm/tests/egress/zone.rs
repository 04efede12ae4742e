//! The outside's name server, and a guest's resolver.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME},
    },
};

use crate::world::{Guest, METADATA, NAME_SERVER};

/// Names that were asked for.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    pub fn contains(&self, name: &str) -> bool {
        self.0.lock().unwrap().iter().any(|asked| asked == name)
    }
}

pub const fn outside(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

/// How many addresses `big.test` has: more than fit into a datagram, and more than a guest is told.
pub const BIG: u8 = 100;

fn records(name: &str) -> Vec<Record> {
    let a =
        |name: &str, address| Record::from_rdata(Name::from_ascii(name).unwrap(), 5, RData::A(A(address)));
    let alias = |name: &str, of: &str| {
        let of = RData::CNAME(CNAME(Name::from_ascii(of).unwrap()));
        Record::from_rdata(Name::from_ascii(name).unwrap(), 5, of)
    };
    match name {
        "www.example.com." => vec![a(name, outside(10))],
        "alias.example.com." => vec![alias(name, "www.cdn.test."), a("www.cdn.test.", outside(11))],
        "smuggled.example.com." => vec![a(name, outside(12)), a("www.elsewhere.test.", outside(13))],
        "a.b.wild.test." => vec![a(name, outside(14))],
        "other.test." => vec![a(name, outside(15))],
        "bad.test." => vec![a(name, outside(16))],
        "around.test." => vec![alias(name, "bad.test."), a("bad.test.", outside(16))],
        "metadata.test." => vec![a(name, METADATA)],
        "big.test." => (1..=BIG).map(|last| a(name, Ipv4Addr::new(198, 51, 100, last))).collect(),
        _ => Vec::new(),
    }
}

/// Serves in the thread's namespace until the process ends.
pub fn serve(asked: Asked) {
    let datagrams = UdpSocket::bind((NAME_SERVER, 53)).unwrap();
    let streams = TcpListener::bind((NAME_SERVER, 53)).unwrap();
    let also_asked = asked.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = datagrams.recv_from(&mut buffer).unwrap();
            let answer = answer(&buffer[..length], &asked, 1232);
            datagrams.send_to(&answer, from).unwrap();
        }
    });
    thread::spawn(move || {
        for stream in streams.incoming() {
            let asked = also_asked.clone();
            // Who asks may be gone, or wait for ever.
            thread::spawn(move || stream.and_then(|stream| answer_by_stream(stream, &asked)));
        }
    });
}

fn answer_by_stream(mut stream: TcpStream, asked: &Asked) -> io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut question)?;
    let answer = answer(&question, asked, 65535);
    stream.write_all(&(answer.len() as u16).to_be_bytes())?;
    stream.write_all(&answer)
}

fn answer(question: &[u8], asked: &Asked, limit: usize) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let name = query.name().to_ascii().to_ascii_lowercase();
    asked.0.lock().unwrap().push(name.clone());
    let records = records(&name);
    let code = if records.is_empty() { ResponseCode::NXDomain } else { ResponseCode::NoError };
    let mut answer = Message::error_msg(question.metadata.id, OpCode::Query, code);
    answer.add_query(query);
    answer.add_answers(records);
    let whole = answer.to_vec().unwrap();
    if whole.len() <= limit { whole } else { answer.truncate().to_vec().unwrap() }
}

/// What a guest was told.
#[derive(Debug)]
pub struct Told {
    pub code: ResponseCode,
    pub truncated: bool,
    pub addresses: Vec<Ipv4Addr>,
}

pub fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn told(answer: &[u8]) -> Told {
    let answer = Message::from_vec(answer).unwrap();
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    Told {
        code: answer.metadata.response_code,
        truncated: answer.metadata.truncation,
        addresses: answer.answers.iter().filter_map(address).collect(),
    }
}

/// Looks a name up from inside a guest.
pub fn look_up(guest: &Guest, name: &str) -> Told {
    told(&guest.ask(NAME_SERVER, &question(name, RecordType::A)).unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// The same for other kinds of records.
pub fn look_up_kind(guest: &Guest, name: &str, kind: RecordType) -> Told {
    told(&guest.ask(NAME_SERVER, &question(name, kind)).unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// The same over a connection.
pub fn look_up_by_stream(guest: &Guest, name: &str) -> Told {
    told(&guest.ask_by_stream(NAME_SERVER, &question(name, RecordType::A)).unwrap())
}
