//! Tests of payloads in other formats than JSON.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use campanile::{
    Batch, BoxError, Cbor, Client, FromMessage, IntoPayload, Json, Message, MsgPack, Protobuf,
    Rejection, Router,
    contract::{Rpc, Task},
    serve,
    transport::memory::Memory,
};
use http::{HeaderValue, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Serialize, Deserialize, prost::Message)]
struct Order {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    #[serde(default)]
    note: String,
}

fn order() -> Order {
    Order {
        id: 7,
        note: "fragile".to_owned(),
    }
}

const PACKED: Task<MsgPack<Order>> = Task::new("packed");
const CONCISE: Rpc<Cbor<Order>, Cbor<u64>> = Rpc::new("concise");
const PROTO: Rpc<Protobuf<Order>, Protobuf<Order>> = Rpc::new("proto");

#[tokio::test]
async fn each_format_goes_over_a_transport_with_its_content_type() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let app: Router = Router::new()
        .task(
            PACKED,
            Batch::new(move |orders: Vec<MsgPack<Order>>| {
                noted
                    .lock()
                    .unwrap()
                    .extend(orders.into_iter().map(|MsgPack(order)| order));
                async {}
            })
            .size(1),
        )
        .rpc(CONCISE, async |Cbor(order): Cbor<Order>| Cbor(order.id))
        .rpc(PROTO, async |order: Option<Protobuf<Order>>| {
            order.unwrap_or_default()
        })
        .rpc("raw", async |message: Message| {
            message.headers()[CONTENT_TYPE].to_str().unwrap().to_owned()
        });
    let memory = Memory::new();
    let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    let client = Client::new(memory.clone());
    client.enqueue(PACKED, MsgPack(order())).await.unwrap();
    assert_eq!(client.call(CONCISE, Cbor(order())).await.unwrap(), Cbor(7));
    assert_eq!(
        client.call(PROTO, Protobuf(order())).await.unwrap(),
        Protobuf(order())
    );
    let content_type: String = client.request("raw", Protobuf(order())).await.unwrap();
    assert_eq!(content_type, "application/protobuf");
    let Cbor(id): Cbor<u64> = client.request("concise", Cbor(order())).await.unwrap();
    assert_eq!(id, 7);
    while seen.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*seen.lock().unwrap(), [order()]);
    worker.abort();
}

/// Reads a payload with an extractor. Returns the text of its rejection, which is permanent.
async fn rejected<T>(message: Message) -> String
where
    T: FromMessage<(), Rejection = Rejection>,
{
    let rejection = T::from_message(message, &())
        .await
        .err()
        .expect("it is rejected");
    assert!(rejection.is_permanent());
    let text = rejection.to_string();
    assert!(text.len() < 300, "{text}");
    assert!(!text.contains("secret"), "{text}");
    text
}

fn message(payload: impl Into<Bytes>, content_type: &'static str) -> Message {
    let mut message = Message::task("t", payload);
    if !content_type.is_empty() {
        message
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    message
}

#[tokio::test]
async fn a_message_of_another_content_type_is_rejected() {
    let cbor = Cbor(7_u8).into_payload().unwrap();
    // This CBOR is the JSON text of another number.
    assert!(
        Json::<i8>::from_message(message("1", ""), &())
            .await
            .is_ok()
    );
    assert_eq!(
        rejected::<Json<i8>>(message(cbor, "application/cbor")).await,
        "this message is application/cbor, and the handler takes application/json"
    );
    assert_eq!(
        rejected::<MsgPack<Order>>(message("7", "")).await,
        "this message is without a content type, which means application/json, and the handler \
         takes application/msgpack"
    );
    assert_eq!(
        rejected::<Option<Cbor<Order>>>(message("7", "text/html")).await,
        "this message is text/html, and the handler takes application/cbor"
    );
}

#[tokio::test]
async fn json_says_which_other_format_a_payload_looks_like() {
    let of = async |payload: Vec<u8>| rejected::<Json<Order>>(message(payload, "")).await;
    let packed = MsgPack(order()).into_payload().unwrap().to_vec();
    assert!(
        of(packed)
            .await
            .contains("it looks as if it is MessagePack")
    );
    let cbor = Cbor(order()).into_payload().unwrap().to_vec();
    assert!(of(cbor).await.contains("it looks as if it is CBOR"));
    assert!(
        of(vec![0x1f, 0x8b, 8, 0])
            .await
            .contains("compressed with gzip")
    );
    assert!(
        of(b"<order/>".to_vec())
            .await
            .starts_with("the payload is not JSON: ")
    );
}

#[tokio::test]
async fn a_payload_that_is_cut_off_or_too_long_is_rejected() {
    async fn cut<T>(whole: impl IntoPayload, content_type: &'static str)
    where
        T: FromMessage<(), Rejection = Rejection>,
    {
        let whole = whole.into_payload().unwrap();
        for len in 0..whole.len() {
            rejected::<T>(message(whole.slice(..len), content_type)).await;
        }
        let longer = [&whole[..], b"\x01"].concat();
        rejected::<T>(message(longer, content_type)).await;
    }
    cut::<MsgPack<Order>>(MsgPack(order()), "application/msgpack").await;
    cut::<Cbor<Order>>(Cbor(order()), "application/cbor").await;
    let text =
        rejected::<Protobuf<Order>>(message(&b"\x12\x08secret"[..], "application/protobuf")).await;
    assert!(
        text.starts_with("the payload is no protobuf message of this type: "),
        "{text}"
    );
}

#[tokio::test]
async fn a_payload_of_another_shape_is_rejected_without_its_values() {
    let other = serde_json::json!({ "id": "secret" });
    let packed = message(
        MsgPack(&other).into_payload().unwrap(),
        "application/x-msgpack",
    );
    let text = rejected::<MsgPack<Order>>(packed).await;
    assert_eq!(text, "the payload is MessagePack of another shape");
    let cbor = message(Cbor(&other).into_payload().unwrap(), "application/cbor");
    let text = rejected::<Cbor<Order>>(cbor).await;
    assert!(
        text.starts_with("the payload is CBOR of another shape"),
        "{text}"
    );
}

/// Headers of a length that is not there, and values that are nested without an end.
#[tokio::test]
async fn hostile_payloads_are_rejected_within_bounds() {
    let nested = |byte: u8| vec![byte; 1 << 20];
    for payload in [
        nested(0x91),
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0xdb, 0xff, 0xff, 0xff, 0xff],
        vec![0xc6, 0xff, 0xff, 0xff, 0xff],
    ] {
        let payload = message(payload, "application/msgpack");
        rejected::<MsgPack<serde_json::Value>>(payload).await;
    }
    for payload in [
        nested(0x81),
        nested(0xd9),
        vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        vec![0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        vec![0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ] {
        rejected::<Cbor<serde_json::Value>>(message(payload, "application/cbor")).await;
    }
}

#[tokio::test]
async fn a_reply_of_another_format_is_an_error_that_says_so() {
    let app: Router = Router::new()
        .rpc("cbor", async || Cbor(7_u8))
        .rpc("json", async || Json(7_u8));
    let client = Client::new(app);
    let error = client.request::<Json<u8>>("cbor", ()).await.unwrap_err();
    let cause = std::error::Error::source(&error)
        .expect("a cause")
        .to_string();
    assert_eq!(
        cause,
        "the reply is application/cbor, and the caller reads application/json"
    );
    assert!(client.request::<MsgPack<u8>>("json", ()).await.is_err());
    let wrong: Rpc<(), MsgPack<u8>> = Rpc::new("cbor");
    assert!(client.call(wrong, ()).await.is_err());
}

#[tokio::test]
async fn json_writes_no_content_type() {
    let app: Router = Router::new().task("t", async |message: Message| -> Result<(), BoxError> {
        assert!(!message.headers().contains_key(CONTENT_TYPE));
        Ok(())
    });
    Client::new(app).enqueue("t", Json(7)).await.unwrap();
}
