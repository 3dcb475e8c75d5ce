//! Dead letters from a terminal: list them, look at one, replay or purge them.
//!
//! ```text
//! export REDIS_URL=redis://127.0.0.1/ STREAM=app_stream GROUP=app_group
//! cargo run --example dead -- list
//! cargo run --example dead -- show 1795430237570-0
//! cargo run --example dead -- replay 1795430237570-0 1795430237570-1
//! cargo run --example dead -- replay --name orders.create
//! cargo run --example dead -- purge --all
//! ```

use std::env;

use campanile::{
    BoxError, DeadLetterId,
    transport::{DeadLetter, DeadLetters, Page, Selection, redis::Redis},
};

const USAGE: &str = "usage: dead list | show ID | (replay | purge) (ID… | --name NAME | --all)";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let var = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.into());
    let redis = Redis::connect(&var("REDIS_URL", "redis://127.0.0.1/"))
        .await?
        .stream(var("STREAM", "app_stream"))
        .group(var("GROUP", "app_group"));
    let dead = redis.dead_letters();

    let args: Vec<_> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["list"] => list(&dead).await,
        ["show", id] => show(&dead, id).await,
        ["replay", ref which @ ..] => {
            println!("{} replayed", dead.replay(selection(which)?).await?);
            Ok(())
        }
        ["purge", ref which @ ..] => {
            println!("{} purged", dead.purge(selection(which)?).await?);
            Ok(())
        }
        _ => Err(USAGE.into()),
    }
}

fn selection(args: &[&str]) -> Result<Selection, BoxError> {
    match args {
        ["--all"] => Ok(Selection::All),
        ["--name", name] => Ok(Selection::named(*name)),
        [] | ["--name", ..] => Err(USAGE.into()),
        ids => Ok(Selection::ids(ids.iter().copied())),
    }
}

async fn list(dead: &DeadLetters) -> Result<(), BoxError> {
    println!("{} dead letters", dead.count().await?);
    let mut page = Some(Page::default());
    while let Some(part) = page {
        let found = dead.list(part).await?;
        for letter in &found.letters {
            println!("{}  {}  {}", letter.id, title(letter), letter.reason);
        }
        page = found.next;
    }
    Ok(())
}

async fn show(dead: &DeadLetters, id: &str) -> Result<(), BoxError> {
    let letter = dead.get(&DeadLetterId::from(id)).await?;
    let letter = letter.ok_or("there is no such dead letter")?;
    println!("{}", title(&letter));
    println!("message  {}", letter.message_id);
    println!("attempts {}", letter.attempts);
    println!("reason   {}", letter.reason);
    match letter.message() {
        Ok(message) => {
            for (name, value) in message.headers() {
                println!("header   {name}: {}", value.as_bytes().escape_ascii());
            }
            println!("payload  {}", String::from_utf8_lossy(message.payload()));
        }
        Err(undecodable) => {
            println!("no message: {}", undecodable.reason);
            for (field, value) in undecodable.fields {
                println!(
                    "field    {}: {}",
                    field.escape_ascii(),
                    value.escape_ascii()
                );
            }
        }
    }
    Ok(())
}

fn title(letter: &DeadLetter) -> String {
    match letter.message() {
        Ok(message) => format!("{} {}", message.kind(), message.name()),
        Err(_) => "no message".to_owned(),
    }
}
