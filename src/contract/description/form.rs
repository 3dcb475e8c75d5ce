//! JSON Schemas in a simple form: a list of alternatives, without references.

use serde_json::{Map, Value};

/// One of the forms that a value may have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Form {
    /// Any value.
    Any,
    /// This value only.
    Const(Value),
    /// A value of this JSON type, restricted by the keywords of its schema.
    Typed(&'static str, Map<String, Value>),
}

/// The maximum nesting of references and combinations. A schema that is nested deeper, or that only
/// refers to itself, is treated as one that allows any value.
const MAX_DEPTH: usize = 24;
/// The maximum number of schemas that are visited for one list of alternatives. Beyond this number,
/// any value is allowed.
const MAX_STEPS: usize = 4_096;

const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

/// Returns the alternatives of a schema. The list is empty if no value fits the schema.
pub(super) fn forms(root: &Value, schema: &Value) -> Vec<Form> {
    let mut collector = Collector {
        root,
        steps: 0,
        found: Vec::new(),
    };
    collector.collect(schema, &Map::new(), 0);
    collector.found
}

struct Collector<'a> {
    root: &'a Value,
    steps: usize,
    found: Vec<Form>,
}

/// If the schema is a reference, returns the target. Otherwise returns the schema.
pub(super) fn resolve_reference<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    for _ in 0..MAX_DEPTH {
        let reference = schema.get("$ref").and_then(Value::as_str);
        match reference.and_then(|reference| target(root, reference)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

/// Finds the target of a local reference.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

impl Collector<'_> {
    /// Collects the alternatives of a schema. `outer` has the keywords beside the `oneOf`, `anyOf`
    /// or `$ref` that led to this schema. These keywords apply to this schema, too. `outer` is
    /// empty for a part of an `allOf`.
    fn collect(&mut self, schema: &Value, outer: &Map<String, Value>, depth: usize) {
        self.steps += 1;
        if depth >= MAX_DEPTH || self.steps >= MAX_STEPS {
            if self.found.last() != Some(&Form::Any) {
                self.found.push(Form::Any);
            }
            return;
        }
        let Value::Object(keywords) = schema else {
            // The schema is `true`, `false`, or invalid.
            if schema != &Value::Bool(false) {
                add_forms(outer, &mut self.found);
            }
            return;
        };
        let mut merged = outer.clone();
        merge(&mut merged, keywords);
        if let Some(reference) = keywords.get("$ref").and_then(Value::as_str) {
            merged.remove("$ref");
            match target(self.root, reference) {
                Some(schema) => self.collect(schema, &merged, depth + 1),
                None => self.found.push(Form::Any),
            }
            return;
        }
        for part in take_list(&mut merged, "allOf") {
            let found_before = std::mem::take(&mut self.found);
            self.collect(&part, &Map::new(), depth + 1);
            let part_forms = std::mem::replace(&mut self.found, found_before);
            // Only a part with a single type is merged. Any other part is left out, so the result
            // may allow more values than the schema does.
            if let [Form::Typed(kind, part_keywords)] = &part_forms[..] {
                merge(&mut merged, part_keywords);
                merged.insert("type".to_owned(), Value::from(*kind));
            }
        }
        for combination in ["oneOf", "anyOf"] {
            let alternatives = take_list(&mut merged, combination);
            if !alternatives.is_empty() {
                for alternative in &alternatives {
                    self.collect(alternative, &merged, depth + 1);
                }
                return;
            }
        }
        add_forms(&merged, &mut self.found);
    }
}

/// Removes a keyword and returns its list, which is empty if there is none.
fn take_list(keywords: &mut Map<String, Value>, keyword: &str) -> Vec<Value> {
    match keywords.remove(keyword) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

/// Adds keywords to `merged`. Joins the values of `properties` and `required`, and replaces the
/// values of other keywords.
fn merge(merged: &mut Map<String, Value>, keywords: &Map<String, Value>) {
    for (keyword, value) in keywords {
        match (merged.get_mut(keyword), value) {
            (Some(Value::Object(known)), Value::Object(more)) if keyword == "properties" => {
                known.extend(more.clone());
            }
            (Some(Value::Array(known)), Value::Array(more)) if keyword == "required" => {
                known.extend(more.iter().cloned());
            }
            _ => {
                merged.insert(keyword.clone(), value.clone());
            }
        }
    }
}

/// Adds one form for each value of `const` or `enum`, or else for each type. `keywords` must not
/// have combinations or a reference.
fn add_forms(keywords: &Map<String, Value>, found: &mut Vec<Form>) {
    if let Some(value) = keywords.get("const") {
        found.push(Form::Const(value.clone()));
        return;
    }
    if let Some(Value::Array(values)) = keywords.get("enum") {
        found.extend(values.iter().cloned().map(Form::Const));
        return;
    }
    let types: Vec<&str> = match keywords.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        // The schema of an object may have no type, for example the schema of a flattened field.
        _ if keywords.contains_key("properties") => vec!["object"],
        _ => {
            found.push(Form::Any);
            return;
        }
    };
    for kind in types {
        match TYPES.iter().find(|known| **known == kind) {
            Some(kind) => found.push(Form::Typed(kind, keywords.clone())),
            None => found.push(Form::Any),
        }
    }
}

/// Returns the JSON type of a value.
pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Returns the smallest and the largest value that the keywords of a number allow. Treats exclusive
/// bounds as inclusive ones.
pub(super) fn number_range(keywords: &Map<String, Value>) -> (f64, f64) {
    let format = keywords.get("format").and_then(Value::as_str);
    let (low, high) = match format {
        Some("int8") => (i8::MIN.into(), i8::MAX.into()),
        Some("int16") => (i16::MIN.into(), i16::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        Some("int64" | "int") => (-2f64.powi(63), 2f64.powi(63)),
        Some("uint8") => (0.0, u8::MAX.into()),
        Some("uint16") => (0.0, u16::MAX.into()),
        Some("uint32") => (0.0, u32::MAX.into()),
        Some("uint64" | "uint") => (0.0, 2f64.powi(64)),
        Some("uint128") => (0.0, f64::INFINITY),
        _ => (f64::NEG_INFINITY, f64::INFINITY),
    };
    let number = |keyword: &str| keywords.get(keyword).and_then(Value::as_f64);
    let lowest = [number("minimum"), number("exclusiveMinimum")];
    let highest = [number("maximum"), number("exclusiveMaximum")];
    (
        lowest.into_iter().flatten().fold(low, f64::max),
        highest.into_iter().flatten().fold(high, f64::min),
    )
}

/// Returns the names in `required`.
pub(super) fn required_names(keywords: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let names = keywords.get("required").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str)
}

/// Returns the schema of a property. `None` if the property is not declared.
pub(super) fn property<'a>(keywords: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    keywords.get("properties")?.get(name)
}

/// Returns the schema of the element at an index of an array. `None` if the array ends before the
/// index.
pub(super) fn element(keywords: &Map<String, Value>, index: usize) -> Option<&Value> {
    let any = Some(&Value::Bool(true));
    let tuple = match keywords.get("items") {
        Some(Value::Array(tuple)) => Some((tuple, keywords.get("additionalItems"))),
        rest => match keywords.get("prefixItems") {
            Some(Value::Array(tuple)) => Some((tuple, rest)),
            _ => return rest.or(any),
        },
    };
    let (tuple, rest) = tuple?;
    match tuple.get(index) {
        Some(schema) => Some(schema),
        None if rest == Some(&Value::Bool(false)) => None,
        None => rest.or(any),
    }
}

/// Returns the number of schemas in the tuple of an array: a list in `items`, or `prefixItems`.
/// Zero if there is none.
pub(super) fn tuple_len(keywords: &Map<String, Value>) -> usize {
    let tuple = |keyword: &str| keywords.get(keyword).and_then(Value::as_array);
    let tuple = tuple("items").or_else(|| tuple("prefixItems"));
    tuple.map_or(0, Vec::len)
}

/// Returns the minimum and the maximum of a count, such as `minItems` and `maxItems`.
pub(super) fn count_range(keywords: &Map<String, Value>, of: &str) -> (u64, u64) {
    let count = |side: &str| keywords.get(&format!("{side}{of}")).and_then(Value::as_u64);
    (count("min").unwrap_or(0), count("max").unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_that_only_refers_to_itself_is_any_value() {
        let root = json!({ "definitions": { "A": { "$ref": "#/definitions/A" } } });
        let schema = json!({ "$ref": "#/definitions/A" });
        assert_eq!(forms(&root, &schema), [Form::Any]);
        let unknown = json!({ "$ref": "https://example.com/a" });
        assert_eq!(forms(&root, &unknown), [Form::Any]);
    }

    #[test]
    fn combinations_that_double_at_each_level_end() {
        let part = json!({ "$ref": "#" });
        let root = json!({ "anyOf": [part, part] });
        assert_eq!(forms(&root, &root), [Form::Any]);
        let never = json!({ "anyOf": [part, part, false] });
        assert_eq!(forms(&never, &never), [Form::Any]);
    }

    #[test]
    fn alternatives_have_the_keywords_beside_them() {
        let schema = json!({
            "type": "object",
            "properties": { "id": {} },
            "required": ["id"],
            "oneOf": [
                { "properties": { "kind": { "const": "a" } }, "required": ["kind"] },
                { "properties": { "kind": { "const": "b" } }, "required": ["kind"] },
            ],
        });
        let found = forms(&schema, &schema);
        assert_eq!(found.len(), 2);
        for form in found {
            let Form::Typed("object", keywords) = form else {
                panic!("{form:?}");
            };
            assert_eq!(
                required_names(&keywords).collect::<Vec<_>>(),
                ["id", "kind"]
            );
            assert!(property(&keywords, "id").is_some());
        }
    }
}
