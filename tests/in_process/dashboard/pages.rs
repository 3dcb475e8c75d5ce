//! The content of the pages.

use std::time::Duration;

use campanile::{
    Client, Json, Router,
    schedule::{Schedule, ScheduledTask},
    transport::{PauseTarget, Streams},
};

use super::*;

#[tokio::test]
async fn the_overview_lists_the_streams_with_their_numbers() {
    let memory = with_group().await;
    make_letters(&memory, &[("mail.send", "1"), ("mail.send", "2")])
        .await
        .unwrap();
    let client = Client::new(memory.clone());
    for _ in 0..3 {
        client.enqueue("mail.later", "7").await.unwrap();
    }
    let dashboard = Dashboard::new(memory).stream("other").at("/ops");
    let page = get(&dashboard, "/").await.succeeded();
    let page = page.has(&[
        "href=\"/ops/stream?stream=shop\"",
        "href=\"/ops/stream?stream=other\"",
        "href=\"/ops/dead?stream=shop&amp;group=mail\"",
        "no worker",
        "<svg class=\"chart dead\"",
    ]);
    assert!(
        page.text.contains("<td class=\"num waits\">3</td>"),
        "{}",
        page.text
    );
    let found = get(&dashboard, "/?q=oth").await.succeeded();
    found.has(&["stream=other"]).lacks(&["stream=shop"]);
}

#[tokio::test]
async fn each_page_of_a_stream_opens_and_shows_its_state() {
    let memory = with_group().await;
    let client = Client::new(memory.clone());
    client.enqueue("mail.send", Json("waits")).await.unwrap();
    let call = client.enqueue("mail.send", Json("comes"));
    call.delay(Duration::from_secs(3600)).await.unwrap();
    let receipt = client
        .enqueue("mail.send", "t")
        .tracked(Duration::from_secs(60))
        .await
        .unwrap();
    let control = memory.control();
    control
        .pause(PauseTarget::Group, "the <b>database</b> moves")
        .await
        .unwrap();
    let nightly = Schedule::cron("0 3 * * *").in_zone("Europe/Berlin");
    let nightly = ScheduledTask::new("nightly", nightly, "reports.make", ());
    memory.schedules().put(&nightly).await.unwrap();
    let dashboard = Dashboard::new(memory);
    let page = async |path: &str| {
        let page = get(&dashboard, &format!("{path}?{SHOP}")).await.succeeded();
        page.has(&["<nav aria-label=\"Stream\">", "aria-current=\"page\""])
    };
    page("/stream").await.has(&[
        "Paused: the group",
        "database&lt;/b&gt; moves",
        "Kept entries",
    ]);
    page("/waiting")
        .await
        .has(&["mail.send", "&quot;waits&quot;", "Purge what waits"]);
    page("/running").await.has(&["There are none."]);
    page("/delayed").await.has(&["mail.send", "in 59 min"]);
    page("/dead").await.has(&["No letter is found"]);
    page("/tasks").await.has(&["mail.send", "waiting"]);
    page("/workers").await.has(&["The group has no workers."]);
    page("/schedules")
        .await
        .has(&["0 3 * * * (Europe/Berlin)", "Run now", "never"]);
    page("/pauses").await.has(&["the group", "do=resume"]);
    page("/limits").await.has(&["No message is parked."]);
    let id = receipt.id().unwrap();
    let task = get(&dashboard, &format!("/task?{SHOP}&id={id}"))
        .await
        .succeeded();
    task.has(&["Task mail.send", "Cancel…", id]);
    get(&dashboard, "/task")
        .await
        .succeeded()
        .has(&["By its id"]);
    get(&dashboard, "/actions")
        .await
        .succeeded()
        .has(&["There are none."]);
}

#[tokio::test]
async fn a_task_is_followed_through_its_attempts() {
    let memory = with_group().await;
    let fails = async || Err::<(), _>(Failure::dead_letter().because("it is broken"));
    let app: Router = Router::new().task("mail.send", fails);
    let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    let client = Client::new(memory.clone());
    let receipt = client
        .enqueue("mail.send", "t")
        .tracked(Duration::from_secs(60))
        .await
        .unwrap();
    let id = receipt.id().unwrap();
    memory.tasks().wait(id).await.unwrap();
    worker.abort();
    let dashboard = Dashboard::new(memory);
    let page = get(&dashboard, &format!("/task?{SHOP}&id={id}"))
        .await
        .succeeded();
    let page = page.has(&["waiting", "running", "dead", "it is broken"]);
    page.has(&[&format!("/dead?stream=shop&amp;group=mail&amp;id={id}")]);
    let found = get(&dashboard, &format!("/dead?{SHOP}&id={id}"))
        .await
        .succeeded();
    found.has(&["it is broken"]);
}

#[tokio::test]
async fn running_messages_and_workers_are_shown() {
    let memory = Memory::new().stream("shop").group("mail");
    let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
    let app: Router = Router::new().task("mail.send", async move || {
        let _ = started.send(());
        std::future::pending::<()>().await;
    });
    let serving = serve(memory.clone(), app).service("mailer", "1.2.3");
    let worker = tokio::spawn(serving.into_future());
    Client::new(memory.clone())
        .enqueue("mail.send", "7")
        .await
        .unwrap();
    starts.recv().await.unwrap();
    let dashboard = Dashboard::new(memory);
    let running = get(&dashboard, &format!("/running?{SHOP}"))
        .await
        .succeeded();
    running.has(&["mail.send", "memory-"]);
    let workers = get(&dashboard, &format!("/workers?{SHOP}"))
        .await
        .succeeded();
    workers.has(&["mailer", "1.2.3", "mail.send", "What they run"]);
    let described = get(&dashboard, &format!("/api/descriptions?{SHOP}")).await;
    let described = &described.succeeded().json()["workers"][0];
    assert_eq!(described["service"], "mailer");
    assert_eq!(described["description"]["routes"][0]["name"], "mail.send");
    #[cfg(feature = "schema")]
    {
        let document = get(&dashboard, &format!("/api/asyncapi?{SHOP}")).await;
        let document = document.succeeded().json();
        assert_eq!(
            (&document["asyncapi"], &document["info"]["title"]),
            (&"3.0.0".into(), &"mailer".into())
        );
        let none = get(&dashboard, "/api/asyncapi?stream=shop&group=nobody").await;
        assert_eq!(none.status, 404, "{}", none.text);
    }
    worker.abort();
}

#[tokio::test]
async fn dead_letters_are_found_by_name_reason_and_id_in_pages() {
    let memory = with_group().await;
    let tasks: Vec<_> = (0..120)
        .map(|number| {
            if number == 110 {
                ("b.two", "x")
            } else {
                ("a.one", "y")
            }
        })
        .collect();
    let ids = make_letters(&memory, &tasks).await.unwrap();
    let dashboard = Dashboard::new(memory);
    let first = get(&dashboard, &format!("/dead?{SHOP}")).await.succeeded();
    let first = first.has(&["Go on", "the printer is on &lt;fire&gt;"]);
    assert_eq!(first.text.matches("type=\"checkbox\"").count(), 50);
    let next = get(&dashboard, &format!("/dead?{SHOP}&after={}", ids[49]))
        .await
        .succeeded();
    next.has(&[&ids[50]])
        .lacks(&[&format!("value=\"{}\"", ids[49])]);
    let found = get(&dashboard, &format!("/dead?{SHOP}&name=b.t"))
        .await
        .succeeded();
    let found = found.has(&["b.two"]);
    assert_eq!(found.text.matches("type=\"checkbox\"").count(), 1);
    let none = get(&dashboard, &format!("/dead?{SHOP}&reason=flood"))
        .await
        .succeeded();
    none.has(&["among the 120 that were looked at"]);
    let one = get(&dashboard, &format!("/dead?{SHOP}&id={}", ids[3]))
        .await
        .succeeded();
    assert_eq!(one.text.matches("type=\"checkbox\"").count(), 1);
    get(&dashboard, &format!("/dead?{SHOP}&since=10m"))
        .await
        .succeeded()
        .has(&["a.one"]);
}

#[tokio::test]
async fn a_search_looks_at_a_bounded_number_of_letters() {
    let memory = with_group().await;
    let tasks = vec![("a.one", "y"); 2_100];
    make_letters(&memory, &tasks).await.unwrap();
    let dashboard = Dashboard::new(memory);
    let page = get(&dashboard, &format!("/dead?{SHOP}&reason=flood"))
        .await
        .succeeded();
    page.has(&["2\u{202f}000 letters were looked at", "Go on"]);
}

#[tokio::test]
async fn hostile_names_headers_and_payloads_are_escaped_and_bounded() {
    let memory = with_group().await;
    let evil = "<script>window.pwned=1</script>";
    let long = format!(
        "\"{}\u{1b}[2J",
        "<img src=x onerror=alert(1)>".repeat(200_000)
    );
    let tasks = [(evil, long.as_str()), ("a/b %\"'<>&", "\u{202e}x")];
    let ids = make_letters(&memory, &tasks).await.unwrap();
    let dashboard = Dashboard::new(memory);
    let list = get(&dashboard, &format!("/dead?{SHOP}")).await.succeeded();
    list.has(&["&lt;script&gt;"]).lacks(&[evil, "<fire>"]);
    for id in &ids {
        let page = get(&dashboard, &format!("/letter?{SHOP}&id={id}"))
            .await
            .succeeded();
        let page = page.lacks(&[evil, "<img", "\u{1b}", "\u{202e}"]);
        assert!(page.text.len() < 400_000, "{}", page.text.len());
    }
    let page = get(&dashboard, &format!("/letter?{SHOP}&id={}", ids[0])).await;
    page.has(&["Only its beginning is shown.", "5.3 MiB"]);
}

#[tokio::test]
async fn names_of_any_text_work_in_links() {
    let stream = "a/b %25 <\"'&+ ä ..";
    let memory = Memory::new().stream(stream).group("g/h ?#");
    let app: Router = Router::new().task("x", async || {});
    let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    while memory.groups().await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    worker.abort();
    let dashboard = Dashboard::new(memory);
    let overview = get(&dashboard, "/").await.succeeded();
    let link = overview.text.split("href=\"/stream?").nth(1).unwrap();
    let link = link.split('"').next().unwrap().replace("&amp;", "&");
    let page = get(&dashboard, &format!("/stream?{link}"))
        .await
        .succeeded();
    let link = page.text.split("href=\"/dead?").nth(1).unwrap();
    let link = link.split('"').next().unwrap().replace("&amp;", "&");
    get(&dashboard, &format!("/dead?{link}"))
        .await
        .succeeded()
        .has(&["a/b %25 &lt;&quot;'&amp;+ ä .."]);
}

#[tokio::test]
async fn registered_streams_are_shown_in_pages_of_a_hundred() {
    let memory = Memory::new();
    let client = Client::new(memory.clone().registry("all"));
    for number in 0..250 {
        let call = client.enqueue("x", "1").stream(format!("s{number:03}"));
        call.await.unwrap();
    }
    let dashboard = Dashboard::new(memory.streams(Streams::registered("all")));
    // The sampler lists the streams in steps.
    let mut page = get(&dashboard, "/").await.succeeded();
    while !page.text.contains("page 1 of 3") {
        tokio::time::sleep(Duration::from_millis(20)).await;
        page = get(&dashboard, "/").await.succeeded();
    }
    assert_eq!(page.text.matches("<th scope=\"row\">").count(), 100);
    let last = get(&dashboard, "/?page=3").await.succeeded();
    assert_eq!(last.text.matches("<th scope=\"row\">").count(), 50);
    last.has(&["s249"]);
}

#[tokio::test]
async fn a_live_page_sends_its_changing_part() {
    let memory = with_group().await;
    let dashboard = Dashboard::new(memory);
    let request = Request::get("/live?of=%2Fdead%3Fstream%3Dshop")
        .body(String::new())
        .unwrap();
    let response = dashboard.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let first = String::from_utf8(first.into()).unwrap();
    assert!(first.starts_with("event: part\ndata: "), "{first}");
    assert!(
        first.contains("dead letters") && first.ends_with("\n\n"),
        "{first}"
    );
    // Each view of those that stay open takes a place, and gives it back.
    let mut open = Vec::new();
    loop {
        let request = Request::get("/live?of=%2F").body(String::new()).unwrap();
        let response = dashboard.clone().oneshot(request).await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        open.push(response);
    }
    assert_eq!(open.len(), 63);
    drop(open);
    let request = Request::get("/live?of=%2F").body(String::new()).unwrap();
    let response = dashboard.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    for of in ["/live?of=/confirm", "/live?of=/act", "/live?of=x"] {
        assert_eq!(
            get(&dashboard, of).await.status,
            StatusCode::NOT_FOUND,
            "{of}"
        );
    }
}
