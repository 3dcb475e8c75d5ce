//! Sharded events on a cluster whose slots move, and whose nodes fail over or die.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use campanile::{
    Client, Redis,
    transport::{ConnectionState, Interest, Source, Transport},
};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    FOUND, SECOND, connect, scaled,
    support::{Signal, cluster::Cluster, raw::eventually, version},
};

/// A source of sharded events, and a client on the same handle.
struct Listener {
    redis: Redis,
    client: Client<Redis>,
    /// The payloads that were received, by name.
    heard: Arc<Mutex<BTreeMap<String, Vec<u64>>>>,
    gaps: Arc<Mutex<Vec<Duration>>>,
    tasks: JoinSet<()>,
}

impl Listener {
    async fn start(cluster: &Cluster, names: &[String]) -> Self {
        let gaps = Arc::<Mutex<Vec<Duration>>>::default();
        let noted = gaps.clone();
        let redis = connect(&cluster.url()).await;
        let redis = redis.on_event_gap(move |gap| noted.lock().unwrap().push(gap));
        let mut interest = Interest::default();
        interest.sharded = names.iter().map(|name| name.as_str().into()).collect();
        let mut source = redis.clone().open(interest).await.unwrap();
        let heard = Arc::<Mutex<BTreeMap<String, Vec<u64>>>>::default();
        let hears = heard.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                for delivery in source.next(64).await.unwrap() {
                    let event = delivery.content.unwrap();
                    let payload = std::str::from_utf8(event.payload()).unwrap();
                    let mut hears = hears.lock().unwrap();
                    let of_name = hears.entry(event.name().to_string()).or_default();
                    of_name.push(payload.parse().unwrap());
                }
            }
        });
        Self {
            client: Client::new(redis.clone()),
            redis,
            heard,
            gaps,
            tasks,
        }
    }

    /// Publishes at a steady rate, a number that grows, and returns the numbers that the server has
    /// accepted when `done` ends.
    async fn publish_while<T>(
        &self,
        names: &[String],
        done: impl Future<Output = T>,
    ) -> (T, BTreeMap<String, Vec<u64>>) {
        let mut sent = BTreeMap::<String, Vec<u64>>::new();
        let publishing = async {
            for n in 0.. {
                for name in names {
                    let publish = self.client.publish(name.as_str(), n.to_string());
                    if publish.sharded().timeout(SECOND).await.is_ok() {
                        sent.entry(name.clone()).or_default().push(n);
                    }
                }
                sleep(SECOND / 200).await;
            }
        };
        let value = tokio::select! {
            value = done => value,
            () = publishing => unreachable!(),
        };
        (value, sent)
    }

    fn heard(&self, name: &str) -> Vec<u64> {
        let heard = self.heard.lock().unwrap();
        heard.get(name).cloned().unwrap_or_default()
    }

    /// Waits until an event of each name was published and heard, and then a few more, which all
    /// must be heard.
    async fn works(&self, names: &[String]) {
        for name in names {
            let started = Instant::now();
            let mut more = 0;
            while more < 5 {
                let number = fastrand::u64(..);
                let publish = self.client.publish(name.as_str(), number.to_string());
                let sent = publish.sharded().timeout(SECOND).await;
                let at = Instant::now();
                let mut heard = false;
                while sent.is_ok() && !heard && at.elapsed() < SECOND {
                    sleep(SECOND / 100).await;
                    heard = self.heard(name).last() == Some(&number);
                }
                assert!(heard || more == 0, "{name} was heard, but not again");
                more += usize::from(heard);
                assert!(heard || started.elapsed() < FOUND, "{name}: {sent:?}");
                sleep(SECOND / 20).await;
            }
        }
    }

    /// Waits until all subscriptions are there.
    async fn connected(&self) {
        let state = async || (self.redis.state() == ConnectionState::Connected).then_some(());
        eventually(state, FOUND).await;
    }
}

/// The number of connections with subscriptions at a node.
async fn subscribers(cluster: &Cluster, node: usize) -> usize {
    let list: String = cluster
        .node(node)
        .query(&["CLIENT", "LIST", "TYPE", "PUBSUB"])
        .await;
    list.lines().filter(|line| !line.trim().is_empty()).count()
}

fn is_without_shards() -> bool {
    version() < (7, 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sharded_channels_of_many_slots_use_one_connection_to_each_node() {
    if is_without_shards() {
        return;
    }
    let cluster = Cluster::of_primaries().await;
    let names: Vec<_> = (0..30).map(|n| format!("prices-{n}")).collect();
    let listener = Listener::start(&cluster, &names).await;
    listener.works(&names).await;
    let mut channels = Vec::new();
    for node in 0..3 {
        assert_eq!(subscribers(&cluster, node).await, 1);
        let of_node: Vec<String> = cluster.node(node).query(&["PUBSUB", "SHARDCHANNELS"]).await;
        assert!(!of_node.is_empty());
        for channel in &of_node {
            assert_eq!(cluster.owner(channel).await, node);
        }
        channels.extend(of_node);
    }
    channels.sort();
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(channels, expected);
    assert!(listener.gaps.lock().unwrap().is_empty());
    let Listener { mut tasks, .. } = listener;
    tasks.shutdown().await;
    for node in 0..3 {
        let closed = async || (subscribers(&cluster, node).await == 0).then_some(());
        eventually(closed, FOUND).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_leaves_a_gap_in_its_sharded_events_and_in_no_others() {
    if is_without_shards() {
        return;
    }
    let cluster = Cluster::of_primaries().await;
    let [moves, ..] = cluster.a_name_on_each("moves").await;
    let [stays, ..] = cluster.a_name_on_each("stays").await;
    let names = [moves.clone(), stays.clone()];
    let listener = Listener::start(&cluster, &names).await;
    let slot = cluster.slot(&moves).await;
    let homes = [1, 2, 0].repeat(scaled(1, 4));
    let rounds = homes.len();
    let moving = async {
        for (round, home) in homes.into_iter().enumerate() {
            let before = listener.heard(&moves).len();
            cluster.move_slot(slot, home, SECOND / 20).await;
            let gap = async || (listener.gaps.lock().unwrap().len() > round).then_some(());
            eventually(gap, FOUND).await;
            let goes_on = async || (listener.heard(&moves).len() > before + 20).then_some(());
            eventually(goes_on, FOUND).await;
        }
    };
    let ((), sent) = listener.publish_while(&names, moving).await;
    listener.works(&names).await;
    let all = listener.heard(&stays);
    assert_eq!(
        all[..sent[&stays].len()],
        sent[&stays],
        "nothing is missing"
    );
    let heard = &listener.heard(&moves);
    let heard: Vec<_> = sent[&moves].iter().filter(|n| heard.contains(n)).collect();
    println!(
        "of {} events, {} were heard",
        sent[&moves].len(),
        heard.len()
    );
    let gaps = listener.gaps.lock().unwrap().clone();
    assert_eq!(gaps.len(), rounds, "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < FOUND), "{gaps:?}");
    assert_eq!(listener.redis.counts().reconnects as usize, rounds);
    listener.connected().await;
    // The slot is back at its first node, so no other node has a connection.
    for (node, connections) in [(0, 1), (1, 0), (2, 0)] {
        let left = async || (subscribers(&cluster, node).await == connections).then_some(());
        eventually(left, FOUND).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sharded_events_go_on_after_a_failover_and_after_a_primary_was_killed() {
    if is_without_shards() {
        return;
    }
    let cluster = Cluster::start().await;
    let names = cluster.a_name_on_each("prices").await;
    let listener = Listener::start(&cluster, &names).await;
    listener.works(&names).await;
    let (_, new) = cluster.fail_over(&names[0]).await;
    listener.works(&names).await;
    listener.connected().await;
    assert!(!listener.gaps.lock().unwrap().is_empty());
    let before = listener.gaps.lock().unwrap().len();
    assert_eq!(cluster.replica_of(new).await, 0);
    cluster.node(new).signal(Signal::Kill);
    cluster.new_owner(&names[0], new).await;
    listener.works(&names).await;
    listener.connected().await;
    assert!(listener.gaps.lock().unwrap().len() > before);
}
