//! Calls the scripts of layers and applications.

use std::{fmt, time::Duration};

use bytes::Bytes;
use redis::Cmd;
use tokio::time::timeout;

use super::{
    Redis, error,
    pipeline::Resend,
    response::{self, Value},
    scripts::Script,
};
use crate::error::Error;

/// The default time limit of a call.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

impl Script {
    /// Makes a call of the script with this key, which is `KEYS[1]`.
    pub fn key(&'static self, key: impl Into<String>) -> ScriptCall {
        ScriptCall {
            script: self,
            key: key.into(),
            args: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

/// A call of a [`Script`], with its key and its arguments.
#[derive(Clone)]
#[must_use = "a call does nothing until it runs"]
pub struct ScriptCall {
    script: &'static Script,
    key: String,
    args: Vec<Vec<u8>>,
    timeout: Duration,
}

impl ScriptCall {
    /// Adds an argument. The first argument is `ARGV[1]`.
    pub fn arg(mut self, arg: impl Into<Vec<u8>>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets the time limit for the response, over all attempts. 5 s by default.
    ///
    /// # Panics
    /// If `timeout` is zero.
    #[track_caller]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "a timeout must be above zero");
        self.timeout = timeout;
        self
    }

    /// Runs the script on the primary of its key, and returns the response.
    ///
    /// # Errors
    /// Without a response in time, the error is a [timeout](Error::is_timeout), and the script may
    /// have run. If there was no connection, the source of this error is the reason. Other errors
    /// come from the server, such as an error that the script raises.
    ///
    /// # Cancel safety
    /// If the future is dropped, a call that was sent may still run, and the call is not sent
    /// again.
    pub async fn run(&self, redis: &Redis) -> Result<ScriptResponse, Error> {
        let pipeline = redis.shared.pipeline.for_key(&self.key);
        let args = |cmd: &mut Cmd| {
            for arg in &self.args {
                cmd.arg(&arg[..]);
            }
        };
        let keys = [&*self.key];
        let attempts = async {
            loop {
                // This loop sends the call again, not the pipeline. The pipeline would go on after
                // the caller has given up, and the script could then claim a key for a caller that
                // no longer waits.
                let sent = pipeline.script(self.script, &keys, args, Resend::Never);
                match sent.await {
                    Err(error) if error.is_unknown_outcome() || error.is_disconnected() => {}
                    response => return response,
                }
            }
        };
        match timeout(self.timeout, attempts).await {
            Ok(response) => ScriptResponse::decode(response?),
            Err(_) => {
                let address = redis.shared.connector.for_key(&self.key).address();
                Err(error::script_timeout(
                    &address,
                    self.timeout,
                    pipeline.cause_here(),
                ))
            }
        }
    }
}

// Omits the key and the arguments, which may be secrets.
impl fmt::Debug for ScriptCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptCall").finish_non_exhaustive()
    }
}

/// The value that a [`Script`] has returned.
/// <https://redis.io/docs/latest/develop/programmability/lua-api/#lua-to-resp2-type-conversion>
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScriptResponse {
    /// `nil` or `false`.
    Nil,
    /// A number, without its fraction. `true` is 1.
    Int(i64),
    /// A string of any bytes, or a status.
    Bytes(Bytes),
    /// A table, up to its first `nil`.
    List(Vec<ScriptResponse>),
}

impl ScriptResponse {
    /// Decodes a response. This function is not in `decoders::all`, because the tests of that list
    /// expect an error for a value of another form. A script may return a value of any form.
    pub(super) fn decode(value: Value) -> Result<Self, Error> {
        Ok(match error::check(value)? {
            Value::Nil => Self::Nil,
            Value::Int(number) => Self::Int(number),
            Value::Text(bytes) => Self::Bytes(bytes),
            Value::Array(list) => {
                let list = list.into_iter().map(Self::decode);
                Self::List(list.collect::<Result<_, _>>()?)
            }
            other => {
                let expected = "nothing, a number, a text or a list";
                return Err(response::unexpected(expected, response::form(&other)));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::redis::{decoders::list, response::server_error};

    #[test]
    fn a_response_of_a_form_that_scripts_do_not_have_is_an_error() {
        let decoded = ScriptResponse::decode(list([Value::Nil, list([Value::Int(2)])]));
        let expected = [
            ScriptResponse::Nil,
            ScriptResponse::List(vec![ScriptResponse::Int(2)]),
        ];
        assert_eq!(decoded.unwrap(), ScriptResponse::List(expected.to_vec()));
        for other in [Value::Other, Value::Map(Vec::new())] {
            let error = ScriptResponse::decode(list([other])).unwrap_err();
            assert!(error.is_decode(), "{error:?}");
        }
        let refused = ScriptResponse::decode(list([server_error(b"OOM no memory")]));
        assert!(refused.unwrap_err().is_refused());
    }
}
