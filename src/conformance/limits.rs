//! Checks of the limits that workers share, and of parked messages.

use std::time::Duration;

use tokio::time::sleep;

use super::{
    Factory,
    scene::{QUIET, Scene, WorkerOf, attempt, call, done, id, in_time, message, must, settle},
};
use crate::{
    message::{Message, PermitRequest},
    transport::{Delivery, Discarded, Limit, Permit, Source, TaskState, Transport, Verdict},
};

/// A lease that does not end during a check.
const LONG_LEASE: Duration = Duration::from_secs(300);

/// Returns a sender's handle for a scene, and a limit.
async fn connect<F: Factory>(factory: &F, scene: &Scene<'_, F>) -> (F::Handle, Limit) {
    let handle = scene.handle().await;
    let limit = factory.limit(&handle, "limit");
    let limit = limit.expect("the factory declares `limits` and gives none");
    (handle, limit.expect("the name of the limit is valid"))
}

/// A delivery of a factory's transport.
type DeliveryOf<F> = Delivery<<<<F as Factory>::Handle as Transport>::Source as Source>::Settle>;

/// Sends five tasks. Returns a worker that has fetched them, and the deliveries.
async fn worker_with_five<F: Factory>(scene: &Scene<'_, F>) -> (WorkerOf<F>, Vec<DeliveryOf<F>>) {
    let mut worker = scene.worker().await;
    for payload in ["1", "2", "3", "4", "5"] {
        scene.send_task(payload).await;
    }
    let deliveries = worker.exactly(5).await;
    (worker, deliveries)
}

/// Requests the only permit of a key.
async fn request_permit<H>(limit: &Limit, delivery: &Delivery<H>) -> Result<Permit, PermitRequest> {
    let parts = message(delivery).parts();
    must("asking for a permit", limit.acquire(parts, "key", 1)).await
}

/// Requests the permit, and panics if it is refused.
async fn granted<H>(limit: &Limit, delivery: &Delivery<H>) -> Permit {
    let answer = request_permit(limit, delivery).await;
    answer.unwrap_or_else(|request| panic!("the permit is taken: {request:?}"))
}

/// Requests the permit, and panics if it is granted.
async fn refused<H>(limit: &Limit, delivery: &Delivery<H>) -> PermitRequest {
    let answer = request_permit(limit, delivery).await;
    answer.expect_err("the only permit is taken")
}

/// Checks that a returned permit goes to the message that was parked first, and that parking does
/// not count as an attempt.
pub async fn parked_messages_get_the_permits_that_are_returned<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, limit) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    for payload in ["first", "second", "third"] {
        scene.send_task(payload).await;
    }
    let mut deliveries = worker.exactly(3).await;
    let first = granted(&limit, &deliveries[0]).await;
    for delivery in deliveries.drain(1..) {
        let request = refused(&limit, &delivery).await;
        settle(delivery, Verdict::Park(request)).await;
    }
    worker.nothing_for(QUIET, "parked messages wait").await;
    if factory.capabilities().statistics {
        let stats = must("reading statistics", factory.stats(&handle)).await;
        let group = stats.group(&scene.settings.group);
        assert_eq!(group.expect("the group exists").parked, 2);
    }

    drop(first);
    let second = worker.one().await;
    assert_eq!(
        (&message(&second).payload()[..], attempt(&second)),
        (&b"second"[..], 1)
    );
    worker.nothing_for(QUIET, "one permit was returned").await;
    scene.send_task("fourth").await;
    let fourth = worker.one().await;
    let request = refused(&limit, &fourth).await;
    let permit = granted(&limit, &second).await;
    settle(fourth, Verdict::Park(request)).await;
    done(second).await;
    drop(permit);
    for payload in ["third", "fourth"] {
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).payload(), payload.as_bytes());
        let _permit = granted(&limit, &delivery).await;
        done(delivery).await;
    }
    done(deliveries.remove(0)).await;
    worker.close().await;
}

/// Checks that no permit is lost in two cases. In the first, the permit is returned between the
/// refusal of a message and its parking. In the second, a parked message gets the permit, and is
/// discarded without taking it.
pub async fn a_permit_that_is_not_taken_is_passed_on<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    let scene = Scene::new(factory);
    let (_handle, limit) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    for payload in ["first", "second", "third"] {
        scene.send_task(payload).await;
    }
    let mut deliveries = worker.exactly(3).await;
    let permit = granted(&limit, &deliveries[0]).await;
    let requests = [
        refused(&limit, &deliveries[1]).await,
        refused(&limit, &deliveries[2]).await,
    ];
    // The permit is returned before the messages are parked.
    drop(permit);
    done(deliveries.remove(0)).await;
    for (delivery, request) in deliveries.into_iter().zip(requests) {
        settle(delivery, Verdict::Park(request)).await;
    }
    let second = worker.one().await;
    let discard = Verdict::Discard {
        reason: Discarded::Requested,
        answer: None,
    };
    settle(second, discard).await;
    let third = worker.one().await;
    assert_eq!(message(&third).payload(), "third");
    let _permit = granted(&limit, &third).await;
    done(third).await;
    worker.close().await;
}

/// Checks that another message gets the permit that was returned for a parked message, if the
/// parked message is cancelled or purged before its delivery.
pub async fn a_permit_that_is_handed_over_returns_if_its_message_is_removed<F: Factory>(
    factory: &F,
) {
    let can = factory.capabilities();
    if !can.limits || !can.tasks || !can.control {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LONG_LEASE);
    let (handle, limit) = connect(factory, &scene).await;
    let tasks = factory.tasks(&handle).expect("the factory has tasks");
    let control = factory.control(&handle).expect("the factory has `control`");
    let mut worker = scene.worker().await;
    for purges in [false, true] {
        for payload in ["first", "second"] {
            let mut task = Message::task("task", payload);
            task.parts_mut().tracked = Some(Duration::from_secs(60));
            call(&handle, task).await.expect("the task is accepted");
        }
        let mut deliveries = worker.exactly(2).await;
        let permit = granted(&limit, &deliveries[0]).await;
        let second = deliveries.remove(1);
        let parked_id = id(&second).clone();
        let request = refused(&limit, &second).await;
        settle(second, Verdict::Park(request)).await;
        drop(permit);
        done(deliveries.remove(0)).await;
        // Gives the parked message time to get the permit.
        sleep(QUIET).await;
        match purges {
            true => assert_eq!(must("purging", control.purge_waiting()).await, 1),
            false => assert!(must("cancelling", tasks.cancel(&parked_id, "")).await),
        }
        scene.send_task("third").await;
        let third = worker.one().await;
        assert_eq!(message(&third).payload(), "third");
        let permit = granted(&limit, &third).await;
        done(third).await;
        drop(permit);
        sleep(QUIET).await;
    }
    worker.close().await;
}

/// Checks that a message returns its permit of one limit when it is parked for another limit.
pub async fn a_message_that_is_parked_again_returns_its_permit<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LONG_LEASE);
    let (handle, limit) = connect(factory, &scene).await;
    let outer = factory.limit(&handle, "outer").expect("it has limits");
    let outer = outer.expect("the name of the limit is valid");
    let mut worker = scene.worker().await;
    for payload in ["first", "second", "third"] {
        scene.send_task(payload).await;
    }
    let mut deliveries = worker.exactly(3).await;
    let third = deliveries.pop().expect("three");
    let second = deliveries.pop().expect("three");
    let first = deliveries.pop().expect("three");
    let outer_of_third = granted(&outer, &third).await;
    let inner_of_first = granted(&limit, &first).await;
    let request = refused(&limit, &second).await;
    settle(second, Verdict::Park(request)).await;
    drop(inner_of_first);
    done(first).await;
    let second = worker.one().await;
    assert_eq!(message(&second).payload(), "second");
    let request = refused(&outer, &second).await;
    settle(second, Verdict::Park(request)).await;
    let inner_of_third = granted(&limit, &third).await;
    drop((outer_of_third, inner_of_third));
    done(third).await;
    let second = worker.one().await;
    assert_eq!(message(&second).payload(), "second");
    let _permits = [
        granted(&outer, &second).await,
        granted(&limit, &second).await,
    ];
    done(second).await;
    worker.close().await;
}

/// Checks that a delivery can take its permit several times, and holds it until the last [`Permit`]
/// is dropped.
pub async fn a_permit_that_is_taken_again_is_returned_after_its_last_use<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    let scene = Scene::new(factory);
    let (_handle, limit) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    for payload in ["first", "second"] {
        scene.send_task(payload).await;
    }
    let mut deliveries = worker.exactly(2).await;
    let mut permit = granted(&limit, &deliveries[0]).await;
    for _ in 0..20 {
        // Drops the permit and takes it again, as a layer that calls its handler again does. Then
        // takes the permit a second time while the first [`Permit`] exists.
        drop(permit);
        permit = granted(&limit, &deliveries[0]).await;
        drop(granted(&limit, &deliveries[0]).await);
    }
    sleep(QUIET).await;
    let request = refused(&limit, &deliveries[1]).await;
    settle(deliveries.remove(1), Verdict::Park(request)).await;
    worker.nothing_for(QUIET, "the permit is taken").await;
    drop(permit);
    done(worker.one().await).await;
    done(deliveries.remove(0)).await;
    worker.close().await;
}

/// Checks that a parked task can be cancelled, and does not run afterwards.
pub async fn a_parked_task_can_be_cancelled<F: Factory>(factory: &F) {
    if !factory.capabilities().limits || !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, limit) = connect(factory, &scene).await;
    let tasks = factory.tasks(&handle).expect("the factory has tasks");
    let mut worker = scene.worker().await;
    for payload in ["first", "second"] {
        let mut task = Message::task("task", payload);
        task.parts_mut().tracked = Some(Duration::from_secs(60));
        call(&handle, task).await.expect("the task is accepted");
    }
    let mut deliveries = worker.exactly(2).await;
    let permit = granted(&limit, &deliveries[0]).await;
    let second = deliveries.remove(1);
    let parked = id(&second).clone();
    let request = refused(&limit, &second).await;
    settle(second, Verdict::Park(request)).await;
    let status = must("looking up a task", tasks.status(&parked)).await;
    assert_eq!(status.map(|status| status.state), Some(TaskState::Waiting));
    assert!(must("cancelling a task", tasks.cancel(&parked, "no need")).await);
    let status = must("looking up a task", tasks.status(&parked)).await;
    assert_eq!(
        status.map(|status| status.state),
        Some(TaskState::Cancelled)
    );
    done(deliveries.remove(0)).await;
    drop(permit);
    worker
        .nothing_for(QUIET, "the parked task is cancelled")
        .await;
    worker.close().await;
}

/// Checks that a rate limit gives each message a start time, and that a message that asks again
/// keeps its start time.
pub async fn a_rate_limit_gives_each_message_a_start_time<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    const PERIOD: Duration = Duration::from_millis(400);
    let scene = Scene::new(factory);
    let (_handle, limit) = connect(factory, &scene).await;
    let (worker, deliveries) = worker_with_five(&scene).await;
    let book = async |index: usize| {
        let parts = message::<_>(&deliveries[index]).parts();
        must("booking a time", limit.book(parts, "key", 2, PERIOD)).await
    };
    assert_eq!(
        (book(0).await, book(1).await),
        (Duration::ZERO, Duration::ZERO)
    );
    let (third, fourth, fifth) = (book(2).await, book(3).await, book(4).await);
    assert!(!third.is_zero() && third <= PERIOD, "{third:?}");
    assert!(fourth <= PERIOD && fifth > PERIOD, "{fourth:?}, {fifth:?}");
    sleep(fourth.max(third) + Duration::from_millis(2)).await;
    assert_eq!(
        (book(2).await, book(3).await),
        (Duration::ZERO, Duration::ZERO)
    );
    let fifth = book(4).await;
    assert!(!fifth.is_zero() && fifth <= PERIOD, "{fifth:?}");
    for delivery in deliveries {
        done(delivery).await;
    }
    worker.close().await;
}

/// Checks that the workers of a group together have no more deliveries in flight than the group's
/// limit. When a delivery ends, any of the workers can fetch the next one.
pub async fn the_workers_of_a_group_keep_to_their_limit<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.max_in_flight_of_group = Some(3));
    let mut one = scene.worker().await;
    let mut two = scene.worker().await;
    let first_batches = in_time("two waiting workers", async {
        // Sends the tasks when both workers wait.
        let send_all = async {
            sleep(QUIET).await;
            for payload in ["1", "2", "3", "4", "5"] {
                scene.send_task(payload).await;
            }
        };
        let ((), first, second) = tokio::join!(send_all, one.batch(1), two.batch(1));
        [first, second].into_iter().flatten().collect::<Vec<_>>()
    });
    let mut held = first_batches.await;
    held.extend(one.batch(4).await);
    assert_eq!(held.len(), 3);
    one.nothing_for(QUIET, "the group is at its limit").await;
    two.nothing_for(QUIET, "the group is at its limit").await;
    for delivery in held.drain(..2) {
        done(delivery).await;
    }
    held.extend(two.exactly(2).await);
    two.nothing_for(QUIET, "no task is left").await;
    for delivery in held {
        done(delivery).await;
    }
    one.close().await;
    two.close().await;
}

/// Checks that a waiting message keeps its start time when earlier messages start.
pub async fn a_rate_limit_keeps_the_start_times_of_waiting_messages<F: Factory>(factory: &F) {
    if !factory.capabilities().limits {
        return;
    }
    const PERIOD: Duration = Duration::from_millis(400);
    let scene = Scene::new(factory);
    let (_handle, limit) = connect(factory, &scene).await;
    let (worker, deliveries) = worker_with_five(&scene).await;
    let book = async |index: usize| {
        let parts = message::<_>(&deliveries[index]).parts();
        must("booking a time", limit.book(parts, "key", 1, PERIOD)).await
    };
    assert_eq!(book(0).await, Duration::ZERO);
    let second = book(1).await;
    let (third, fourth) = (book(2).await, book(3).await);
    assert!(
        third > PERIOD && fourth > 2 * PERIOD,
        "{third:?}, {fourth:?}"
    );
    sleep(second + Duration::from_millis(2)).await;
    assert_eq!(book(1).await, Duration::ZERO);
    // The start time of the third message has passed, the start time of the fourth has not. Both
    // keep their times, so the fifth message starts after the fourth.
    sleep(PERIOD + PERIOD / 4).await;
    let fifth = book(4).await;
    assert!(fifth > PERIOD, "{fifth:?}");
    for delivery in deliveries {
        done(delivery).await;
    }
    worker.close().await;
}
