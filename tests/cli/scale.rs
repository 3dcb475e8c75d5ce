//! `campanile scale`

use super::*;

#[tokio::test]
async fn what_waits_for_the_workers_is_one_line_or_json() {
    let server = RedisServer::start().await;
    let ran = run(campanile(&server, "scale")).await.ended_with(4);
    ran.tells(&["no stream"]);
    for _ in 0..3 {
        let fields = [("type", "task"), ("name", "n"), ("payload", "")];
        raw::add(&server, "app_stream", &fields).await;
    }
    group(&server, "app_stream", "app_group").await;
    let send = run(campanile(&server, "send task n --delay 10s")).await;
    send.ended_with(0);
    let ran = run(campanile(&server, "scale --json")).await.ended_with(0);
    let found = ran.json();
    for (field, value) in [
        ("total", 4),
        ("waiting", 3),
        ("delayed", 1),
        ("due_soon", 1),
        ("workers", 0),
    ] {
        assert_eq!(found[field], value, "{field} of {found}");
    }
    assert_eq!(
        (&found["stream"], &found["group"]),
        (&"app_stream".into(), &"app_group".into())
    );
    let ran = run(campanile(&server, "scale --within 1s"))
        .await
        .ended_with(0);
    let line = ran.text();
    assert!(line.starts_with("3 for 0 workers: 3 waiting"), "{line}");
    assert!(
        line.contains("0 due within 1s") && line.contains("1 delayed"),
        "{line}"
    );
    let ran = run(campanile(&server, "scale --within soon")).await;
    ran.ended_with(2);
    let ran = run(campanile(&server, "scale --group other"))
        .await
        .ended_with(4);
    ran.tells(&["no group `other`"]);
}
