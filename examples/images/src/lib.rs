//! An image service: an API, workers, events and a dashboard. `contracts` has the messages, `work`
//! the handlers with their layers, `web` the HTTP side, and `traces` the export of traces.

pub mod contracts;
pub mod traces;
pub mod web;
pub mod work;

use axum::Router;
use campanile::{
    BoxError, serve,
    transport::{Broker, Limit, Schedules},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The handles of one transport that the workers need.
#[derive(Debug)]
pub struct Handles<B> {
    /// Both streams of conversions.
    pub queues: B,
    /// A handle of the stream of events for each service, in the group of the service.
    pub services: [(&'static str, B); 2],
    /// The limit of conversions that all workers share.
    pub limit: Limit,
    /// The schedules of the first stream.
    pub schedules: Schedules,
}

/// Makes the handles of a `Redis` or a `Memory`, which have the same methods.
#[macro_export]
macro_rules! handles {
    ($handle:expr) => {{
        use campanile::transport::{Start, Streams, UnknownNames};
        let handle = $handle.group("converters").registry("image-streams");
        let events = handle.clone().stream($crate::work::EVENTS);
        let service = |name| {
            let events = events.clone().group(name).start(Start::Beginning);
            (name, events.unknown_names(UnknownNames::Ignore))
        };
        let [urgent, _] = $crate::web::STREAMS;
        Ok::<_, campanile::Error>($crate::Handles {
            queues: handle
                .clone()
                .streams(Streams::strict($crate::web::STREAMS))
                .max_in_flight(8)
                .max_in_flight_of_group(32),
            services: [service("billing"), service("search")],
            limit: handle.limit("conversions")?,
            schedules: handle.clone().stream(urgent).schedules(),
        })
    }};
}

/// Runs the service until the token is cancelled. The HTTP side ends first, since its requests may
/// wait for the workers.
///
/// # Errors
/// If a part ends with an error.
pub async fn run<B: Broker>(
    handles: Handles<B>,
    web: Router,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    let drained = CancellationToken::new();
    let http = async {
        let web = axum::serve(listener, web);
        web.with_graceful_shutdown(stop.clone().cancelled_owned())
            .await?;
        drained.cancel();
        Ok::<_, BoxError>(())
    };
    let worker = serve(handles.queues, work::app(handles.limit))
        .with_graceful_shutdown(drained.clone().cancelled_owned());
    let services = handles.services.map(|(name, handle)| {
        let worker = serve(handle, work::service(name));
        worker
            .with_graceful_shutdown(drained.clone().cancelled_owned())
            .into_future()
    });
    let [billing, search] = services;
    let schedules = async {
        tokio::select! {
            ended = handles.schedules.run(work::schedules()) => match ended? {},
            () = drained.cancelled() => Ok(()),
        }
    };
    let workers = async {
        Ok(tokio::try_join!(
            worker.into_future(),
            billing,
            search,
            schedules
        )?)
    };
    tokio::try_join!(http, workers)?;
    Ok(())
}
