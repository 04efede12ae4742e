//! Makes and removes the network of one slot.
//!
//! ```text
//!            host                         wrenn-ns-N                           guest
//!  wrenn-veth-N 10.12.x.even/31 ── veth0 10.12.x.odd/31
//!  10.11.H.L/32 via veth0                 tap0 169.254.0.22/30 ── eth0 169.254.0.21/30
//! ```
//! Everything is made from one thread of its own, which enters the new namespace and ends with it if
//! something fails.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use futures_util::TryStreamExt as _;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
    packet_route::{
        link::{InfoData, InfoVeth, LinkAttribute},
        neighbour::NeighbourState,
        route::RouteMessage,
    },
};

use super::{
    NetworkError,
    address::{GUEST_ADDRESS, GUEST_LINK_PREFIX, GUEST_MAC, NAMESPACE_ADDRESS, NAMESPACE_MAC, SlotNumber},
    conntrack, rules, tap,
};
use crate::{
    failure::{Doing as _, Failure, Failures, Teardown},
    paths::create_directory,
};

/// Where `ip netns` looks for names.
const NAMESPACES: &str = "/run/netns";
/// The interface towards the guest, in every namespace.
pub(crate) const TAP: &str = "tap0";
/// The interface towards the host, in every namespace.
pub(super) const UPLINK: &str = "veth0";
/// Length of the prefix of the link between host and namespace.
const LINK_PREFIX: u8 = 31;
/// Packets that wait for a guest that is slow to take them.
const TAP_QUEUE: u32 = 5000;

/// Makes the network of a slot that has none; on failure nothing of it is left.
pub fn create(slot: SlotNumber, name_servers: &[Ipv4Addr]) -> Result<OwnedFd, NetworkError> {
    on_own_thread(move || {
        let made = runtime()?.block_on(create_here(slot, name_servers));
        if made.is_err()
            && let Err(failures) = remove_here(slot)
        {
            tracing::warn!(%slot, %failures, "undoing a slot's network that could not be made");
        }
        made
    })
}

async fn create_here(slot: SlotNumber, name_servers: &[Ipv4Addr]) -> Result<OwnedFd, NetworkError> {
    // A socket belongs to the namespace it was opened in: this one stays on the host.
    let host = connect()?;
    let host_namespace = own_namespace()?;
    unshare(CloneFlags::CLONE_NEWNET).doing(|| "making a network namespace")?;
    let namespace = own_namespace()?;
    let inside = connect()?;

    let step = |what: &'static str| move |source| NetworkError::Netlink { slot, what, source };
    write_sysctl("net/ipv4/ip_forward", "1")?;
    // Nothing here speaks IPv6, and nothing is to be reached by it.
    for whom in ["all", "default"] {
        write_sysctl(&format!("net/ipv6/conf/{whom}/disable_ipv6"), "1").or_else(|failure| {
            if failure.source.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(failure) }
        })?;
    }
    inside.link().add(veth(slot, &host_namespace)).execute().await.map_err(step("adding its link"))?;
    tap::create(TAP)?;
    apply_rules(slot, name_servers)?;

    bring_up(&inside, "lo").await.map_err(step("bringing up lo"))?;
    let uplink = bring_up(&inside, UPLINK).await.map_err(step("bringing up its link"))?;
    let tap = bring_up(&inside, TAP).await.map_err(step("bringing up the TAP"))?;
    let mut named = LinkUnspec::new_with_index(tap).address(NAMESPACE_MAC.to_vec()).build();
    named.attributes.push(LinkAttribute::TxQueueLen(TAP_QUEUE));
    inside.link().set(named).execute().await.map_err(step("naming the TAP's hardware address"))?;
    let host_end = bring_up(&host, &slot.host_veth()).await.map_err(step("bringing up the host's end"))?;
    let addresses = [
        (&inside, uplink, slot.namespace_address(), LINK_PREFIX),
        (&inside, tap, NAMESPACE_ADDRESS, GUEST_LINK_PREFIX),
        (&host, host_end, slot.host_address(), LINK_PREFIX),
    ];
    for (handle, interface, address, prefix) in addresses {
        let request = handle.address().add(interface, IpAddr::V4(address), prefix);
        request.execute().await.map_err(step("adding an address"))?;
    }
    // Without this the first packet after a restore waits a second for an answer to a question that
    // the guest did not hear.
    let neighbour = inside.neighbours().add(tap, IpAddr::V4(GUEST_ADDRESS));
    let neighbour = neighbour.link_layer_address(&GUEST_MAC).state(NeighbourState::Permanent);
    neighbour.execute().await.map_err(step("naming the guest's hardware address"))?;
    let way_out = RouteMessageBuilder::<Ipv4Addr>::new().gateway(slot.host_address()).build();
    inside.route().add(way_out).execute().await.map_err(step("adding the way out"))?;
    host.route().add(way_in(slot, host_end)).execute().await.map_err(step("adding the way in"))?;

    publish(slot)?;
    Ok(namespace)
}

/// In the thread's namespace.
fn apply_rules(slot: SlotNumber, name_servers: &[Ipv4Addr]) -> Result<(), NetworkError> {
    rules::apply(&rules::namespace_rules(name_servers))
        .map_err(|source| NetworkError::Rules { slot: Some(slot), source })
}

/// A pair of which one end is here and the other on the host.
fn veth(slot: SlotNumber, host_namespace: &OwnedFd) -> rtnetlink::packet_route::link::LinkMessage {
    let mut peer = LinkUnspec::new_with_name(&slot.host_veth()).build();
    peer.attributes.push(LinkAttribute::NetNsFd(host_namespace.as_raw_fd()));
    LinkVeth::new(UPLINK, &slot.host_veth()).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build()
}

fn way_in(slot: SlotNumber, host_end: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(slot.guest_address(), 32)
        .gateway(slot.namespace_address())
        .output_interface(host_end)
        .build()
}

/// Gives the calling thread's namespace its name.
fn publish(slot: SlotNumber) -> Result<(), Failure> {
    prepare_directory()?;
    let path = path(slot);
    File::create(&path).doing(|| format!("creating {}", path.display()))?;
    mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .doing(|| format!("mounting a namespace on {}", path.display()))
}

/// Makes the directory of namespaces a mount point of its own, as ip-netns(8) does with its first one. Done only then,
/// what is mounted in it already would be there twice, and could not be removed.
fn prepare_directory() -> Result<(), Failure> {
    let path = Path::new(NAMESPACES);
    create_directory(path, 0o755)?;
    let doing = || format!("making {NAMESPACES} a mount point");
    // Others make it one at the same moment; ip-netns(8) takes the same lock.
    let directory = File::open(path).doing(doing)?;
    let _alone = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error).doing(doing)?;
    let share =
        || mount(None::<&str>, path, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(path), path, None::<&str>, flags, None::<&str>).and_then(|()| share()).doing(doing)
        }
        shared => shared.doing(doing),
    }
}

fn path(slot: SlotNumber) -> PathBuf {
    Path::new(NAMESPACES).join(slot.namespace())
}

/// Takes up the network of a slot that is there, and gives it the rules of today.
pub fn open(slot: SlotNumber, name_servers: &[Ipv4Addr]) -> Result<OwnedFd, NetworkError> {
    let path = path(slot);
    let namespace = File::open(&path).doing(|| format!("opening {}", path.display()))?;
    // A file that nothing is mounted on is no namespace.
    let applied = namespace.entered(|| Ok(apply_rules(slot, name_servers)))?;
    if let Err(error) = applied {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(%slot, error, "a network goes on with the rules that it was made with");
    }
    Ok(namespace.into())
}

/// Removes all of a slot's network that there is; goes on past errors.
pub fn remove(slot: SlotNumber) -> Result<(), Failures> {
    on_own_thread(move || remove_here(slot))
}

/// Where the calling thread is does not matter: names are the host's.
fn remove_here(slot: SlotNumber) -> Result<(), Failures> {
    let mut teardown = Teardown::default();
    let name = slot.host_veth();
    // The other end, the addresses and the routes go with it.
    let deleted = in_host_namespace(|| runtime()?.block_on(delete_link(&name)));
    if let Err(failure) = deleted {
        teardown.failed(failure);
    }
    // After that, as nothing comes out of the slot any more. What cannot be forgotten ends by itself, some day: no
    // reason to keep the slot from use.
    if let Err(failure) = forget_connections(slot) {
        tracing::warn!(%slot, error = &failure as &dyn std::error::Error, "the host remembers connections");
    }
    let path = path(slot);
    if path.exists() {
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Never mounted: a leftover of a crash in between.
            Err(Errno::EINVAL) => {}
            result => teardown.step(|| format!("unmounting {}", path.display()), result),
        }
        teardown.step(|| format!("removing {}", path.display()), fs::remove_file(&path));
    }
    teardown.finish()
}

/// Lets the host forget the connections that came out of a slot, and those to its guest.
pub fn forget_connections(slot: SlotNumber) -> Result<(), Failure> {
    in_host_namespace(|| {
        let ends = [slot.namespace_address(), slot.host_address()];
        ends.into_iter().try_for_each(conntrack::forget)
    })
}

async fn delete_link(name: &str) -> Result<(), Failure> {
    let doing = || format!("deleting the link {name}");
    let handle = connect()?;
    match index_of(&handle, name).await {
        Ok(index) => handle.link().del(index).execute().await.map_err(io::Error::other).doing(doing),
        Err(error) if is_no_device(&error) => Ok(()),
        Err(error) => Err(io::Error::other(error)).doing(doing),
    }
}

fn is_no_device(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::ENODEV)
}

/// The slots of which there is anything on the host, whoever's they are.
pub fn slots() -> Result<BTreeSet<SlotNumber>, Failure> {
    let namespaces = names_in(NAMESPACES)?;
    let links = names_in("/sys/class/net")?;
    let namespaces = namespaces.iter().filter_map(|name| SlotNumber::of_namespace(name));
    Ok(links.iter().filter_map(|name| SlotNumber::of_host_veth(name)).chain(namespaces).collect())
}

fn names_in(directory: &str) -> Result<Vec<String>, Failure> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            let names = entries.filter_map(Result::ok).map(|entry| entry.file_name().into_string());
            Ok(names.filter_map(Result::ok).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Failure::new(format!("listing {directory}"), error)),
    }
}

/// A namespace that a thread can enter.
pub trait Enter {
    /// Runs something in it, on a thread of its own.
    fn entered<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError>;
}

impl<F: std::os::fd::AsFd> Enter for F {
    fn entered<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let namespace = self.as_fd();
        on_own_thread(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).doing(|| "entering a network namespace")?;
            work()
        })
    }
}

/// A namespace belongs to a thread: the runtime's own are never moved.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// The calling thread may be in a slot's namespace; a new one of the process's leader is not.
fn in_host_namespace<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    let host = File::open("/proc/self/ns/net").doing(|| "opening the host's network namespace")?;
    on_own_thread(move || {
        setns(host, CloneFlags::CLONE_NEWNET).doing(|| "entering the host's network namespace")?;
        work()
    })
}

fn own_namespace() -> Result<OwnedFd, Failure> {
    Ok(File::open("/proc/thread-self/ns/net").doing(|| "opening the own network namespace")?.into())
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_io().build().doing(|| "starting a runtime")
}

/// A connection to the kernel about the namespace that the thread is in now.
fn connect() -> Result<Handle, Failure> {
    let (connection, handle, _) = new_connection().doing(|| "opening a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name).execute();
    let link = links.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
    Ok(link.header.index)
}

/// Answers with its index.
async fn bring_up(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let index = index_of(handle, name).await?;
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(index)
}

/// Of the namespace that the thread is in.
pub(super) fn write_sysctl(name: &str, value: &str) -> Result<(), Failure> {
    fs::write(Path::new("/proc/sys").join(name), value).doing(|| format!("setting {name} to {value}"))
}
