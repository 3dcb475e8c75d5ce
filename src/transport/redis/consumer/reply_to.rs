//! The reply address of an RPC request.

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use crate::transport::redis::entry::value_of;
use crate::{
    error::RpcError,
    message::Name,
    reply::Reply,
    transport::{
        codec::{self, Decoded},
        redis::keys::Keys,
    },
};

/// The fields of a request that contain its reply address. The sender of the request chooses them,
/// so they are not trusted.
#[derive(Debug, Clone)]
pub(super) struct ReplyTo {
    reply_to: Bytes,
    correlation_id: Bytes,
    client: Option<Bytes>,
}

/// The route of a reply to its caller.
#[derive(Debug, PartialEq)]
pub(super) enum ReplyRoute {
    /// The reply is stored on this stream.
    Store(String),
    /// The reply is published on this channel.
    Publish(Bytes),
    /// The reply is not sent, since its address is not allowed.
    Nowhere,
}

impl ReplyTo {
    /// Takes the reply address out of a decoded request. `None` for other messages.
    pub(super) fn from_decoded(decoded: &mut Decoded) -> Option<Self> {
        Some(Self {
            correlation_id: decoded.correlation_id.take()?,
            reply_to: decoded.reply_to.take()?,
            client: decoded.client.take(),
        })
        .filter(|_| decoded.message.kind() == crate::Kind::Rpc)
    }

    /// Reads the reply address from the raw fields of an entry, to answer a request that was not
    /// decoded.
    pub(super) fn of_fields(fields: &[(Bytes, Bytes)]) -> Option<Self> {
        value_of(fields, "type").filter(|kind| *kind == "rpc")?;
        Some(Self {
            reply_to: value_of(fields, codec::REPLY_TO)?.clone(),
            correlation_id: value_of(fields, codec::CORRELATION_ID)?.clone(),
            client: value_of(fields, codec::CLIENT).cloned(),
        })
    }

    /// Chooses the route of the reply. A reply is published only on a channel with an allowed
    /// prefix, so that a sender of requests cannot make workers publish on any other channel.
    pub(super) fn route(&self, keys: &Keys, allowed: &[Name]) -> ReplyRoute {
        if let Some(client) = &self.client {
            // Only a UUID is accepted, so that the sender of the request cannot choose the key.
            return match Uuid::try_parse_ascii(client) {
                Ok(client) => ReplyRoute::Store(keys.replies(client)),
                Err(_) => ReplyRoute::Nowhere,
            };
        }
        let starts_with = |prefix: &Name| self.reply_to.starts_with(prefix.as_bytes());
        match allowed.iter().any(starts_with) {
            true => ReplyRoute::Publish(self.reply_to.clone()),
            false => ReplyRoute::Nowhere,
        }
    }

    pub(super) fn envelope(&self, answer: &Result<Reply, RpcError>) -> Vec<u8> {
        let id: Cow<'_, str> = String::from_utf8_lossy(&self.correlation_id);
        codec::encode_reply(&id, answer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transport::redis::namespace::Namespace;

    fn route(fields: &[(&str, &str)]) -> Option<ReplyRoute> {
        let fields: Vec<_> = [("type", "rpc"), ("correlation_id", "1")]
            .iter()
            .chain(fields)
            .map(|(field, value)| (field.to_string().into(), value.to_string().into()))
            .collect();
        let keys = Keys::new(&Namespace::NONE, &"s".into(), &"g".into()).unwrap();
        let address = ReplyTo::of_fields(&fields)?;
        Some(address.route(&keys, &["reply:".into()]))
    }

    #[test]
    fn only_allowed_channels_and_the_streams_of_uuids_are_answered() {
        let client = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(route(&[]), None, "no address");
        assert_eq!(
            route(&[("reply_to", "reply:1")]),
            Some(ReplyRoute::Publish("reply:1".into()))
        );
        assert_eq!(
            route(&[("reply_to", "orders.created")]),
            Some(ReplyRoute::Nowhere)
        );
        assert_eq!(route(&[("reply_to", "")]), Some(ReplyRoute::Nowhere));
        assert_eq!(
            route(&[("reply_to", "reply:1"), ("~c", client)]),
            Some(ReplyRoute::Store(format!("{{s}}:rpc:{client}")))
        );
        assert_eq!(
            route(&[("reply_to", "reply:1"), ("~c", "../x")]),
            Some(ReplyRoute::Nowhere)
        );
    }

    fn any_value() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            any::<Vec<u8>>().prop_map(Bytes::from),
            "[-{}0-9a-f]{0,40}".prop_map(Bytes::from),
            any::<u128>().prop_map(|id| Uuid::from_u128(id).to_string().into()),
            "(reply:|orders\\.)[*a]{0,4}".prop_map(Bytes::from),
            Just(Bytes::from("rpc")),
        ]
    }

    proptest! {
        #[test]
        fn no_fields_send_a_reply_to_an_address_that_is_not_allowed(
            fields in prop::collection::vec(
                (prop::sample::select(vec!["reply_to", "correlation_id", "~c"]), any_value()),
                0..8,
            ),
        ) {
            let fields = fields.into_iter().map(|(field, value)| (field.into(), value));
            let fields: Vec<_> = [("type".into(), "rpc".into())].into_iter().chain(fields).collect();
            if let Some(address) = ReplyTo::of_fields(&fields) {
                let keys = Keys::new(&Namespace::NONE, &"s".into(), &"g".into()).unwrap();
                match address.route(&keys, &["reply:".into()]) {
                    ReplyRoute::Nowhere => {}
                    ReplyRoute::Publish(channel) => prop_assert!(channel.starts_with(b"reply:")),
                    ReplyRoute::Store(key) => {
                        let client = key.strip_prefix("{s}:rpc:").expect("a reply stream");
                        prop_assert_eq!(Uuid::try_parse(client).unwrap().to_string(), client);
                    }
                }
                let envelope = address.envelope(&Ok(Reply::new("x")));
                prop_assert!(codec::decode_reply(&envelope).is_ok());
            }
        }
    }
}
