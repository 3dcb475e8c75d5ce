//! Tests the pipeline against a scripted server, for behaviour that real servers rarely show.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::{
    CompletionHandler, Pipeline, Resend, Script,
    queue::{MAX_COMMANDS, submit_queue},
};
use crate::{
    error::Error,
    sync::lock,
    transport::{
        Counters,
        redis::{
            error::TRANSIENT,
            response::Value,
            server::{Connector, HashSlot},
        },
    },
};

/// The scripted reaction to a command.
enum Act {
    Response(&'static str),
    /// Responds with the command's last argument, a number.
    Echo,
    Close,
}
use Act::{Close, Echo, Response};

const OK: Act = Response("+OK\r\n");

/// Starts a server with a list of reactions, one for each command. Returns a pipeline to it, and
/// the commands that it receives. Commands after the last reaction get no response.
async fn pipeline(
    acts: impl IntoIterator<Item = Act>,
) -> (Pipeline, mpsc::UnboundedReceiver<String>) {
    let (pipeline, commands, _) = pipeline_and_counters(acts).await;
    (pipeline, commands)
}

async fn pipeline_and_counters(
    acts: impl IntoIterator<Item = Act>,
) -> (Pipeline, mpsc::UnboundedReceiver<String>, Arc<Counters>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let mut acts: std::collections::VecDeque<_> = acts.into_iter().collect();
    let (heard, commands) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            // The handshake.
            if read(&mut stream).await.is_none() {
                continue;
            }
            stream.write_all(b"+PONG\r\n").await.unwrap();
            while let Some(command) = read(&mut stream).await {
                let response = match acts.pop_front() {
                    Some(Response(response)) => response.to_owned(),
                    Some(Echo) => format!(":{}\r\n", command.split(' ').next_back().unwrap()),
                    Some(Close) => {
                        let _ = heard.send(command);
                        break;
                    }
                    None => String::new(),
                };
                stream.write_all(response.as_bytes()).await.unwrap();
                let _ = heard.send(command);
            }
        }
    });
    let connector = Connector::from_url(&url).unwrap();
    let counters = Arc::<Counters>::default();
    let pipeline = Pipeline::spawn(connector, None, counters.clone());
    (pipeline, commands, counters)
}

/// Reads one command, its arguments joined by spaces.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let count = number(stream).await?;
    let mut parts = Vec::new();
    for _ in 0..count {
        let mut part = vec![0; number(stream).await? + 2];
        stream.read_exact(&mut part).await.ok()?;
        part.truncate(part.len() - 2);
        parts.push(String::from_utf8(part).unwrap());
    }
    Some(parts.join(" "))
}

async fn number(stream: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim_end().parse().ok()
}

fn ack(id: u32) -> redis::Cmd {
    let mut cmd = redis::cmd("XACK");
    cmd.arg(id);
    cmd
}

#[tokio::test]
async fn an_idempotent_command_is_sent_again_until_it_is_answered() {
    let (pipeline, mut commands, counters) = pipeline_and_counters([Close, Close, OK]).await;
    let response = pipeline.submit(ack(1), Resend::UntilAnswered).await;
    assert_eq!(response.unwrap(), Value::Text("OK".into()));
    for _ in 0..3 {
        assert_eq!(commands.recv().await.unwrap(), "XACK 1");
    }
    assert_eq!(counters.snapshot().reconnects, 2);
}

#[tokio::test]
async fn another_commands_outcome_is_unknown_when_the_connection_dies() {
    let (pipeline, mut commands) = pipeline([Close, OK]).await;
    let error = pipeline.submit(ack(1), Resend::Never).await.unwrap_err();
    assert!(error.is_unknown_outcome(), "{error:?}");
    assert!(pipeline.submit(ack(2), Resend::Never).await.is_ok());
    assert_eq!(commands.recv().await.unwrap(), "XACK 1");
    assert_eq!(commands.recv().await.unwrap(), "XACK 2");
}

#[tokio::test]
async fn commands_that_are_sent_again_keep_their_order() {
    let (pipeline, mut commands) = pipeline([Close, OK, OK, OK]).await;
    let all: Vec<_> = (1..=3)
        .map(|id| pipeline.submit(ack(id), Resend::UntilAnswered))
        .collect();
    for one in all {
        one.await.unwrap();
    }
    let mut heard = Vec::new();
    while let Ok(command) = commands.try_recv() {
        heard.push(command);
    }
    assert_eq!(heard, ["XACK 1", "XACK 1", "XACK 2", "XACK 3"]);
}

#[tokio::test]
async fn a_dropped_command_that_was_not_sent_yet_is_sent_only_if_it_is_idempotent() {
    let (pipeline, mut commands) = pipeline([OK, OK]).await;
    // The pipeline's task cannot run before this task waits, so both calls are dropped before a
    // command is sent.
    drop(pipeline.submit(ack(1), Resend::Never));
    drop(pipeline.submit(ack(2), Resend::UntilAnswered));
    pipeline.submit(ack(3), Resend::Never).await.unwrap();
    assert_eq!(commands.recv().await.unwrap(), "XACK 2");
    assert_eq!(commands.recv().await.unwrap(), "XACK 3");
}

/// Records the outcomes of commands.
#[derive(Default)]
struct Heard(Mutex<Vec<(u128, bool)>>);

impl CompletionHandler for Heard {
    fn completed(&self, number: u128, outcome: Result<Value, Error>) {
        lock(&self.0).push((number, outcome.is_ok()));
    }

    fn is_unwanted(&self, number: u128) -> bool {
        number == 0
    }
}

#[tokio::test]
async fn a_handler_gets_each_outcome_once() {
    let (pipeline, mut commands) = pipeline([OK, OK, Close, OK]).await;
    let heard = Arc::<Heard>::default();
    for number in 0..4 {
        let posted =
            pipeline.submit_with_handler(ack(number), Resend::Never, &heard, number.into());
        posted.await;
    }
    pipeline
        .submit(ack(4), Resend::UntilAnswered)
        .await
        .unwrap();
    // Command 0 is not sent, since its outcome is not wanted. The connection is lost at command 3.
    for expected in ["XACK 1", "XACK 2", "XACK 3", "XACK 4"] {
        assert_eq!(commands.recv().await.unwrap(), expected);
    }
    let mut heard = std::mem::take(&mut *lock(&heard.0));
    heard.sort_unstable();
    assert_eq!(heard, [(0, false), (1, true), (2, true), (3, false)]);
}

#[tokio::test]
async fn commands_fail_when_the_task_of_the_pipeline_has_ended() {
    let (submitter, batches) = submit_queue();
    let permit = submitter
        .try_reserve(1, HashSlot::ANY)
        .expect("it is empty");
    let asked =
        permit.push(|batch, at| batch.push_awaited(ack(1), Resend::UntilAnswered, None, at));
    let full: Vec<_> = std::iter::from_fn(|| submitter.try_reserve(1, HashSlot::ANY)).collect();
    assert_eq!(full.len(), MAX_COMMANDS - 1);
    let waits = submitter.reserve(1, tokio::time::Instant::now(), HashSlot::ANY);
    drop(batches);
    assert!(asked.unwrap().await.unwrap_err().is_closed());
    assert!(waits.await.is_err_and(|error| error.is_closed()));
    let permit = full.into_iter().next().expect("there was some");
    let late = permit.push(|batch, at| batch.push_awaited(ack(2), Resend::UntilAnswered, None, at));
    assert!(late.is_err_and(|error| error.is_closed()));
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_asked_again() {
    let plain = TRANSIENT.map(|code| format!("-{code} later\r\n"));
    // If a command in a script fails, Redis 6.2 wraps the error of the command. `ASK` is an error of
    // whole scripts only.
    let in_scripts = TRANSIENT.iter().filter(|code| **code != "ASK");
    let wrapped = in_scripts.map(|code| {
        format!("-ERR Error running script (call to f_1): @user_script:1: -{code} later\r\n")
    });
    let refusals = plain.into_iter().chain(wrapped);
    let asked = refusals.map(async |refusal| {
        let again = || Response(refusal.clone().leak());
        let (pipeline, mut commands) = pipeline([again(), again(), OK]).await;
        let response = pipeline.submit(ack(1), Resend::Never).await;
        assert_eq!(response.unwrap(), Value::Text("OK".into()), "{refusal}");
        for _ in 0..3 {
            assert_eq!(commands.recv().await.unwrap(), "XACK 1", "{refusal}");
        }
    });
    join_all(asked).await;
}

#[tokio::test]
async fn an_error_that_was_not_asked_for_ends_the_connection_and_answers_no_command() {
    let unasked = || Response("-ERR max number of clients reached\r\n");
    let (pipeline, mut commands) = pipeline([unasked(), unasked(), OK]).await;
    assert!(pipeline.submit(ack(1), Resend::UntilAnswered).await.is_ok());
    for _ in 0..3 {
        assert_eq!(commands.recv().await.unwrap(), "XACK 1");
    }
}

// If a command in a script fails, Redis 6.2 wraps the error of the command.
#[tokio::test]
async fn a_demoted_server_is_left_where_a_script_says_that_it_is_one() {
    let demoted = Response(
        "-ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write\r\n",
    );
    let (pipeline, _commands, counters) = pipeline_and_counters([demoted, OK]).await;
    assert!(pipeline.submit(ack(1), Resend::Never).await.is_ok());
    assert_eq!(counters.snapshot().reconnects, 1);
}

#[tokio::test]
async fn a_demoted_server_is_left_for_a_new_connection() {
    let demoted = Response("-READONLY You can't write against a read only replica.\r\n");
    let (pipeline, _commands, counters) = pipeline_and_counters([demoted, OK]).await;
    assert!(pipeline.submit(ack(1), Resend::Never).await.is_ok());
    assert_eq!(counters.snapshot().reconnects, 1);
}

#[tokio::test]
async fn commands_that_a_server_was_not_ready_for_wait_together() {
    const MANY: usize = 60;
    let loading = "-LOADING Redis is loading the dataset in memory\r\n";
    let refusals = (0..2 * MANY).map(|_| Response(loading));
    let (pipeline, _commands) = pipeline(refusals.chain((0..MANY).map(|_| OK))).await;
    let all = (0..MANY as u32).map(|id| pipeline.submit(ack(id), Resend::Never));
    // One after the other, the commands would exceed the time limit.
    for response in join_all(all).await {
        assert_eq!(response.unwrap(), Value::Text("OK".into()));
    }
}

#[tokio::test]
async fn all_commands_that_a_demoted_server_refuses_are_sent_to_the_next_server() {
    let demoted = "-READONLY You can't write against a read only replica.\r\n";
    let refusals = (0..6).map(|_| Response(demoted));
    let (pipeline, _commands, counters) =
        pipeline_and_counters(refusals.chain((0..3).map(|_| OK))).await;
    let all = (1..=3).map(|id| pipeline.submit(ack(id), Resend::Never));
    for response in join_all(all).await {
        assert_eq!(response.unwrap(), Value::Text("OK".into()));
    }
    assert_eq!(counters.snapshot().reconnects, 2);
}

#[tokio::test]
async fn a_script_that_the_server_does_not_know_is_sent_with_its_text() {
    static ECHO: Script = Script::new("return ARGV[1]");
    let unknown = Response("-NOSCRIPT No matching script. Please use EVAL.\r\n");
    let (pipeline, mut commands) = pipeline([unknown, Echo, Echo]).await;
    for expected in [7, 8] {
        let response = pipeline
            .script(
                &ECHO,
                &["k"],
                |cmd| {
                    cmd.arg(expected);
                },
                Resend::UntilAnswered,
            )
            .await;
        assert_eq!(response.unwrap(), Value::Int(expected));
    }
    let hash = redis::Script::new("return ARGV[1]").get_hash().to_owned();
    for expected in [
        format!("EVALSHA {hash} 1 k 7"),
        "EVAL return ARGV[1] 1 k 7".to_owned(),
        format!("EVALSHA {hash} 1 k 8"),
    ] {
        assert_eq!(commands.recv().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_refusal_is_a_response_to_submit_and_an_error_to_command() {
    let refusal = || Response("-ERR no\r\n");
    let (pipeline, _commands) = pipeline([refusal(), refusal()]).await;
    let response = pipeline.submit(ack(1), Resend::Never).await.unwrap();
    assert!(matches!(response, Value::ServerError(_)));
    let error = pipeline.command(ack(1), Resend::Never).await.unwrap_err();
    assert!(error.is_refused(), "{error:?}");
}

#[tokio::test]
async fn submitted_commands_are_answered_after_the_last_handle_is_dropped() {
    let (pipeline, _commands) = pipeline([Close, OK]).await;
    let response = pipeline.submit(ack(1), Resend::UntilAnswered);
    drop(pipeline);
    assert!(response.await.is_ok());
}

#[tokio::test]
async fn nothing_is_lost_or_swapped_over_many_commands_at_once() {
    let (pipeline, _commands) = pipeline((0..5000).map(|_| Echo)).await;
    let all: Vec<_> = (0..5000)
        .map(|n| pipeline.submit(ack(n), Resend::Never))
        .collect();
    // The queue has room for only the first commands. The other commands are queued as they are
    // polled.
    let responses = join_all(all).await;
    for (n, response) in responses.into_iter().enumerate() {
        assert_eq!(response.unwrap(), Value::Int(n as i64));
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_after_five_seconds() {
    let (pipeline, mut commands) = pipeline([]).await;
    // The pipeline cannot connect while the clock is paused, so the clock is paused later.
    let first = pipeline.submit(ack(1), Resend::Never);
    commands.recv().await.unwrap();
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    let error = first.await.unwrap_err();
    assert!(error.is_unknown_outcome(), "{error:?}");
    let waited = started.elapsed();
    assert!(
        waited > Duration::from_millis(4900) && waited < Duration::from_secs(6),
        "{waited:?}"
    );
}

#[tokio::test]
async fn commands_behind_one_that_the_server_could_not_read_are_sent_again() {
    let refusal = Response("-ERR Protocol error: invalid bulk length\r\n");
    // The server closes the connection at the second command, and does not run it.
    let (pipeline, mut commands) = pipeline([refusal, Close, OK]).await;
    let large = pipeline.submit(ack(1), Resend::Never);
    let behind = pipeline.submit(ack(2), Resend::Never);
    let error = crate::transport::redis::error::check(large.await.unwrap()).unwrap_err();
    assert!(error.is_refused(), "{error:?}");
    assert!(error.to_string().contains("proto-max-bulk-len"), "{error}");
    behind
        .await
        .expect("it was not carried out, and is sent again");
    for expected in ["1", "2", "2"] {
        assert!(commands.recv().await.unwrap().ends_with(expected));
    }
}

#[tokio::test]
async fn a_large_command_at_which_the_server_closes_every_connection_fails_alone() {
    let (pipeline, _commands) = pipeline([Close, Close, Close, OK]).await;
    let mut large = redis::cmd("SET");
    large.arg("k").arg("x".repeat(1 << 20));
    let large = pipeline.submit(large, Resend::UntilAnswered);
    let behind = pipeline.submit(ack(1), Resend::UntilAnswered);
    let error = large.await.expect_err("it is given up");
    assert!(error.is_refused(), "{error:?}");
    behind.await.expect("it is answered");
}

#[tokio::test]
async fn a_small_command_is_sent_again_over_any_number_of_lost_connections() {
    let (pipeline, _commands) = pipeline([Close, Close, Close, Close, OK]).await;
    let response = pipeline.submit(ack(1), Resend::UntilAnswered);
    response.await.expect("it is answered");
}
