//! The wire format: the fields of `shared/wire`, byte by byte.

use bytes::Bytes;
use campanile::{Kind, Message};
use futures_util::StreamExt;

use super::{
    handle, send,
    support::{RedisServer, raw},
};

fn text(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<(&str, &str)> {
    let utf8 = |bytes| std::str::from_utf8(bytes).unwrap();
    fields
        .iter()
        .map(|(field, value)| (utf8(field), utf8(value)))
        .collect()
}

#[tokio::test]
async fn a_task_has_the_go_librarys_fields_and_no_other() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let payload = r#"{"id":101,"title":"first","user_id":7}"#;
    let reply = send(&redis, Message::task("orders.create", payload)).await;
    let reply = reply.unwrap();
    let entries = raw::entries(&server, "s").await;
    let [(id, fields)] = &entries[..] else {
        panic!("{entries:?}");
    };
    assert_eq!(reply.receipt().unwrap().as_str(), id);
    let mut fields = text(fields);
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            ("name", "orders.create"),
            ("payload", payload),
            ("type", "task")
        ]
    );
}

#[tokio::test]
async fn headers_are_further_fields_and_payloads_are_raw_bytes() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut message = Message::task("a", Bytes::from_static(b"\x00\xff\r\n"));
    message.headers_mut().append("x-a", "1".parse().unwrap());
    message.headers_mut().append("x-a", "2".parse().unwrap());
    send(&redis, message).await.unwrap();
    let (_, fields) = raw::entries(&server, "s").await.remove(0);
    assert!(fields.contains(&(b"payload".to_vec(), b"\x00\xff\r\n".to_vec())));
    let headers: Vec<_> = fields
        .iter()
        .filter(|(field, _)| field == b"h:x-a")
        .map(|(_, value)| &value[..])
        .collect();
    assert_eq!(headers, [b"1", b"2"]);
}

#[tokio::test]
async fn empty_and_large_payloads_pass() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    for size in [0, 16 << 20] {
        send(&redis, Message::task("a", vec![7; size]))
            .await
            .unwrap();
        let (_, fields) = raw::entries(&server, "s").await.pop().unwrap();
        let payload = fields.iter().find(|(field, _)| field == b"payload");
        assert_eq!(payload.unwrap().1.len(), size);
    }
}

#[tokio::test]
async fn an_event_is_the_payload_on_the_channel_of_its_name() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut pubsub = server.client().get_async_pubsub().await.unwrap();
    pubsub.subscribe("orders.events").await.unwrap();
    let reply = send(&redis, Message::event("orders.events", &b"\x00{}\xff"[..])).await;
    assert!(reply.unwrap().receipt().is_none());
    let heard = pubsub.on_message().next().await.unwrap();
    assert_eq!(heard.get_payload_bytes(), b"\x00{}\xff");
    assert_eq!(raw::len(&server, "s").await, 0);
}

#[tokio::test]
async fn calls_are_on_the_stream_in_their_order() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut redis = redis;
    let sends: Vec<_> = (0..5000)
        .map(|n: u32| {
            tower::Service::call(&mut redis, Message::new(Kind::Task, "a", n.to_string()))
        })
        .collect();
    // These are more calls than the submit queue has room for. Calls that find no room wait until
    // they are polled again.
    for sent in futures_util::future::join_all(sends).await {
        sent.unwrap();
    }
    let sent: Vec<u32> = raw::entries(&server, "s")
        .await
        .iter()
        .map(|(_, fields)| {
            let payload = fields.iter().find(|(field, _)| field == b"payload");
            String::from_utf8_lossy(&payload.unwrap().1)
                .parse()
                .unwrap()
        })
        .collect();
    assert_eq!(sent.len(), 5000);
    assert!(sent[..1000].is_sorted());
    assert_eq!(redis.counts().sent, 5000);
}
