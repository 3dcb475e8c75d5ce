//! The description as an AsyncAPI document.

use serde_json::{Map, Value, json};

use super::{Description, RouteDescription, TypeDescription};
use crate::message::Kind;

/// The `info` object of an [AsyncAPI document](Description::asyncapi): the title, the version and
/// the description of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiInfo {
    title: String,
    version: String,
    description: Option<String>,
}

impl ApiInfo {
    /// Creates the object from the title of an application and the version of its interface.
    pub fn new(title: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            version: version.into(),
            description: None,
        }
    }

    /// Creates the object for a running service. Replaces an empty name or version by a
    /// placeholder.
    pub(crate) fn of_service(name: &str, version: &str) -> Self {
        let unless_empty =
            |text: &str, fallback: &str| if text.is_empty() { fallback } else { text }.to_owned();
        Self::new(
            unless_empty(name, "unnamed"),
            unless_empty(version, "0.0.0"),
        )
    }

    /// Adds a text about the application.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = Some(text.into());
        self
    }
}

impl Description {
    /// Returns the description as an
    /// [AsyncAPI 3](https://www.asyncapi.com/docs/reference/specification/v3.0.0) document: a
    /// channel and a `receive` operation for each route, and the schemas of the
    /// [constants](crate::contract) that name routes.
    ///
    /// A route that is not named by a constant has a message without a schema. The channel of a
    /// pattern has the pattern in its field `x-campanile-pattern`, and no address.
    ///
    /// ```
    /// use campanile::{Json, Router, contract::{ApiInfo, Task}};
    ///
    /// const ADD: Task<u64> = Task::new("add").about("Adds to the total.").with_schema();
    ///
    /// let app: Router = Router::new().task(ADD, async |Json(n): Json<u64>| println!("{n}"));
    /// let document = app.describe().asyncapi(&ApiInfo::new("Totals", "1.0.0"));
    /// assert_eq!(document["asyncapi"], "3.0.0");
    /// assert_eq!(document["channels"]["add"]["address"], "add");
    /// println!("{document:#}");
    /// ```
    pub fn asyncapi(&self, info: &ApiInfo) -> Value {
        let mut document = Document::default();
        for route in &self.routes {
            document.add(route);
        }
        let mut info_object = json!({ "title": info.title, "version": info.version });
        if let Some(text) = &info.description {
            info_object["description"] = json!(text);
        }
        json!({
            "asyncapi": "3.0.0",
            "info": info_object,
            "defaultContentType": "application/json",
            "channels": document.channels,
            "operations": document.operations,
            "components": { "schemas": document.schemas.schemas },
        })
    }
}

#[derive(Default)]
struct Document {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    schemas: Schemas,
}

impl Document {
    /// Adds the channel and the operation of a route. A request has another channel for its reply.
    fn add(&mut self, route: &RouteDescription) {
        let id = unused_identifier(&self.channels, &identifier(&route.name));
        let mut channel = json!({ "title": route.name });
        // In an address, braces mark parameters, and `?` and `#` are not allowed.
        let has_address = !route.is_pattern && !route.name.contains(['{', '}', '?', '#']);
        channel["address"] = match has_address {
            true => json!(route.name),
            false => Value::Null,
        };
        if route.is_pattern {
            channel["x-campanile-pattern"] = json!(route.name);
        }
        if route.is_sharded {
            channel["x-campanile-sharded"] = json!(true);
        }
        let message = self.message(route.payload.as_ref(), "payload");
        channel["messages"] = json!({ "message": message });
        let mut operation = json!({
            "action": "receive",
            "title": route.name,
            "channel": { "$ref": pointer(&["channels", &id]) },
            "messages": [{ "$ref": pointer(&["channels", &id, "messages", "message"]) }],
            "tags": [{ "name": route.kind.as_str() }],
        });
        if route.version > 1 {
            operation["x-campanile-version"] = json!(route.version);
        }
        if let Some(about) = &route.about {
            operation["summary"] = json!(about);
        }
        self.channels.insert(id.clone(), channel);
        if route.kind == Kind::Rpc {
            let reply_id = unused_identifier(&self.channels, &format!("{id}.reply"));
            let reply_message = self.message(route.reply.as_ref(), "reply");
            operation["reply"] = json!({
                "channel": { "$ref": pointer(&["channels", &reply_id]) },
                "messages": [{ "$ref": pointer(&["channels", &reply_id, "messages", "message"]) }],
            });
            // Each caller has its own address for replies.
            let reply_channel = json!({
                "title": format!("replies to {}", route.name),
                "address": null,
                "messages": { "message": reply_message },
            });
            self.channels.insert(reply_id, reply_channel);
        }
        self.operations.insert(id, operation);
    }

    /// Returns the message object for the type of a payload or a reply.
    fn message(&mut self, content: Option<&TypeDescription>, fallback_title: &str) -> Value {
        let Some(content) = content else {
            return json!({ "title": fallback_title });
        };
        let mut message = json!({ "title": content.name });
        if let Some(content_type) = &content.content_type {
            message["contentType"] = json!(content_type);
        }
        if let Some(schema) = &content.schema {
            let name = self.schemas.add(&identifier(&content.name), schema);
            message["payload"] = json!({ "$ref": pointer(&["components", "schemas", &name]) });
        }
        message
    }
}

/// The schemas of a document, each under its own name.
#[derive(Default)]
struct Schemas {
    schemas: Map<String, Value>,
}

impl Schemas {
    /// Adds a schema and its definitions, and returns the name of the schema. The same schema under
    /// the same name is added only once. If one of the names already belongs to a different schema,
    /// all names get a suffix: the first number with which all of them are free. If no number up to
    /// 10,000 is free, the schemas are added with 10,001, and replace any schemas of these names.
    fn add(&mut self, name: &str, schema: &Value) -> String {
        let mut root = schema.clone();
        let mut definitions = Map::new();
        if let Value::Object(keywords) = &mut root {
            keywords.remove("$schema");
            if let Some(Value::Object(found)) = keywords.remove("definitions") {
                definitions = found;
            }
        }
        let mut number = 1;
        loop {
            let numbered_name = |name: &str| match number {
                1 => identifier(name),
                number => format!("{}_{number}", identifier(name)),
            };
            // A definition inside the schema may have the same name as the schema itself.
            let root_name = match definitions.contains_key(name) {
                true => numbered_name(&format!("{name}_payload")),
                false => numbered_name(name),
            };
            let with_document_references = |schema: &Value| {
                let mut schema = schema.clone();
                rewrite_references(&mut schema, &root_name, &numbered_name);
                schema
            };
            let mut added = Map::new();
            added.insert(root_name.clone(), with_document_references(&root));
            for (name, schema) in &definitions {
                added.insert(numbered_name(name), with_document_references(schema));
            }
            // Two of the new names may be equal, or a name may belong to another schema.
            let has_conflict = added.len() != definitions.len() + 1
                || added.iter().any(|(name, schema)| {
                    self.schemas.get(name).is_some_and(|known| known != schema)
                });
            if !has_conflict || number > 10_000 {
                self.schemas.extend(added);
                return root_name;
            }
            number += 1;
        }
    }
}

/// Rewrites the references in a schema, so that they point into `components/schemas` of the
/// document. `new_name` returns the name of a definition there.
fn rewrite_references(schema: &mut Value, root_name: &str, new_name: &impl Fn(&str) -> String) {
    match schema {
        Value::Object(keywords) => {
            for (keyword, value) in keywords {
                match value {
                    Value::String(reference) if keyword == "$ref" => {
                        if reference == "#" {
                            *reference = pointer(&["components", "schemas", root_name]);
                        } else if let Some(name) = reference.strip_prefix("#/definitions/") {
                            let name = new_name(&name.replace("~1", "/").replace("~0", "~"));
                            *reference = pointer(&["components", "schemas", &name]);
                        }
                    }
                    // The values of these keywords are data, not schemas.
                    _ if matches!(&keyword[..], "const" | "enum" | "default" | "examples") => {}
                    value => rewrite_references(value, root_name, new_name),
                }
            }
        }
        Value::Array(list) => {
            for value in list {
                rewrite_references(value, root_name, new_name);
            }
        }
        _ => {}
    }
}

/// Makes an identifier of the document from a text: puts an underscore in the place of each
/// character that is not allowed.
fn identifier(text: &str) -> String {
    let replacement = |c: char| match c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
        true => c,
        false => '_',
    };
    text.chars().map(replacement).collect()
}

/// Returns the identifier, with a number appended if it is taken.
fn unused_identifier(taken: &Map<String, Value>, identifier: &str) -> String {
    let numbered = (2..).map(|number| format!("{identifier}_{number}"));
    let mut candidates = std::iter::once(identifier.to_owned()).chain(numbered);
    let unused = candidates.find(|candidate| !taken.contains_key(candidate));
    unused.unwrap_or_default()
}

/// Returns a reference to this place in the document.
fn pointer(path: &[&str]) -> String {
    path.iter().fold("#".to_owned(), |pointer, part| {
        format!("{pointer}/{}", part.replace('~', "~0").replace('/', "~1"))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn route(kind: &str, name: &str, schema: Value) -> Value {
        json!({ "kind": kind, "name": name, "payload": { "name": "Order", "schema": schema } })
    }

    fn document(routes: &[Value]) -> Value {
        let json = json!({ "routes": routes }).to_string();
        let description = Description::from_json(json.as_bytes()).unwrap();
        description.asyncapi(&ApiInfo::new("Shop", "1"))
    }

    #[test]
    fn types_of_the_same_name_with_different_schemas_are_kept_apart() {
        let document = document(&[
            route("task", "a", json!({ "type": "integer" })),
            route("task", "b", json!({ "type": "string" })),
            route("event", "a", json!({ "type": "integer" })),
        ]);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let names: BTreeSet<_> = schemas.keys().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(["Order", "Order_2"]));
        let channels = document["channels"].as_object().unwrap();
        let ids: BTreeSet<_> = channels.keys().map(String::as_str).collect();
        assert_eq!(ids, BTreeSet::from(["a", "a_2", "b"]));
    }

    #[test]
    fn references_lead_to_the_schemas_of_the_document() {
        let node = json!({
            "properties": { "next": { "$ref": "#" }, "line": { "$ref": "#/definitions/Order" } },
            "definitions": { "Order": { "enum": [{ "$ref": "#" }] } },
        });
        let document = document(&[route("task", "a", node)]);
        let schemas = &document["components"]["schemas"];
        assert_eq!(
            schemas["Order_payload"]["properties"],
            json!({
                "next": { "$ref": "#/components/schemas/Order_payload" },
                "line": { "$ref": "#/components/schemas/Order" },
            })
        );
        assert_eq!(schemas["Order"]["enum"][0]["$ref"], "#");
    }

    #[test]
    fn a_name_that_is_no_address_has_none() {
        let document = document(&[route("task", "a/{b}", json!(true))]);
        assert!(document["channels"]["a__b_"]["address"].is_null());
        assert_eq!(document["channels"]["a__b_"]["title"], "a/{b}");
    }
}
