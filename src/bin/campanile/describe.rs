//! `campanile describe`

use campanile::contract::{Description, RouteDescription, TypeDescription};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    command_error::{CommandError, chain},
    show::{Out, Table, text},
    target::Target,
};

#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// Prints an AsyncAPI 3 document. All workers of the group must serve the same routes.
    #[arg(long)]
    asyncapi: bool,
}

/// The workers that have the same service name, version and description.
struct ServiceWorkers {
    name: String,
    version: String,
    workers: Vec<String>,
    /// `None` if the workers serve no router.
    description: Option<Description>,
}

impl Describe {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (redis, _) = target.connect_to_group().await?;
        let descriptions = redis.workers().describe().await?;
        if self.asyncapi {
            let document = descriptions.asyncapi().map_err(|error| {
                let reason = chain(&error);
                CommandError::Missing(format!("{reason}; `campanile describe` shows all routes"))
            })?;
            return out.write_document(&document);
        }
        // Workers of the same service with the same description are shown together.
        let mut services = Vec::<ServiceWorkers>::new();
        for worker in descriptions.answers {
            let json = worker.description.as_deref();
            let description = json.map(|json| Description::from_json(json.as_bytes()));
            let description = description.transpose()?;
            let same = services.iter_mut().find(|it| {
                it.name == worker.service
                    && it.version == worker.version
                    && it.description == description
            });
            match same {
                Some(same) => same.workers.push(worker.worker),
                None => services.push(ServiceWorkers {
                    name: worker.service,
                    version: worker.version,
                    workers: vec![worker.worker],
                    description,
                }),
            }
        }
        if out.json {
            let services: Vec<_> = services.iter().map(ServiceWorkers::document).collect();
            return out
                .write_document(&json!({ "services": services, "silent": descriptions.silent }));
        }
        let mut lines: Vec<_> = services.iter().flat_map(ServiceWorkers::lines).collect();
        let silent = descriptions.silent.iter();
        lines.extend(silent.map(|worker| format!("{}: no answer", text::line(worker))));
        if lines.is_empty() {
            lines.push("no workers".to_owned());
        }
        out.write_lines(lines)
    }
}

impl ServiceWorkers {
    fn document(&self) -> Value {
        json!({
            "service": self.name,
            "version": self.version,
            "workers": self.workers,
            "description": self.description,
        })
    }

    fn lines(&self) -> Vec<String> {
        let name = match self.name.is_empty() {
            true => "a service without a name".to_owned(),
            false => format!("{} {}", text::line(&self.name), text::line(&self.version)),
        };
        let count = self.workers.len();
        let workers = if count == 1 { "worker" } else { "workers" };
        let mut lines = vec![format!("{}, {count} {workers}", name.trim_end())];
        let Some(description) = &self.description else {
            lines.push("  serves no router, so it has no description".to_owned());
            return lines;
        };
        let titles = ["KIND", "NAME", ">VERSION", "PAYLOAD", "REPLY", "ABOUT"];
        let mut table = Table::new(&titles);
        for route in &description.routes {
            table.add_row(cells_of(route));
        }
        lines.extend(table.lines());
        lines
    }
}

fn cells_of(route: &RouteDescription) -> [String; 6] {
    let type_name = |described: &Option<TypeDescription>| {
        let name = described.as_ref().map_or("-", |it| it.name.as_str());
        // Leaves out the module path of the type, to keep the column narrow.
        name.rsplit("::").next().unwrap_or(name).to_owned()
    };
    [
        route.kind.to_string(),
        route.name.clone(),
        route.version.to_string(),
        type_name(&route.payload),
        type_name(&route.reply),
        route.about.clone().unwrap_or_default(),
    ]
}
