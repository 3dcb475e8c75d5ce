//! Streams with bare redis-rs: entries are added, read and acknowledged.

use std::{hint::black_box, sync::Arc};

use bytes::Bytes;
use campanile::Name;
use futures_util::future::join_all;
use redis::{
    AsyncConnectionConfig, Cmd, Value,
    aio::{MultiplexedConnection, PubSub},
};

use crate::{GROUP, address::Address, probe::Probe, setup::Setup, workload::Handler};

pub(crate) async fn connect(address: &Address) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    address
        .client()
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("a connection")
}

pub(crate) async fn subscribe(probe: &Probe, channel: &str) -> PubSub {
    let client = probe.address().client();
    let mut subscription = client.get_async_pubsub().await.expect("a subscription");
    subscription.subscribe(channel).await.expect("SUBSCRIBE");
    subscription
}

/// Adds entries over one connection. The entries use the streams, and the names, in turn.
#[derive(Debug, Clone)]
pub(crate) struct EntryWriter {
    connection: MultiplexedConnection,
    /// The streams and the names.
    targets: Arc<(Vec<String>, Vec<Name>)>,
    payload: Bytes,
}

impl EntryWriter {
    pub(crate) async fn connect(probe: &Probe, setup: &Setup) -> Self {
        Self {
            connection: connect(probe.address()).await,
            targets: Arc::new((setup.streams().collect(), setup.names().collect())),
            payload: setup.payload(),
        }
    }

    pub(crate) fn payload(&self) -> Bytes {
        self.payload.clone()
    }

    pub(crate) async fn send(mut self, message: usize, payload: Bytes) {
        let add = self.command("task", message, &payload);
        let id: Value = add.query_async(&mut self.connection).await.expect("XADD");
        black_box(id);
    }

    /// The `XADD` of a message, to which fields may be added.
    pub(crate) fn command(&self, kind: &str, message: usize, payload: &[u8]) -> Cmd {
        let (streams, names) = &*self.targets;
        let name = &names[message / streams.len() % names.len()];
        let mut add = redis::cmd("XADD");
        add.arg(&streams[message % streams.len()]).arg("*");
        add.arg("type").arg(kind);
        add.arg("name").arg(name.as_str());
        add.arg("payload").arg(payload);
        add
    }

    pub(crate) async fn run(&mut self, command: &Cmd) -> Value {
        let answer = command.query_async(&mut self.connection).await;
        answer.expect("the command is carried out")
    }
}

/// Adds `count` tasks to the streams. A pipeline has at most 1 MiB, since the memory of this
/// process is measured.
pub(crate) async fn preload(probe: &Probe, setup: &Setup, count: usize) {
    let mut writer = EntryWriter::connect(probe, setup).await;
    let at_once = ((1 << 20) / setup.payload).clamp(1, 1000);
    for first in (0..count).step_by(at_once) {
        let mut pipeline = redis::pipe();
        for message in first..count.min(first + at_once) {
            let add = writer.command("task", message, &writer.payload);
            pipeline.add_command(add).ignore();
        }
        let sent: Result<(), _> = pipeline.query_async(&mut writer.connection).await;
        sent.expect("XADDs");
    }
}

/// Reads entries of all streams over a separate connection.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) connection: MultiplexedConnection,
    pub(crate) setup: Setup,
    streams: Vec<String>,
    /// The `XREADGROUP`.
    read_command: Cmd,
}

impl Reader {
    pub(crate) async fn connect(address: &Address, setup: &Setup) -> Self {
        let streams: Vec<_> = setup.streams().collect();
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP);
        read.arg(format!("raw-{}", fastrand::u64(..)));
        read.arg("COUNT").arg(setup.raw_batch());
        read.arg("BLOCK").arg(1000);
        read.arg("STREAMS").arg(&streams);
        read.arg(vec![">"; streams.len()]);
        Self {
            connection: connect(address).await,
            setup: *setup,
            streams,
            read_command: read,
        }
    }

    /// Reads and acknowledges `count` entries. The handlers of one read run concurrently if they
    /// wait, and one after the other if they do not.
    pub(crate) async fn handle(
        &mut self,
        handler: Handler,
        count: usize,
        on_payload: impl Fn(&[u8]),
    ) {
        let setup = self.setup;
        let mut done = 0;
        while done < count {
            let read = self.read().await;
            let on_entry = |entry: &Entry| on_payload(black_box(entry.payload()));
            match handler {
                Handler::Single if setup.handlers_wait => {
                    join_all(read.iter().map(async |entry| {
                        setup.wait().await;
                        on_entry(entry);
                    }))
                    .await;
                }
                Handler::Single => read.iter().for_each(on_entry),
                Handler::Batch => {
                    if !read.is_empty() {
                        setup.wait().await;
                    }
                    read.iter().for_each(on_entry);
                }
            }
            done += self.acknowledge(&read, redis::pipe()).await;
        }
    }

    /// Adds the acknowledgements of these entries to the pipeline, and sends it. Returns the number
    /// of entries.
    pub(crate) async fn acknowledge(
        &mut self,
        read: &[Entry],
        mut pipeline: redis::Pipeline,
    ) -> usize {
        if read.is_empty() {
            return 0;
        }
        for entries in read.chunk_by(|one, other| one.stream == other.stream) {
            let mut acknowledge = redis::cmd("XACK");
            acknowledge.arg(&self.streams[entries[0].stream]).arg(GROUP);
            for entry in entries {
                acknowledge.arg(&entry.id);
            }
            pipeline.add_command(acknowledge);
        }
        let acknowledged: Vec<usize> = pipeline
            .query_async(&mut self.connection)
            .await
            .expect("XACK");
        assert_eq!(acknowledged.iter().sum::<usize>(), read.len());
        read.len()
    }

    pub(crate) async fn read(&mut self) -> Vec<Entry> {
        let response = self.read_command.query_async(&mut self.connection).await;
        match response.expect("XREADGROUP") {
            Value::Nil => Vec::new(),
            // [[stream, [[id, [field, value, …]], …]], …], the streams in the requested order.
            streams => {
                let mut entries = Vec::new();
                for stream in list(streams) {
                    let [name, read] = pair(stream);
                    let name = bytes(name);
                    let index = self.streams.iter().position(|it| it.as_bytes() == name);
                    let index = index.expect("a stream that was asked for");
                    entries.extend(list(read).into_iter().map(|it| Entry::new(index, it)));
                }
                entries
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// The index of the stream in the reader's list.
    stream: usize,
    id: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn new(stream: usize, entry: Value) -> Self {
        let [id, fields] = pair(entry);
        let mut words = list(fields).into_iter().map(bytes);
        Self {
            stream,
            id: bytes(id),
            fields: std::iter::from_fn(|| Some((words.next()?, words.next()?))).collect(),
        }
    }

    pub(crate) fn field(&self, name: &str) -> &[u8] {
        let found = self.fields.iter().find(|(key, _)| key == name.as_bytes());
        &found.expect("the entry has this field").1
    }

    pub(crate) fn payload(&self) -> &[u8] {
        self.field("payload")
    }
}

fn pair(value: Value) -> [Value; 2] {
    list(value).try_into().expect("a list of two")
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        other => panic!("no list: {other:?}"),
    }
}

fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        other => panic!("no string: {other:?}"),
    }
}
