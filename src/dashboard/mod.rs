//! A dashboard for operators. It shows which messages wait or run, and why a message became a dead
//! letter. Operators can pause, cancel, replay and purge.
//!
//! A [`Dashboard`] is an HTTP service over the crates `http` and `http-body`, so it can be nested
//! in every framework that is built on them. It has no authentication: put it behind your own
//! authentication.
//!
//! ```
//! use campanile::{dashboard::Dashboard, transport::memory::Memory};
//! use http::{Request, StatusCode};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let dashboard = Dashboard::new(Memory::new());
//! let request = Request::get("/").body(String::new()).unwrap();
//! assert_eq!(dashboard.oneshot(request).await.unwrap().status(), StatusCode::OK);
//! # }
//! ```
//!
//! A read-only dashboard below a path of an `axum::Router`, with a function that returns the user
//! of a request:
//!
//! ```
//! use campanile::{dashboard::Dashboard, transport::memory::Memory};
//!
//! # #[derive(Clone)] struct User(String);
//! let dashboard = Dashboard::new(Memory::new())
//!     .at("/ops")
//!     .read_only()
//!     .user(|request| request.extensions.get::<User>().map(|user| user.0.clone()));
//! // axum::Router::new().nest_service("/ops", dashboard)
//! ```
//!
//! The [guide](crate::guide::dashboard) describes the pages, the JSON API, and the security rules.

mod actions;
mod api;
mod assets;
mod body;
mod change;
mod chart;
mod context;
mod fault;
mod forgery;
mod form;
mod handle;
mod history;
mod layout;
mod live;
mod pages;
mod preview;
mod sampler;
mod service;

use std::{fmt, sync::Arc};

use http::request::Parts;

use self::context::{Config, DashboardState};
pub use self::{body::DashboardBody, handle::Handle, service::DashboardFuture};
use crate::message::Name;

/// The dashboard of a transport's streams, as an HTTP service. See the [module](self).
///
/// Clones share their state: the samples of the streams, and the last 200 changes. This state
/// exists in this process only.
#[derive(Clone)]
#[must_use]
pub struct Dashboard {
    config: Arc<Config>,
    state: Arc<DashboardState>,
}

impl Dashboard {
    /// Creates the dashboard of the streams of a handle: a `Redis` or a
    /// [`Memory`](crate::transport::memory::Memory). Depending on the handle, the dashboard shows
    /// its stream, the partitions of its stream, the streams of its
    /// [set](crate::transport::Streams), or the streams in the registry that it serves. Each
    /// partition is shown as a stream. All groups are shown, and the group of the handle is
    /// ignored.
    pub fn new(handle: impl Into<Handle>) -> Self {
        Self {
            config: Arc::new(Config::new(handle.into())),
            state: Arc::default(),
        }
    }

    /// Adds a stream to the streams of the handle.
    pub fn stream(mut self, stream: impl Into<Name>) -> Self {
        Arc::make_mut(&mut self.config).streams.push(stream.into());
        self
    }

    /// Sets the path under which browsers see the dashboard, such as `/ops`. The links of the
    /// dashboard begin with this path, which is empty unless set. The framework must remove the
    /// path from requests, as `axum::Router::nest_service` does.
    ///
    /// # Panics
    /// If the path does not begin with a slash, ends with a slash, or has characters that a path of
    /// a URL cannot have.
    #[track_caller]
    pub fn at(mut self, prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~%@:+,!".contains(&byte);
        assert!(
            prefix.starts_with('/') && !prefix.ends_with('/') && prefix.bytes().all(is_valid),
            "the path of a dashboard looks like `/ops`, and not like {prefix:?}"
        );
        Arc::make_mut(&mut self.config).prefix = prefix;
        self
    }

    /// Refuses all changes, and shows no buttons for them.
    pub fn read_only(mut self) -> Self {
        Arc::make_mut(&mut self.config).is_read_only = true;
        self
    }

    /// Sets the function that returns the user of a request, for the log of changes. An
    /// authentication layer usually puts the user into the request's extensions. Without this
    /// function the log says `unknown`.
    pub fn user<F>(mut self, user: F) -> Self
    where
        F: Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    {
        Arc::make_mut(&mut self.config).user_of = Some(Arc::new(user));
        self
    }
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dashboard")
            .field("prefix", &self.config.prefix)
            .field("is_read_only", &self.config.is_read_only)
            .finish_non_exhaustive()
    }
}
