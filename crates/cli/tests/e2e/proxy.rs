//! Links between servers that can be cut one way: a proxy before each peer port.
//!
//! A server only sends on the connections that it has made, so a connection is a directed link.
//! Whose it is tells the kernel: the process at its other end. A cut link carries nothing, as a
//! router that drops packets; when it is mended, what TCP still holds comes late, as it would.

use std::{cell::RefCell, collections::BTreeSet, fs, net::SocketAddr, rc::Rc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::Notify,
    task::JoinHandle,
};

/// The links of a cluster.
#[derive(Clone, Default)]
pub(crate) struct Links(Rc<State>);

#[derive(Default)]
struct State {
    /// From whom to whom nothing passes.
    cut: RefCell<BTreeSet<(usize, usize)>>,
    /// The process of each server, while it runs.
    processes: RefCell<Vec<Option<u32>>>,
    changed: Notify,
    proxies: RefCell<Vec<JoinHandle<()>>>,
}

impl Links {
    /// Puts a proxy that listens on `port` before the server `to`, which listens on `behind`.
    pub(crate) async fn add(&self, to: usize, port: u16, behind: u16) {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let links = self.clone();
        let proxy = tokio::task::spawn_local(async move {
            while let Ok((incoming, peer)) = listener.accept().await {
                let links = links.clone();
                drop(tokio::task::spawn_local(async move {
                    links.connect(incoming, peer, to, behind).await;
                }));
            }
        });
        self.0.proxies.borrow_mut().push(proxy);
    }

    /// Tells which process a server is.
    pub(crate) fn set_process(&self, index: usize, process: Option<u32>) {
        let mut processes = self.0.processes.borrow_mut();
        if processes.len() <= index {
            processes.resize(index + 1, None);
        }
        processes[index] = process;
    }

    /// From now on nothing passes from `from` to `to`.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.0.cut.borrow_mut().insert((from, to));
        self.0.changed.notify_waiters();
    }

    /// All links carry again.
    pub(crate) fn mend(&self) {
        self.0.cut.borrow_mut().clear();
        self.0.changed.notify_waiters();
    }

    async fn connect(&self, incoming: TcpStream, peer: SocketAddr, to: usize, behind: u16) {
        // Whoever has given up already is not to be found. What no cut could stop does not pass.
        let Some(from) = self.dialer(peer) else { return };
        let Ok(outgoing) = TcpStream::connect(("127.0.0.1", behind)).await else { return };
        let ((back, forth), (answers, requests)) = (incoming.into_split(), outgoing.into_split());
        tokio::select! {
            () = self.pass((from, to), back, requests) => {}
            () = self.pass((to, from), answers, forth) => {}
        }
    }

    /// Passes bytes on while the link carries.
    async fn pass(&self, link: (usize, usize), mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            loop {
                let changed = self.0.changed.notified();
                if !self.0.cut.borrow().contains(&link) {
                    break;
                }
                changed.await;
            }
            if to.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }

    /// The server whose process has connected from `peer`.
    fn dialer(&self, peer: SocketAddr) -> Option<usize> {
        let socket = format!("socket:[{}]", inode(peer)?);
        let processes = self.0.processes.borrow();
        processes.iter().position(|process| process.is_some_and(|id| holds(id, &socket)))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.proxies.take().iter().for_each(JoinHandle::abort);
    }
}

/// The socket that is bound to this address, as the kernel numbers it.
fn inode(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let octets = u32::from_le_bytes(address.ip().octets());
    let wanted = format!("{octets:08X}:{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&wanted.as_str())).then(|| fields[9].to_owned())
    })
}

fn holds(process: u32, socket: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    files
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket))
}
