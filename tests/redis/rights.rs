//! Each row of the documented rights refuses everything that its user does not need.

use super::support::{
    Options, RedisServer,
    rights::{assert_refused, documented},
};

/// Refused to every user: the administration of the server, and the keys and channels of others.
const NOBODY: &[&str] = &[
    "KEYS *",
    "FLUSHALL",
    "CONFIG GET *",
    "ACL LIST",
    "SCRIPT FLUSH",
    "CLIENT LIST",
    "GET other",
    "DEL other",
    "XADD other * a b",
    "XRANGE other - +",
    "PUBLISH other x",
    "SUBSCRIBE other",
];

/// The messages of the stream and who works on them.
const READS: &[&str] = &["XREAD STREAMS s 0", "XREADGROUP GROUP g c STREAMS s >"];
/// The work of others.
const WORK: &[&str] = &["XREADGROUP GROUP g c STREAMS s >", "XTRIM s MAXLEN 0"];
/// The announcements of workers.
const ANNOUNCEMENTS: &[&str] = &["HSET {s}:workers:g a b", "DEL {s}:workers:g"];
/// Everything that changes the stream.
const WRITES: &[&str] = &[
    "XADD s * a b",
    "XDEL s 1-1",
    "XTRIM s MAXLEN 0",
    "DEL s",
    "XACK s g 1-1",
];

#[tokio::test]
async fn each_documented_user_may_not_do_the_work_of_the_others() {
    let rows: &[(&[&str], &[&[&str]])] = &[
        (
            &["sends tasks"],
            &[READS, &["XRANGE s - +", "XTRIM s MAXLEN 0", "DEL s"]],
        ),
        (
            &["sends tasks", "… with a delay"],
            &[
                READS,
                &[
                    "XRANGE s - +",
                    "XTRIM s MAXLEN 0",
                    "DEL s",
                    "HGETALL {s}:bodies",
                ],
            ],
        ),
        (
            &["sends tasks", "… that are [unique]"],
            &[READS, WORK, &["XACK s g 1-1"]],
        ),
        (
            &["serves tasks"],
            &[&[
                "SUBSCRIBE campanile:reply:x",
                "FLUSHDB",
                "SPUBLISH other x",
                "XADD campanile:orders:{s}:g * a b",
            ]],
        ),
        (&["looks up and cancels"], &[WORK, &["XGROUP DESTROY s g"]]),
        (
            &["stores, runs and lists"],
            &[WORK, &["XGROUP DESTROY s g", "XACK s g 1-1"]],
        ),
        (
            &["listens to events"],
            &[READS, WRITES, &["PUBLISH news x"]],
        ),
        (
            &["… and to sharded events"],
            &[READS, WRITES, &["SPUBLISH news x"]],
        ),
        (
            &["scrapes [`stats`]"],
            &[READS, WRITES, &["HSET {s}:bodies a b"]],
        ),
        (
            &["pauses and purges"],
            &[WORK, &["PUBLISH campanile:reply:x y"]],
        ),
        (
            &["scales by the [`backlog`]"],
            &[READS, WRITES, &["HSET {s}:bodies a b"]],
        ),
        (
            &["lists [`workers`]"],
            &[
                READS,
                WRITES,
                ANNOUNCEMENTS,
                &["XADD campanile:orders:{s}:g * a b"],
            ],
        ),
        (
            &["lists [`workers`]", "… and gives them orders"],
            &[
                READS,
                WRITES,
                ANNOUNCEMENTS,
                &[
                    "XRANGE campanile:orders:{s}:g - +",
                    "DEL campanile:orders:{s}:g",
                    "XADD campanile:orders:{t}:g * a b",
                ],
            ],
        ),
        (
            &["looks at a stream"],
            &[WRITES, &["XREADGROUP GROUP g c STREAMS s >"]],
        ),
        (&["publishes events"], &[READS, WRITES, &["SUBSCRIBE news"]]),
        (
            &["… that are sharded"],
            &[READS, WRITES, &["SSUBSCRIBE news"]],
        ),
        (
            &["requests"],
            &[&[
                "XRANGE s - +",
                "XREAD STREAMS s 0",
                "XTRIM s MAXLEN 0",
                "UNLINK s",
            ]],
        ),
    ];
    let rights = |who: &[&str]| {
        let rights = documented(who).replace("<event names and patterns>", "news");
        rights.replace("<event names>", "news")
    };
    let users = rows
        .iter()
        .enumerate()
        .map(|(row, (who, _))| format!("user user{row} on >pw resetchannels {}", rights(who)));
    let acl = users.collect::<Vec<_>>().join("\n");
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    for (row, (_, refused)) in rows.iter().enumerate() {
        let url = format!("redis://user{row}:pw@127.0.0.1:{}/", server.port());
        assert_refused(&url, NOBODY).await;
        assert_refused(&url, &refused.concat()).await;
    }
}
