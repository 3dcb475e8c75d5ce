//! Compares the descriptions of two versions of an application.

use std::fmt;

use serde_json::{Map, Value};

use super::{
    Description, RouteDescription, TypeDescription,
    form::{
        Form, count_range, element, forms, number_range, property, required_names,
        resolve_reference, tuple_len, type_of,
    },
};
use crate::message::Kind;

/// The processes that a [`Breakage`] affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Affected {
    /// Senders of the old version, whose messages go to workers of the new version.
    OldSenders,
    /// Workers of the old version, which get messages from senders of the new version.
    OldWorkers,
}

impl fmt::Display for Affected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Affected::OldSenders => "old senders",
            Affected::OldWorkers => "old workers",
        })
    }
}

/// A difference between two versions of an application that breaks processes of the old version.
///
/// `Display` shows it in one line, such as "old senders: task `orders.create`: the payload: the
/// reader requires the field `customer`, which is not written".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Breakage {
    /// The processes that no longer work.
    pub affected: Affected,
    /// The kind and the name of the route.
    pub route: String,
    /// The difference, in words.
    pub text: String,
}

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.affected, self.route, self.text)
    }
}

/// Compares two versions of an application. Returns the differences that break processes of the old
/// version during a deploy. They are sorted by the affected processes.
///
/// For use in a test, keep the description of the last release in a file.
///
/// ```
/// use campanile::{Json, Router, contract::{Affected, Description, Task, breakages}};
///
/// const CREATE: Task<u64> = Task::new("orders.create");
///
/// let released = br#"{"routes":[{"kind":"task","name":"orders.create"}]}"#;
/// let released = Description::from_json(released)?;
///
/// let app: Router = Router::new().task(CREATE, async |Json(id): Json<u64>| println!("{id}"));
/// assert_eq!(breakages(&released, &app.describe()), []);
///
/// let broken = breakages(&released, &Router::<()>::new().describe());
/// assert_eq!(broken[0].affected, Affected::OldSenders);
/// assert_eq!(broken[0].to_string(), "old senders: task `orders.create`: the route was removed");
/// # Ok::<(), campanile::Error>(())
/// ```
///
/// # Rules
/// Old senders break if
/// - a route is removed, or
/// - old senders can send a payload that the new workers cannot read, or
/// - new workers can send a reply that the old senders cannot read.
///
/// Old workers break if
/// - new senders can send a payload that the old workers cannot read, or
/// - old workers can send a reply that the new senders cannot read.
///
/// A reader cannot read a payload or a reply that
/// - lacks a field that the reader requires,
/// - has a field of another type,
/// - has a variant that the reader does not know,
/// - has a number outside the reader's range, or
/// - has another content type.
///
/// A field that the reader does not know is ignored, unless the reader's type denies unknown
/// fields.
///
/// Payloads of different [versions](crate::contract::Task::version) are not compared, because old
/// workers leave messages of a newer version to new workers. If the versions differ, old senders
/// break in two cases: the new workers no longer [lift](crate::contract::Task::lift) the old
/// version, or the old version is higher than the new one.
///
/// Payloads and replies are compared only if both descriptions have schemas for them. An added
/// route breaks no process, provided that you start its workers before its senders. Limits on the
/// length and the pattern of texts are not compared.
pub fn breakages(old: &Description, new: &Description) -> Vec<Breakage> {
    let mut found = Vec::new();
    for before in &old.routes {
        let mut add = |affected, text| {
            found.push(Breakage {
                affected,
                route: before.kind_and_name(),
                text,
            });
        };
        let Some(after) = new.routes.iter().find(|route| route.is_same_route(before)) else {
            let others = new.routes.iter().filter(|route| route.name == before.name);
            let others: Vec<_> = others.map(RouteDescription::kind_and_name).collect();
            add(
                Affected::OldSenders,
                match &others[..] {
                    [] => "the route was removed".to_owned(),
                    others => format!(
                        "the route was removed; there is now {}",
                        others.join(" and ")
                    ),
                },
            );
            continue;
        };
        compare_route(before, after, &mut add);
    }
    found.sort();
    found.dedup();
    found
}

impl RouteDescription {
    fn is_same_route(&self, other: &Self) -> bool {
        let key = |route: &Self| (route.kind, route.is_pattern, route.is_sharded);
        self.name == other.name && key(self) == key(other)
    }

    fn kind_and_name(&self) -> String {
        let kind = match self.kind {
            Kind::Event if self.is_sharded => "sharded event",
            Kind::Event if self.is_pattern => "events",
            kind => kind.as_str(),
        };
        format!("{kind} `{}`", self.name.escape_debug())
    }
}

/// Calls `add` for each difference between two versions of a route that breaks old processes.
fn compare_route(
    before: &RouteDescription,
    after: &RouteDescription,
    add: &mut impl FnMut(Affected, String),
) {
    let (old, new) = (before.version, after.version);
    if old > new {
        let text = format!("their payloads have version {old}, and the version is {new} now");
        add(Affected::OldSenders, text);
    } else if old < after.oldest_version {
        let oldest = after.oldest_version;
        let text = format!("version {old} is no longer taken, the oldest is {oldest}");
        add(Affected::OldSenders, text);
    }
    // Payloads of different versions are not compared: old workers leave a newer version to new
    // workers, and new workers lift an older version.
    if old == new
        && let (Some(before), Some(after)) = (&before.payload, &after.payload)
    {
        report_unreadable(before, after, "the payload", |text| {
            add(Affected::OldSenders, text)
        });
        report_unreadable(after, before, "the payload", |text| {
            add(Affected::OldWorkers, text)
        });
    }
    if let (Some(before), Some(after)) = (&before.reply, &after.reply) {
        report_unreadable(after, before, "the reply", |text| {
            add(Affected::OldSenders, text)
        });
        report_unreadable(before, after, "the reply", |text| {
            add(Affected::OldWorkers, text)
        });
    }
}

/// Calls `add` with a text for each kind of value that a writer of the type `written` can write and
/// a reader of the type `read` cannot read.
fn report_unreadable(
    written: &TypeDescription,
    read: &TypeDescription,
    what: &str,
    mut add: impl FnMut(String),
) {
    if let (Some(written), Some(read)) = (&written.content_type, &read.content_type)
        && written != read
    {
        add(format!(
            "{what}: it is {written}, and the reader takes {read}"
        ));
        return;
    }
    let (Some(written), Some(read)) = (&written.schema, &read.schema) else {
        return;
    };
    let mut comparison = Comparison {
        written,
        read,
        open_pairs: Vec::new(),
        steps: 0,
    };
    for difference in comparison.compare_schemas(written, read, "") {
        add(match difference.path.is_empty() {
            true => format!("{what}: {}", difference.text),
            false => format!("{what}: `{}`: {}", difference.path, difference.text),
        });
    }
    if comparison.steps >= MAX_STEPS {
        add(format!("{what}: the schemas are too large to be compared"));
    }
}

/// The maximum number of steps of a comparison. A step compares a pair of schemas.
const MAX_STEPS: usize = 20_000;
/// The maximum nesting of schemas.
const MAX_DEPTH: usize = 64;

struct Comparison<'a> {
    written: &'a Value,
    read: &'a Value,
    /// The pairs of schemas whose comparison has begun and not ended, as addresses in memory. A
    /// pair in the list is not compared again, because its schemas contain themselves. A schema
    /// contains itself only through a `$ref`. The target of a `$ref` does not move, so its address
    /// identifies the schema.
    open_pairs: Vec<(*const Value, *const Value)>,
    steps: usize,
}

struct Difference {
    /// The path in the value, such as `lines[].sku`.
    path: String,
    text: String,
}

impl Comparison<'_> {
    /// Returns the differences because of which a reader of the schema `read` cannot read all
    /// values of the schema `written`. `path` is the place of the values in the payload or reply.
    fn compare_schemas(&mut self, written: &Value, read: &Value, path: &str) -> Vec<Difference> {
        self.steps += 1;
        let written = resolve_reference(self.written, written);
        let read = resolve_reference(self.read, read);
        let addresses = (std::ptr::from_ref(written), std::ptr::from_ref(read));
        let is_open = self.open_pairs.contains(&addresses);
        if self.steps >= MAX_STEPS || self.open_pairs.len() >= MAX_DEPTH || is_open {
            return Vec::new();
        }
        self.open_pairs.push(addresses);
        let written = forms(self.written, written);
        let read = forms(self.read, read);
        // Comparing two alternatives takes much less time than comparing two schemas, so sixteen
        // pairs of alternatives count as one step.
        self.steps += written.len() * read.len() / 16;
        let found = written
            .iter()
            .flat_map(|form| self.compare_to_alternatives(form, &read, path));
        let found = found.collect();
        self.open_pairs.pop();
        found
    }

    /// Compares a written form with each similar form of the reader. Returns the differences from
    /// the form that has the fewest.
    fn compare_to_alternatives(
        &mut self,
        written: &Form,
        read: &[Form],
        path: &str,
    ) -> Vec<Difference> {
        let mut nearest: Option<Vec<Difference>> = None;
        for read in read.iter().filter(|read| are_alike(written, read)) {
            let found = self.compare_forms(written, read, path);
            if found.is_empty() {
                return found;
            }
            if nearest
                .as_ref()
                .is_none_or(|known| found.len() < known.len())
            {
                nearest = Some(found);
            }
        }
        nearest.unwrap_or_else(|| vec![Difference::at(path, unknown_form_text(written, read))])
    }

    /// Compares two forms that are alike.
    fn compare_forms(&mut self, written: &Form, read: &Form, path: &str) -> Vec<Difference> {
        match (written, read) {
            (Form::Typed("object", written), Form::Typed("object", read)) => {
                self.compare_objects(written, read, path)
            }
            (Form::Typed("array", written), Form::Typed("array", read)) => {
                self.compare_arrays(written, read, path)
            }
            (Form::Typed("integer" | "number", written), Form::Typed(_, read)) => {
                let (written, read) = (number_range(written), number_range(read));
                match written.0 >= read.0 && written.1 <= read.1 {
                    true => Vec::new(),
                    false => vec![Difference::at(path, number_ranges_text(written, read))],
                }
            }
            (Form::Typed("string", written), Form::Typed("string", read)) => {
                let format = |keywords: &Map<String, Value>| keywords.get("format").cloned();
                match (format(written), format(read)) {
                    (written, Some(Value::String(read)))
                        if written.as_ref() != Some(&Value::String(read.clone())) =>
                    {
                        vec![Difference::at(
                            path,
                            format!("the reader takes only texts of the format {read}"),
                        )]
                    }
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }

    fn compare_objects(
        &mut self,
        written: &Map<String, Value>,
        read: &Map<String, Value>,
        path: &str,
    ) -> Vec<Difference> {
        let mut found = Vec::new();
        // Fields that the reader requires, and the writer may leave out.
        for name in required_names(read) {
            if !required_names(written).any(|known| known == name) {
                let text = match property(written, name) {
                    None => format!("the reader requires the field `{name}`, which is not written"),
                    Some(_) => {
                        format!("the reader requires the field `{name}`, which may be left out")
                    }
                };
                found.push(Difference::at(path, text));
            }
        }
        // Fields that are written, and the reader refuses or cannot read.
        let rest = read.get("additionalProperties");
        let properties = written.get("properties").and_then(Value::as_object);
        for (name, schema) in properties.into_iter().flatten() {
            let path = match path.is_empty() {
                true => name.clone(),
                false => format!("{path}.{name}"),
            };
            match property(read, name).or(rest) {
                Some(Value::Bool(false)) => {
                    let text = "the reader refuses this field, which it does not know";
                    found.push(Difference::at(&path, text.to_owned()));
                }
                Some(read) => found.extend(self.compare_schemas(schema, read, &path)),
                None => {}
            }
        }
        // The object is a map: `additionalProperties` is the schema of its values.
        if let (Some(written @ Value::Object(_)), Some(read @ Value::Object(_))) =
            (written.get("additionalProperties"), rest)
        {
            found.extend(self.compare_schemas(written, read, &format!("{path}.*")));
        }
        found
    }

    fn compare_arrays(
        &mut self,
        written: &Map<String, Value>,
        read: &Map<String, Value>,
        path: &str,
    ) -> Vec<Difference> {
        let lengths = (count_range(written, "Items"), count_range(read, "Items"));
        let ((min, max), (read_min, read_max)) = lengths;
        if min < read_min || max > read_max {
            let text = format!(
                "the reader takes {} elements",
                shown_range(read_min, read_max)
            );
            return vec![Difference::at(path, text)];
        }
        let mut found = Vec::new();
        // The index after the longer tuple stands for all further elements.
        let len = tuple_len(written).max(tuple_len(read));
        for index in 0..=len {
            if index as u64 >= max {
                break;
            }
            if let (Some(written), Some(read)) = (element(written, index), element(read, index)) {
                let path = match index == len {
                    true => format!("{path}[]"),
                    false => format!("{path}[{index}]"),
                };
                found.extend(self.compare_schemas(written, read, &path));
            }
        }
        found
    }
}

impl Difference {
    fn at(path: &str, text: String) -> Self {
        Self {
            path: path.to_owned(),
            text,
        }
    }
}

/// Returns `true` if a reader of the form `read` would try to read a value of the form `written`.
fn are_alike(written: &Form, read: &Form) -> bool {
    match (written, read) {
        (_, Form::Any) => true,
        (Form::Any, _) => false,
        (Form::Const(written), Form::Const(read)) => written == read,
        (Form::Const(value), Form::Typed(kind, _)) => type_fits(type_of(value), kind),
        (Form::Typed(..), Form::Const(_)) => false,
        (Form::Typed(written, fields), Form::Typed(read, known)) => {
            type_fits(written, read) && tag(fields).is_none_or(|tag| may_have_tag(known, &tag))
        }
    }
}

/// Returns `true` if a reader of one JSON type takes values of another.
fn type_fits(written: &str, read: &str) -> bool {
    written == read || (written, read) == ("integer", "number")
}

/// The mark by which serde recognizes the variant of an enum: the name of the object's only field,
/// or a field with a constant value.
#[derive(PartialEq)]
enum Tag {
    Field(String),
    Value(String, Value),
}

/// Returns the tag of an object. `None` if the object is no variant of an enum.
fn tag(keywords: &Map<String, Value>) -> Option<Tag> {
    let properties = keywords.get("properties")?.as_object()?;
    let constant = properties.iter().find_map(|(name, schema)| {
        let is_required = required_names(keywords).any(|required| required == name);
        let value = schema.get("const").filter(|_| is_required)?;
        Some(Tag::Value(name.clone(), value.clone()))
    });
    let only_field = || {
        let is_closed = keywords.get("additionalProperties") == Some(&Value::Bool(false));
        let name = properties.keys().next().filter(|_| properties.len() == 1)?;
        (is_closed && required_names(keywords).eq([name])).then(|| Tag::Field(name.clone()))
    };
    constant.or_else(only_field)
}

/// Returns `false` if the object is an enum variant with another tag than `wanted`.
fn may_have_tag(keywords: &Map<String, Value>, wanted: &Tag) -> bool {
    match (tag(keywords), wanted) {
        (None, _) => true,
        (Some(Tag::Value(name, value)), Tag::Value(wanted, expected)) => {
            name != *wanted || value == *expected
        }
        (Some(tag), wanted) => tag == *wanted,
    }
}

/// Describes a written form for which the reader has no similar form.
fn unknown_form_text(written: &Form, read: &[Form]) -> String {
    let shown = |form: &Form| match form {
        Form::Any => "any value".to_owned(),
        Form::Const(value) => format!("the value {value}"),
        Form::Typed(kind, keywords) => match tag(keywords) {
            Some(Tag::Field(name)) => format!("the variant `{name}`"),
            Some(Tag::Value(name, value)) => format!("the variant with `{name}` = {value}"),
            None => (*kind).to_owned(),
        },
    };
    let written = shown(written);
    let mut known: Vec<String> = read.iter().map(shown).collect();
    known.dedup();
    const MAX_SHOWN: usize = 8;
    let more = known.len().saturating_sub(MAX_SHOWN);
    known.truncate(MAX_SHOWN);
    let known = match &known[..] {
        [] => "nothing".to_owned(),
        known => known.join(", "),
    };
    match more {
        0 => format!("{written} is written, and the reader takes {known}"),
        more => format!("{written} is written, and the reader takes {known} and {more} more"),
    }
}

/// Describes a range of written numbers that the range of the reader does not include.
fn number_ranges_text(written: (f64, f64), read: (f64, f64)) -> String {
    let shown = |(low, high): (f64, f64)| match (low.is_finite(), high.is_finite()) {
        (true, true) => format!("from {low} to {high}"),
        (true, false) => format!("from {low}"),
        (false, true) => format!("up to {high}"),
        (false, false) => "of any size".to_owned(),
    };
    format!(
        "numbers {} are written, and the reader takes those {}",
        shown(written),
        shown(read)
    )
}

fn shown_range(min: u64, max: u64) -> String {
    match (min, max) {
        (min, u64::MAX) => format!("at least {min}"),
        (min, max) if min == max => min.to_string(),
        (min, max) => format!("{min} to {max}"),
    }
}
