//! Each row of the documented rights refuses everything that its user does not need.

use super::support::{
    Options, RedisServer,
    rights::{assert_refused, documented, has_selectors, users},
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
/// The records of tasks, and the dead letters.
const RECORDS: &[&str] = &[
    "HGETALL {s}:task:g:1-1",
    "ZRANGE {s}:tasks:dead:g 0 -1",
    "XRANGE {s}:dead:g - +",
];
/// The work of others.
const WORK: &[&str] = &["XREADGROUP GROUP g c STREAMS s >", "XTRIM s MAXLEN 0"];
/// The announcements of workers.
const ANNOUNCEMENTS: &[&str] = &["HSET {s}:workers:g a b", "DEL {s}:workers:g"];
/// The replies of other workers, and the keys and channels of others.
const REPLIES: &[&str] = &["SUBSCRIBE campanile:reply:x", "FLUSHDB", "SPUBLISH other x"];
/// Everything that changes the stream.
const WRITES: &[&str] = &[
    "XADD s * a b",
    "XDEL s 1-1",
    "XTRIM s MAXLEN 0",
    "DEL s",
    "XACK s g 1-1",
];
/// The work of others, by every command that takes or ends it, and the replies to it.
const WORKERS: &[&str] = &[
    "XREADGROUP GROUP g c STREAMS s >",
    "XCLAIM s g c 0 1-1",
    "XTRIM s MAXLEN 0",
    "PUBLISH campanile:reply:x y",
    "SUBSCRIBE campanile:reply:x",
];
/// Everything with a stream whose partitions the user works on, and with the number of partitions.
const AROUND_PARTITIONS: &[&str] = &[
    "XADD s * a b",
    "XRANGE s - +",
    "DEL s",
    "HGETALL {s}:bodies",
    "DEL {s}:dead:g",
    "LPOP {s}:partitions",
    "LTRIM {s}:partitions 0 0",
];

/// The rows of each user, and the commands that the server refuses to it.
type Refused = (&'static [&'static str], &'static [&'static [&'static str]]);

const REFUSED: &[Refused] = &[
    (
        &["sends tasks"],
        &[
            READS,
            RECORDS,
            &["XRANGE s - +", "XDEL s 1-1", "XTRIM s MAXLEN 0", "DEL s"],
        ],
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
        &[REPLIES, &["XADD campanile:orders:{s}:g * a b"]],
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
    (
        &["sends tasks", "… to partitions"],
        &[
            AROUND_PARTITIONS,
            &[
                "XREADGROUP GROUP g c STREAMS s:1 >",
                "XREAD STREAMS s:1 0",
                "XRANGE s:1 - +",
                "XDEL s:1 1-1",
                "XTRIM s:1 MAXLEN 0",
                "DEL s:1",
            ],
        ],
    ),
    (
        &["sends tasks", "… with a delay", "… that replicas confirm"],
        &[
            READS,
            &[
                "XRANGE s - +",
                "XTRIM s MAXLEN 0",
                "DEL s",
                "HGETALL {s}:bodies",
                "INFO replication",
                "ROLE",
                "REPLICAOF NO ONE",
            ],
        ],
    ),
    (
        &["sends tasks", "… with a [bound]"],
        &[
            READS,
            RECORDS,
            &[
                "XDEL s 1-1",
                "XTRIM s MAXLEN 0",
                "DEL s",
                "XGROUP DESTROY s g",
                "XADD {s}:retry:g * a b",
                "DEL {s}:retry:g",
            ],
        ],
    ),
    (
        &["serves tasks", "… over more than 64 slots"],
        &[
            REPLIES,
            &[
                "CLIENT KILL ID 1",
                "CLIENT SETNAME x",
                "CLUSTER RESET",
                "MONITOR",
                "PSUBSCRIBE *",
            ],
        ],
    ),
    (
        &["serves tasks", "… whose [outboxes]"],
        &[
            REPLIES,
            &[
                "XADD u * a b",
                "XRANGE {t}:dead:g - +",
                "DEL {t}:dead:g",
                "HSET {t}:workers:g a b",
                "XADD campanile:orders:{t}:g * a b",
            ],
        ],
    ),
    (
        &["serves tasks", "… with rates"],
        &[
            REPLIES,
            &[
                "ZCOUNT other 0 1",
                "ZREVRANGE other 0 1",
                "XADD campanile:orders:{s}:g * a b",
            ],
        ],
    ),
    (
        &["looks up and cancels", "… lists them"],
        &[WORKERS, &["XGROUP DESTROY s g", "XREAD STREAMS other 0"]],
    ),
    (
        &["looks up and cancels", "… and handles [dead letters]"],
        &[
            WORKERS,
            &[
                "XGROUP DESTROY s g",
                "XREAD STREAMS s 0",
                "XREVRANGE other + -",
            ],
        ],
    ),
    (
        &["looks up and cancels", "… on partitions"],
        &[
            AROUND_PARTITIONS,
            &[
                "XREADGROUP GROUP g c STREAMS s:1 >",
                "XCLAIM s:1 g c 0 1-1",
                "XTRIM s:1 MAXLEN 0",
                "XGROUP DESTROY s:1 g",
                "HINCRBY {s}:members:g a 1",
            ],
        ],
    ),
    (
        &["serves tasks", "… on partitions", "… that workers own"],
        &[
            REPLIES,
            AROUND_PARTITIONS,
            &["XADD campanile:orders:{s:1}:g * a b"],
        ],
    ),
    (
        &["[drops groups]"],
        &[
            WORKERS,
            &["XREAD STREAMS s 0", "XADD campanile:orders:{s}:g * a b"],
        ],
    ),
    (
        &["runs a [`Script`]"],
        &[
            READS,
            WRITES,
            &[
                "GET k",
                "SET k 1",
                "DEL k",
                "INCR other",
                "EVAL return(1) 1 other",
                "SCRIPT LOAD return(1)",
            ],
        ],
    ),
];

/// The rights of the user with these rows.
fn rights(who: &[&str]) -> String {
    let rights = documented(who)
        .replace("<event names and patterns>", "news")
        .replace("<event names>", "news")
        .replace("<key>", "k")
        .replace("<commands of the script>", "+incr");
    // These rows say which keys are replaced.
    if who.contains(&"… to partitions") {
        rights.replace("~s ", "~s:* ")
    } else if who.contains(&"… on partitions") {
        rights.replace("~s ~{s}:*", "~s:* ~{s:*")
    } else {
        rights
    }
}

#[test]
fn the_refusals_cover_each_row_of_the_documented_rights() {
    let covered: Vec<_> = REFUSED.iter().flat_map(|(who, _)| *who).collect();
    for user in users() {
        let is_covered = covered.iter().any(|who| user.starts_with(**who));
        assert!(is_covered, "no refusals for the row `{user}`");
    }
}

#[tokio::test]
async fn each_documented_user_may_not_do_the_work_of_the_others() {
    // A server without selectors may accept each command, and does not know those of sharded events.
    if !has_selectors() {
        return;
    }
    let users = REFUSED
        .iter()
        .enumerate()
        .map(|(row, (who, _))| format!("user user{row} on >pw resetchannels {}", rights(who)));
    let acl = users.collect::<Vec<_>>().join("\n");
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    for (row, (_, refused)) in REFUSED.iter().enumerate() {
        let url = format!("redis://user{row}:pw@127.0.0.1:{}/", server.port());
        assert_refused(&url, NOBODY).await;
        assert_refused(&url, &refused.concat()).await;
    }
}
