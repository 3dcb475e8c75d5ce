//! Tests where in an error's chain of sources a `Failure` is found, and where it is not.

use std::{error::Error, fmt, time::Duration};

use campanile::{
    BoxError, Failure, Message, Rejection, Reply, Router, RpcError,
    error::{FailureVerdict, find},
};
use tower::{Service, ServiceBuilder, ServiceExt};

/// Returns the error of a router whose handler returns this error.
async fn through_a_router<E>(error: impl Fn() -> E + Clone + Send + Sync + 'static) -> BoxError
where
    E: Into<BoxError> + Send + 'static,
{
    let app = Router::new()
        .task("a", async move || Err::<(), E>(error()))
        .with_state(());
    app.oneshot(Message::task("a", "")).await.unwrap_err()
}

fn dead() -> Failure {
    Failure::dead_letter().because("cause")
}

fn finds_it(error: &BoxError) -> bool {
    find::<Failure>(&**error).is_some_and(|failure| failure.verdict() == FailureVerdict::DeadLetter)
}

#[tokio::test]
async fn a_failure_is_found_as_itself_and_behind_a_box() {
    assert!(finds_it(&through_a_router(dead).await));
    assert!(finds_it(&through_a_router(|| BoxError::from(dead())).await));
}

#[tokio::test]
async fn a_failure_is_found_behind_sources() {
    #[derive(Debug, thiserror::Error)]
    enum Mine {
        #[error("could not charge")]
        Charge(#[source] Failure),
        #[error("settled")]
        Settled(#[from] Failure),
        #[error("boxed")]
        Boxed(#[source] BoxError),
    }
    assert!(finds_it(&through_a_router(|| Mine::Charge(dead())).await));
    assert!(finds_it(&through_a_router(|| Mine::from(dead())).await));
    let nested = || Mine::Boxed(Box::new(Mine::Charge(dead())));
    assert!(finds_it(&through_a_router(nested).await));
}

#[tokio::test]
async fn a_failure_is_found_behind_the_context_of_anyhow_and_eyre() {
    let error = || anyhow::Context::context(Err::<(), _>(dead()), "while charging").unwrap_err();
    assert!(finds_it(&through_a_router(error).await));
    let error = move || error().context("once more");
    assert!(finds_it(&through_a_router(error).await));
    let error = || eyre::WrapErr::wrap_err(Err::<(), _>(dead()), "while charging").unwrap_err();
    assert!(finds_it(&through_a_router(error).await));
}

#[tokio::test]
async fn a_bare_failure_in_an_anyhow_or_eyre_error_is_not_found() {
    // This is `Failure?` in a function that returns `anyhow::Result`. The conversion to a boxed
    // error wraps the failure in a private type, whose `source` is the failure's source.
    assert!(!finds_it(
        &through_a_router(|| anyhow::Error::from(dead())).await
    ));
    assert!(!finds_it(
        &through_a_router(|| eyre::Report::from(dead())).await
    ));
    // The remedy: take the error out again, or convert it in a way that keeps the type.
    let error = || anyhow::Error::from(dead()).downcast::<Failure>().unwrap();
    assert!(finds_it(&through_a_router(error).await));
    let error = || anyhow::Error::from(dead()).reallocate_into_boxed_dyn_error_without_backtrace();
    assert!(finds_it(&through_a_router(error).await));
}

#[tokio::test]
async fn a_failure_behind_a_transparent_error_is_not_found_and_what_is_behind_it_is() {
    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Transparent(#[from] Failure);
    // `transparent` forwards `source` past the error that it wraps.
    assert!(!finds_it(&through_a_router(|| Transparent(dead())).await));
    let inside = || Transparent(Failure::redeliver().because(dead()));
    assert!(finds_it(&through_a_router(inside).await));
}

#[tokio::test]
async fn the_outermost_failure_counts() {
    let error =
        through_a_router(|| Failure::redeliver_after(Duration::from_secs(9)).because(dead())).await;
    let settle = find::<Failure>(&*error).unwrap().verdict();
    assert!(
        matches!(settle, FailureVerdict::Redeliver { after: Some(after), counted: true } if after.as_secs() == 9)
    );
}

#[tokio::test]
async fn a_failure_passes_towers_wrappers() {
    let failing = tower::service_fn(async |_: Message| Err::<Reply, BoxError>(dead().into()));
    let stack = ServiceBuilder::new()
        .load_shed()
        .buffer(4)
        .concurrency_limit(4)
        .timeout(Duration::from_secs(5))
        .service(failing);
    let app = Router::new()
        .task_service("a", stack)
        .layer(tower::timeout::TimeoutLayer::new(Duration::from_secs(5)));
    let error = app
        .with_state(())
        .oneshot(Message::task("a", ""))
        .await
        .unwrap_err();
    assert!(finds_it(&error));
}

#[tokio::test]
async fn a_failure_of_readiness_passes_a_buffer() {
    #[derive(Clone)]
    struct NeverReady;
    impl Service<Message> for NeverReady {
        type Response = Reply;
        type Error = BoxError;
        type Future = std::future::Ready<Result<Reply, BoxError>>;
        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), BoxError>> {
            std::task::Poll::Ready(Err(dead().into()))
        }
        fn call(&mut self, _: Message) -> Self::Future {
            unreachable!()
        }
    }
    // The buffer wraps the failure in another error, as its source.
    let buffered = ServiceBuilder::new().buffer(4).service(NeverReady);
    let error = Router::new()
        .task_service("a", buffered)
        .with_state(())
        .oneshot(Message::task("a", ""))
        .await;
    assert!(finds_it(&error.unwrap_err()));
}

#[tokio::test]
async fn rpc_errors_and_rejections_are_found_in_the_same_way() {
    #[derive(Debug)]
    struct Wrapped<E>(E);
    impl<E: fmt::Debug> fmt::Display for Wrapped<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }
    impl<E: Error + 'static> Error for Wrapped<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }
    let error = through_a_router(|| Wrapped(Wrapped(RpcError::not_found("x")))).await;
    assert_eq!(find::<RpcError>(&*error), Some(&RpcError::not_found("x")));
    let error = through_a_router(|| Wrapped(Rejection::permanent("x"))).await;
    assert!(find::<Rejection>(&*error).is_some_and(Rejection::is_permanent));
}
