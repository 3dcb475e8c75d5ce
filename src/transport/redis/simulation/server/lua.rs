//! The scripts. A real Lua 5.1 runs them, as on the server.
//!
//! Values are converted between Lua and commands by the server's rules:
//! <https://redis.io/docs/latest/develop/interact/programmability/lua-api/>.

use std::{cell::RefCell, collections::HashMap};

use mlua::{Function, Lua, MultiValue, Table, Value};

use super::{
    data::{Answer, Data, text},
    reply::Reply,
};
use crate::transport::redis::msgpack;

/// The script cache of the server.
pub(super) struct Scripts {
    lua: Lua,
    known: HashMap<String, Script>,
    mutation: Option<Mutation>,
}

struct Script {
    name: String,
    function: Function,
}

/// A deliberate fault: a replacement in the text of the scripts, with which they break the
/// protocol.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Mutation {
    pub(in super::super) from: &'static str,
    pub(in super::super) to: &'static str,
}

impl Scripts {
    pub(super) fn new(mutation: Option<Mutation>) -> Self {
        let lua = Lua::new();
        let cmsgpack = lua.create_table().expect("there is memory");
        let pack = lua.create_function(|lua, list: Table| {
            let texts = list
                .sequence_values::<mlua::LuaString>()
                .collect::<Result<Vec<_>, _>>()?;
            lua.create_string(pack_texts(&texts))
        });
        let unpack = lua.create_function(|lua, blob: mlua::LuaString| {
            let fields = msgpack::unpack(&blob.as_bytes().to_vec().into());
            let fields = fields.ok_or_else(|| mlua::Error::runtime("Bad data format in input."))?;
            let list = fields.into_iter().flat_map(|(field, value)| [field, value]);
            lua.create_sequence_from(
                list.map(|text| lua.create_string(text))
                    .collect::<Result<Vec<_>, _>>()?,
            )
        });
        cmsgpack
            .set("pack", pack.expect("it is a function"))
            .expect("a name");
        cmsgpack
            .set("unpack", unpack.expect("it is a function"))
            .expect("a name");
        lua.globals().set("cmsgpack", cmsgpack).expect("a name");
        Self {
            lua,
            known: HashMap::new(),
            mutation,
        }
    }

    /// Empties the cache, as a restart of the server does.
    pub(super) fn flush(&mut self) {
        self.known.clear();
    }

    /// Returns the name of the script with this hash: the beginning of the comment that lists its
    /// keys.
    pub(super) fn name(&self, hash: &str) -> Option<&str> {
        self.known.get(hash).map(|script| &*script.name)
    }

    /// Adds a script to the cache, and returns its hash.
    pub(super) fn learn(&mut self, source: &str) -> String {
        let hash = redis::Script::new(source).get_hash().to_owned();
        if !self.known.contains_key(&hash) {
            // The comment that lists the keys begins with the title of the script.
            let lines: Vec<_> = source.lines().collect();
            let keys = lines
                .iter()
                .position(|line| line.starts_with("-- KEYS"))
                .unwrap_or(1);
            let title = lines[..keys]
                .iter()
                .rposition(|line| !line.starts_with("--"))
                .map_or(0, |at| at + 1);
            let source = self
                .mutation
                .map(|mutation| source.replace(mutation.from, mutation.to))
                .unwrap_or(source.to_owned());
            let function = self.lua.load(source).into_function().expect("it is Lua");
            let name = lines[title]
                .trim_start_matches("-- ")
                .split([',', ':', '.']);
            let name = name
                .into_iter()
                .next()
                .expect("there is a first")
                .to_owned();
            self.known.insert(hash.clone(), Script { name, function });
        }
        hash
    }

    /// Runs `EVALSHA hash number-of-keys key… argument…`.
    pub(super) fn run(&self, data: &mut Data, args: &[Vec<u8>]) -> Answer {
        let Some(script) = self.known.get(text(&args[0])) else {
            return Err("NOSCRIPT No matching script. Please use EVAL.".to_owned());
        };
        let count: usize = text(&args[1]).parse().expect("a number of keys");
        let (keys, args) = args[2..].split_at(count);
        let failure = RefCell::new(None);
        let data = RefCell::new(data);
        let ran = self.lua.scope(|scope| {
            let call = |lua: &Lua, args: MultiValue| {
                let args = args
                    .into_iter()
                    .map(argument)
                    .collect::<Result<Vec<_>, _>>()?;
                match data.borrow_mut().call(&args) {
                    Ok(reply) => to_lua(lua, reply),
                    Err(error) => {
                        *failure.borrow_mut() = Some(error);
                        Err(mlua::Error::runtime("a command failed"))
                    }
                }
            };
            let pcall = |lua: &Lua, args: MultiValue| {
                let args = args
                    .into_iter()
                    .map(argument)
                    .collect::<Result<Vec<_>, _>>()?;
                let reply = data.borrow_mut().call(&args).unwrap_or_else(Reply::Error);
                to_lua(lua, reply)
            };
            let redis = self.lua.create_table()?;
            redis.set("call", scope.create_function(call)?)?;
            redis.set("pcall", scope.create_function(pcall)?)?;
            let globals = self.lua.globals();
            globals.set("redis", redis)?;
            for (name, list) in [("KEYS", keys), ("ARGV", args)] {
                let list = list.iter().map(|item| self.lua.create_string(item));
                let list = self
                    .lua
                    .create_sequence_from(list.collect::<Result<Vec<_>, _>>()?)?;
                globals.set(name, list)?;
            }
            Ok(from_lua(script.function.call::<Value>(())?))
        });
        ran.map_err(|error| failure.take().unwrap_or_else(|| format!("ERR {error}")))
    }
}

/// Converts a Lua value to an argument of a command. A number becomes its shortest text.
fn argument(value: Value) -> mlua::Result<Vec<u8>> {
    match value {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        Value::Integer(number) => Ok(number.to_string().into_bytes()),
        Value::Number(number) => Ok(number.to_string().into_bytes()),
        other => Err(mlua::Error::runtime(format!(
            "a command cannot take {other:?}"
        ))),
    }
}

fn to_lua(lua: &Lua, reply: Reply) -> mlua::Result<Value> {
    let one = |key: &str, text: &str| {
        let table = lua.create_table()?;
        table.set(key, text)?;
        Ok(Value::Table(table))
    };
    match reply {
        Reply::Nil => Ok(Value::Boolean(false)),
        Reply::Int(number) => Ok(Value::Number(number as f64)),
        Reply::Bulk(bytes) => Ok(Value::String(lua.create_string(bytes)?)),
        Reply::Status(status) => one("ok", status),
        Reply::Error(error) => one("err", &error),
        // Scripts see the replies of RESP2.
        Reply::Map(pairs) => {
            let pairs = pairs
                .into_iter()
                .map(|(key, value)| Reply::List(vec![key, value]));
            to_lua(lua, Reply::List(pairs.collect()))
        }
        Reply::Push(_) => unreachable!("a push answers no command"),
        Reply::List(list) => {
            let list = list.into_iter().map(|item| to_lua(lua, item));
            let list = list.collect::<mlua::Result<Vec<_>>>()?;
            Ok(Value::Table(lua.create_sequence_from(list)?))
        }
    }
}

/// Converts the result of a script. Numbers are truncated to integers, and a table ends at its
/// first hole.
fn from_lua(value: Value) -> Reply {
    match value {
        Value::Nil | Value::Boolean(false) => Reply::Nil,
        Value::Boolean(true) => Reply::Int(1),
        Value::Integer(number) => Reply::Int(number),
        Value::Number(number) => Reply::Int(number as i64),
        Value::String(text) => Reply::Bulk(text.as_bytes().to_vec()),
        Value::Table(table) => match table.get::<Option<String>>("err") {
            Ok(Some(error)) => Reply::Error(error),
            _ => Reply::List(
                table
                    .sequence_values::<Value>()
                    .flatten()
                    .map(from_lua)
                    .collect(),
            ),
        },
        other => panic!("a script returned {other:?}"),
    }
}

/// Encodes byte strings as an array of MessagePack, as `cmsgpack` does.
fn pack_texts(texts: &[mlua::LuaString]) -> Vec<u8> {
    let mut out = vec![0xdc];
    out.extend_from_slice(&(texts.len() as u16).to_be_bytes());
    for text in texts {
        let text = text.as_bytes();
        out.push(0xda);
        out.extend_from_slice(&(text.len() as u16).to_be_bytes());
        out.extend_from_slice(&text);
    }
    out
}
