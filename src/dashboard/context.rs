//! The configuration and the state of a dashboard, and the context of a request.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::request::Parts;

use super::{
    actions::Actions, fault::Fault, forgery::Token, form, form::FormFields, handle::Handle,
    sampler::Samples,
};
use crate::message::Name;

/// A function that returns the user of a request.
pub(super) type UserOf = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// The configuration of a dashboard.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) handle: Handle,
    /// Streams that are shown in addition to those of the handle.
    pub(super) streams: Vec<Name>,
    pub(super) prefix: String,
    pub(super) is_read_only: bool,
    pub(super) user_of: Option<UserOf>,
}

impl Config {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
            streams: Vec::new(),
            prefix: String::new(),
            is_read_only: false,
            user_of: None,
        }
    }
}

/// The state that the clones of a dashboard share.
#[derive(Debug, Default)]
pub(super) struct DashboardState {
    pub(super) samples: Samples,
    pub(super) actions: Actions,
    /// The number of open live views.
    open_views: AtomicUsize,
}

/// Counts as an open live view until it is dropped.
#[derive(Debug)]
pub(super) struct LiveViewGuard(Arc<DashboardState>);

impl DashboardState {
    /// Opens a live view, unless `max` views are open already.
    pub(super) fn open_live_view(self: &Arc<Self>, max: usize) -> Option<LiveViewGuard> {
        // If too many views are open, the drop of `view` undoes the increment.
        let view = LiveViewGuard(Arc::clone(self));
        let open = self.open_views.fetch_add(1, Ordering::Relaxed);
        (open < max).then_some(view)
    }
}

impl Drop for LiveViewGuard {
    fn drop(&mut self) {
        self.0.open_views.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request, with everything that its page needs.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) config: Arc<Config>,
    pub(super) state: Arc<DashboardState>,
    pub(super) path: String,
    /// The parameters of the query, or those in the body of a `POST`.
    pub(super) form: FormFields,
    pub(super) token: Token,
    pub(super) user: String,
}

impl Context {
    /// Returns a link to a page.
    pub(super) fn link<'a>(
        &self,
        path: &str,
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> String {
        let query = form::query(parameters);
        format!("{}{path}{query}", self.config.prefix)
    }

    /// Returns a link to this page. The parameters `changed` replace those of the request.
    pub(super) fn link_here(&self, changed: &[(&str, &str)]) -> String {
        let kept = self.form.pairs();
        let kept = kept.filter(|(name, _)| changed.iter().all(|(other, _)| other != name));
        self.link(&self.path, kept.chain(changed.iter().copied()))
    }

    pub(super) fn may_change(&self) -> Result<(), Fault> {
        match self.config.is_read_only {
            false => Ok(()),
            true => Err(Fault::forbidden("this dashboard is read-only")),
        }
    }

    /// Returns the stream of the request, with a handle of it.
    pub(super) fn stream(&self) -> Result<(Name, Handle), Fault> {
        let stream = self.form.name("stream")?;
        let handle = self.config.handle.stream(&stream);
        Ok((stream, handle))
    }

    /// Returns the stream and the group of the request. If the request names no group, the group is
    /// the first group of the stream.
    pub(super) async fn scope(&self) -> Result<Scope, Fault> {
        let (stream, handle) = self.stream()?;
        let groups = handle.groups().await?.unwrap_or_default();
        let group = match (self.form.get("group"), &groups[..]) {
            (Some(_), _) => self.form.name("group")?,
            (None, [first, ..]) => first.clone(),
            (None, []) => {
                let text = format!("the stream `{stream}` does not exist, or has no groups yet");
                return Err(Fault::not_found(text));
            }
        };
        let handle = handle.group(&group);
        Ok(Scope {
            stream,
            group,
            groups,
            handle,
        })
    }
}

/// A stream and one of its groups.
pub(super) struct Scope {
    pub(super) stream: Name,
    pub(super) group: Name,
    /// All groups of the stream.
    pub(super) groups: Vec<Name>,
    pub(super) handle: Handle,
}

impl Scope {
    /// Returns the parameters `stream` and `group`, for links and forms.
    pub(super) fn parameters(&self) -> [(&str, &str); 2] {
        [("stream", &self.stream), ("group", &self.group)]
    }
}
