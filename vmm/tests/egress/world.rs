//! A host's outside and the guests on it: network namespaces that end with the process, whatever happens.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recv, send,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use wrenn_vmm::network::{GUEST_ADDRESS, GUEST_MAC, NAMESPACE_ADDRESS, NetworkSlot, SlotNumber};

use crate::zone::{self, Asked};

/// What does not come through in this time does not come through.
pub const REFUSAL: Duration = Duration::from_millis(700);
/// What comes through does so sooner, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The host, as the outside sees it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The guest's gateway, in every slot.
const NAMESPACE_MAC: [u8; 6] = [0x02, 0x57, 0x52, 0x4e, 0x00, 0x16];
const NETWORKS: [&str; 6] = [
    "203.0.113.0/24",
    "198.51.100.0/24",
    "169.254.169.254/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "192.168.77.0/24",
];
/// The name server of the outside.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
/// A cloud's metadata service; the host has a way there.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same of Azure and of Oracle.
pub const OTHER_METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// A machine in a private network of the host; the host has a way there.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 7);
/// Every address of the outside has a service here.
pub const WEB: u16 = 80;
/// Every address of the outside accepts connections here, keeps them and says nothing.
pub const SILENT: u16 = 81;

/// A network namespace without a name.
pub struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        });
        made.join().unwrap()
    }

    /// Of a slot.
    fn of(slot: SlotNumber) -> Self {
        Self(File::open(Path::new("/run/netns").join(slot.namespace())).unwrap())
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ip(&self, arguments: &str) {
        self.run(|| ip(arguments));
    }
}

/// Runs something inside a slot's namespace, where the host's rules for its guest are.
pub fn beside<T: Send>(slot: SlotNumber, work: impl FnOnce() -> T + Send) -> T {
    Namespace::of(slot).run(work)
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Everything beyond the host: the documentation networks, a name server, and what no guest may reach. Its
/// services are threads of this process, and it lasts as long as they do.
pub struct Outside {
    pub asked: Asked,
}

impl Outside {
    /// One for all tests of the process.
    pub fn get() -> &'static Self {
        static OUTSIDE: OnceLock<Outside> = OnceLock::new();
        OUTSIDE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let namespace = Namespace::new();
        let host = std::process::id();
        namespace.ip("link set lo up");
        namespace.ip(&format!("link add up0 type veth peer name wt-egress netns {host}"));
        namespace.ip("addr add 192.0.2.2/24 dev up0");
        namespace.ip("link set up0 up");
        // Whoever is asked for answers: one machine stands for all.
        for network in NETWORKS {
            namespace.ip(&format!("route add local {network} dev lo"));
        }
        namespace.ip("route add default via 192.0.2.1");
        // These go with the link, and that goes with the namespace.
        ip(&format!("addr add {HOST}/24 dev wt-egress"));
        ip("link set wt-egress up");
        for network in NETWORKS {
            ip(&format!("route add {network} via 192.0.2.2 dev wt-egress"));
        }
        let asked = Asked::default();
        let counted = asked.clone();
        namespace.run(move || {
            serve(WEB);
            keep_silent(SILENT);
            zone::serve(counted);
        });
        for address in [METADATA, PRIVATE].into_iter().chain(OTHER_METADATA) {
            let to = SocketAddr::from((address, WEB));
            TcpStream::connect_timeout(&to, PATIENCE).expect("the host itself reaches the outside");
        }
        Self { asked }
    }
}

/// Accepts connections in the thread's namespace until the process ends, and says one word to each.
pub fn serve(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _gone = stream.and_then(|mut stream| stream.write_all(b"here"));
        }
    });
}

/// Accepts connections in the thread's namespace until the process ends, and keeps them.
fn keep_silent(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || listener.incoming().collect::<Vec<_>>());
}

/// Something that behaves as a guest's kernel does, at the other end of a slot's TAP.
pub struct Guest {
    pub number: SlotNumber,
    /// None while nobody holds it.
    slot: Option<NetworkSlot>,
    namespace: Namespace,
    cable: Option<Cable>,
}

impl Guest {
    pub fn plug_in(slot: NetworkSlot) -> Self {
        let namespace = Namespace::new();
        let own = namespace.run(|| open_tap("eth0"));
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        namespace.ip("link set lo up");
        namespace.ip(&format!("link set eth0 address {mac} txqueuelen 5000"));
        namespace.ip(&format!("addr add {GUEST_ADDRESS}/30 dev eth0"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("route add default via {NAMESPACE_ADDRESS}"));
        let number = slot.number();
        let theirs = Namespace::of(number).run(|| open_tap("tap0"));
        Self { number, slot: Some(slot), namespace, cable: Some(Cable::new(own, theirs)) }
    }

    /// As if its machine had ended: the TAP is free, the slot goes on.
    pub fn unplug(mut self) -> NetworkSlot {
        drop(self.cable.take());
        self.slot.take().expect("somebody holds the slot")
    }

    /// As if the process that holds the slot had ended.
    pub fn abandon(&mut self) {
        self.slot = None;
    }

    /// Another process took the slot up.
    pub fn hold(&mut self, slot: NetworkSlot) {
        assert_eq!(slot.number(), self.number);
        self.slot = Some(slot);
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    #[track_caller]
    pub fn assert_reaches(&self, address: impl Into<IpAddr>, port: u16) {
        let to = SocketAddr::new(address.into(), port);
        if let Err(error) = self.run(|| talk(to, PATIENCE)) {
            panic!("{to} should be reached: {error}");
        }
    }

    #[track_caller]
    pub fn assert_cut_off(&self, address: impl Into<IpAddr>, port: u16) {
        let to = SocketAddr::new(address.into(), port);
        assert!(self.run(|| talk(to, REFUSAL)).is_err(), "{to} should not be reached");
    }

    /// Cut off, and told so at once.
    #[track_caller]
    pub fn assert_refused(&self, address: impl Into<IpAddr>, port: u16) {
        let to = SocketAddr::new(address.into(), port);
        let error = self.run(|| talk(to, PATIENCE)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{to}: {error}");
    }

    /// Sends a datagram that may or may not arrive.
    pub fn tell(&self, address: Ipv4Addr, port: u16) {
        self.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            // The guest may have been told that it may not.
            let _sent = socket.send_to(b"here", (address, port));
        });
    }

    /// Whether somebody answers an echo request.
    pub fn pings(&self, address: Ipv4Addr, patience: Duration) -> bool {
        self.run(|| ping(address, patience).is_ok())
    }

    /// Exchanges one message with a name server.
    pub fn ask(&self, server: Ipv4Addr, question: &[u8]) -> io::Result<Vec<u8>> {
        self.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(PATIENCE / 4))?;
            socket.connect((server, 53))?;
            let mut buffer = vec![0; 65536];
            // A datagram may be lost; one answer is enough.
            let mut last = io::ErrorKind::TimedOut.into();
            for _ in 0..2 {
                socket.send(question)?;
                match socket.recv(&mut buffer) {
                    Ok(length) => return Ok(buffer[..length].to_vec()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }

    /// The same over a connection.
    pub fn ask_by_stream(&self, server: Ipv4Addr, question: &[u8]) -> io::Result<Vec<u8>> {
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from((server, 53)), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&(question.len() as u16).to_be_bytes())?;
            stream.write_all(question)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        })
    }
}

fn ping(to: Ipv4Addr, patience: Duration) -> io::Result<()> {
    // A type of 8, and the checksum of that and nothing else.
    const REQUEST: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    const REPLY: u8 = 0;
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(patience.as_micros() as i64))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, 0)))?;
    send(socket.as_raw_fd(), &REQUEST, MsgFlags::empty())?;
    let mut answer = [0; 64];
    loop {
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if answer[..length].get(20) == Some(&REPLY) {
            return Ok(());
        }
    }
}

fn talk(to: SocketAddr, patience: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut word = [0; 4];
    stream.read_exact(&mut word)
}

/// Carries frames between two TAPs, as a VMM does between a TAP and its guest.
struct Cable {
    cut: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl Cable {
    fn new(one: File, other: File) -> Self {
        let cut = Arc::new(AtomicBool::new(false));
        let (one, other) = (Arc::new(one), Arc::new(other));
        let way = |from: &Arc<File>, to: &Arc<File>| {
            let (from, to, cut) = (from.clone(), to.clone(), cut.clone());
            thread::spawn(move || carry(&from, &to, &cut))
        };
        let ways = vec![way(&one, &other), way(&other, &one)];
        Self { cut, ways }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut.store(true, Ordering::Relaxed);
        for way in self.ways.drain(..) {
            way.join().unwrap();
        }
    }
}

fn carry(mut from: &File, mut to: &File, cut: &AtomicBool) {
    let mut frame = vec![0; 1 << 17];
    while !cut.load(Ordering::Relaxed) {
        match from.read(&mut frame) {
            // An interface that is down takes nothing.
            Ok(length) => drop(to.write(&frame[..length])),
            Err(_) => {
                let mut wanted = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                poll(&mut wanted, PollTimeout::from(20u8)).unwrap();
            }
        }
    }
}

/// The TAP of the thread's namespace, made if there is none.
pub fn open_tap(name: &str) -> File {
    let begun = Instant::now();
    loop {
        match attach(name) {
            Ok(tap) => return tap,
            // Children of this process have what it has open until they have become another program.
            Err(Errno::EBUSY) if begun.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("opening the TAP {name}: {error}"),
        }
    }
}

fn attach(name: &str) -> Result<File, Errno> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let tap = options.open("/dev/net/tun").unwrap();
    // SAFETY: plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request reads and writes one such structure, which lives through the call.
    Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(tap)
}

/// Where a [`frame`] says which port it is from: behind the headers of the TAP, the link and the network.
pub const SOURCE_PORT: usize = 10 + 14 + 20;

/// A datagram as it comes from a guest to its gateway, with a header for the TAP before it.
pub fn frame(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 20 + 8 + payload.len();
    let mut frame = vec![0; 10];
    frame.extend(NAMESPACE_MAC);
    frame.extend(GUEST_MAC);
    frame.extend([0x08, 0x00]);
    let mut header = vec![0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    for field in [9, port, 8 + payload.len() as u16, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(payload);
    frame
}
