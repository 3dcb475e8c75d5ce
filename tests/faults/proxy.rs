//! A TCP proxy that can go silent: nothing passes any more, and nothing is closed.

use std::{io, net::Ipv4Addr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// A direction through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// A running proxy. It ends, and its connections are closed, when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    silent: watch::Sender<Option<Way>>,
    running: JoinHandle<()>,
}

impl Proxy {
    /// Starts one in front of a server.
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (silent, seen) = watch::channel(None);
        let running = tokio::spawn(async move {
            // Its tasks end with the proxy.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let seen = seen.clone();
                connections.spawn(async move {
                    // A connection that was reset has ended, which is all there is to know.
                    let _ = connect(client, server, seen).await;
                });
            }
        });
        Self {
            port,
            silent,
            running,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Lets nothing through in this direction.
    pub(crate) fn silence(&self, way: Way) {
        self.silent.send_replace(Some(way));
    }

    /// Lets new connections work. Those that were silent stay so, as behind a router that has
    /// forgotten them.
    pub(crate) fn heal(&self) {
        self.silent.send_replace(None);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn connect(
    client: TcpStream,
    server: u16,
    silent: watch::Receiver<Option<Way>>,
) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(
        pass(from_client, to_server, Way::ToServer, silent.clone()),
        pass(from_server, to_client, Way::ToClient, silent),
    )?;
    Ok(())
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut silent: watch::Receiver<Option<Way>>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            biased;
            () = async { drop(silent.wait_for(|silent| *silent == Some(way)).await) } => break,
            read = from.read(&mut buffer) => match read? {
                0 => return to.shutdown().await,
                read => to.write_all(&buffer[..read]).await?,
            }
        }
    }
    // What comes now goes nowhere; the other side is not told when this one gives up.
    while from.read(&mut buffer).await? > 0 {}
    std::future::pending().await
}
