//! Tests of tower's middleware that reads or changes messages and replies, or is chosen at run
//! time.

use std::future::ready;

use bytes::Bytes;
use campanile::{Failure, Router, RpcError, WithInterest, error::find};
use futures_util::TryFutureExt;
use tower::{
    ServiceBuilder, ServiceExt,
    timeout::TimeoutLayer,
    util::{BoxCloneService, BoxCloneSyncService, BoxService, Either, option_layer},
};

use super::*;

/// Answers with the payload and the header `x-by`.
async fn echo(message: Message) -> String {
    let by = message.headers().get("x-by");
    let by = by.map_or("nobody", |value| value.to_str().unwrap());
    format!("{} by {by}", String::from_utf8_lossy(message.payload()))
}

fn echoing() -> Router {
    Router::new().rpc("echo", echo)
}

async fn asked<S>(client: Client<S>) -> Result<String, Error>
where
    S: MessageService + Clone,
{
    client.request("echo", "a").await
}

/// The reply to a request that a worker handles with this router.
async fn served(router: Router) -> Result<String, Error> {
    asked(Client::new(serving(router).memory)).await
}

/// Makes a request to a worker that echoes, through these layers around the client.
macro_rules! calling {
    ($layers:expr) => {{
        let scene = serving(echoing());
        asked(Client::new($layers.service(scene.memory.clone()))).await
    }};
}

fn signed(mut message: Message) -> Message {
    message
        .headers_mut()
        .insert("x-by", http::HeaderValue::from_static("Ada"));
    message
}

fn shout(mut reply: Reply) -> Reply {
    reply.payload = Bytes::from(reply.payload.to_ascii_uppercase());
    reply
}

mod filters {
    use super::*;

    /// A predicate that rejects messages in the way that their names say.
    fn admit(message: Message) -> Result<Message, BoxError> {
        Err(match message.name().as_str() {
            "drop" => Failure::discard().into(),
            "bury" => Failure::dead_letter().into(),
            "refuse" => RpcError::invalid("no such tenant").into(),
            "fail" => "the list is not loaded".into(),
            _ => return Ok(message),
        })
    }

    fn app() -> Router<Work> {
        ["drop", "bury", "fail", "pass"]
            .into_iter()
            .fold(Router::new(), |router, name| router.task(name, quick))
            .rpc("refuse", quick)
    }

    /// Asserts that each delivery is settled by the predicate's error.
    async fn assert_settled(app: Router, work: Work) {
        let scene = serving(app);
        assert_eq!(code(scene.ask("refuse").await), RpcCode::Invalid);
        scene.enqueue(["drop", "bury", "fail", "pass"]).await;
        let counts = scene.settled().await;
        assert_eq!(work.attempts(), [1], "only `pass` is handled");
        assert_eq!((counts.discarded, counts.dead), (1, 2));
        assert_eq!(counts.redelivered, 9, "`fail` is redelivered");
    }

    #[tokio::test(start_paused = true)]
    async fn keep_messages_from_handlers_and_say_how_they_are_settled() {
        let work = Work::default();
        let app = app().layer(ServiceBuilder::new().filter(admit));
        assert_settled(app.with_state(work.clone()), work).await;
    }

    #[tokio::test(start_paused = true)]
    async fn that_wait_do_the_same() {
        let work = Work::default();
        let admit = async |message| {
            sleep(SECOND).await;
            admit(message)
        };
        // tower needs a function that returns a future. An async closure is one.
        let admit = move |message| Box::pin(admit(message));
        let app = app().layer(ServiceBuilder::new().filter_async(admit));
        assert_settled(app.with_state(work.clone()), work).await;
    }

    #[tokio::test(start_paused = true)]
    async fn around_a_client_fail_the_call_and_send_nothing() {
        let memory = Memory::new();
        let client = Client::new(ServiceBuilder::new().filter(admit).service(memory.clone()));
        let error = client.request::<()>("refuse", ()).await.unwrap_err();
        assert_eq!(error.rpc().unwrap().code(), &RpcCode::Invalid);
        let error = client.enqueue("bury", ()).await.unwrap_err();
        assert!(find::<Failure>(&error).is_some(), "{error:?}");
        client.enqueue("pass", ()).await.unwrap();
        let waits = |message| Box::pin(async move { admit(message) });
        let waits = ServiceBuilder::new().filter_async(waits);
        let client = Client::new(waits.service(memory.clone()));
        client.enqueue("drop", ()).await.unwrap_err();
        client.enqueue("pass", ()).await.unwrap();
        assert_eq!(memory.counts().sent, 2);
    }
}

mod mapping {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn map_request_and_map_response_see_what_goes_in_and_out() {
        let stack = ServiceBuilder::new()
            .map_response(shout)
            .map_request(signed);
        assert_eq!(served(echoing().layer(stack)).await.unwrap(), "A BY ADA");
        let stack = ServiceBuilder::new()
            .map_response(shout)
            .map_request(signed);
        assert_eq!(calling!(stack).unwrap(), "A BY ADA");
    }

    #[tokio::test(start_paused = true)]
    async fn map_err_says_what_a_failure_means() {
        let fails = async || Err::<(), BoxError>("disk full".into());
        let hopeless = |error: BoxError| Failure::dead_letter().because(error);
        let app = Router::new().task("a", fails);
        let scene = serving(app.layer(ServiceBuilder::new().map_err(hopeless)));
        scene.enqueue(["a"]).await;
        ended(&scene.memory).await;
        assert!(deaths(&scene.memory).await[0].ends_with("disk full"));
        assert_eq!(scene.settled().await.delivered, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn map_err_says_what_a_failed_call_means() {
        let refused = |error: Error| RpcError::invalid(error.to_string());
        let stack = ServiceBuilder::new().map_err(refused);
        let client = Client::new(stack.service(Memory::new()));
        // Events have no headers on the wire.
        let call = client.publish("a", ()).header("x-by", "Ada");
        let error = call.await.unwrap_err();
        assert_eq!(error.rpc().unwrap().code(), &RpcCode::Invalid);
    }

    #[tokio::test(start_paused = true)]
    async fn then_map_result_and_and_then_see_how_it_ended() {
        let fails = async || Err::<(), BoxError>("disk full".into());
        let app = || Router::new().rpc("echo", fails);
        let answer = |result: Result<Reply, BoxError>| {
            result.or_else(|error| Ok::<_, BoxError>(Reply::new(error.to_string())))
        };
        let mapped = app().layer(ServiceBuilder::new().map_result(answer));
        assert_eq!(served(mapped).await.unwrap(), "disk full");
        let then = app().layer(ServiceBuilder::new().then(move |result| ready(answer(result))));
        assert_eq!(served(then).await.unwrap(), "disk full");
        let and_then = |reply| ready(Ok::<_, BoxError>(shout(reply)));
        let and_then = echoing().layer(ServiceBuilder::new().and_then(and_then));
        assert_eq!(served(and_then).await.unwrap(), "A BY NOBODY");
        let timed = |future| tokio::time::timeout(SECOND, future).map_err(BoxError::from);
        let timed = ServiceBuilder::new()
            .map_result(Result::<Result<Reply, BoxError>, BoxError>::flatten)
            .map_future(timed);
        let hangs = Router::new().rpc("echo", async || std::future::pending::<()>().await);
        assert_eq!(code(served(hangs.layer(timed)).await), RpcCode::Internal);
    }

    #[tokio::test(start_paused = true)]
    async fn then_map_result_and_and_then_see_how_a_call_ended() {
        let shouted = |result: Result<Reply, Error>| result.map(shout);
        assert_eq!(
            calling!(ServiceBuilder::new().map_result(shouted)).unwrap(),
            "A BY NOBODY"
        );
        let then = ServiceBuilder::new().then(move |result| ready(shouted(result)));
        assert_eq!(calling!(then).unwrap(), "A BY NOBODY");
        let and_then = ServiceBuilder::new().and_then(|reply| ready(Ok::<_, Error>(shout(reply))));
        assert_eq!(calling!(and_then).unwrap(), "A BY NOBODY");
        let boxed = ServiceBuilder::new().map_future(Box::pin);
        assert_eq!(calling!(boxed).unwrap(), "a by nobody");
    }
}

mod choice {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_optional_layer_is_there_or_not() {
        for (limit, expected) in [(Some(SECOND), Err(RpcCode::Deadline)), (None, Ok(()))] {
            let app = Router::new()
                .rpc("slow", async || sleep(2 * SECOND).await)
                .layer(option_layer(limit.map(TimeoutLayer::new)));
            let answer = serving(app).ask("slow").await;
            assert_eq!(answer.map(drop).map_err(|it| code(Err(it))), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_optional_layer_around_a_client_needs_one_type_of_error() {
        for limit in [Some(SECOND), None] {
            // Both branches need the same error type, and the transport's is not `BoxError`.
            let stack = ServiceBuilder::new()
                .option_layer(limit.map(TimeoutLayer::new))
                .map_err(BoxError::from);
            let client = Client::new(stack.service(Memory::new()));
            let request = client.request::<()>("nobody.serves.this", ());
            let start = Instant::now();
            assert!(request.timeout(5 * SECOND).await.unwrap_err().is_timeout());
            assert_eq!(
                start.elapsed().as_secs(),
                limit.map_or(5, |limit| limit.as_secs())
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn either_service_can_be_served_and_called() {
        for (left, expected) in [(true, "a by Ada"), (false, "a by nobody")] {
            let router = echoing().with_state(());
            let app = match left {
                true => Either::Left(router.map_request(signed)),
                false => Either::Right(router),
            };
            let scene = serving(WithInterest::stream(app));
            assert_eq!(
                asked(Client::new(scene.memory.clone())).await.unwrap(),
                expected
            );

            let scene = serving(echoing());
            let service = match left {
                true => Either::Left(scene.memory.clone().map_request(signed)),
                false => Either::Right(scene.memory.clone()),
            };
            assert_eq!(asked(Client::new(service)).await.unwrap(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn boxed_services_can_be_served_and_called() {
        let app = BoxCloneService::new(echoing().with_state(()).map_request(signed));
        let scene = serving(WithInterest::stream(app));
        let service = BoxCloneService::new(scene.memory.clone().map_response(shout));
        assert_eq!(asked(Client::new(service)).await.unwrap(), "A BY ADA");

        // Threads share the services in a router, so a service that is not `Sync` needs a buffer.
        let sync = BoxCloneSyncService::new(echoing().with_state(()).map_request(signed));
        assert_eq!(
            served(Router::new().rpc_service("echo", sync))
                .await
                .unwrap(),
            "a by Ada"
        );
        let boxed = ServiceBuilder::new()
            .buffer(1)
            .layer_fn(BoxService::new)
            .map_request(signed);
        assert_eq!(served(echoing().layer(boxed)).await.unwrap(), "a by Ada");
        let service = BoxService::new(scene.memory.clone());
        let service = ServiceBuilder::new().buffer(1).service(service);
        assert_eq!(asked(Client::new(service)).await.unwrap(), "a by Ada");
    }
}
