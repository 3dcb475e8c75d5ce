//! Tests of the comparison of two versions of an application.

use std::{collections::BTreeMap, time::Instant};

use campanile::{
    Router,
    contract::{Affected, Description, Event, PayloadSchema, Rpc, Task, breakages},
};
use schemars::JsonSchema;
use serde_json::json;

/// The differences of a change of a task's payload, as text: those for old senders, and those for old
/// workers.
fn change<Old: PayloadSchema, New: PayloadSchema>() -> (Vec<String>, Vec<String>) {
    let old: Router = Router::new().task(Task::<Old>::new("t").with_schema(), async || {});
    let new: Router = Router::new().task(Task::<New>::new("t").with_schema(), async || {});
    let found = breakages(&old.describe(), &new.describe());
    let of = |affected| {
        let of = found.iter().filter(move |it| it.affected == affected);
        of.map(|it| it.text.replace("the payload: ", "")).collect()
    };
    (of(Affected::OldSenders), of(Affected::OldWorkers))
}

/// Checks the differences for old senders, and those for old workers.
macro_rules! changes {
    ($old:ty => $new:ty, [$($senders:expr),*], [$($workers:expr),*]) => {
        let (senders, workers) = change::<$old, $new>();
        assert_eq!(senders, [$($senders),*] as [&str; _], "old senders");
        assert_eq!(workers, [$($workers),*] as [&str; _], "old workers");
    };
}

macro_rules! payload {
    ($(#[$attribute:meta])* $name:ident { $($body:tt)* }) => {
        #[derive(JsonSchema)]
        $(#[$attribute])*
        #[allow(dead_code, reason = "only its schema counts")]
        struct $name { $($body)* }
    };
}

payload!(Order { id: u64, note: Option<String> });

#[test]
fn an_optional_field_breaks_nobody() {
    payload!(Same { id: u64 });
    payload!(More { id: u64, note: Option<String>, #[serde(default)] urgent: bool });
    changes!(Order => Order, [], []);
    changes!(Order => Same, [], []);
    changes!(Order => More, [], []);
}

#[test]
fn a_required_field_breaks_old_senders_and_a_removed_one_old_workers() {
    payload!(Required { id: u64, note: Option<String>, customer: u64 });
    changes!(Order => Required, ["the reader requires the field `customer`, which is not written"], []);
    changes!(Required => Order, [], ["the reader requires the field `customer`, which is not written"]);
    payload!(NoteRequired {
        id: u64,
        note: String
    });
    changes!(
        Order => NoteRequired,
        [
            "`note`: null is written, and the reader takes string",
            "the reader requires the field `note`, which may be left out"
        ],
        []
    );
}

#[test]
fn a_field_of_another_type_breaks_both() {
    payload!(Text { id: String, note: Option<String> });
    changes!(
        Order => Text,
        ["`id`: integer is written, and the reader takes string"],
        ["`id`: string is written, and the reader takes integer"]
    );
    payload!(Smaller { id: u8, note: Option<String> });
    changes!(
        Order => Smaller,
        ["`id`: numbers from 0 to 18446744073709552000 are written, and the reader takes those from 0 to 255"],
        []
    );
    payload!(Float { id: f64, note: Option<String> });
    changes!(Order => Float, [], ["`id`: number is written, and the reader takes integer"]);
}

#[test]
fn a_field_that_is_unknown_breaks_only_readers_that_refuse_it() {
    payload!(
        #[serde(deny_unknown_fields)]
        Strict { id: u64 }
    );
    changes!(Order => Strict, ["`note`: the reader refuses this field, which it does not know"], []);
    changes!(Strict => Order, [], ["`note`: the reader refuses this field, which it does not know"]);
}

macro_rules! variants {
    ($(#[$attribute:meta])* $name:ident { $($body:tt)* }) => {
        #[derive(JsonSchema)]
        $(#[$attribute])*
        #[allow(dead_code, reason = "only its schema counts")]
        enum $name { $($body)* }
    };
}

#[test]
fn a_removed_variant_breaks_old_senders_and_an_added_one_old_workers() {
    variants!(Two { A, B });
    variants!(One { A });
    changes!(Two => One, [r#"the value "B" is written, and the reader takes the value "A""#], []);
    changes!(One => Two, [], [r#"the value "B" is written, and the reader takes the value "A""#]);

    variants!(Outer { Cash(u8), Card { number: String } });
    variants!(OuterChanged { Cash(String) });
    changes!(
        Outer => OuterChanged,
        [
            "`Cash`: integer is written, and the reader takes string",
            "the variant `Card` is written, and the reader takes the variant `Cash`"
        ],
        ["`Cash`: string is written, and the reader takes integer"]
    );

    variants!(#[serde(tag = "kind")] Inner { Cash { cents: u8 }, Card { number: String } });
    variants!(#[serde(tag = "kind")] InnerChanged { Cash { cents: u8, till: u8 } });
    changes!(
        Inner => InnerChanged,
        [
            "the reader requires the field `till`, which is not written",
            r#"the variant with `kind` = "Card" is written, and the reader takes the variant with `kind` = "Cash""#
        ],
        []
    );
}

#[test]
fn lists_tuples_and_maps_are_compared_by_their_elements() {
    changes!(
        Vec<u8> => Vec<String>,
        ["`[]`: integer is written, and the reader takes string"],
        ["`[]`: string is written, and the reader takes integer"]
    );
    changes!(
        (u8, u8) => (u8, u8, u8),
        ["the reader takes 3 elements"],
        ["the reader takes 2 elements"]
    );
    changes!(
        BTreeMap<String, Option<u8>> => BTreeMap<String, u8>,
        ["`.*`: null is written, and the reader takes integer"],
        []
    );
    changes!(serde_json::Value => u8, ["any value is written, and the reader takes integer"], []);
}

#[test]
fn recursive_types_are_compared_and_the_comparison_ends() {
    payload!(Tree { value: u8, children: Vec<Tree> });
    payload!(#[schemars(rename = "Tree")] Changed { value: String, children: Vec<Changed> });
    changes!(Tree => Tree, [], []);
    changes!(
        Tree => Changed,
        ["`value`: integer is written, and the reader takes string"],
        ["`value`: string is written, and the reader takes integer"]
    );
}

#[test]
fn a_removed_route_breaks_old_senders_and_an_added_one_nobody() {
    let old: Router = Router::new().task("a", async || {}).event("b", async || {});
    let new: Router = Router::new()
        .rpc("a", async || {})
        .event("b", async || {})
        .task("c", async || {});
    let found = breakages(&old.describe(), &new.describe());
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        ["old senders: task `a`: the route was removed; there is now rpc `a`"]
    );
}

#[test]
fn a_reply_breaks_its_readers_the_other_way_round() {
    let old: Router = Router::new().rpc(Rpc::<u8, Order>::new("r").with_schema(), async || {
        campanile::Reply::default()
    });
    payload!(Reply { id: u64, note: Option<String>, total: u64 });
    let new: Router = Router::new().rpc(Rpc::<u8, Reply>::new("r").with_schema(), async || {
        campanile::Reply::default()
    });
    let found = breakages(&old.describe(), &new.describe());
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "old workers: rpc `r`: the reply: the reader requires the field `total`, which is not written"
        ]
    );
}

/// Schemas from outside: contradictory, cyclic, or of combinations that double at each level.
#[test]
fn any_schemas_are_compared_within_bounds() {
    let cycle = json!({ "$ref": "#/definitions/A", "definitions": { "A": { "$ref": "#/definitions/B" }, "B": { "$ref": "#/definitions/A" } } });
    let mut wide = json!({ "type": "object", "properties": {}, "anyOf": [] });
    let mut levels = json!({ "type": "integer" });
    for level in 0..8 {
        levels = json!({ "type": "object", "properties": { "a": levels, "b": levels }, "required": [format!("{level}")] });
    }
    for n in 0..300 {
        wide["anyOf"].as_array_mut().unwrap().push(json!({ "type": "object", "properties": { "x": { "const": n }, "next": { "$ref": "#" } } }));
    }
    let lies = json!({ "type": 7, "required": "id", "properties": [], "enum": {}, "items": [[]], "minimum": "x" });
    let schemas = [
        cycle,
        wide,
        levels,
        lies,
        json!(false),
        json!(null),
        json!([]),
    ];
    let started = Instant::now();
    for old in &schemas {
        for new in &schemas {
            let described = |schema| {
                let route = json!({ "kind": "task", "name": "t", "payload": { "name": "T", "schema": schema } });
                let description = json!({ "routes": [route] }).to_string();
                Description::from_json(description.as_bytes()).unwrap()
            };
            let found = breakages(&described(old), &described(new));
            assert!(found.len() < 50_000);
        }
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn a_description_is_compared_after_it_was_stored() {
    let app: Router = Router::new().event(Event::<Order>::new("o").with_schema(), async || {});
    let stored = app.describe().to_json().unwrap();
    let read = Description::from_json(stored.as_bytes()).unwrap();
    assert_eq!(read, app.describe());
    assert_eq!(breakages(&read, &app.describe()), []);
}
