//! The names that routers and clients take: a string or a constant.

use std::fmt;

use http::header::CONTENT_TYPE;

use super::{
    Direction, EncodedPayload, Event, LiftedConstant, RouteDescription, Rpc, Task,
    constants::ConstantFields,
    versions::{self, UpcastSteps},
};
use crate::{
    error::BoxError,
    message::{Message, Name},
};

/// A name. If the name comes from a constant, also the fields of the constant.
#[derive(Clone)]
pub struct Named {
    pub(crate) name: Name,
    fields: Option<ConstantFields>,
    /// The steps that lift older payloads. Empty without `lift`.
    steps: UpcastSteps,
}

impl Named {
    pub(crate) fn from_string(name: impl Into<Name>) -> Self {
        Self {
            name: name.into(),
            fields: None,
            steps: UpcastSteps::default(),
        }
    }

    fn from_constant(fields: &ConstantFields) -> Self {
        Self {
            name: Name::from_static(fields.name),
            fields: Some(*fields),
            steps: UpcastSteps::default(),
        }
    }

    /// Checks the version of a message, and lifts an older payload to the version of the constant.
    /// Returns the message unchanged if the name is a string.
    pub(crate) fn admit(&self, message: Message) -> Result<Message, BoxError> {
        match &self.fields {
            Some(fields) => versions::admit(message, fields.version, &self.steps),
            None => Ok(message),
        }
    }

    /// Returns the version of the constant. Returns 1 if the name is a string.
    pub(crate) fn version(&self) -> u32 {
        self.fields.as_ref().map_or(1, |fields| fields.version)
    }

    /// Adds the fields of the constant to the description of a route.
    pub(crate) fn describe(&self, route: &mut RouteDescription) {
        let Some(fields) = &self.fields else { return };
        route.version = fields.version;
        route.oldest_version = self.steps.oldest_version(fields.version);
        route.about = fields.about.map(str::to_owned);
        route.payload = Some(fields.payload.describe(Direction::Payload));
        route.reply = fields.reply.map(|reply| reply.describe(Direction::Reply));
    }

    /// Returns `true` if the name comes from a constant.
    pub(crate) fn is_constant(&self) -> bool {
        self.fields.is_some()
    }

    /// Puts the payload into a message, with the headers that describe it.
    pub(crate) fn write(&self, encoded: EncodedPayload, message: &mut Message) {
        *message.payload_mut() = encoded.payload;
        if let Some(content_type) = encoded.content_type {
            message.headers_mut().insert(CONTENT_TYPE, content_type);
        }
        if let Some(fields) = &self.fields {
            versions::write(fields.version, message.headers_mut());
        }
    }
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Named").field(&self.name).finish()
    }
}

/// The payload type of a name that is a string: any payload may be sent under such a name.
#[derive(Debug, Clone, Copy)]
pub enum AnyPayload {}

/// Defines a trait for the names of one kind of messages. Implements the trait for strings, for the
/// constant, and for the constant with its `lift` steps. Neither form of the constant is an
/// `Into<Name>`, so the implementations do not overlap.
macro_rules! names {
    ($(
        $(#[$attribute:meta])*
        $trait:ident, $constant:ident<$payload:ident $(, $reply:ident)?>;
    )*) => {$(
        $(#[$attribute])*
        pub trait $trait {
            /// The payload type of the constant. [`AnyPayload`] for a string.
            type Payload;

            /// Returns the name, with the fields of the constant.
            #[doc(hidden)]
            fn named(self) -> Named;
        }

        #[diagnostic::do_not_recommend]
        impl<N: Into<Name>> $trait for N {
            type Payload = AnyPayload;

            fn named(self) -> Named {
                Named::from_string(self)
            }
        }

        impl<$payload $(, $reply)?> $trait for $constant<$payload $(, $reply)?> {
            type Payload = $payload;

            fn named(self) -> Named {
                Named::from_constant(self.fields())
            }
        }

        impl<$payload $(, $reply)?> $trait for LiftedConstant<$constant<$payload $(, $reply)?>> {
            type Payload = $payload;

            fn named(self) -> Named {
                Named {
                    steps: self.steps,
                    ..self.constant.named()
                }
            }
        }
    )*};
}

names! {
    /// A name of tasks: anything that converts into a [`Name`], or a [`Task`].
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not a name of tasks",
        label = "neither a text nor a `contract::Task`",
        note = "a constant of another kind belongs to another method: an `Event` to `event` and `publish`, an `Rpc` to `rpc` and `call`"
    )]
    TaskName, Task<T>;

    /// A name of events: anything that converts into a [`Name`], or an [`Event`].
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not a name of events",
        label = "neither a text nor a `contract::Event`",
        note = "a constant of another kind belongs to another method: a `Task` to `task` and `enqueue`, an `Rpc` to `rpc` and `call`"
    )]
    EventName, Event<T>;

    /// A name of requests: anything that converts into a [`Name`], or an [`Rpc`].
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not a name of requests",
        label = "neither a text nor a `contract::Rpc`",
        note = "a constant of another kind belongs to another method: a `Task` to `task` and `enqueue`, an `Event` to `event` and `publish`"
    )]
    RpcName, Rpc<Q, R>;
}
