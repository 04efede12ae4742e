//! The connections that are open, so that those of an earlier life can be ended.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::net::TcpStream;

/// Bytes the kernel may hold of what was sent but not acknowledged (it doubles the figure for its own
/// accounts). Together with the stream window this stays far below the history that is kept of each output.
const SEND_BUFFER: usize = 64 * 1024;
/// The same for the content of files: a stream window of it is under way.
const CONTENT_SEND_BUFFER: usize = wrenn_proto::CONTENT_WINDOW as usize;
/// When a silent peer is asked whether it is still there, how often, and how many times in vain.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// One connection among all that ever were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

/// The open connections.
#[derive(Debug, Default)]
pub struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// Where the host has said last that another life began.
    began_life: Option<ConnectionId>,
    /// A second descriptor of each socket.
    sockets: HashMap<ConnectionId, OwnedFd>,
}

/// A place in the list, as long as it lives.
#[derive(Debug)]
pub struct Registration {
    pub id: ConnectionId,
    connections: Arc<Connections>,
}

impl Connections {
    /// Sets a new connection's socket up and puts it on the list.
    ///
    /// # Errors
    /// The connection is already gone, or descriptors have run out.
    pub fn register(self: &Arc<Self>, stream: &TcpStream) -> std::io::Result<Registration> {
        stream.set_nodelay(true)?;
        setsockopt(stream, sockopt::SndBuf, &SEND_BUFFER)?;
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &seconds(KEEPALIVE_IDLE))?;
        setsockopt(stream, sockopt::TcpKeepInterval, &seconds(KEEPALIVE_INTERVAL))?;
        setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let id = ConnectionId(open.next);
        open.next += 1;
        open.sockets.insert(id, socket);
        Ok(Registration { id, connections: Arc::clone(self) })
    }

    /// A file is read over this connection; whoever reads files and follows processes has a connection for each.
    pub fn carries_content(&self, id: ConnectionId) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = open.sockets.get(&id) {
            // It can only fail for a connection that has ended by itself.
            let _ = setsockopt(socket, sockopt::SndBuf, &CONTENT_SEND_BUFFER);
        }
    }

    /// Whether what is said over a connection tells of another life, or repeats what was said over it before.
    pub fn begins_life(&self, id: Option<ConnectionId>) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut open.began_life, id) != id || id.is_none()
    }

    /// Ends every connection but one, without waiting for what is still to be sent.
    pub fn close_all_but(&self, kept: Option<ConnectionId>) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, socket) in open.sockets.iter().filter(|(id, _)| Some(**id) != kept) {
            // Both can only fail for a connection that has ended by itself.
            let _ = setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.sockets.remove(&self.id);
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
