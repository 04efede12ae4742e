//! What can be asked of a page server while it runs: one line of JSON and one in answer for each
//! connection to its control socket. Any number of callers may come, also of a later life of the agent.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A caller that says nothing, or does not listen, is left alone after this time.
const PROMPT: Duration = Duration::from_secs(1);
/// No line is longer.
pub(super) const LONGEST_LINE: u64 = 4096;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Stats,
    /// The restore is complete: record what it needed.
    Ready,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Stats(Stats),
    /// So many pages are recorded.
    Recorded(u64),
    Failed(String),
}

/// Counts since the start, in pages where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Whether the VMM has come.
    pub connected: bool,
    /// Faults that were answered. One answer brings several pages, and may be for several threads.
    pub faults: u64,
    /// Placed with content, for whatever reason.
    pub copied: u64,
    /// Placed as zeros.
    pub zeroed: u64,
    /// Of both, because the working set has them.
    pub prefetched: u64,
    /// Given back by the VMM.
    pub removed: u64,
    /// Were there already when they were about to be placed.
    pub present: u64,
    /// How often a removal came between.
    pub retries: u64,
    /// For how many milliseconds the slowest thread has been at one thing.
    pub busy_ms: u64,
    /// All threads wait for faults: nothing is left to prefetch.
    pub idle: bool,
    /// Pages of the working set that is now on disk.
    pub recorded: Option<u64>,
}

/// Reads a caller's line.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Request> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PROMPT))?;
    stream.set_write_timeout(Some(PROMPT))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line)?;
    parse(&line)
}

pub(super) fn answer(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(line(answer)?.as_bytes())
}

pub(super) fn line(message: &impl Serialize) -> io::Result<String> {
    let mut line = serde_json::to_string(message)?;
    line.push('\n');
    Ok(line)
}

pub(super) fn parse<T: DeserializeOwned>(line: &str) -> io::Result<T> {
    Ok(serde_json::from_str(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_understood_and_answered() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(line(&Request::Ready).unwrap().as_bytes()).unwrap();
        assert_eq!(receive(&ours).unwrap(), Request::Ready);
        let stats = Stats { faults: 3, recorded: Some(7), ..Stats::default() };
        answer(&ours, &Answer::Stats(stats)).unwrap();
        let mut text = String::new();
        BufReader::new(&theirs).read_line(&mut text).unwrap();
        assert!(matches!(parse(&text).unwrap(), Answer::Stats(received) if received == stats), "{text}");
    }

    #[test]
    fn a_caller_without_sense_is_an_error_not_a_hang() {
        for nonsense in ["", "\n", "{}\n", "\"destroy\"\n"] {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            theirs.write_all(nonsense.as_bytes()).unwrap();
            drop(theirs);
            assert!(receive(&ours).is_err(), "{nonsense:?}");
        }
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(&[b'x'; LONGEST_LINE as usize + 1]).unwrap();
        assert!(receive(&ours).is_err());
        let (_silent, ours) = UnixStream::pair().unwrap();
        assert!(receive(&ours).is_err());
    }
}
