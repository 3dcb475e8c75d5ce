//! `campanile dashboard`

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use campanile::{
    Redis,
    dashboard::{Dashboard, DashboardBody},
    transport::Streams,
};
use clap::Args;
use http::{Request, Response, StatusCode, header::HOST, uri::Authority};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tower::ServiceExt;

use crate::{
    command_error::{CommandError, note},
    show::Out,
    signals,
    target::Target,
};

/// The maximum number of open connections.
const MAX_CONNECTIONS: usize = 256;
/// The maximum time to receive the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait after a connection could not be accepted, for example because no file descriptor is
/// free.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct DashboardCommand {
    /// The address to listen on. Port 0 takes a free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Allows an address that other machines can reach. The dashboard asks nobody for a password.
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Refuses all changes.
    #[arg(long)]
    read_only: bool,
    /// Another stream to show. Can be repeated.
    #[arg(long, value_name = "STREAM")]
    also: Vec<String>,
    /// Shows the streams in this registry, in place of the stream of --stream.
    #[arg(long, value_name = "NAME")]
    registry: Option<String>,
}

impl DashboardCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        self.check_address()?;
        let redis = target.connect().await?;
        let dashboard = self.dashboard(redis);
        let listener = TcpListener::bind(self.listen).await.map_err(|error| {
            let address = self.listen;
            CommandError::Failed(format!("cannot listen on {address}: {error}"))
        })?;
        let interrupted = signals::cancel_on_interrupt()?;
        let address = listener.local_addr()?;
        out.write_lines([format!("the dashboard is at http://{address}/")])?;
        if out.terminal {
            note("Ctrl-C ends it");
        }
        let serving = serve(listener, dashboard, address.ip().is_loopback());
        interrupted.run_until_cancelled(serving).await;
        Ok(())
    }

    fn check_address(&self) -> Result<(), CommandError> {
        if self.listen.ip().is_loopback() || self.allow_unauthenticated {
            return Ok(());
        }
        Err(CommandError::Usage(format!(
            "the dashboard has no login, and everyone who reaches {} could delete messages: listen on \
             127.0.0.1 and use a tunnel, or add --allow-unauthenticated behind a proxy that asks for a \
             login",
            self.listen
        )))
    }

    fn dashboard(&self, redis: Redis) -> Dashboard {
        let redis = match &self.registry {
            Some(registry) => redis.streams(Streams::registered(registry.as_str())),
            None => redis,
        };
        let dashboard = Dashboard::new(redis);
        let also = self.also.iter().map(String::as_str);
        let dashboard = also.fold(dashboard, |dashboard, stream| dashboard.stream(stream));
        match self.read_only {
            true => dashboard.read_only(),
            false => dashboard,
        }
    }
}

/// Accepts connections, at most [`MAX_CONNECTIONS`] at the same time.
async fn serve(listener: TcpListener, dashboard: Dashboard, is_local: bool) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let dashboard = dashboard.clone();
                tokio::spawn(async move {
                    serve_connection(stream, dashboard, is_local).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, dashboard: Dashboard, is_local: bool) {
    let service = service_fn(move |request: Request<Incoming>| {
        let dashboard = dashboard.clone();
        async move {
            match is_local && !names_this_machine(&request) {
                true => Ok(misdirected_response()),
                false => dashboard.oneshot(request).await,
            }
        }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    let serving = server.serve_connection(TokioIo::new(stream), service);
    // An error ends only this connection.
    let _ = serving.await;
}

/// Returns `true` if the header `host` names this machine. Without this check, a web site could let
/// its domain point to 127.0.0.1, and a browser would treat the dashboard as a part of that site
/// (DNS rebinding).
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let Some(Ok(authority)) = host.map(str::parse::<Authority>) else {
        return false;
    };
    let host = authority.host().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn misdirected_response() -> Response<DashboardBody> {
    let text =
        "open the dashboard by the address that it listens on, such as http://127.0.0.1:7070/\n";
    let mut response = Response::new(DashboardBody::from(text));
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_name_this_machine_are_answered() {
        let named = |host: &str| {
            names_this_machine(&Request::get("/").header(HOST, host).body(()).unwrap())
        };
        for host in [
            "127.0.0.1:7070",
            "localhost:7070",
            "[::1]:7070",
            "127.0.0.1",
        ] {
            assert!(named(host), "{host}");
        }
        for host in [
            "evil.example:7070",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "",
        ] {
            assert!(!named(host), "{host}");
        }
    }
}
