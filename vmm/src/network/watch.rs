//! Sees to it that the host's rules stay. Other programs that load rules take all there are away first, as nftables.service
//! of Debian does with each reload.

use std::{io, os::fd::AsRawFd as _, sync::Arc, time::Duration};

use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    NetworkError,
    nfnetlink::{NFTABLES, connect, message, text},
    rules::{self, Rules, TABLE},
};
use crate::failure::{Doing as _, Failure, blocking};

/// How long the host may be without its rules. What the namespaces' rules do not forbid is open for so long.
const PERIOD: Duration = Duration::from_secs(1);

// Of linux/netfilter/nf_tables.h.
const NEW_RULE: u16 = NFTABLES << 8 | 6;
const GET_RULES: u16 = NFTABLES << 8 | 7;
const RULE_TABLE: u16 = 1;
/// Of a list: nothing more is in it.
const END: u16 = libc::NLMSG_DONE as u16;

/// Goes on until it is stopped or dropped.
pub struct Watch {
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Watch {
    /// Over rules that are in place.
    pub fn start(host_rules: Rules) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(watch(Arc::new(host_rules), stop.clone()));
        Self { stop: stop.drop_guard(), task }
    }

    /// Returns when it makes no rules any more.
    pub async fn stop(self) {
        drop(self.stop);
        // A panic in it was told when it happened.
        let _ = self.task.await;
    }
}

async fn watch(host_rules: Arc<Rules>, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(PERIOD)).await.is_some() {
        let host_rules = host_rules.clone();
        match blocking(move || restore(&host_rules)).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!("somebody took the host's packet filter rules for capsules away: made again");
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "keeping the host's packet filter rules in place");
            }
        }
    }
}

/// Whether they had to be made again.
fn restore(host_rules: &Rules) -> Result<bool, NetworkError> {
    if has_rules()? {
        return Ok(false);
    }
    rules::apply(host_rules).map_err(|source| NetworkError::Rules { slot: None, source })?;
    Ok(true)
}

/// Whether the table of the thread's namespace is there, and not empty.
fn has_rules() -> Result<bool, Failure> {
    first_rule().doing(|| format!("looking for the rules of table {TABLE}"))
}

fn first_rule() -> io::Result<bool> {
    let socket = connect()?;
    let list = message(GET_RULES, libc::NLM_F_DUMP, 0, 0, &text(RULE_TABLE, TABLE));
    sendto(socket.as_raw_fd(), &list, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let kind = answer[..length].get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(NEW_RULE) => Ok(true),
        Some(END) => Ok(false),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
