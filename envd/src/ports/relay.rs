//! A port on loopback, made reachable on the guest's own address.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::fstat;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections relayed at one time, by all relays together. Each costs two of envd's descriptors; further ones wait
/// in the kernel.
pub const MOST_CONNECTIONS: usize = 128;
/// Connections that wait to be accepted by one relay.
const BACKLOG: u32 = 64;
/// Bytes moved at once.
const PIECE: usize = 16 * 1024;
/// How long accepting pauses when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// A relay that accepts until it is dropped; with it end its connections.
#[derive(Debug)]
pub struct Relay {
    /// Of its own listening socket.
    pub inode: u64,
    end: CancellationToken,
    tasks: TaskTracker,
}

impl Relay {
    /// Listens on `address` and relays to the same port of `target`.
    ///
    /// # Errors
    /// The address is taken, or not this machine's.
    pub fn start(address: Ipv4Addr, target: SocketAddr, places: &Arc<Semaphore>) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // A relay that ended just now leaves connections behind that are still being closed.
        socket.set_reuseaddr(true)?;
        socket.bind((address, target.port()).into())?;
        let listener = socket.listen(BACKLOG)?;
        let inode = fstat(&listener)?.st_ino;
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let accepting = accept(listener, target, Arc::clone(places), end.clone(), tasks.clone());
        let until = end.clone();
        tasks.spawn(async move { until.run_until_cancelled(accepting).await });
        Ok(Self { inode, end, tasks })
    }

    /// Ends it; returns when all its sockets are closed.
    pub async fn end(self) {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    places: Arc<Semaphore>,
    end: CancellationToken,
    tasks: TaskTracker,
) {
    // Never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((outside, _)) => {
                let end = end.clone();
                tasks.spawn(async move {
                    // An error only ends the one connection, for both sides.
                    let _ = end.run_until_cancelled(relay(outside, target)).await;
                    drop(place);
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Moves bytes both ways until both sides have ended, or one is gone.
async fn relay(outside: TcpStream, target: SocketAddr) -> io::Result<()> {
    let inside = match TcpStream::connect(target).await {
        Ok(inside) => inside,
        Err(error) => {
            // What nobody listens for any more is refused, as it would be without a relay.
            setsockopt(&outside, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            return Err(error);
        }
    };
    outside.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    tokio::try_join!(pass(&outside, &inside), pass(&inside, &outside))?;
    Ok(())
}

thread_local! {
    /// One for all connections, none of which keeps bytes there: an idle connection costs no buffer.
    static PASSING: RefCell<[u8; PIECE]> = const { RefCell::new([0; PIECE]) };
}

/// One direction, to its end.
async fn pass(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    loop {
        from.readable().await?;
        let left = match PASSING.with_borrow_mut(|buffer| pass_piece(from, to, buffer)) {
            Ok(Piece::End) => break,
            Ok(Piece::Passed) => continue,
            Ok(Piece::Left(left)) => left,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        write_all(to, &left).await?;
    }
    nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(to), nix::sys::socket::Shutdown::Write)?;
    Ok(())
}

enum Piece {
    End,
    Passed,
    /// What the other side had no room for.
    Left(Vec<u8>),
}

fn pass_piece(from: &TcpStream, to: &TcpStream, buffer: &mut [u8]) -> io::Result<Piece> {
    let got = from.try_read(buffer)?;
    let data = buffer.get(..got).unwrap_or_default();
    if data.is_empty() {
        return Ok(Piece::End);
    }
    let taken = match to.try_write(data) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        result => result?,
    };
    let left = data.get(taken..).unwrap_or_default();
    Ok(if left.is_empty() { Piece::Passed } else { Piece::Left(left.to_vec()) })
}

async fn write_all(to: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        to.writable().await?;
        match to.try_write(data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => data = data.get(result?..).unwrap_or_default(),
        }
    }
    Ok(())
}
