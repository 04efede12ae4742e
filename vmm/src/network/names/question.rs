//! What a guest's message to a name server comes to, and what of the server's answer the guest is told.
//!
//! Nothing is passed through as it came: a question is taken apart and asked anew, and an answer is made anew
//! of the records that belong to it. So nothing hidden in either reaches the other side.

use std::{net::Ipv4Addr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};

use crate::network::egress::{EgressPolicy, NameVerdict};

/// Longer messages are no questions.
pub const MAX_QUESTION: usize = 4096;

/// What fits into one packet everywhere, <https://www.dnsflagday.net/2020/>.
const MAX_DATAGRAM: u16 = 1232;
/// What every resolver takes, RFC 1035, section 2.3.4.
const MIN_DATAGRAM: u16 = 512;
const HEADER: usize = 12;

/// How many names may lead from one to the next. Resolvers give up sooner.
const MAX_ALIASES: usize = 16;
/// Of one answer; more are not told.
const MAX_ADDRESSES: usize = 64;

/// An address that was told stays reachable for so long at least, however short its own time is.
const MIN_TIME: Duration = Duration::from_secs(60);
/// And so long at most. The guest is told no longer time either.
const MAX_TIME: Duration = Duration::from_secs(3600);

/// How a message came, and so how long an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Datagram,
    Stream,
}

/// What a guest's message comes to.
#[derive(Debug)]
pub enum Reading {
    /// Nothing that could be answered.
    Ignore,
    /// Nobody needs to be asked.
    Answer(Vec<u8>),
    Ask(Box<Question>),
}

/// A guest's question that a name server shall be asked.
#[derive(Debug)]
pub struct Question {
    id: u16,
    query: Query,
    recursion_desired: bool,
    edns: bool,
    /// Bytes that an answer may have.
    limit: u16,
    verdict: NameVerdict,
}

/// What a name server's message comes to.
#[derive(Debug)]
pub enum Reply {
    /// Not the answer to this question.
    Foreign,
    /// To be asked again over a stream.
    Truncated,
    Answer(Answer),
}

/// For the guest.
#[derive(Debug)]
pub struct Answer {
    message: Message,
    /// Bytes that it may have.
    limit: u16,
    /// What the guest may reach from now on, and for how long; to be seen to before it is told.
    pub addresses: Vec<(Ipv4Addr, Duration)>,
}

impl Question {
    /// Reads what came from a guest: anything.
    pub fn read(policy: &EgressPolicy, bytes: &[u8], transport: Transport) -> Reading {
        let Some(header) = bytes.get(..HEADER) else { return Reading::Ignore };
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (id, is_answer) = (count(0), header[2] & 0x80 != 0);
        let op_code = OpCode::from_u8(header[2] >> 3 & 0xf);
        if is_answer {
            return Reading::Ignore;
        }
        let refuse = |code| encode(&Message::error_msg(id, op_code, code));
        if op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        // One question, no records but what comes with it (EDNS, a signature): looked at before anything is made room for.
        let shape = (count(4), count(6), count(8));
        if shape != (1, 0, 0) || count(10) > 2 || bytes.len() > MAX_QUESTION {
            return refuse(ResponseCode::FormErr);
        }
        let Ok(mut message) = Message::from_vec(bytes) else { return refuse(ResponseCode::FormErr) };
        let Some(query) = message.queries.pop() else { return refuse(ResponseCode::FormErr) };
        let limit = match transport {
            Transport::Stream => u16::MAX,
            Transport::Datagram => message.max_payload().clamp(MIN_DATAGRAM, MAX_DATAGRAM),
        };
        let verdict = judge(policy, query.name());
        let question = Self {
            id,
            recursion_desired: message.metadata.recursion_desired,
            edns: message.edns.is_some(),
            limit,
            verdict,
            query,
        };
        question.answer_or_ask()
    }

    fn answer_or_ask(self) -> Reading {
        let kind = self.query.query_type();
        let whole_zone = matches!(kind, RecordType::AXFR | RecordType::IXFR);
        if self.verdict == NameVerdict::Denied || whole_zone || self.query.query_class() != DNSClass::IN {
            return encode(&self.response(ResponseCode::Refused));
        }
        match kind {
            // Guests speak IPv4 only; and the addresses that come in the other two would be used without the
            // question for them being asked.
            RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => {
                encode(&self.response(ResponseCode::NoError))
            }
            _ => Reading::Ask(Box::new(self)),
        }
    }

    /// The question for a name server, with a number that the guest does not know.
    pub fn ask(&self) -> Result<(u16, Vec<u8>), hickory_proto::ProtoError> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(self.query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM);
        message.set_edns(edns);
        Ok((message.metadata.id, message.to_vec()?))
    }

    /// Reads what came from a name server that was asked with this number.
    pub fn read_reply(&self, policy: &EgressPolicy, asked: u16, bytes: &[u8]) -> Reply {
        let Ok(message) = Message::from_vec(bytes) else { return Reply::Foreign };
        let is_answer = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
        // Some name servers leave the question out of an error.
        let ours = match message.queries.as_slice() {
            [] => message.answers.is_empty(),
            [query] => *query == self.query,
            _ => false,
        };
        if !is_answer || message.metadata.id != asked || !ours {
            return Reply::Foreign;
        }
        if message.metadata.truncation {
            return Reply::Truncated;
        }
        Reply::Answer(self.answer(policy, message))
    }

    /// Only what belongs to the question is told.
    fn answer(&self, policy: &EgressPolicy, message: Message) -> Answer {
        let code = message.metadata.response_code;
        // The rest are between the name server and us.
        let code = if code.high() == 0 { code } else { ResponseCode::ServFail };
        let names = aliases(self.query.name(), &message.answers);
        let roundabout = names.iter().skip(1).any(|name| judge(policy, name) == NameVerdict::Denied);
        if self.verdict != NameVerdict::Allowed && roundabout {
            return self.error(ResponseCode::Refused);
        }
        let for_address = self.query.query_type() == RecordType::A;
        let mut addresses = Vec::new();
        let mut response = self.response(code);
        for mut record in message.answers {
            match &record.data {
                _ if for_address && !names.contains(&record.name) => continue,
                RData::A(_) if addresses.len() == MAX_ADDRESSES => continue,
                RData::A(address) => addresses.push((address.0, Duration::from_secs(record.ttl.into()))),
                RData::CNAME(_) => {}
                _ if for_address => continue,
                _ => {}
            }
            shorten(&mut record);
            response.add_answer(record);
        }
        // For how long there is nothing, RFC 2308.
        for mut record in message.authorities {
            if record.record_type() == RecordType::SOA {
                shorten(&mut record);
                response.add_authority(record);
            }
        }
        if self.verdict != NameVerdict::Allowed || !for_address {
            addresses.clear();
        }
        for (_, time) in &mut addresses {
            *time = (*time).clamp(MIN_TIME, MAX_TIME);
        }
        Answer { message: response, limit: self.limit, addresses }
    }

    /// For a question that could not be answered.
    pub fn failure(&self) -> Answer {
        self.error(ResponseCode::ServFail)
    }

    fn error(&self, code: ResponseCode) -> Answer {
        Answer { message: self.response(code), limit: self.limit, addresses: Vec::new() }
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut response = Message::error_msg(self.id, OpCode::Query, code);
        response.metadata.recursion_desired = self.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_query(self.query.clone());
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_DATAGRAM);
            response.set_edns(edns);
        }
        response
    }
}

impl Answer {
    /// Another name server would say the same.
    pub fn is_definite(&self) -> bool {
        matches!(self.message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
    }

    /// Without its records where they do not fit: the guest asks again over a stream.
    pub fn encode(&self) -> Result<Vec<u8>, hickory_proto::ProtoError> {
        let whole = self.message.to_vec()?;
        if whole.len() <= usize::from(self.limit) { Ok(whole) } else { self.message.truncate().to_vec() }
    }
}

fn encode(message: &Message) -> Reading {
    message.to_vec().map_or(Reading::Ignore, Reading::Answer)
}

fn judge(policy: &EgressPolicy, name: &Name) -> NameVerdict {
    policy.judge(&name.iter().collect::<Vec<_>>())
}

fn shorten(record: &mut Record) {
    record.ttl = record.ttl.min(MAX_TIME.as_secs() as u32);
}

/// A name and what it is another name for, and so on.
fn aliases(name: &Name, records: &[Record]) -> Vec<Name> {
    let mut names = vec![name.clone()];
    while names.len() <= MAX_ALIASES {
        let next = records.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if names.last() == Some(&record.name) => Some(target.0.clone()),
            _ => None,
        });
        match next {
            Some(next) if !names.contains(&next) => names.push(next),
            _ => break,
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
    use proptest::prelude::*;

    use super::*;

    fn policy(deny_all: bool, allow: &[&str], deny: &[&str]) -> EgressPolicy {
        EgressPolicy::new(deny_all, allow, deny).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn message(text: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(text), kind));
        message
    }

    fn read(policy: &EgressPolicy, message: &Message) -> Reading {
        Question::read(policy, &message.to_vec().unwrap(), Transport::Datagram)
    }

    fn ask(policy: &EgressPolicy, message: &Message) -> Question {
        match read(policy, message) {
            Reading::Ask(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn answered(reading: Reading) -> Message {
        match reading {
            Reading::Answer(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// What a server says to a question, and what the guest is told.
    fn told(policy: &EgressPolicy, question: &Question, fill: impl FnOnce(&mut Message)) -> Answer {
        let (number, asked) = question.ask().unwrap();
        let mut answer = Message::from_vec(&asked).unwrap().into_response();
        fill(&mut answer);
        match question.read_reply(policy, number, &answer.to_vec().unwrap()) {
            Reply::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn record(owner: &str, ttl: u32, data: RData) -> Record {
        Record::from_rdata(name(owner), ttl, data)
    }

    #[test]
    fn a_question_is_asked_anew_with_nothing_else_of_the_guests() {
        let policy = policy(true, &["*.example.com"], &[]);
        let mut hostile = message("WwW.example.com.", RecordType::A);
        hostile.metadata.checking_disabled = true;
        let mut edns = Edns::new();
        edns.set_max_payload(9000);
        edns.options_mut()
            .insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(65001, b"smuggled".to_vec()));
        hostile.set_edns(edns);
        let question = ask(&policy, &hostile);
        assert_eq!(question.limit, MAX_DATAGRAM);
        let (number, asked) = question.ask().unwrap();
        assert!(!asked.windows(8).any(|bytes| bytes == b"smuggled"));
        let asked = Message::from_vec(&asked).unwrap();
        assert_eq!((asked.metadata.id, asked.metadata.checking_disabled), (number, false));
        assert_eq!(asked.queries, hostile.queries);
    }

    #[test]
    fn times_are_bounded_for_the_guest_and_for_the_filter() {
        let policy = policy(true, &["www.example.com"], &[]);
        let question = ask(&policy, &message("www.example.com.", RecordType::A));
        let answer = told(&policy, &question, |answer| {
            for (ttl, last) in [(0, 1), (600, 2), (u32::MAX, 3)] {
                answer.add_answer(record("www.example.com.", ttl, RData::A(A::new(203, 0, 113, last))));
            }
        });
        let times: Vec<u64> = answer.addresses.iter().map(|(_, time)| time.as_secs()).collect();
        assert_eq!(times, [60, 600, 3600]);
        let told: Vec<u32> = answer.message.answers.iter().map(|record| record.ttl).collect();
        assert_eq!(told, [0, 600, 3600]);
    }

    #[test]
    fn aliases_are_followed_in_any_order_and_never_round() {
        let policy = policy(true, &["a.example.com"], &[]);
        let question = ask(&policy, &message("a.example.com.", RecordType::A));
        let alias = |from: &str, to: &str| record(from, 60, RData::CNAME(CNAME(name(to))));
        let address = |owner: &str| record(owner, 60, RData::A(A::new(203, 0, 113, 1)));
        let answer = told(&policy, &question, |answer| {
            answer.add_answers([
                address("C.test."),
                alias("b.test.", "c.test."),
                alias("a.EXAMPLE.com.", "b.test."),
            ]);
            answer.add_answers([alias("c.test.", "a.example.com."), address("d.test.")]);
        });
        assert_eq!(answer.addresses.len(), 1);
        assert_eq!(answer.message.answers.len(), 4, "all but the stranger's");
    }

    #[test]
    fn a_name_that_is_only_not_denied_lets_nothing_in() {
        let policy = policy(false, &["allowed.test"], &["denied.test", "10.0.0.0/8"]);
        let question = ask(&policy, &message("open.test.", RecordType::A));
        let answer = told(&policy, &question, |answer| {
            answer.add_answer(record("open.test.", 60, RData::A(A::new(203, 0, 113, 1))));
        });
        assert_eq!((answer.addresses.len(), answer.message.answers.len()), (0, 1));
        let code = answered(read(&policy, &message("denied.test.", RecordType::TXT))).metadata.response_code;
        assert_eq!(code, ResponseCode::Refused);
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let policy = policy(true, &["*.example.com"], &[]);
        let question = ask(&policy, &message("www.example.com.", RecordType::A));
        let (number, asked) = question.ask().unwrap();
        let asked = Message::from_vec(&asked).unwrap();
        let foreign = |change: &dyn Fn(&mut Message)| {
            let mut answer = asked.clone().into_response();
            change(&mut answer);
            let reply = question.read_reply(&policy, number, &answer.to_vec().unwrap());
            matches!(reply, Reply::Foreign)
        };
        assert!(!foreign(&|_| {}));
        assert!(foreign(&|answer| answer.metadata.id ^= 1));
        assert!(foreign(&|answer| answer.queries = message("evil.test.", RecordType::A).queries));
        assert!(foreign(&|answer| answer.metadata.message_type = hickory_proto::op::MessageType::Query));
        let mut cut = asked.clone().into_response();
        cut.metadata.truncation = true;
        assert!(matches!(question.read_reply(&policy, number, &cut.to_vec().unwrap()), Reply::Truncated));
    }

    #[test]
    fn other_kinds_pass_and_that_there_is_nothing_is_remembered() {
        let policy = policy(true, &["*.example.com"], &[]);
        let question = ask(&policy, &message("www.example.com.", RecordType::TXT));
        let answer = told(&policy, &question, |answer| {
            answer.add_answer(record("www.example.com.", 60, RData::TXT(TXT::new(vec!["text".into()]))));
            answer.add_answer(record("www.example.com.", 60, RData::A(A::new(203, 0, 113, 1))));
        });
        assert_eq!((answer.message.answers.len(), answer.addresses.len()), (2, 0));

        let question = ask(&policy, &message("none.example.com.", RecordType::A));
        let answer = told(&policy, &question, |answer| {
            let soa = SOA::new(name("ns.example.com."), name("host.example.com."), 1, 2, 3, 4, 5);
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.add_authority(record("example.com.", 60, RData::SOA(soa)));
            answer.add_authority(record("example.com.", 60, RData::A(A::new(203, 0, 113, 1))));
        });
        assert!(answer.is_definite());
        assert_eq!(answer.message.authorities.len(), 1);
    }

    #[test]
    fn what_is_no_question_gets_an_error_or_nothing() {
        let policy = EgressPolicy::default();
        let sound = message("a.test.", RecordType::A).to_vec().unwrap();
        let code = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sound.clone();
            change(&mut bytes);
            answered(Question::read(&policy, &bytes, Transport::Datagram)).metadata.response_code
        };
        assert_eq!(code(&|bytes| bytes[2] = 0x28), ResponseCode::NotImp, "an update");
        assert_eq!(code(&|bytes| bytes[5] = 2), ResponseCode::FormErr, "two questions");
        assert_eq!(code(&|bytes| bytes[4..12].fill(0xff)), ResponseCode::FormErr, "countless records");
        assert_eq!(code(&|bytes| bytes.truncate(14)), ResponseCode::FormErr, "half a name");
        assert_eq!(code(&|bytes| bytes[12] = 0xc0), ResponseCode::FormErr, "a name that points at itself");
        assert_eq!(code(&|bytes| *bytes.last_mut().unwrap() = 3), ResponseCode::Refused, "another class");
        for silent in [&sound[..11], &[0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0]] {
            assert!(matches!(Question::read(&policy, silent, Transport::Datagram), Reading::Ignore));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn nothing_a_guest_sends_is_too_much(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            plausible in any::<bool>(),
        ) {
            if plausible && bytes.len() >= HEADER {
                let records = bytes[11] & 3;
                bytes[2..HEADER].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, records]);
            }
            let policy = policy(true, &["*.com"], &["*.net"]);
            match Question::read(&policy, &bytes, Transport::Datagram) {
                Reading::Ignore => {}
                Reading::Answer(answer) => prop_assert!(answer.len() <= usize::from(MAX_DATAGRAM)),
                Reading::Ask(question) => prop_assert!(question.ask().is_ok()),
            }
        }

        #[test]
        fn nothing_a_server_says_is_too_much(
            changes in proptest::collection::vec((12usize..200, any::<u8>()), 0..8),
            records in 0u8..20,
        ) {
            let policy = policy(true, &["*.com"], &["*.net"]);
            let question = ask(&policy, &message("a.com.", RecordType::A));
            let (number, asked) = question.ask().unwrap();
            let mut answer = Message::from_vec(&asked).unwrap().into_response();
            for last in 0..records {
                answer.add_answer(record("a.com.", 60, RData::A(A::new(203, 0, 113, last))));
            }
            let mut bytes = answer.to_vec().unwrap();
            for (at, byte) in changes {
                if let Some(there) = bytes.get_mut(at) {
                    *there = byte;
                }
            }
            if let Reply::Answer(answer) = question.read_reply(&policy, number, &bytes) {
                prop_assert!(answer.addresses.len() <= MAX_ADDRESSES);
                if let Ok(encoded) = answer.encode() {
                    prop_assert!(encoded.len() <= usize::from(MIN_DATAGRAM));
                }
            }
        }
    }
}
