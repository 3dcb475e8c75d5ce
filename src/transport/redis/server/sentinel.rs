//! Finds the primary by asking Sentinels.
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use futures_util::FutureExt;
use tokio::sync::watch;

use super::{
    address::{self, Address},
    login::{Login, Purpose},
    race,
};
use crate::{
    error::Error,
    transport::redis::{
        error,
        response::{self, Value, fixed_array},
    },
};

/// The Sentinels that watch one primary, and the login to them.
pub(super) struct Sentinels {
    pub(super) addresses: Vec<Address>,
    /// The name of the primary in the configuration of the Sentinels.
    pub(super) name: String,
    pub(super) login: Login,
    /// The primary in the last response, or `None` before the first response.
    last_primary: watch::Sender<Option<Address>>,
}

impl Sentinels {
    pub(super) fn new(addresses: Vec<Address>, name: String, login: Login) -> Self {
        Self {
            addresses,
            name,
            login,
            last_primary: watch::Sender::new(None),
        }
    }

    /// Returns a receiver of the primary in the last response.
    pub(super) fn last_primary(&self) -> watch::Receiver<Option<Address>> {
        self.last_primary.subscribe()
    }

    /// Asks the Sentinels, one shortly after the other, for the address of the primary. Returns the
    /// first address that a Sentinel names.
    ///
    /// # Errors
    /// If every Sentinel is unreachable, refuses the request, or does not know the name.
    pub(super) async fn find_primary(&self) -> Result<Address, Error> {
        let attempts = self.addresses.iter().map(|it| self.ask(it).boxed());
        let found = race::first(attempts.collect()).await;
        let found = found.map_err(|errors| {
            let (all, name) = (address::comma_separated(&self.addresses), &self.name);
            let unreachable =
                format!("no Sentinel answers at {all}, so the primary `{name}` cannot be found");
            race::combine_errors(errors, unreachable)
        })?;
        self.last_primary.send_if_modified(|last| {
            let is_new = last.as_ref() != Some(&found);
            *last = Some(found.clone());
            is_new
        });
        Ok(found)
    }

    async fn ask(&self, sentinel: &Address) -> Result<Address, Error> {
        let mut connection = self.login.connection(sentinel, Purpose::Commands).await?;
        let mut query = redis::cmd("SENTINEL");
        query.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        match self.login.ask(sentinel, &mut connection, &query).await? {
            Value::Nil => Err(Error::config(format!(
                "the Sentinel at {sentinel} knows no primary `{}`; `redis-cli -p <port> SENTINEL \
                 MASTERS` lists the names that it knows",
                self.name
            ))),
            Value::ServerError(refusal) if refusal.code() == "ERR" => Err(Error::config(format!(
                "the server at {sentinel} is no Sentinel; for a server or a cluster, let the URL \
                 begin with redis:// or redis+cluster://"
            ))
            .with_source(redis::RedisError::from(refusal))),
            Value::ServerError(refusal) => Err(error::refused(refusal)),
            response => primary_address(response),
        }
    }
}

fn primary_address(response: Value) -> Result<Address, Error> {
    let [host, port] = fixed_array(response)?;
    let (host, port) = (response::bytes(host)?, response::bytes(port)?);
    let port = std::str::from_utf8(&port)
        .ok()
        .and_then(|it| it.parse().ok());
    let port = port.ok_or_else(|| response::unexpected("a port", "another text"))?;
    Ok(Address::tcp(&String::from_utf8_lossy(&host), port))
}
