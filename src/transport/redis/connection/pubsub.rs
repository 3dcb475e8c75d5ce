//! A connection with subscriptions.

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

/// The time between two questions for the server's role. Only a missing response shows that a
/// connection is half open, and only the role shows that the server was demoted.
const ASK: Duration = Duration::from_millis(2500);
/// The longest wait for the response to a question.
const ANSWER: Duration = Duration::from_secs(5);

/// A published message.
#[derive(Debug, PartialEq)]
pub(in crate::transport::redis) struct Published {
    /// The pattern of the subscription that matched; `None` if it was to a channel.
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
    /// The server has ended the subscription to this sharded channel: its slot is at another node.
    Ended(Bytes),
}

/// A connection with subscriptions.
pub(in crate::transport::redis) struct PubSub {
    connection: Connection,
    /// Notices that arrived before all subscriptions were confirmed.
    early: VecDeque<Notice>,
    questions: Interval,
    /// The time of the question whose response is due.
    asked: Option<Instant>,
    /// Set if the open question is a renewal of the credentials.
    renews: bool,
    /// Set if the connection ends when its server has become a replica.
    needs_primary: bool,
}

/// A value received over a connection with subscriptions.
enum Received {
    Notice(Notice),
    /// The confirmation of one channel or pattern.
    Confirmation,
    /// A response to a question.
    Answer,
}

impl PubSub {
    /// Uses a connection for subscriptions only. With `needs_primary` it ends when its server has
    /// become a replica.
    pub(in crate::transport::redis) fn new(connection: Connection, needs_primary: bool) -> Self {
        let mut questions = interval_at(Instant::now() + ASK, ASK);
        questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            connection,
            early: VecDeque::new(),
            questions,
            needs_primary,
            asked: None,
            renews: false,
        }
    }

    /// Subscribes, and waits for the server's confirmation. A refusal is an error with a code.
    pub(in crate::transport::redis) async fn subscribe(
        &mut self,
        channels: &[&[u8]],
        patterns: &[&[u8]],
    ) -> RedisResult<()> {
        let both = [("SUBSCRIBE", channels), ("PSUBSCRIBE", patterns)];
        for (word, names) in both.into_iter().filter(|(_, names)| !names.is_empty()) {
            self.confirm(word, names).await?;
        }
        Ok(())
    }

    /// Subscribes to sharded channels, which are in one slot if this is a node of a cluster, and
    /// waits for the server's confirmation. After a refusal, which is an error with a code, the
    /// connection keeps its other subscriptions.
    /// <https://redis.io/docs/latest/commands/ssubscribe/>
    pub(in crate::transport::redis) async fn subscribe_sharded(
        &mut self,
        channels: &[&[u8]],
    ) -> RedisResult<()> {
        self.confirm("SSUBSCRIBE", channels).await
    }

    async fn confirm(&mut self, word: &str, names: &[&[u8]]) -> RedisResult<()> {
        self.connection.send([&*redis::cmd(word).arg(names)]);
        let mut confirmed = 0;
        while confirmed < names.len() {
            match poll_fn(|cx| self.poll_received(cx)).await {
                Ok(Received::Notice(notice)) => self.early.push_back(notice),
                Ok(Received::Confirmation) => confirmed += 1,
                Ok(Received::Answer) => self.accept(Ok(())),
                // The response to a question that was sent before.
                Err(refusal) if refusal.code().is_some() && self.asked.is_some() => {
                    self.accept(Err(refusal));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for the next message. The error is the cause of a lost connection, which may be the
    /// server's silence.
    ///
    /// # Cancel safety
    /// No message is lost when the future is dropped.
    pub(in crate::transport::redis) async fn next(&mut self) -> RedisResult<Published> {
        match self.notice().await? {
            Notice::Published(published) => Ok(published),
            Notice::Ended(_) => Err(unexpected()),
        }
    }

    /// Returns the next message if it was received already.
    pub(in crate::transport::redis) fn received(&mut self) -> Option<Published> {
        match self.notice().now_or_never()? {
            Ok(Notice::Published(published)) => Some(published),
            Ok(ended) => {
                self.early.push_front(ended);
                None
            }
            // A connection's error is repeated by the next call, so it may be dropped here.
            Err(_) => None,
        }
    }

    /// Like [`next`](Self::next), for a connection with sharded channels of a cluster.
    pub(in crate::transport::redis) async fn notice(&mut self) -> RedisResult<Notice> {
        poll_fn(|cx| self.poll_notice(cx)).await
    }

    fn poll_notice(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Notice>> {
        if let Some(notice) = self.early.pop_front() {
            return Poll::Ready(Ok(notice));
        }
        self.poll_renewal(cx)?;
        loop {
            // Received bytes are read before the timers are checked.
            while let Poll::Ready(received) = self.poll_received(cx) {
                match received {
                    Ok(Received::Notice(notice)) => {
                        // The response comes after the messages before it, so the wait for it
                        // starts again.
                        self.asked = self.asked.map(|_| Instant::now());
                        return Poll::Ready(Ok(notice));
                    }
                    Ok(Received::Confirmation) => {}
                    Ok(Received::Answer) => self.answered(cx, Ok(()))?,
                    // An error for a missing permission is a response, too.
                    Err(refusal) if refusal.code().is_some() => self.answered(cx, Err(refusal))?,
                    Err(lost) => return Poll::Ready(Err(lost)),
                }
            }
            ready!(self.questions.poll_tick(cx));
            match self.asked {
                Some(asked) if asked.elapsed() >= ANSWER => {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut).into()));
                }
                Some(_) => {}
                None => self.ask(),
            }
        }
    }

    /// Renews the credentials if that is due and no other question is open.
    ///
    /// # Errors
    /// With RESP2, in which a subscriber may not log in. A new connection can.
    fn poll_renewal(&mut self, cx: &mut Context<'_>) -> RedisResult<()> {
        let renewal = self.connection.renewal.as_mut();
        let Some(renewal) = renewal.filter(|_| self.asked.is_none()) else {
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
        self.asked = Some(Instant::now());
        self.renews = true;
        Ok(())
    }

    /// Takes the response to the open question. The next question may then be sent.
    fn answered(&mut self, cx: &mut Context<'_>, answer: RedisResult<()>) -> RedisResult<()> {
        self.accept(answer);
        self.poll_renewal(cx)
    }

    fn accept(&mut self, answer: RedisResult<()>) {
        self.asked = None;
        if std::mem::take(&mut self.renews)
            && let Some(renewal) = &mut self.connection.renewal
        {
            renewal.answered(answer);
        }
    }

    /// Asks for the server's role. A demoted server still serves subscribers, but clients publish
    /// to the new primary. With RESP2 a subscriber may send no `ROLE`, so a `PING` only asks
    /// whether the server is there.
    fn ask(&mut self) {
        let question = match self.needs_primary && self.connection.speaks_resp3() {
            true => "ROLE",
            false => "PING",
        };
        self.connection.send([&redis::cmd(question)]);
        self.asked = Some(Instant::now());
    }

    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Received>> {
        self.connection.poll_value(cx).map(|value| received(value?))
    }
}

/// Decodes a value from a connection with subscriptions: RESP3 sends a push where RESP2 sends an
/// array. <https://redis.io/docs/latest/develop/pubsub/#wire-protocol-messages>
fn received(value: Value) -> RedisResult<Received> {
    if is_replica(&value) {
        let demoted = io::Error::new(io::ErrorKind::ConnectionAborted, error::DEMOTED);
        return Err(demoted.into());
    }
    let words = match value.refused()? {
        Value::Array(words) | Value::Push(words) => words,
        // The response to a ping: with RESP3, or before the first subscription.
        Value::Text(_) => return Ok(Received::Answer),
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
        b"pong" | b"master" => return Ok(Received::Answer),
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
    (ErrorKind::Parse, "no server answers a subscriber like that").into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A subscriber of a server that sends this text, and the server's end of the connection.
    async fn subscriber_of(said: &str) -> (PubSub, DuplexStream) {
        let (ours, mut server) = duplex(4096);
        server.write_all(said.as_bytes()).await.unwrap();
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
        let said = [
            confirmed("subscribe", "a"),
            words(&["message", "a", "first"]),
            confirmed("subscribe", "b"),
            confirmed("psubscribe", "c*"),
            words(&["pmessage", "c*", "c1", "second"]),
        ];
        let (mut pubsub, mut server) = subscriber_of(&said.concat()).await;
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
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        let commands = [
            words(&["SUBSCRIBE", "a", "b"]),
            words(&["PSUBSCRIBE", "c*"]),
        ];
        assert_eq!(asked, commands.concat());
    }

    #[tokio::test]
    async fn notices_between_sharded_confirmations_are_kept_in_their_order() {
        let said = [
            confirmed("ssubscribe", "a"),
            words(&["smessage", "a", "first"]),
            confirmed("sunsubscribe", "a"),
            confirmed("ssubscribe", "b"),
            "-MOVED 7 :7000\r\n".into(),
            words(&["smessage", "b", "second"]),
        ];
        let (mut pubsub, _server) = subscriber_of(&said.concat()).await;
        pubsub.subscribe_sharded(&[b"a", b"b"]).await.unwrap();
        let refusal = pubsub.subscribe_sharded(&[b"c"]).await.unwrap_err();
        assert_eq!(refusal.code(), Some("MOVED"));
        let first = pubsub.received().unwrap();
        assert!(first.sharded && first.payload == "first", "{first:?}");
        assert_eq!(pubsub.received(), None, "a notice comes before it");
        let ended = pubsub.notice().await.unwrap();
        assert_eq!(ended, Notice::Ended("a".into()));
        assert_eq!(pubsub.next().await.unwrap().payload, "second");
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_an_open_question_is_no_refusal_of_a_subscription() {
        let (mut pubsub, mut server) = subscriber_of("").await;
        let asked = tokio::time::timeout(2 * ASK, pubsub.notice()).await;
        assert!(asked.is_err(), "the question has no answer yet");
        let answers = "-NOPERM no PING\r\n".to_owned() + &confirmed("ssubscribe", "a");
        server.write_all(answers.as_bytes()).await.unwrap();
        pubsub.subscribe_sharded(&[b"a"]).await.unwrap();
    }

    #[tokio::test]
    async fn a_refused_subscription_is_an_error_with_a_code() {
        let (mut pubsub, _server) = subscriber_of("-NOPERM no such right\r\n").await;
        let refusal = pubsub.subscribe(&[b"a"], &[]).await.unwrap_err();
        assert_eq!(refusal.code(), Some("NOPERM"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_no_ping_is_lost() {
        let (mut pubsub, mut server) = subscriber_of("").await;
        let started = Instant::now();
        let error = pubsub.next().await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        assert!(
            started.elapsed() <= 2 * ASK + ANSWER,
            "{:?}",
            started.elapsed()
        );
        drop(pubsub);
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, words(&["PING"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refuses_pings_is_not_lost() {
        for answer in [words(&["pong", ""]), "-NOPERM no PING\r\n".into()] {
            let (mut pubsub, mut server) = subscriber_of("").await;
            let serving = async {
                for _ in 0..10 {
                    let mut asked = vec![0; words(&["PING"]).len()];
                    server.read_exact(&mut asked).await.unwrap();
                    server.write_all(answer.as_bytes()).await.unwrap();
                }
                let published = words(&["message", "a", "b"]);
                server.write_all(published.as_bytes()).await.unwrap();
            };
            let (_, published) = tokio::join!(serving, pubsub.next());
            assert_eq!(published.unwrap().payload, "b");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_demoted_server_is_left_although_it_sends_on() {
        let (ours, mut server) = duplex(4096);
        let mut connection = Connection::new(Box::new(ours));
        connection.set_resp3();
        let mut pubsub = PubSub::new(connection, true);
        let question = words(&["ROLE"]);
        let serving = async {
            for role in ["master", "slave"] {
                let mut asked = vec![0; question.len()];
                server.read_exact(&mut asked).await.unwrap();
                assert_eq!(asked, question.as_bytes());
                let published = words(&["message", "a", role]).replacen('*', ">", 1);
                let answer = format!("*2\r\n${}\r\n{role}\r\n:1\r\n", role.len());
                server
                    .write_all((published + &answer).as_bytes())
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
    async fn a_value_that_no_subscriber_gets_is_a_lost_connection() {
        for said in [
            ":1\r\n".to_owned(),
            words(&["message", "a"]),
            words(&["other"]),
        ] {
            let (mut pubsub, _server) = subscriber_of(&said).await;
            pubsub.next().await.expect_err(&said);
        }
    }
}
