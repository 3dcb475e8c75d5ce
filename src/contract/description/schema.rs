//! Checks that the JSON of a value fits its schema.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::form::{
    Form, count_range, element, forms, number_range, property, required_names, type_of,
};
use crate::contract::{Direction, PayloadSchema};

/// Checks that the JSON of a value fits the JSON Schema of its type. Use it in tests: a schema can
/// differ from the JSON that serde writes if the schema is written by hand, or if the type has
/// serde attributes that schemars does not know.
///
/// ```
/// use campanile::contract::assert_schema_matches;
///
/// #[derive(serde::Serialize, schemars::JsonSchema)]
/// struct Order {
///     id: u64,
///     note: Option<String>,
/// }
///
/// assert_schema_matches(&Order { id: 7, note: None });
/// ```
///
/// # Panics
/// If the value cannot be serialized, or does not fit the schema. The panic message names the
/// fields, but not their values.
#[track_caller]
pub fn assert_schema_matches<T: Serialize + JsonSchema>(value: &T) {
    let name = super::without_paths(std::any::type_name::<T>());
    let value = match serde_json::to_value(value) {
        Ok(value) => value,
        Err(error) => panic!("a `{name}` cannot be written as JSON: {error}"),
    };
    let schema = <T as PayloadSchema>::schema(Direction::Payload);
    let found = faults(&schema, &schema, &value, "");
    assert!(
        found.is_empty(),
        "the schema of `{name}` does not describe this value:\n  {}",
        found.join("\n  ")
    );
}

/// Returns the faults of a value. If the schema has alternatives, returns the faults for the
/// alternative that has the fewest.
fn faults(root: &Value, schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let mut nearest: Option<Vec<String>> = None;
    for form in forms(root, schema) {
        let found = form_faults(root, &form, value, path);
        if nearest
            .as_ref()
            .is_none_or(|known| found.len() < known.len())
        {
            nearest = Some(found);
        }
    }
    nearest.unwrap_or_else(|| vec![fault_at(path, "no value is allowed")])
}

/// Returns the faults of a value for one alternative of its schema.
fn form_faults(root: &Value, form: &Form, value: &Value, path: &str) -> Vec<String> {
    let written = type_of(value);
    match (form, value) {
        (Form::Any, _) => Vec::new(),
        (Form::Const(expected), value) if expected == value => Vec::new(),
        (Form::Const(expected), _) => vec![fault_at(path, &format!("it is not {expected}"))],
        (Form::Typed("object", keywords), Value::Object(fields)) => {
            object_faults(root, keywords, fields, path)
        }
        (Form::Typed("array", keywords), Value::Array(elements)) => {
            let (min, max) = count_range(keywords, "Items");
            let len = elements.len() as u64;
            let mut found = Vec::new();
            if len < min || len > max {
                found.push(fault_at(path, &format!("an array of {len} elements")));
            }
            for (index, value) in elements.iter().enumerate() {
                let path = format!("{path}[{index}]");
                found.extend(match element(keywords, index) {
                    Some(schema) => faults(root, schema, value, &path),
                    None => vec![fault_at(&path, "one element too many")],
                });
            }
            found
        }
        (Form::Typed("integer" | "number", keywords), Value::Number(number)) => {
            let (low, high) = number_range(keywords);
            let number = number.as_f64().unwrap_or_default();
            let is_integer = form_type(form) != "integer" || number.fract() == 0.0;
            match is_integer && (low..=high).contains(&number) {
                true => Vec::new(),
                false => vec![fault_at(path, "the number is out of its range")],
            }
        }
        (Form::Typed(kind, _), _) if *kind == written => Vec::new(),
        (Form::Typed(kind, _), _) => {
            vec![fault_at(
                path,
                &format!("it is written as {written}, and the schema says {kind}"),
            )]
        }
    }
}

fn form_type(form: &Form) -> &str {
    match form {
        Form::Typed(kind, _) => kind,
        _ => "",
    }
}

fn object_faults(
    root: &Value,
    keywords: &Map<String, Value>,
    fields: &Map<String, Value>,
    path: &str,
) -> Vec<String> {
    let path_of = |name: &str| match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}.{name}"),
    };
    let missing = required_names(keywords).filter(|name| !fields.contains_key(*name));
    let mut found: Vec<String> = missing
        .map(|name| {
            fault_at(
                &path_of(name),
                "the schema requires this field, and it is not written",
            )
        })
        .collect();
    for (name, value) in fields {
        let rest = keywords.get("additionalProperties");
        let is_declared = property(keywords, name).is_some();
        match property(keywords, name).or(rest) {
            Some(Value::Bool(false)) if !is_declared => {
                found.push(fault_at(
                    &path_of(name),
                    "the schema does not have this field",
                ));
            }
            Some(schema) => found.extend(faults(root, schema, value, &path_of(name))),
            // The schema does not have this field, and has no rule for other fields. A validator
            // would accept the value. But the field was probably renamed, or is missing from the
            // schema by accident.
            None => found.push(fault_at(
                &path_of(name),
                "the schema does not have this field",
            )),
        }
    }
    found
}

fn fault_at(path: &str, fault: &str) -> String {
    match path {
        "" => fault.to_owned(),
        path => format!("`{path}`: {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Payment {
        Cash {
            cents: u32,
        },
        Card {
            number: String,
            holder: Option<String>,
        },
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Tree {
        payment: Payment,
        extra: BTreeMap<String, (u8, f32)>,
        children: Vec<Tree>,
    }

    fn tree(payment: Payment, children: Vec<Tree>) -> Tree {
        let extra = BTreeMap::from([("a".to_owned(), (255, 1.5))]);
        Tree {
            payment,
            extra,
            children,
        }
    }

    #[test]
    fn a_derived_schema_describes_its_type() {
        let card = Payment::Card {
            number: "1".to_owned(),
            holder: None,
        };
        assert_schema_matches(&tree(card, vec![tree(Payment::Cash { cents: 5 }, vec![])]));
    }

    #[derive(Serialize)]
    struct Renamed {
        customer: u64,
        seconds: f64,
    }

    impl JsonSchema for Renamed {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Renamed".into()
        }

        fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({
                "type": "object",
                "properties": { "client": { "type": "integer" }, "seconds": { "type": "string" } },
                "required": ["client"],
            })
        }
    }

    #[test]
    #[should_panic(expected = "the schema of `Renamed` does not describe this value:\n  \
        `client`: the schema requires this field, and it is not written\n  \
        `customer`: the schema does not have this field\n  \
        `seconds`: it is written as number, and the schema says string")]
    fn a_schema_of_another_form_is_found() {
        assert_schema_matches(&Renamed {
            customer: 7,
            seconds: 0.5,
        });
    }
}
