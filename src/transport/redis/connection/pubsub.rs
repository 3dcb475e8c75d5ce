//! A connection with subscriptions.
//!
//! The connection sends a *probe* every few seconds. Only a missing response shows that a
//! connection is half open, and only the response to a `ROLE` shows that the server was demoted.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use redis::{ErrorKind, RedisError, RedisResult};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{Connection, Value};
use crate::transport::redis::{error, server::is_replica};

/// The time between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(2500);
/// The time limit for the response to a probe or a renewal of the credentials.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A published message.
#[derive(Debug, PartialEq)]
pub(in crate::transport::redis) struct Published {
    /// The pattern of the subscription, or `None` if the subscription is to a channel.
    pub(in crate::transport::redis) pattern: Option<Bytes>,
    pub(in crate::transport::redis) channel: Bytes,
    pub(in crate::transport::redis) payload: Bytes,
    /// Set if the channel is sharded.
    pub(in crate::transport::redis) sharded: bool,
}

/// A notice of the server to a subscriber.
#[derive(Debug, PartialEq)]
pub(in crate::transport::redis) enum Notice {
    Published(Published),
    /// The server has ended the subscription to this sharded channel, because the channel's slot is
    /// now at another node.
    Ended(Bytes),
}

/// A connection with subscriptions.
pub(in crate::transport::redis) struct PubSub {
    connection: Connection,
    /// Notices that arrived before all subscriptions were confirmed.
    queued: VecDeque<Notice>,
    probes: Interval,
    /// The start of the wait for the response to a probe or a renewal. `None` if no response is
    /// due.
    waiting_since: Option<Instant>,
    /// Set if the connection waits for the response to a renewal of the credentials, not to a
    /// probe.
    is_renewing: bool,
    /// Set if the connection ends when its server has become a replica.
    needs_primary: bool,
}

/// A value received over a connection with subscriptions.
enum Received {
    Notice(Notice),
    /// The confirmation of one channel or pattern.
    Confirmation,
    /// The response to a probe or a renewal.
    Response,
}

impl PubSub {
    /// Uses a connection for subscriptions only. With `needs_primary` the connection ends when its
    /// server has become a replica.
    pub(in crate::transport::redis) fn new(connection: Connection, needs_primary: bool) -> Self {
        let mut probes = interval_at(Instant::now() + PROBE_INTERVAL, PROBE_INTERVAL);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            connection,
            queued: VecDeque::new(),
            probes,
            needs_primary,
            waiting_since: None,
            is_renewing: false,
        }
    }

    /// Subscribes, and waits for the server's confirmation.
    ///
    /// # Errors
    /// An error with a code is a refusal by the server. An error without a code is the cause of a
    /// lost connection.
    pub(in crate::transport::redis) async fn subscribe(
        &mut self,
        channels: &[&[u8]],
        patterns: &[&[u8]],
    ) -> RedisResult<()> {
        let both = [("SUBSCRIBE", channels), ("PSUBSCRIBE", patterns)];
        for (word, names) in both.into_iter().filter(|(_, names)| !names.is_empty()) {
            self.subscribe_with(word, names).await?;
        }
        Ok(())
    }

    /// Subscribes to [sharded channels](https://redis.io/docs/latest/commands/ssubscribe/), and
    /// waits for the server's confirmation. On a node of a cluster all channels must be in one
    /// slot.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe). After a refusal the connection keeps its other
    /// subscriptions.
    pub(in crate::transport::redis) async fn subscribe_sharded(
        &mut self,
        channels: &[&[u8]],
    ) -> RedisResult<()> {
        self.subscribe_with("SSUBSCRIBE", channels).await
    }

    async fn subscribe_with(&mut self, word: &str, names: &[&[u8]]) -> RedisResult<()> {
        self.connection.send([&*redis::cmd(word).arg(names)]);
        let mut confirmed = 0;
        while confirmed < names.len() {
            match poll_fn(|cx| self.poll_received(cx)).await {
                Ok(Received::Notice(notice)) => self.queued.push_back(notice),
                Ok(Received::Confirmation) => confirmed += 1,
                Ok(Received::Response) => self.handle_response(Ok(())),
                // The response to a probe or a renewal comes before the response to the
                // subscription, so this error is a response to the probe or the renewal.
                Err(refusal) if refusal.code().is_some() && self.waiting_since.is_some() => {
                    self.handle_response(Err(refusal));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// The cause of a lost connection. For example, the response to a probe is missing.
    ///
    /// # Cancel safety
    /// If the future is dropped, the next call returns the message.
    pub(in crate::transport::redis) async fn next(&mut self) -> RedisResult<Published> {
        match self.notice().await? {
            Notice::Published(published) => Ok(published),
            Notice::Ended(_) => Err(unexpected()),
        }
    }

    /// Returns the next message if it has arrived.
    pub(in crate::transport::redis) fn next_if_arrived(&mut self) -> Option<Published> {
        match self.notice().now_or_never()? {
            Ok(Notice::Published(published)) => Some(published),
            Ok(ended) => {
                self.queued.push_front(ended);
                None
            }
            // The next call returns the error of a lost connection again.
            Err(_) => None,
        }
    }

    /// Waits for the next notice. Used with sharded channels of a cluster, whose subscriptions can
    /// end.
    ///
    /// Errors and cancel safety are those of [`next`](Self::next).
    pub(in crate::transport::redis) async fn notice(&mut self) -> RedisResult<Notice> {
        poll_fn(|cx| self.poll_notice(cx)).await
    }

    fn poll_notice(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Notice>> {
        if let Some(notice) = self.queued.pop_front() {
            return Poll::Ready(Ok(notice));
        }
        self.poll_renewal(cx)?;
        loop {
            // All values that were received are decoded before the timers are checked.
            while let Poll::Ready(received) = self.poll_received(cx) {
                match received {
                    Ok(Received::Notice(notice)) => {
                        // The response may arrive behind many messages, so each message restarts
                        // the time limit for the response.
                        self.waiting_since = self.waiting_since.map(|_| Instant::now());
                        return Poll::Ready(Ok(notice));
                    }
                    Ok(Received::Confirmation) => {}
                    Ok(Received::Response) => self.handle_response_and_renew(cx, Ok(()))?,
                    // An error with a code is a response, too. For example, the user has no
                    // permission for `ROLE`.
                    Err(refusal) if refusal.code().is_some() => {
                        self.handle_response_and_renew(cx, Err(refusal))?
                    }
                    Err(lost) => return Poll::Ready(Err(lost)),
                }
            }
            ready!(self.probes.poll_tick(cx));
            match self.waiting_since {
                Some(since) if since.elapsed() >= RESPONSE_TIMEOUT => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
                }
                Some(_) => {}
                None => self.probe(),
            }
        }
    }

    /// Renews the credentials if a renewal is due and the connection waits for no other response.
    ///
    /// # Errors
    /// If a renewal is due and the connection uses RESP2. A subscriber may not send `AUTH` over
    /// RESP2, so a new connection has to replace this one.
    fn poll_renewal(&mut self, cx: &mut Context<'_>) -> RedisResult<()> {
        let renewal = self.connection.renewal.as_mut();
        let Some(renewal) = renewal.filter(|_| self.waiting_since.is_none()) else {
            return Ok(());
        };
        let Poll::Ready(auth) = renewal.poll_command(cx) else {
            return Ok(());
        };
        if !self.connection.speaks_resp3() {
            let error = "the credentials of a subscription over RESP2 are about to expire";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, error).into());
        }
        self.connection.send([&auth]);
        self.waiting_since = Some(Instant::now());
        self.is_renewing = true;
        Ok(())
    }

    /// Handles the response to a probe or a renewal. Then sends a renewal if one is due.
    fn handle_response_and_renew(
        &mut self,
        cx: &mut Context<'_>,
        response: RedisResult<()>,
    ) -> RedisResult<()> {
        self.handle_response(response);
        self.poll_renewal(cx)
    }

    /// Handles the response to a probe or a renewal.
    fn handle_response(&mut self, response: RedisResult<()>) {
        self.waiting_since = None;
        if std::mem::take(&mut self.is_renewing)
            && let Some(renewal) = &mut self.connection.renewal
        {
            renewal.handle_response(response);
        }
    }

    /// Sends a probe. It is a `ROLE` if the server must be a primary: a demoted server still serves
    /// subscribers, but clients publish to the new primary. Over RESP2 a subscriber may not send
    /// `ROLE`, so the probe is a `PING`, which only shows that the server responds.
    fn probe(&mut self) {
        let command = match self.needs_primary && self.connection.speaks_resp3() {
            true => "ROLE",
            false => "PING",
        };
        self.connection.send([&redis::cmd(command)]);
        self.waiting_since = Some(Instant::now());
    }

    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Received>> {
        self.connection
            .poll_value(cx)
            .map(|value| decode_received(value?))
    }
}

/// Decodes a [value](https://redis.io/docs/latest/develop/pubsub/#wire-protocol-messages) from a
/// connection with subscriptions. Messages and confirmations are pushes over RESP3, and arrays over
/// RESP2.
fn decode_received(value: Value) -> RedisResult<Received> {
    if is_replica(&value) {
        let demoted = io::Error::new(io::ErrorKind::ConnectionAborted, error::DEMOTED);
        return Err(demoted.into());
    }
    let words = match value.into_result()? {
        Value::Array(words) | Value::Push(words) => words,
        // The response to a `PING` over RESP3, or before the first subscription.
        Value::Text(_) => return Ok(Received::Response),
        _ => return Err(unexpected()),
    };
    let mut words = words.into_iter();
    let mut text = || match words.next() {
        Some(Value::Text(text)) => Ok(text),
        _ => Err(unexpected()),
    };
    let kind = text()?;
    let pattern = match &kind[..] {
        b"message" | b"smessage" => None,
        b"pmessage" => Some(text()?),
        b"pong" | b"master" => return Ok(Received::Response),
        b"subscribe" | b"psubscribe" | b"ssubscribe" => return Ok(Received::Confirmation),
        b"sunsubscribe" => return Ok(Received::Notice(Notice::Ended(text()?))),
        _ => return Err(unexpected()),
    };
    Ok(Received::Notice(Notice::Published(Published {
        pattern,
        channel: text()?,
        payload: text()?,
        sharded: kind == "smessage",
    })))
}

fn unexpected() -> RedisError {
    (
        ErrorKind::Parse,
        "the server sent a response that no subscriber expects",
    )
        .into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Returns a subscriber whose server has sent this text, and the server's end of the
    /// connection.
    async fn subscriber_of(sent: &str) -> (PubSub, DuplexStream) {
        let (ours, mut server) = duplex(4096);
        server.write_all(sent.as_bytes()).await.unwrap();
        (PubSub::new(Connection::new(Box::new(ours)), true), server)
    }

    fn words(words: &[&str]) -> String {
        let texts = words
            .iter()
            .map(|word| format!("${}\r\n{word}\r\n", word.len()));
        format!("*{}\r\n{}", words.len(), texts.collect::<String>())
    }

    fn confirmed(kind: &str, name: &str) -> String {
        words(&[kind, name, ""]).replace("$0\r\n\r\n", ":1\r\n")
    }

    #[tokio::test]
    async fn messages_between_the_confirmations_are_not_lost() {
        let sent = [
            confirmed("subscribe", "a"),
            words(&["message", "a", "first"]),
            confirmed("subscribe", "b"),
            confirmed("psubscribe", "c*"),
            words(&["pmessage", "c*", "c1", "second"]),
        ];
        let (mut pubsub, mut server) = subscriber_of(&sent.concat()).await;
        pubsub.subscribe(&[b"a", b"b"], &[b"c*"]).await.unwrap();
        let first = pubsub.next().await.unwrap();
        assert_eq!((first.pattern, &first.channel[..]), (None, &b"a"[..]));
        assert_eq!(first.payload, "first");
        let second = pubsub.next().await.unwrap();
        assert_eq!(second.pattern.unwrap(), "c*");
        assert_eq!(
            (&second.channel[..], &second.payload[..]),
            (&b"c1"[..], &b"second"[..])
        );
        drop(pubsub);
        let mut received = String::new();
        server.read_to_string(&mut received).await.unwrap();
        let commands = [
            words(&["SUBSCRIBE", "a", "b"]),
            words(&["PSUBSCRIBE", "c*"]),
        ];
        assert_eq!(received, commands.concat());
    }

    #[tokio::test]
    async fn notices_between_sharded_confirmations_are_kept_in_their_order() {
        let sent = [
            confirmed("ssubscribe", "a"),
            words(&["smessage", "a", "first"]),
            confirmed("sunsubscribe", "a"),
            confirmed("ssubscribe", "b"),
            "-MOVED 7 :7000\r\n".into(),
            words(&["smessage", "b", "second"]),
        ];
        let (mut pubsub, _server) = subscriber_of(&sent.concat()).await;
        pubsub.subscribe_sharded(&[b"a", b"b"]).await.unwrap();
        let refusal = pubsub.subscribe_sharded(&[b"c"]).await.unwrap_err();
        assert_eq!(refusal.code(), Some("MOVED"));
        let first = pubsub.next_if_arrived().unwrap();
        assert!(first.sharded && first.payload == "first", "{first:?}");
        assert_eq!(pubsub.next_if_arrived(), None, "a notice comes before it");
        let ended = pubsub.notice().await.unwrap();
        assert_eq!(ended, Notice::Ended("a".into()));
        assert_eq!(pubsub.next().await.unwrap().payload, "second");
    }

    #[tokio::test(start_paused = true)]
    async fn the_response_to_a_probe_is_not_that_to_a_subscription() {
        let (mut pubsub, mut server) = subscriber_of("").await;
        let notice = tokio::time::timeout(2 * PROBE_INTERVAL, pubsub.notice()).await;
        assert!(notice.is_err(), "the probe has no response yet");
        let responses = "-NOPERM no PING\r\n".to_owned() + &confirmed("ssubscribe", "a");
        server.write_all(responses.as_bytes()).await.unwrap();
        pubsub.subscribe_sharded(&[b"a"]).await.unwrap();
    }

    #[tokio::test]
    async fn a_refused_subscription_is_an_error_with_a_code() {
        let (mut pubsub, _server) = subscriber_of("-NOPERM no such right\r\n").await;
        let refusal = pubsub.subscribe(&[b"a"], &[]).await.unwrap_err();
        assert_eq!(refusal.code(), Some("NOPERM"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_a_response_to_a_probe_is_an_error() {
        let (mut pubsub, mut server) = subscriber_of("").await;
        let started = Instant::now();
        let error = pubsub.next().await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert!(
            started.elapsed() <= 2 * PROBE_INTERVAL + RESPONSE_TIMEOUT,
            "{:?}",
            started.elapsed()
        );
        drop(pubsub);
        let mut received = String::new();
        server.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, words(&["PING"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_probe_is_not_an_error() {
        for response in [words(&["pong", ""]), "-NOPERM no PING\r\n".into()] {
            let (mut pubsub, mut server) = subscriber_of("").await;
            let serving = async {
                for _ in 0..10 {
                    let mut received = vec![0; words(&["PING"]).len()];
                    server.read_exact(&mut received).await.unwrap();
                    server.write_all(response.as_bytes()).await.unwrap();
                }
                let published = words(&["message", "a", "b"]);
                server.write_all(published.as_bytes()).await.unwrap();
            };
            let (_, published) = tokio::join!(serving, pubsub.next());
            assert_eq!(published.unwrap().payload, "b");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_demoted_server_is_an_error_although_it_still_publishes() {
        let (ours, mut server) = duplex(4096);
        let mut connection = Connection::new(Box::new(ours));
        connection.set_resp3();
        let mut pubsub = PubSub::new(connection, true);
        let probe = words(&["ROLE"]);
        let serving = async {
            for role in ["master", "slave"] {
                let mut received = vec![0; probe.len()];
                server.read_exact(&mut received).await.unwrap();
                assert_eq!(received, probe.as_bytes());
                let published = words(&["message", "a", role]).replacen('*', ">", 1);
                let response = format!("*2\r\n${}\r\n{role}\r\n:1\r\n", role.len());
                server
                    .write_all((published + &response).as_bytes())
                    .await
                    .unwrap();
            }
        };
        let receiving = async {
            assert_eq!(pubsub.next().await.unwrap().payload, "master");
            assert_eq!(pubsub.next().await.unwrap().payload, "slave");
            pubsub.next().await.unwrap_err()
        };
        let (_, error) = tokio::join!(serving, receiving);
        assert!(error.to_string().contains("replica"), "{error}");
    }

    #[tokio::test]
    async fn a_value_that_no_subscriber_expects_is_an_error() {
        for sent in [
            ":1\r\n".to_owned(),
            words(&["message", "a"]),
            words(&["other"]),
        ] {
            let (mut pubsub, _server) = subscriber_of(&sent).await;
            pubsub.next().await.expect_err(&sent);
        }
    }
}
