//! `campanile groups`

use clap::Subcommand;
use serde_json::json;

use crate::{
    command_error::CommandError,
    confirm::Confirm,
    show::{Out, Table, text},
    stats::{NO_GROUP, lag, stats_json},
    target::Target,
};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupsCommand {
    /// Lists the groups of the stream, by name.
    ///
    /// HOLDS UP is the number of entries that the stream keeps for this group alone. A group that
    /// holds up entries and has no consumers is abandoned, unless its service comes back.
    List,
    /// Deletes a group. Its waiting and pending messages are lost for it; its dead letters are kept.
    Drop {
        /// The group.
        #[arg(value_name = "NAME")]
        name: String,
        /// Also if it has live workers. Workers of Campanile create it again.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
}

impl GroupsCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        match self {
            Self::List => Self::list(target, out).await,
            Self::Drop {
                name,
                force,
                confirm,
            } => Self::drop(target, &name, force, &confirm, out).await,
        }
    }

    async fn drop(
        target: &Target,
        name: &str,
        force: bool,
        confirm: &Confirm,
        out: &Out,
    ) -> Result<(), CommandError> {
        let redis = target.connect().await?.group(name);
        let stats = redis.stats().await?;
        let Some(group) = stats.group(name) else {
            let stream = &stats.stream;
            let text = format!("the stream `{stream}` has no group `{name}`");
            return Err(CommandError::Missing(text));
        };
        if group.consumers > 0 && !force {
            return Err(CommandError::Failed(format!(
                "the group `{name}` has {} live workers, so it was not dropped; stop them first, or pass \
                 --force",
                group.consumers
            )));
        }
        let idle = group.idle.map_or("it has no consumers".to_owned(), |idle| {
            format!("its last sign of life was {} ago", text::duration(idle))
        });
        confirm
            .ask(&format!(
                "Drop the group `{name}`, with {} waiting, {} pending, {} delayed and {} parked messages \
                 ({idle})? They are lost for this group.",
                lag(group),
                group.pending,
                group.delayed,
                group.parked
            ))
            .await?;
        let lost = redis.drop_group(force).await?;
        match out.json {
            true => out.write_document(&json!({ "dropped": name, "lost": lost })),
            false => out.write_lines([format!(
                "dropped the group {}, with {lost} messages",
                text::line(name)
            )]),
        }
    }

    async fn list(target: &Target, out: &Out) -> Result<(), CommandError> {
        let redis = target.connect().await?;
        target.check_existence(&redis).await?;
        let stats = target.stats(&redis).await?;
        if out.json {
            return out.write_document(&stats_json(&stats));
        }
        if stats.groups.is_empty() {
            return out.write_lines([NO_GROUP]);
        }
        let mut table = Table::new(&[
            "GROUP",
            ">PENDING",
            ">LAG",
            ">CONSUMERS",
            "LAST DELIVERED",
            ">DEAD",
            ">DELAYED",
            ">HOLDS UP",
            ">FOREIGN",
            ">IDLE",
        ]);
        for group in &stats.groups {
            table.add_row([
                group.group.to_string(),
                group.pending.to_string(),
                lag(group),
                group.consumers.to_string(),
                group.last_delivered.clone().unwrap_or_else(|| "-".into()),
                group.dead.to_string(),
                group.delayed.to_string(),
                group
                    .kept_entries
                    .map_or("?".into(), |count| count.to_string()),
                group.foreign.to_string(),
                group.idle.map_or("-".into(), text::duration),
            ]);
        }
        out.write_lines(table.lines())
    }
}
