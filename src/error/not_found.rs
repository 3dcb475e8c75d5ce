//! The error of a router.

/// The error of a router that has no route for a message. The delivery of a task fails with this
/// error. A request is answered with `not_found`.
///
/// ```
/// use campanile::{Message, NotFound, Router};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let app: Router = Router::new();
/// let error = app.oneshot(Message::task("nobody.knows", "")).await.unwrap_err();
/// assert!(error.is::<NotFound>());
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    pub(crate) kind: crate::Kind,
    pub(crate) name: crate::Name,
}

impl NotFound {
    /// Creates the error for a message of this kind and name.
    pub fn new(kind: crate::Kind, name: crate::Name) -> Self {
        Self { kind, name }
    }
}

impl std::fmt::Display for NotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A publisher can choose any name that matches a subscribed pattern, so the name is
        // escaped.
        let name = crate::message::EscapedText::new(&self.name).at_most(crate::Name::MAX_LEN);
        write!(f, "no route for {} `{name}`", self.kind)
    }
}

impl std::error::Error for NotFound {}
