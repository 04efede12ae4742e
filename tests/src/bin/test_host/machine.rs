//! One test host, from power on to power off.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::disks::{DataDisk, Workshop};

/// Begins what init says, and nothing that a job says. The same is in `init`.
const MARK: u8 = 0o36;
/// What its kernel is told. `panic=-1` ends the machine when process 1 ends.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet mitigations=off panic=-1 random.trust_cpu=on";
/// How much of the kernel's words is shown when something went wrong, in lines.
const CONSOLE_LINES: usize = 40;

/// What comes out of the second serial port.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// All is there that a host has.
    Up,
    Begin {
        job: usize,
    },
    /// A line of the job that runs.
    Output(String),
    /// With the status that the shell gives it.
    End {
        job: usize,
        status: i32,
    },
    /// There are no more jobs.
    Done,
}

/// Dropping it kills it.
pub struct TestHost {
    vmm: Child,
    output: BufReader<ChildStdout>,
    reader: Reader,
    console: PathBuf,
    log: PathBuf,
}

impl TestHost {
    /// On disks that nothing else uses meanwhile.
    pub fn start(workshop: &Workshop, work: &Path, data: Option<&DataDisk>) -> Result<Self> {
        let system = workshop.system_disk()?;
        let console = workshop.directory().join("console");
        let log = workshop.directory().join("vmm.log");
        // The VMM does not outlive this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "EPYC,+svm"]);
        command.args(["-smp", "2", "-m", "8G"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(workshop.kernel()).arg("-initrd").arg(workshop.initrd());
        command.args(["-append", KERNEL_ARGUMENTS]);
        // In the order of their names in the machine.
        disk(&mut command, "system", &system, "cache=unsafe");
        disk(&mut command, "work", work, "readonly=on");
        if let Some(data) = data {
            disk(&mut command, "data", &data.path, "cache=writeback");
        }
        command.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?).kill_on_drop(true);
        let mut vmm = command.spawn().context("starting QEMU (package qemu-system-x86)")?;
        let output = BufReader::new(vmm.stdout.take().context("a pipe was asked for")?);
        Ok(Self { vmm, output, reader: Reader::default(), console, log })
    }

    /// The next that is said; none once the machine has ended.
    pub async fn next(&mut self) -> Result<Option<Said>> {
        loop {
            if let Some(said) = self.reader.next() {
                return Ok(Some(said));
            }
            let mut line = Vec::new();
            if self.output.read_until(b'\n', &mut line).await.context("listening to the test host")? == 0 {
                self.vmm.wait().await.context("waiting for QEMU")?;
                return Ok(None);
            }
            self.reader.take(&line);
        }
    }

    /// Nothing that the machine has in memory is written any more. What it said before can still be heard.
    pub fn cut_power(&mut self) -> Result<()> {
        self.vmm.start_kill().context("killing QEMU")
    }

    /// The last words of VMM and kernel.
    pub fn last_words(&self) -> String {
        let [log, console] = [&self.log, &self.console].map(|path| fs::read(path).unwrap_or_default());
        let log = String::from_utf8_lossy(&log);
        // Of the processor that is emulated there are features that cannot be.
        let log = log.lines().filter(|line| !line.contains("TCG doesn't support requested feature"));
        let console = String::from_utf8_lossy(&console);
        let console: Vec<_> = console.lines().collect();
        let last = &console[console.len().saturating_sub(CONSOLE_LINES)..];
        log.chain(last.iter().copied()).map(|line| format!("  | {line}\n")).collect()
    }
}

fn disk(command: &mut Command, name: &str, path: &Path, options: &str) {
    let drive = format!("id={name},if=none,format=raw,{options},file={}", path.display());
    command.arg("-drive").arg(drive).arg("-device").arg(format!("virtio-blk-pci,drive={name}"));
}

/// Tells what init says from what jobs say.
#[derive(Default)]
struct Reader {
    understood: VecDeque<Said>,
    /// Init begins a new line before each of its own; whether that is all an empty line was is known with the next.
    empty_line: bool,
}

impl Reader {
    fn next(&mut self) -> Option<Said> {
        self.understood.pop_front()
    }

    /// A whole line, or the last.
    fn take(&mut self, line: &[u8]) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches(['\r', '\n']).to_owned();
        let mark = line.iter().position(|byte| *byte == MARK);
        if let Some(said) = mark.and_then(|at| parse(&text(&line[at + 1..]))) {
            self.empty_line = false;
            self.understood.push_back(said);
            return;
        }
        if std::mem::take(&mut self.empty_line) {
            self.understood.push_back(Said::Output(String::new()));
        }
        let text = text(line);
        if text.is_empty() {
            self.empty_line = true;
        } else {
            self.understood.push_back(Said::Output(text));
        }
    }
}

/// None if init says no such thing.
fn parse(words: &str) -> Option<Said> {
    let mut words = words.split(' ');
    let said = match words.next()? {
        "up" => Said::Up,
        "begin" => Said::Begin { job: words.next()?.parse().ok()? },
        "end" => Said::End { job: words.next()?.parse().ok()?, status: words.next()?.parse().ok()? },
        "done" => Said::Done,
        _ => return None,
    };
    words.next().is_none().then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &str) -> Vec<Said> {
        let mut reader = Reader::default();
        let mut said = Vec::new();
        for line in stream.split_inclusive('\n') {
            reader.take(line.as_bytes());
            said.extend(std::iter::from_fn(|| reader.next()));
        }
        said
    }

    fn output(line: &str) -> Said {
        Said::Output(line.to_owned())
    }

    #[test]
    fn output_is_told_from_marks() {
        let said = read("\n\x1eup\n\n\x1ebegin 000\none\r\n\n\ntwo\n\n\x1eend 000 101\n\n\x1edone\n");
        let end = Said::End { job: 0, status: 101 };
        assert_eq!(
            said,
            [
                Said::Up,
                Said::Begin { job: 0 },
                output("one"),
                output(""),
                output(""),
                output("two"),
                end,
                Said::Done
            ]
        );
    }

    #[test]
    fn a_line_that_was_not_ended_is_not_lost() {
        assert_eq!(
            read("half\n\x1eend 001 0\nhal"),
            [output("half"), Said::End { job: 1, status: 0 }, output("hal")]
        );
    }

    #[test]
    fn init_has_the_same_mark() {
        assert!(crate::disks::INIT.contains(&format!("'\\n\\{MARK:03o}%s\\n'")));
    }

    #[test]
    fn what_init_never_says_is_output() {
        assert_eq!(read("\x1eend 1\n\x1eup yes\n"), [output("\x1eend 1"), output("\x1eup yes")]);
    }
}
