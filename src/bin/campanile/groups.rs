//! `campanile groups`

use clap::Subcommand;

use crate::{
    command_error::CommandError,
    show::{Out, Table},
    stats::{NO_GROUP, document, lag},
    target::Target,
};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupsCommand {
    /// Lists the groups of the stream, by name.
    List,
}

impl GroupsCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let GroupsCommand::List = self;
        let redis = target.connect().await?;
        target.check(&redis).await?;
        let stats = target.stats(&redis).await?;
        if out.json {
            return out.document(&document(&stats));
        }
        if stats.groups.is_empty() {
            return out.lines([NO_GROUP]);
        }
        let mut table = Table::new(&[
            "GROUP",
            ">PENDING",
            ">LAG",
            ">CONSUMERS",
            "LAST DELIVERED",
            ">DEAD",
            ">DELAYED",
        ]);
        for group in &stats.groups {
            table.row([
                group.group.to_string(),
                group.pending.to_string(),
                lag(group),
                group.consumers.to_string(),
                group.last_delivered.clone().unwrap_or_else(|| "-".into()),
                group.dead.to_string(),
                group.delayed.to_string(),
            ]);
        }
        out.lines(table.lines())
    }
}
