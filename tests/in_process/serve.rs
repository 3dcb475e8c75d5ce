//! Tests of the serving loop over a scripted source: its demand, and its settlements.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use campanile::{
    BoxError, Client, Deadline, Error, Failure, Kind, Message, MessageService, Reply, Router,
    RpcCode, RpcError, WithInterest, serve,
    transport::{
        Delivery, Discarded, Interest, Settings, SettleDelivery, Source, Transport, Undecodable,
        Verdict, memory::Memory,
    },
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower::{ServiceBuilder, service_fn};

use crate::logs;

type Content = Result<Message, Undecodable>;

/// A transport that delivers the messages of a test, and records the calls.
struct Scripted {
    settings: Settings,
    feed: mpsc::UnboundedReceiver<Result<Content, Error>>,
    log: Arc<Log>,
    verdicts: mpsc::UnboundedSender<Verdict>,
}

#[derive(Default)]
struct Log {
    asked: Mutex<Vec<usize>>,
    stopped: AtomicBool,
    closed: AtomicBool,
    /// True while verdicts are kept in `held` instead of being confirmed.
    holds: AtomicBool,
    held: Mutex<Vec<Confirm>>,
}

type Confirm = Box<dyn FnOnce() + Send>;

struct Test {
    feed: mpsc::UnboundedSender<Result<Content, Error>>,
    verdicts: mpsc::UnboundedReceiver<Verdict>,
    log: Arc<Log>,
    stop: Option<oneshot::Sender<()>>,
    kill: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), Error>>,
}

impl Transport for Scripted {
    type Source = Self;

    async fn open(self, _: Interest) -> Result<Self, Error> {
        Ok(self)
    }
}

impl Source for Scripted {
    type Settle = FailureVerdict;

    fn settings(&self) -> &Settings {
        &self.settings
    }

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<FailureVerdict>>, Error> {
        self.log.asked.lock().unwrap().push(max);
        let mut deliveries = Vec::new();
        match self.feed.recv().await {
            Some(content) => deliveries.push(self.delivery(content?)),
            None => pending().await,
        }
        while deliveries.len() < max {
            let Ok(content) = self.feed.try_recv() else {
                break;
            };
            deliveries.push(self.delivery(content?));
        }
        Ok(deliveries)
    }

    async fn stop(&mut self) {
        self.log.stopped.store(true, Ordering::SeqCst);
    }

    async fn close(self) -> Result<(), Error> {
        self.log.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Scripted {
    fn delivery(&self, content: Content) -> Delivery<FailureVerdict> {
        Delivery::new(
            content,
            FailureVerdict(self.verdicts.clone(), self.log.clone()),
        )
    }
}

struct FailureVerdict(mpsc::UnboundedSender<Verdict>, Arc<Log>);

impl SettleDelivery for FailureVerdict {
    fn settle(self, verdict: Verdict, on_settled: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let sent = self.0.send(verdict).map_err(|_| Error::closed());
        match self.1.holds.load(Ordering::SeqCst) {
            true => (self.1.held.lock().unwrap()).push(Box::new(move || on_settled(sent))),
            false => on_settled(sent),
        }
    }
}

impl Test {
    fn start(settings: Settings, service: impl MessageService + Clone + Send + 'static) -> Self {
        let app = WithInterest::stream(service);
        let (feed, fed) = mpsc::unbounded_channel();
        let (settled, verdicts) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let (kill, killed) = oneshot::channel::<()>();
        let log = Arc::new(Log::default());
        let transport = Scripted {
            settings,
            feed: fed,
            log: log.clone(),
            verdicts: settled,
        };
        let served = serve(transport, app)
            .with_graceful_shutdown(async { drop(stopped.await) })
            .with_forced_shutdown(async { drop(killed.await) })
            .shutdown_timeout(Duration::from_secs(5));
        Self {
            feed,
            verdicts,
            log,
            stop: Some(stop),
            kill: Some(kill),
            served: tokio::spawn(served.into_future()),
        }
    }

    fn deliver(&self, message: Message) {
        self.feed.send(Ok(Ok(message))).unwrap();
    }

    async fn verdict(&mut self) -> Verdict {
        let verdict = timeout(Duration::from_secs(60), self.verdicts.recv()).await;
        verdict.expect("no verdict").expect("the worker ended")
    }

    fn asked(&self) -> Vec<usize> {
        self.log.asked.lock().unwrap().clone()
    }

    /// Confirms the oldest `count` of the verdicts in `held`.
    fn confirm(&self, count: usize) {
        let held: Vec<_> = (self.log.held.lock().unwrap()).drain(..count).collect();
        held.into_iter().for_each(|confirm| confirm());
    }

    async fn ended(self) -> Result<(), Error> {
        let served = timeout(Duration::from_secs(60), self.served).await;
        served
            .expect("the worker did not end")
            .expect("the worker panicked")
    }
}

fn settings(max_in_flight: usize) -> Settings {
    let mut settings = Settings::default();
    settings.max_in_flight = max_in_flight;
    settings
}

fn task() -> Message {
    Message::task("a", "1")
}

/// Waits until all tasks are idle, or wait for timers.
async fn settle_down() {
    sleep(Duration::from_millis(1)).await;
}

async fn ok(_: Message) -> Result<Reply, BoxError> {
    Ok(Reply::new("ok"))
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_until_half_of_the_slots_are_free_while_more_are_about_to_be() {
    let mut test = Test::start(settings(64), service_fn(ok));
    test.log.holds.store(true, Ordering::SeqCst);
    (0..64).for_each(|_| test.deliver(task()));
    for _ in 0..64 {
        test.verdict().await;
    }
    let asked = test.asked().len();
    test.confirm(8);
    settle_down().await;
    assert_eq!(
        test.asked().len(),
        asked,
        "the other verdicts are about to be confirmed"
    );
    test.confirm(24);
    settle_down().await;
    assert_eq!(test.asked()[asked..], [32]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_confirms_nothing_for_long_does_not_keep_a_worker_from_free_slots() {
    let mut test = Test::start(settings(64), service_fn(ok));
    test.log.holds.store(true, Ordering::SeqCst);
    (0..64).for_each(|_| test.deliver(task()));
    for _ in 0..64 {
        test.verdict().await;
    }
    test.confirm(8);
    test.deliver(task());
    let began = tokio::time::Instant::now();
    test.verdict().await;
    assert!(
        began.elapsed() < Duration::from_millis(150),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn it_asks_for_no_more_than_it_can_start() {
    let gate = Arc::new(Notify::new());
    let app = service_fn({
        let gate = gate.clone();
        move |_: Message| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                Ok::<_, BoxError>(Reply::default())
            }
        }
    });
    let mut test = Test::start(settings(3), app);
    for _ in 0..5 {
        test.deliver(task());
    }
    settle_down().await;
    assert_eq!(
        test.asked(),
        [3],
        "with every slot taken the worker asks for nothing"
    );
    gate.notify_one();
    assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
    settle_down().await;
    assert_eq!(test.asked(), [3, 1]);
}

#[tokio::test(start_paused = true)]
async fn payloads_in_flight_are_bounded_in_bytes() {
    let app = service_fn(|_: Message| pending::<Result<Reply, BoxError>>());
    let mut bounded = settings(10);
    bounded.max_in_flight_bytes = 100;
    let test = Test::start(bounded, app);
    test.deliver(Message::task("a", vec![0; 60]));
    settle_down().await;
    test.deliver(Message::task("a", vec![0; 60]));
    settle_down().await;
    test.deliver(task());
    settle_down().await;
    assert_eq!(
        test.asked(),
        [10, 9],
        "120 bytes are in flight, nothing more is fetched"
    );
}

#[tokio::test(start_paused = true)]
async fn while_the_outermost_layer_is_not_ready_nothing_is_fetched() {
    let app = ServiceBuilder::new()
        .concurrency_limit(1)
        .service_fn(async |_: Message| {
            sleep(Duration::from_secs(10)).await;
            Ok::<_, BoxError>(Reply::default())
        });
    let mut test = Test::start(settings(8), app);
    test.deliver(task());
    sleep(Duration::from_secs(1)).await;
    test.deliver(task());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(test.asked().len(), 1, "the permit is taken");
    test.verdict().await;
    settle_down().await;
    assert_eq!(test.asked().len(), 2);
    test.verdict().await;
}

/// Serves with one permit, which the first of two deliveries holds for ten seconds.
async fn one_waits_for_a_permit(second: Message) -> Test {
    let app = ServiceBuilder::new()
        .concurrency_limit(1)
        .service_fn(async |message: Message| {
            assert_eq!(message.payload(), "1", "the second delivery was started");
            sleep(Duration::from_secs(10)).await;
            Ok::<_, BoxError>(Reply::default())
        });
    let test = Test::start(settings(8), app);
    // One fetch brings both deliveries. Readiness is polled once for a fetch, so the second
    // delivery is fetched although the permit will be taken.
    test.deliver(task());
    test.deliver(second);
    settle_down().await;
    test
}

#[tokio::test(start_paused = true)]
async fn deliveries_that_wait_for_a_limit_at_the_signal_are_released_at_once() {
    let mut test = one_waits_for_a_permit(Message::task("a", "2")).await;
    drop(test.stop.take());
    settle_down().await;
    assert!(matches!(test.verdicts.try_recv(), Ok(Verdict::Release)));
    sleep(Duration::from_secs(4)).await;
    assert!(
        !test.log.closed.load(Ordering::SeqCst),
        "one delivery is running"
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_expires_while_it_waits_for_a_limit_is_not_started() {
    let mut request = Message::rpc("a", "2");
    request.parts_mut().deadline = Some(Deadline::after(Duration::from_secs(5)));
    let mut test = one_waits_for_a_permit(request).await;
    assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
    match test.verdict().await {
        Verdict::Discard { reason, answer } => {
            assert_eq!(reason, Discarded::Expired);
            assert_eq!(answer.unwrap().code(), &RpcCode::Deadline);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_holds_no_reservation() {
    // Two workers share one permit. Each handles deliveries while the other waits for deliveries.
    let limit = tower::limit::GlobalConcurrencyLimitLayer::new(1);
    let app = ServiceBuilder::new().layer(limit).service_fn(ok);
    let mut idle = Test::start(settings(1), app.clone());
    let mut busy = Test::start(settings(1), app);
    settle_down().await;
    for test in [&mut busy, &mut idle] {
        test.deliver(task());
        assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_delivery_and_nothing_else_notices() {
    let app = service_fn(async |message: Message| {
        assert_eq!(message.payload(), "1", "boom");
        Ok::<_, BoxError>(Reply::default())
    });
    let mut test = Test::start(settings(1), app);
    test.deliver(Message::task("a", "0"));
    match test.verdict().await {
        Verdict::Redeliver {
            counted, reason, ..
        } => {
            assert!(counted && reason.contains("boom"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    test.deliver(Message::rpc("a", "0"));
    match test.verdict().await {
        Verdict::Done(Err(answer)) => assert_eq!(answer.code(), &RpcCode::Internal),
        other => panic!("{other:?}"),
    }
    test.deliver(task());
    assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_expired_before_its_start_is_not_started() {
    let calls = Arc::new(AtomicUsize::new(0));
    let app = service_fn({
        let calls = calls.clone();
        move |message| {
            calls.fetch_add(1, Ordering::SeqCst);
            ok(message)
        }
    });
    let mut test = Test::start(settings(1), app);
    for kind in [Kind::Rpc, Kind::Task] {
        let mut late = Message::new(kind, "a", "");
        late.parts_mut().deadline = Some(Deadline::after(Duration::ZERO));
        test.deliver(late);
        match test.verdict().await {
            Verdict::Discard {
                reason: Discarded::Expired,
                answer,
            } => {
                let code = answer.map(|answer| answer.code().clone());
                assert_eq!(code, (kind == Kind::Rpc).then_some(RpcCode::Deadline));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_graceful_shutdown_stops_the_source_first_and_lets_handlers_finish() {
    let app = service_fn(async |_: Message| {
        sleep(Duration::from_secs(3)).await;
        Ok::<_, BoxError>(Reply::default())
    });
    let mut test = Test::start(settings(4), app);
    test.deliver(task());
    settle_down().await;
    drop(test.stop.take());
    settle_down().await;
    assert!(test.log.stopped.load(Ordering::SeqCst), "released at once");
    assert!(
        !test.log.closed.load(Ordering::SeqCst),
        "a handler still runs"
    );
    assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
    let log = test.log.clone();
    test.ended().await.unwrap();
    assert!(log.closed.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_outlives_the_shutdowns_deadline_is_dropped_unsettled() {
    let app = service_fn(|_: Message| pending::<Result<Reply, BoxError>>());
    let mut test = Test::start(settings(4), app);
    test.deliver(task());
    settle_down().await;
    drop(test.stop.take());
    sleep(Duration::from_secs(6)).await;
    assert!(test.verdicts.try_recv().is_err(), "nothing was settled");
    let error = test.ended().await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(error.to_string().contains("still running"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_whose_server_confirms_nothing_does_not_blame_the_handlers() {
    let mut test = Test::start(settings(4), service_fn(ok));
    test.log.holds.store(true, Ordering::SeqCst);
    test.deliver(task());
    test.verdict().await;
    drop(test.stop.take());
    let error = test.ended().await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("outcomes of handlers were not confirmed"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_second_signal_ends_it_now() {
    let app = service_fn(|_: Message| pending::<Result<Reply, BoxError>>());
    let mut test = Test::start(settings(4), app);
    test.deliver(task());
    settle_down().await;
    drop(test.stop.take());
    settle_down().await;
    assert!(!test.served.is_finished());
    drop(test.kill.take());
    settle_down().await;
    assert!(test.served.is_finished());
    let error = test.ended().await.unwrap_err();
    assert!(
        error.to_string().contains("dropped running handlers (1)"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_no_message_becomes_a_dead_letter_and_the_next_one_is_served() {
    let mut test = Test::start(settings(1), service_fn(ok));
    let undecodable = campanile::transport::codec::decode(Vec::new()).unwrap_err();
    test.feed.send(Ok(Err(undecodable))).unwrap();
    test.deliver(task());
    match test.verdict().await {
        Verdict::DeadLetter {
            reason,
            answer: None,
        } => assert!(reason.contains("missing"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_source_ends_the_worker_after_its_running_handlers() {
    let app = service_fn(async |_: Message| {
        sleep(Duration::from_secs(1)).await;
        Ok::<_, BoxError>(Reply::default())
    });
    let mut test = Test::start(settings(2), app);
    test.deliver(task());
    settle_down().await;
    test.feed
        .send(Err(Error::config("no right to read")))
        .unwrap();
    assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
    assert_eq!(
        test.ended().await.unwrap_err().to_string(),
        "no right to read"
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_reports_itself_as_broken_ends_the_worker() {
    let (inner, mut handle) = tower_test::mock::pair::<Message, Reply>();
    handle.send_error("its worker died");
    let test = Test::start(settings(2), inner);
    let log = test.log.clone();
    let error = test.ended().await.unwrap_err();
    assert!(error.to_string().contains("broken"), "{error:?}");
    assert!(log.asked.lock().unwrap().is_empty(), "nothing was fetched");
    assert!(log.closed.load(Ordering::SeqCst));
}

/// Returns the lines of level WARN and above that are logged until a task that fails with this
/// error is settled.
async fn warned<E: Into<BoxError>>(
    error: impl Fn() -> E + Clone + Send + Sync + 'static,
) -> Vec<String> {
    warned_of(Message::task("orders.create", ""), error).await
}

/// Like [`warned`], for another message.
async fn warned_of<E: Into<BoxError>>(
    message: Message,
    error: impl Fn() -> E + Clone + Send + Sync + 'static,
) -> Vec<String> {
    let logs = logs::Logs::start();
    let app = service_fn(move |_: Message| {
        let error: BoxError = error().into();
        async move { Err::<Reply, _>(error) }
    });
    let mut test = Test::start(settings(1), app);
    test.deliver(message);
    test.verdict().await;
    settle_down().await;
    let text = logs.text();
    let lines = text
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"));
    lines.map(ToOwned::to_owned).collect()
}

/// Checks that there is one line, which names the message and the reason and has no `Debug` dump.
#[track_caller]
fn assert_words(lines: &[String], words: &[&str]) {
    let [line] = lines else {
        panic!("not one line: {lines:#?}");
    };
    for word in ["orders.create"].iter().chain(words) {
        assert!(line.contains(word), "no {word:?} in {line}");
    }
    for dump in [
        "Redeliver {",
        "DeadLetter {",
        "Discard {",
        "Some(",
        "None",
        "answer:",
    ] {
        assert!(!line.contains(dump), "{dump:?} in {line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_delivered_again_is_logged_in_words() {
    assert_words(&warned(|| "the disk is full").await, &["the disk is full"]);
    let after = Duration::from_millis(400);
    let failure = move || Failure::redeliver_after(after).because("the disk is full");
    assert_words(&warned(failure).await, &["the disk is full", "400ms"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_makes_a_dead_letter_is_logged_in_words() {
    let failure = || Failure::dead_letter().because("no such field");
    assert_words(&warned(failure).await, &["no such field", "dead letter"]);
}

#[tokio::test(start_paused = true)]
async fn the_reason_of_a_discarded_message_is_logged() {
    let failure = || Failure::discard().because("cancelled");
    assert_words(&warned(failure).await, &["discarded: cancelled"]);
}

#[tokio::test(start_paused = true)]
async fn the_log_of_a_failure_says_which_attempt_is_next() {
    let failure = || Failure::redeliver_after(Duration::from_micros(1_500_900)).because("no disk");
    let next = "failed: no disk; delivered again in 1.5s (attempt 2 of 10)";
    assert_words(&warned(failure).await, &[next]);
    let failure = || Failure::redeliver_after(Duration::ZERO).uncounted();
    let next = "failed: no reason given; delivered again at once (this was not counted";
    assert_words(&warned(failure).await, &[next]);
    let mut last = Message::task("orders.create", "");
    last.parts_mut().attempt.0 = 10;
    let next = "failed: no disk; a dead letter after attempt 10 of 10";
    assert_words(&warned_of(last, || "no disk").await, &[next]);
    let event = Message::event("orders.create", "");
    let next = "failed: no disk; an event is not delivered again";
    assert_words(&warned_of(event, || "no disk").await, &[next]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_in_the_worker_is_logged_and_a_callers_mistake_is_not() {
    let request = || Message::rpc("orders.create", "");
    let lines = warned_of(request(), || "the disk is full").await;
    assert_words(&lines, &["failed: the disk is full; answered `internal`"]);
    let lines = warned_of(request(), || RpcError::not_found("no such order")).await;
    assert!(lines.is_empty(), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn overload_is_no_warning_unless_it_costs_the_message() {
    let overloaded = tower::load_shed::error::Overloaded::new;
    let lines = warned(overloaded).await;
    assert!(lines.is_empty(), "{lines:#?}");
    let lost = move || Failure::dead_letter().because(overloaded());
    assert_words(&warned(lost).await, &["a dead letter"]);
    let rejected = || Failure::dead_letter().because(RpcError::not_found("no such user"));
    let request = Message::rpc("orders.create", "");
    let lines = warned_of(request, rejected).await;
    assert_words(&lines, &["no such user", "a dead letter"]);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_no_message_is_logged_once() {
    let logs = logs::Logs::start();
    let mut test = Test::start(settings(1), service_fn(ok));
    let undecodable = campanile::transport::codec::decode(Vec::new()).unwrap_err();
    test.feed.send(Ok(Err(undecodable))).unwrap();
    test.verdict().await;
    let lines = logs.lines(&["WARN"]);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("missing"), "{}", lines[0]);
    assert!(lines[0].ends_with("; a dead letter"), "{}", lines[0]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_logs_its_start_its_end_and_the_deliveries_that_it_drains() {
    let logs = logs::Logs::start();
    let app = service_fn(async |message: Message| {
        sleep(Duration::from_secs(2)).await;
        match &message.payload()[..] {
            b"1" => Ok(Reply::default()),
            _ => Err(BoxError::from("the disk is full")),
        }
    });
    let mut test = Test::start(settings(3), app);
    settle_down().await;
    let started = logs.lines(&["INFO", "the worker has started"]);
    assert_eq!(started.len(), 1, "{started:#?}");
    for words in ["streams=\"app_stream\"", "group=\"app_group\""] {
        assert!(started[0].contains(words), "no {words} in {}", started[0]);
    }
    (0..2).for_each(|_| test.deliver(task()));
    test.deliver(Message::task("a", "2"));
    settle_down().await;
    drop(test.stop.take());
    test.ended().await.unwrap();
    let drained = logs.lines(&["INFO", "draining 3 deliveries", "app_stream"]);
    assert_eq!(drained.len(), 1, "{}", logs.text());
    let ended = logs.lines(&["INFO", "the worker has ended"]);
    assert_eq!(ended.len(), 1, "{ended:#?}");
    for words in [
        "handled=2",
        "failed=1",
        "released=0",
        "ran_for=2.00",
        "app_stream",
    ] {
        assert!(ended[0].contains(words), "no {words} in {}", ended[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_routes_of_a_worker_are_in_its_first_line() {
    let logs = logs::Logs::start();
    let app: Router = Router::new()
        .task("orders.create", async || {})
        .event("orders.events", async || {});
    let worker = tokio::spawn(serve(Memory::new(), app).into_future());
    settle_down().await;
    worker.abort();
    let routes = "routes=task orders.create, event orders.events";
    assert_eq!(
        logs.lines(&["the worker has started", routes]).len(),
        1,
        "{}",
        logs.text()
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_and_the_last_line_of_a_worker_name_its_consumer() {
    let logs = logs::Logs::start();
    let app: Router = Router::new().task("orders.create", async || {});
    let worker = serve(Memory::new(), app);
    let worker = worker.with_graceful_shutdown(sleep(Duration::from_secs(1)));
    worker.await.unwrap();
    for line in ["the worker has started", "the worker has ended"] {
        let found = logs.lines(&["INFO", line, "consumer=\"memory-", "app_group"]);
        assert_eq!(found.len(), 1, "{line}: {}", logs.text());
    }
}

#[tokio::test(start_paused = true)]
async fn deliveries_that_are_put_off_are_counted_apart_from_failures() {
    let logs = logs::Logs::start();
    let app = service_fn(async |_: Message| {
        let overloaded = tower::load_shed::error::Overloaded::new();
        Err::<Reply, BoxError>(overloaded.into())
    });
    let mut test = Test::start(settings(1), app);
    test.deliver(task());
    test.verdict().await;
    settle_down().await;
    drop(test.stop.take());
    test.ended().await.unwrap();
    let ended = logs.lines(&["the worker has ended", "failed=0", "uncounted=1"]);
    assert_eq!(ended.len(), 1, "{}", logs.text());
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_drains_nothing() {
    let logs = logs::Logs::start();
    let mut test = Test::start(settings(1), service_fn(ok));
    settle_down().await;
    drop(test.stop.take());
    test.ended().await.unwrap();
    assert!(!logs.text().contains("draining"), "{}", logs.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_delays_no_neighbour() {
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let app = service_fn(move |message: Message| {
        let blocked = blocked.clone();
        async move {
            if message.payload() == "blocks" {
                let _ = blocked.lock().unwrap().recv();
            }
            ok(message).await
        }
    });
    for _ in 0..20 {
        let mut test = Test::start(settings(8), app.clone());
        test.deliver(Message::task("a", "blocks"));
        for _ in 0..4 {
            test.deliver(task());
        }
        for _ in 0..4 {
            assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
        }
        unblock.send(()).unwrap();
        assert!(matches!(test.verdict().await, Verdict::Done(Ok(_))));
        drop(test.stop.take());
        test.ended().await.unwrap();
    }
}

/// A value that sends when it is dropped.
struct OnDrop(tokio::sync::mpsc::UnboundedSender<&'static str>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn the_handler_of_a_cancelled_task_is_dropped_unless_it_watches_its_lease() {
    let memory = Memory::new();
    let (said, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let careless = said.clone();
    let app = Router::new()
        .task("careless", async move || {
            let _dropped = OnDrop(careless.clone());
            let _ = careless.send("started");
            std::future::pending::<()>().await;
        })
        .task("careful", async move |lease: campanile::Lease| {
            let _ = said.send("started");
            lease.token().cancelled().await;
            assert_eq!(lease.cancelled(), Some("enough"));
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = said.send("ended by itself");
        });
    let served = tokio::spawn(serve(memory.clone(), app).into_future());
    let client = Client::new(memory.clone());
    for (name, end) in [("careless", "dropped"), ("careful", "ended by itself")] {
        let receipt = client
            .enqueue(name, "")
            .tracked(Duration::from_secs(60))
            .await
            .unwrap();
        assert_eq!(hears.recv().await, Some("started"));
        let id = receipt.id().unwrap();
        assert!(memory.tasks().cancel(id, "enough").await.unwrap());
        assert_eq!(hears.recv().await, Some(end));
        let status = memory
            .tasks()
            .status(id)
            .await
            .unwrap()
            .expect("it is tracked");
        assert_eq!(status.state, campanile::transport::TaskState::Cancelled);
    }
    assert_eq!(memory.backlog().await.unwrap().running, 0);
    served.abort();
}
