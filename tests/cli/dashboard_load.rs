//! `campanile dashboard` with many streams, much that waits, many dead letters, and a large payload.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use serde_json::json;

use super::{dashboard, *};
use crate::support::raw::eventually;

/// The longest time for a page. The dashboard itself gives up after 10 s.
const PAGE: Duration = Duration::from_secs(3);
/// The longest time that one command of a page may hold up the server, in microseconds. A script whose
/// work grows with the stream would take a hundred milliseconds; the operating system stops a busy
/// machine's server for some ten.
const COMMAND: u64 = 25_000;
/// The same for a script that reads an entry of 5 MiB, which it copies in and out.
const LARGE_COMMAND: u64 = 100_000;
/// The most processor time of the server for each step of a search or of a change, in microseconds. A
/// step is one script, and is meant to take less than 5 ms; machines differ. The time between its start
/// and its end says less: the operating system may stop the server meanwhile.
const STEP: u64 = 10_000;
/// The most memory of the dashboard's process, in KiB.
const MEMORY: u64 = 100 << 10;
/// A command takes longer if the operating system stops the server meanwhile. A script that is too slow
/// is so each time.
const ATTEMPTS: usize = 5;
/// The size of the large payload.
const LARGE: usize = 5 << 20;

/// The sizes of a test.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    streams: usize,
    waiting: u64,
    dead: u64,
    /// The number of the dead letter that is searched.
    needle: u64,
}

struct Load {
    server: RedisServer,
    _process: tokio::process::Child,
    pid: u32,
    address: String,
}

/// Many streams, a million waiting messages and a million dead letters: about 3 minutes. Run it with
/// `cargo test --all-features --test cli dashboard_load -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_dashboard_over_millions_of_messages_stays_within_its_bounds() {
    let sizes = Sizes {
        streams: 10_000,
        waiting: 1_000_000,
        dead: 1_000_000,
        needle: 900_000,
    };
    let load = Load::start(sizes).await;
    load.is_within_bounds(sizes).await;
    load.samples_all(sizes).await;
    load.changes_in_bulk(sizes).await;
    load.memory_is_bounded();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dashboard_over_many_messages_stays_within_its_bounds() {
    let sizes = Sizes {
        streams: 10_000,
        waiting: 50_000,
        dead: 50_000,
        needle: 15_000,
    };
    let load = Load::start(sizes).await;
    load.is_within_bounds(sizes).await;
    load.changes_in_bulk(sizes).await;
    load.memory_is_bounded();
}

/// Adds streams with a group each.
const STREAMS: &str = "for i = ARGV[1], ARGV[2] do
  local stream = string.format('load-%05d', i)
  redis.call('XGROUP', 'CREATE', stream, 'g', '0', 'MKSTREAM')
  redis.call('ZADD', 'campanile:registry:load', i, stream)
end";
const WAITING: &str = "for i = ARGV[1], ARGV[2] do
  redis.call('XADD', 'big', '*', 'type', 'task', 'name', 'mail.send', 'payload', '{\"id\":' .. i .. '}')
end";
/// Adds dead letters of the group `post`. One in the middle has another reason.
const DEAD_LETTERS: &str = "for i = ARGV[1], ARGV[2] do
  local reason = i == tonumber(ARGV[3]) and 'a needle' or 'the printer is on fire'
  redis.call('XADD', '{big}:dead:post', '*', '~g', 'post', '~o', '1-' .. i, '~r', reason, '~a', '10',
    '~d', '1795430237570', 'type', 'task', 'name', 'mail.send', 'payload', '{}')
end";

impl Load {
    async fn start(sizes: Sizes) -> Self {
        let server = RedisServer::start().await;
        fill(&server, STREAMS, sizes.streams as u64, 0).await;
        let group = ["XGROUP", "CREATE", "big", "mail", "0", "MKSTREAM"];
        server.command(&group).await;
        fill(&server, WAITING, sizes.waiting, 0).await;
        for (stream, start) in [("big", "$"), ("{big}:retry:post", "0")] {
            let group = ["XGROUP", "CREATE", stream, "post", start, "MKSTREAM"];
            server.command(&group).await;
        }
        fill(&server, DEAD_LETTERS, sizes.dead, sizes.needle).await;
        let large = "x".repeat(LARGE);
        raw::add(
            &server,
            "{large}:dead:large",
            &[
                ("~g", "large"),
                ("~o", "1-1"),
                ("~r", "it is large"),
                ("~a", "1"),
                ("~d", "1795430237570"),
                ("type", "task"),
                ("name", "mail.send"),
                ("payload", &large),
            ],
        )
        .await;
        server
            .command(&["XGROUP", "CREATE", "large", "large", "$", "MKSTREAM"])
            .await;
        let fields = [("type", "task"), ("name", "large"), ("payload", &large)];
        raw::add(&server, "large", &fields).await;
        let (process, address) =
            dashboard::start(&server, "--registry load --also big --also large").await;
        Self {
            pid: process.id().expect("it runs"),
            server,
            _process: process,
            address,
        }
    }

    async fn get(&self, target: &str) -> String {
        let address = &self.address;
        let head = "connection: close\r\n\r\n";
        let request = format!("GET {target} HTTP/1.1\r\nhost: {address}\r\n{head}");
        let response = dashboard::request(address, &request).await;
        assert!(response.starts_with("HTTP/1.1 200"), "{target}: {response}");
        response
    }

    async fn document(&self, target: &str) -> Value {
        let response = self.get(&format!("/api/{target}")).await;
        let (_, body) = response.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str(body).expect("the body is JSON")
    }

    async fn post(&self, target: &str, body: Value) -> Value {
        let (address, body) = (&self.address, body.to_string());
        let request = format!(
            "POST /api/{target} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len(),
        );
        let response = dashboard::request(address, &request).await;
        let (head, body) = response.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 20"), "{target}: {response}");
        serde_json::from_str(body).expect("the body is JSON")
    }

    /// Each page ends in time, reads a bounded number of streams, and no command of it is slow.
    async fn is_within_bounds(&self, sizes: Sizes) {
        let letters = self.document("dead?stream=large&group=large").await;
        let large = letters["letters"][0]["id"]
            .as_str()
            .expect("a letter")
            .to_owned();
        let mut pages: Vec<String> = [
            "/",
            "/?by=waiting",
            "/?by=dead&page=50",
            "/?q=load-09",
            "/task?stream=big&id=1-1",
            "/waiting?stream=large&group=large",
            "/dead?stream=large&group=large",
            "/dead?stream=big&group=post&reason=nothing",
            "/dead?stream=big&group=post&name=nothing&since=1h",
            "/confirm?do=purge&all=1&stream=big&group=post",
            "/confirm?do=purge-waiting&stream=big&group=mail",
        ]
        .map(str::to_owned)
        .into();
        pages.push(format!("/letter?stream=large&group=large&id={large}"));
        let tabs = [
            "stream",
            "waiting",
            "running",
            "delayed",
            "dead",
            "tasks",
            "workers",
            "schedules",
            "pauses",
            "limits",
        ];
        for group in ["mail", "post"] {
            pages.extend(tabs.map(|tab| format!("/{tab}?stream=big&group={group}")));
        }
        for page in &pages {
            self.page_is_within_bounds(page).await;
        }
        self.search_finds_a_letter(sizes).await;
    }

    async fn page_is_within_bounds(&self, page: &str) {
        let mut slow = Vec::new();
        for _ in 0..ATTEMPTS {
            let touched = Touched::watch(&self.server).await;
            self.server.command(&["SLOWLOG", "RESET"]).await;
            let started = Instant::now();
            self.get(page).await;
            let took = started.elapsed();
            let touched = touched.streams().await;
            assert!(took < PAGE, "{page} took {took:?}");
            // The page itself, and the background's samples, of which a step is begun each half second.
            let steps = 2 + took.as_millis() as usize / 500;
            assert!(
                touched <= 100 * (1 + steps),
                "{page} has touched {touched} streams"
            );
            let limit = if page.contains("=large") {
                LARGE_COMMAND
            } else {
                COMMAND
            };
            slow = slow_commands(&self.server, limit).await;
            if slow.is_empty() {
                println!("{page}: {took:?}, {touched} streams");
                return;
            }
        }
        panic!("commands of {page} hold up the server: {slow:?}");
    }

    /// A search goes on from page to page until it has found a letter.
    async fn search_finds_a_letter(&self, sizes: Sizes) {
        let work = Work::begin(&self.server).await;
        let (mut after, mut looked_at, mut requests) = (None, 0, 0);
        loop {
            let after_ = after.map_or(String::new(), |after: String| format!("&after={after}"));
            let target = format!("dead?stream=big&group=post&reason=needle{after_}");
            let begun = Instant::now();
            let found = self.document(&target).await;
            assert!(begun.elapsed() < PAGE, "a step took {:?}", begun.elapsed());
            requests += 1;
            looked_at += found["looked_at"].as_u64().expect("a number");
            if found["letters"].as_array().is_some_and(|it| !it.is_empty()) {
                break;
            }
            after = Some(found["next"].as_str().expect("there are more").to_owned());
        }
        assert!(looked_at >= sizes.needle, "{looked_at}");
        println!("the search has looked at {looked_at} letters in {requests} requests");
        work.was_in_short_steps(looked_at.div_ceil(100)).await;
    }

    /// The background samples all streams, in steps, and then the totals are right.
    async fn samples_all(&self, sizes: Sizes) {
        let sampled = async || {
            let totals = self.document("overview").await;
            (totals["streams_without_sample"] == 0).then_some(totals)
        };
        let totals = eventually(sampled, Duration::from_secs(120)).await;
        assert_eq!(totals["streams"], sizes.streams + 2);
        assert_eq!(totals["waiting"], sizes.waiting + 1);
        assert_eq!(totals["dead"], sizes.dead + 1);
    }

    async fn changes_in_bulk(&self, sizes: Sizes) {
        let of = |verb: &str, group: &str| json!({ "do": verb, "stream": "big", "group": group, "all": true });
        let left = self
            .stopped_on_the_way(of("purge", "post"), sizes.dead)
            .await;
        self.ends(of("replay", "post"), left).await;
        assert_eq!(
            raw::len(&self.server, "{big}:retry:post").await as u64,
            left
        );
        self.stopped_on_the_way(of("purge-waiting", "post"), left)
            .await;
        self.ends(of("purge-waiting", "mail"), sizes.waiting).await;
    }

    /// Begins a change of `all` messages and stops it. Returns the number of those that are left.
    async fn stopped_on_the_way(&self, change: Value, all: u64) -> u64 {
        let watched = async {
            let begun = async || {
                let actions = self.document("actions").await;
                let newest = actions["actions"].as_array()?.first()?.clone();
                let done = newest["done"].as_u64()?;
                (newest["do"] == change["do"] && done > 0).then_some(newest)
            };
            let newest = eventually(begun, SOON).await;
            assert_eq!(
                (&newest["state"], &newest["of"]),
                (&json!("running"), &json!(all))
            );
            self.post("stop", json!({ "id": newest["id"] })).await;
            let ended = async || {
                let id = newest["id"].as_str()?;
                let action = self.document(&format!("action?id={id}")).await;
                (action["state"] != "running").then_some(action)
            };
            eventually(ended, SOON).await
        };
        let (_, stopped) = tokio::join!(self.post("act", change.clone()), watched);
        assert_eq!(stopped["state"], "stopped", "{stopped}");
        let done = stopped["done"].as_u64().expect("a number");
        println!("{change} was stopped after {done}");
        all - done
    }

    /// Carries out a change of `all` messages to its end.
    async fn ends(&self, change: Value, all: u64) {
        let work = Work::begin(&self.server).await;
        let begun = self.post("act", change.clone()).await;
        let id = begun["id"].as_str().expect("an id").to_owned();
        let ended = async || {
            let action = self.document(&format!("action?id={id}")).await;
            (action["state"] != "running").then_some(action)
        };
        let ended = eventually(ended, Duration::from_secs(300)).await;
        assert_eq!(
            (&ended["state"], &ended["done"]),
            (&json!("done"), &json!(all)),
            "{ended}"
        );
        println!("{change} has changed {all}");
        // A step changes up to 100 letters or messages.
        work.was_in_short_steps(all.div_ceil(100)).await;
    }

    fn memory_is_bounded(&self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.expect("the process runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.expect("Linux says it").trim().trim_end_matches(" kB");
        println!("the process has had {peak} KiB at most");
        assert!(
            peak.parse::<u64>().expect("a number") < MEMORY,
            "{peak} KiB"
        );
    }
}

/// Calls a script for the numbers from 1 to `count`, in slices.
async fn fill(server: &RedisServer, script: &str, count: u64, marked: u64) {
    for first in (1..=count).step_by(10_000) {
        let last = count.min(first + 9_999);
        let [first, last, marked] = [first, last, marked].map(|it| it.to_string());
        server
            .command(&["EVAL", script, "0", &first, &last, &marked])
            .await;
    }
}

/// The work of the server since a time.
struct Work<'a> {
    server: &'a RedisServer,
    processor: f64,
    begun: Instant,
}

impl<'a> Work<'a> {
    async fn begin(server: &'a RedisServer) -> Self {
        Self {
            server,
            processor: processor_time(server).await,
            begun: Instant::now(),
        }
    }

    /// Checks the processor time of each of these steps.
    async fn was_in_short_steps(self, steps: u64) {
        let took = self.begun.elapsed();
        let processor = processor_time(self.server).await - self.processor;
        let of_step = processor * 1e6 / steps as f64;
        println!("    {steps} steps in {took:.1?}, of the server {of_step:.0} µs each");
        assert!(
            of_step < STEP as f64,
            "{of_step} µs for each of {steps} steps"
        );
    }
}

/// Returns the processor time that the server has used, in seconds.
async fn processor_time(server: &RedisServer) -> f64 {
    let info: String = server.query(&["INFO", "cpu"]).await;
    let times = info.lines().filter_map(|line| {
        let (name, seconds) = line.split_once(':')?;
        let is_own = ["used_cpu_user", "used_cpu_sys"].contains(&name);
        seconds.trim().parse::<f64>().ok().filter(|_| is_own)
    });
    times.sum()
}

/// Returns the commands that were slower than `limit`, each with its microseconds.
async fn slow_commands(server: &RedisServer, limit: u64) -> Vec<(u64, String)> {
    type Slow = (u64, u64, u64, Vec<String>, String, String);
    let slow: Vec<Slow> = server.query(&["SLOWLOG", "GET", "-1"]).await;
    let slow = slow.into_iter().filter(|(_, _, took, ..)| *took > limit);
    let slow = slow.map(|(_, _, took, words, ..)| (took, words[..words.len().min(4)].join(" ")));
    slow.collect()
}

/// The streams that any command reads or writes, by the server's `MONITOR`.
struct Touched {
    server: redis::Client,
    watching: tokio::task::JoinHandle<usize>,
}

/// The command after which watching ends.
const END: &str = "the-end-of-the-page";

impl Touched {
    async fn watch(server: &RedisServer) -> Self {
        let monitor = server
            .client()
            .get_async_monitor()
            .await
            .expect("a connection");
        let watching = tokio::spawn(async move {
            let mut streams = HashSet::new();
            let mut commands = monitor.into_on_message::<String>();
            while let Some(command) = commands.next().await {
                if command.contains(END) {
                    break;
                }
                let names = command
                    .match_indices("load-")
                    .filter_map(|(at, _)| command.get(at..at + "load-00000".len()));
                streams.extend(names.map(str::to_owned));
            }
            streams.len()
        });
        Self {
            server: server.client(),
            watching,
        }
    }

    /// Returns the number of streams that were touched until now.
    async fn streams(self) -> usize {
        let mut connection = self.server.get_multiplexed_async_connection().await;
        let connection = connection.as_mut().expect("a connection");
        let _: String = redis::cmd("PING")
            .arg(END)
            .query_async(connection)
            .await
            .expect("it answers");
        within(SOON, self.watching)
            .await
            .expect("it does not panic")
    }
}
