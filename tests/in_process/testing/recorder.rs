//! Tests of the recorder, which takes the place of the application that a client calls.

use std::time::Duration;

use campanile::{
    Client, Error, Json, Message, RpcCode, RpcError,
    testing::{Recorder, event, rpc, task},
};
use tower::{ServiceBuilder, ServiceExt};

use super::failure_of;

fn pair() -> (Recorder, Client<Recorder>) {
    let recorder = Recorder::new();
    (recorder.clone(), Client::new(recorder))
}

#[tokio::test]
async fn messages_without_a_set_reply_are_taken_as_by_a_transport() {
    let (recorder, client) = pair();
    let first = client.enqueue("mail.send", "1").await.unwrap();
    let second = client.enqueue("mail.send", "2").await.unwrap();
    assert!(first.id().is_some() && first != second);
    client.publish("news", "rain").await.unwrap();
    let error = client.request::<()>("charge", ()).await.unwrap_err();
    let answer = error.rpc().unwrap();
    assert_eq!(answer.code(), &RpcCode::NotFound);
    assert_eq!(
        answer.message(),
        "the recorder was not told what to answer to `charge`"
    );
    recorder.assert_called(task("mail.send").times(2));
    recorder.assert_called(event("news").payload("rain").once());
    assert_eq!(recorder.calls().len(), 4);
}

#[tokio::test]
async fn replies_for_one_call_precede_replies_for_all() {
    let (recorder, client) = pair();
    recorder
        .reply_with(rpc("double"), |_| "never seen")
        .reply_with(rpc("double"), |message: Message| {
            let n: u32 = std::str::from_utf8(message.payload())?.parse()?;
            Ok::<_, campanile::BoxError>(Json(2 * n))
        })
        .reply_once(rpc("double"), Json(7))
        .fail_once(rpc("double"), RpcError::unavailable("not now"))
        .reply_once(rpc("double").json(5), "five");
    let double = async |n: u32| client.request::<String>("double", Json(n)).await;
    assert_eq!(double(1).await.unwrap(), "7");
    assert_eq!(
        double(5).await.unwrap_err().rpc().unwrap().message(),
        "not now"
    );
    assert_eq!(double(4).await.unwrap(), "8");
    assert_eq!(double(5).await.unwrap(), "five");
    assert_eq!(double(5).await.unwrap(), "10");
}

#[tokio::test]
async fn errors_are_what_a_transports_are() {
    let (recorder, client) = pair();
    recorder
        .fail_once(task("a"), Error::disconnected("no server"))
        .fail_once(task("a"), Error::unknown_outcome("it went away"))
        .fail_once(task("a"), "something else");
    assert!(client.enqueue("a", ()).await.unwrap_err().is_disconnected());
    assert!(
        client
            .enqueue("a", ())
            .await
            .unwrap_err()
            .is_unknown_outcome()
    );
    let error = client.enqueue("a", ()).await.unwrap_err();
    assert_eq!(error.to_string(), "the service failed");
    assert!(client.enqueue("a", ()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_silent_recorder_lets_its_callers_wait() {
    let (recorder, client) = pair();
    recorder.stay_silent(rpc("charge"));
    let call = client
        .request::<()>("charge", ())
        .timeout(Duration::from_secs(5));
    assert!(call.await.unwrap_err().is_timeout());
    recorder.assert_called(rpc("charge").once());
}

#[tokio::test]
async fn messages_that_cannot_be_sent_are_refused_and_are_no_calls() {
    let (recorder, client) = pair();
    let refused = client.publish("news", ()).header("x-tenant", "acme").await;
    assert!(refused.unwrap_err().is_invalid());
    assert!(recorder.calls().is_empty());
}

#[tokio::test]
async fn layers_and_boxes_fit_around_a_recorder() {
    let (recorder, _) = pair();
    recorder.reply_with(rpc("a"), |_| "b");
    let service = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .service(recorder.clone());
    let client = Client::new(service.boxed_clone());
    assert_eq!(client.request::<String>("a", ()).await.unwrap(), "b");
}

#[tokio::test]
async fn a_failed_assertion_lists_the_recorded_calls() {
    let (recorder, client) = pair();
    let text = failure_of(|| recorder.assert_called(task("mail.send")));
    assert_eq!(
        text,
        "task `mail.send` was never called\n\nthere were no calls"
    );
    client.enqueue("mail.send", "Ada").await.unwrap();
    client.publish("news", ()).await.unwrap();
    let text = failure_of(|| recorder.assert_called(task("mail.send").payload("Bob")));
    let expected = "task `mail.send` with the payload Bob was never called

what was called:
  task `mail.send` Ada   <- another payload
  event `news`";
    assert_eq!(text, expected);
    let text = failure_of(|| recorder.assert_called(task("mail.send").times(2)));
    assert!(
        text.starts_with("task `mail.send` was called once instead of 2 times\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_script_may_use_the_recorder() {
    let (recorder, client) = pair();
    let inner = recorder.clone();
    recorder.reply_with(rpc("count"), move |_| Json(inner.calls().len()));
    let Json(calls): Json<usize> = client.request("count", ()).await.unwrap();
    assert_eq!(calls, 1);
}
