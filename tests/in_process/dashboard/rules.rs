//! The rules of all responses: headers, tokens, read-only, and bad input.

use campanile::{Redis, transport::PauseTarget};

use super::*;
use crate::logs::Logs;

#[tokio::test]
async fn every_response_has_the_headers_that_protect_it() {
    let dashboard = Dashboard::new(Memory::new());
    for path in [
        "/",
        "/style.css",
        "/script.js",
        "/nothing",
        "/api/overview",
        "/api/nothing",
    ] {
        let answer = get(&dashboard, path).await;
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cache-control"), "no-store");
    }
    let cookie = get(&dashboard.clone().at("/ops"), "/").await.headers["set-cookie"].clone();
    let cookie = cookie.to_str().unwrap();
    for part in ["; Path=/ops;", "HttpOnly", "SameSite=Strict"] {
        assert!(cookie.contains(part), "{cookie}");
    }
}

#[tokio::test]
async fn a_change_needs_the_token_of_the_browser() {
    let memory = with_group().await;
    let dashboard = Dashboard::new(memory.clone());
    let form = format!("do=pause&target=group&{SHOP}");
    let refused = async |request: http::request::Builder, body: String| {
        let answer = send(&dashboard, request.body(body).unwrap()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
    };
    let cookie = format!("campanile-dashboard={TOKEN}");
    refused(Request::post("/act"), form.clone()).await;
    refused(Request::post("/act"), format!("token={TOKEN}&{form}")).await;
    refused(
        Request::post("/act").header("cookie", &cookie),
        form.clone(),
    )
    .await;
    let other = format!("token={}&{form}", TOKEN.replace('0', "1"));
    refused(Request::post("/act").header("cookie", &cookie), other).await;
    let cross = Request::post("/act")
        .header("cookie", &cookie)
        .header("sec-fetch-site", "cross-site");
    refused(cross, format!("token={TOKEN}&{form}")).await;
    let origin = Request::post("/act")
        .header("cookie", &cookie)
        .header("host", "ops")
        .header("origin", "http://evil");
    refused(origin, format!("token={TOKEN}&{form}")).await;
    let api = Request::post("/api/act")
        .header("content-type", "application/json")
        .header("origin", "http://evil");
    refused(api, "{}".into()).await;
    assert!(memory.control().pauses().await.unwrap().is_empty());
    // A form of another site can send this type, so it is refused before anything else.
    let plain = Request::post("/api/act").header("content-type", "text/plain");
    let answer = send(&dashboard, plain.body("{}".into()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    act(&dashboard, &form).await.has(&["done", "paused"]);
    assert_eq!(memory.control().pauses().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_get_changes_nothing() {
    let memory = with_group().await;
    make_letters(&memory, &[("a", "1")]).await.unwrap();
    let dashboard = Dashboard::new(memory.clone());
    for target in ["/act", "/stop", "/api/act"] {
        let target = format!("{target}?do=purge&all=1&token={TOKEN}&{SHOP}");
        assert_eq!(get(&dashboard, &target).await.status, StatusCode::NOT_FOUND);
    }
    let confirm = get(&dashboard, &format!("/confirm?do=purge&all=1&{SHOP}"))
        .await
        .succeeded();
    confirm.has(&[
        "Delete all dead letters for good",
        "1 dead letters exist now",
        "name=\"token\"",
    ]);
    assert_eq!(memory.dead_letters().count().await.unwrap(), 1);
}

#[tokio::test]
async fn a_read_only_dashboard_changes_nothing_and_shows_no_buttons() {
    let memory = with_group().await;
    let ids = make_letters(&memory, &[("a", "1")]).await.unwrap();
    memory
        .control()
        .pause(PauseTarget::Group, "x")
        .await
        .unwrap();
    let dashboard = Dashboard::new(memory.clone()).read_only();
    for path in [
        "/",
        "/stream",
        "/waiting",
        "/dead",
        "/tasks",
        "/pauses",
        "/schedules",
        "/workers",
    ] {
        let page = get(&dashboard, &format!("{path}?{SHOP}")).await.succeeded();
        page.lacks(&["/confirm", "/act\"", "checkbox"])
            .has(&["read-only"]);
    }
    let letter = get(&dashboard, &format!("/letter?{SHOP}&id={}", ids[0]))
        .await
        .succeeded();
    letter.lacks(&["/confirm", "<textarea"]);
    let form = format!("do=purge&all=1&{SHOP}");
    assert_eq!(
        post(&dashboard, "/act", &form).await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        post(&dashboard, "/confirm", &form).await.status,
        StatusCode::FORBIDDEN
    );
    let confirm = get(&dashboard, &format!("/confirm?{form}")).await;
    assert_eq!(confirm.status, StatusCode::FORBIDDEN);
    let request = Request::post("/api/act").header("content-type", "application/json");
    let body = r#"{"do":"purge","all":true,"stream":"shop","group":"mail"}"#;
    let answer = send(&dashboard, request.body(body.into()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(memory.dead_letters().count().await.unwrap(), 1);
}

#[tokio::test]
async fn garbage_is_answered_with_a_message() {
    let memory = with_group().await;
    let dashboard = Dashboard::new(memory);
    let cases = [
        ("/nothing", 404),
        ("/stream", 400),
        ("/stream?stream=", 400),
        ("/stream?stream=%ff", 400),
        ("/stream?stream=%00", 400),
        ("/dead?stream=nothing", 404),
        ("/dead?stream=shop&after=x%00&since=1h", 200),
        ("/dead?stream=shop&since=yesterday", 400),
        ("/dead?stream=shop&max=many", 400),
        ("/letter?stream=shop", 400),
        ("/letter?stream=shop&id=1-1", 404),
        ("/letter?stream=shop&id=<b>", 404),
        ("/waiting?stream=shop&after=nowhere", 400),
        ("/waiting?stream=shop&after=again/x", 400),
        ("/tasks?stream=shop&after=nowhere", 400),
        ("/tasks?stream=shop&state=tired", 400),
        ("/task?stream=shop&id=", 200),
        ("/actions?id=7", 404),
        ("/confirm", 400),
        ("/confirm?do=explode", 400),
        ("/confirm?do=replay&stream=shop&group=mail", 400),
        ("/confirm?do=pause&target=moon&stream=shop&group=mail", 400),
        ("/?page=0", 200),
        ("/?page=99999999999999999999", 400),
        ("/api/messages?stream=shop&state=odd", 400),
        ("/api/nothing", 404),
        ("/../../etc/passwd", 404),
    ];
    for (target, status) in cases {
        let target = target.replace('<', "%3C").replace('>', "%3E");
        let answer = get(&dashboard, &target).await;
        assert_eq!(answer.status.as_u16(), status, "{target}: {}", answer.text);
        if status != 200 && !target.starts_with("/api") {
            answer.has(&["role=\"alert\"", "Back to the overview"]);
        }
    }
    let many = format!("/confirm?do=replay&{SHOP}&{}", "id=1-1&".repeat(501));
    assert_eq!(get(&dashboard, &many).await.status, StatusCode::BAD_REQUEST);
    let huge = post(&dashboard, "/confirm", &"x".repeat(5 << 20)).await;
    assert_eq!(huge.status, StatusCode::PAYLOAD_TOO_LARGE);
    let put = Request::put("/").body(String::new()).unwrap();
    let put = send(&dashboard, put).await;
    assert_eq!(put.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(put.headers["allow"], "GET, HEAD, POST");
}

#[tokio::test]
async fn a_head_has_no_body() {
    let dashboard = Dashboard::new(Memory::new());
    let head = Request::head("/").body(String::new()).unwrap();
    let head = send(&dashboard, head).await.succeeded();
    assert_eq!(head.text, "");
}

#[tokio::test]
async fn the_log_says_who_has_changed_what() {
    let logs = Logs::start();
    let memory = with_group().await;
    make_letters(&memory, &[("a", "1"), ("a", "2")])
        .await
        .unwrap();
    let dashboard = Dashboard::new(memory).user(|request| {
        let user = request.headers.get("x-user")?;
        Some(user.to_str().ok()?.to_owned())
    });
    let form = format!("token={TOKEN}&do=replay&all=1&{SHOP}");
    let request = Request::post("/act")
        .header("x-user", "ada")
        .header("cookie", format!("campanile-dashboard={TOKEN}"));
    let answer = send(&dashboard, request.body(form).unwrap()).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    let lines = logs.lines(&["an operator has made a change"]);
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    for part in [
        "INFO",
        "ada",
        "replay",
        "all dead letters",
        "shop",
        "mail",
        "done",
        "2 replayed",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let place = answer.headers["location"].to_str().unwrap().to_owned();
    get(&dashboard, &place)
        .await
        .succeeded()
        .has(&["ada", "2 replayed"]);
}

#[test]
#[should_panic(expected = "looks like `/ops`")]
fn a_path_with_a_slash_at_its_end_is_a_mistake() {
    let _ = Dashboard::new(Memory::new()).at("/ops/");
}

#[test]
fn a_dashboard_is_made_of_either_handle() {
    fn takes(_: impl Into<campanile::dashboard::Handle>) {}
    let _ = |redis: Redis| takes(redis);
    takes(Memory::new());
}
