//! The constants that senders and workers share.

use std::{any::type_name, fmt, marker::PhantomData};

#[cfg(feature = "schema")]
use super::PayloadSchema;
use super::{Direction, TypeDescription};

/// The content of a constant: everything except its type parameters.
#[derive(Clone, Copy)]
pub(super) struct ConstantFields {
    pub(super) name: &'static str,
    pub(super) version: u32,
    pub(super) about: Option<&'static str>,
    pub(super) payload: TypeFields,
    /// The reply to a request.
    pub(super) reply: Option<TypeFields>,
}

/// The description of a type.
#[derive(Clone, Copy)]
pub(super) struct TypeFields {
    name: fn() -> &'static str,
    #[cfg(feature = "schema")]
    schema: Option<SchemaFields>,
}

/// The schema of a type, and its content type.
#[cfg(feature = "schema")]
#[derive(Clone, Copy)]
struct SchemaFields {
    schema: fn(Direction) -> serde_json::Value,
    content_type: &'static str,
}

impl TypeFields {
    const fn of<T>() -> Self {
        Self {
            name: type_name::<T>,
            #[cfg(feature = "schema")]
            schema: None,
        }
    }

    #[cfg(feature = "schema")]
    const fn with_schema<T: PayloadSchema>() -> Self {
        Self {
            name: type_name::<T>,
            schema: Some(SchemaFields {
                schema: T::schema,
                content_type: T::CONTENT_TYPE,
            }),
        }
    }

    #[cfg(feature = "schema")]
    pub(super) fn describe(&self, direction: Direction) -> TypeDescription {
        let description = TypeDescription::named((self.name)());
        let Some(SchemaFields {
            schema,
            content_type,
        }) = self.schema
        else {
            return description;
        };
        TypeDescription {
            content_type: Some(content_type.to_owned()),
            schema: Some(schema(direction)),
            ..description
        }
    }

    #[cfg(not(feature = "schema"))]
    pub(super) fn describe(&self, _: Direction) -> TypeDescription {
        TypeDescription::named((self.name)())
    }
}

impl ConstantFields {
    const fn new(name: &'static str, payload: TypeFields, reply: Option<TypeFields>) -> Self {
        Self {
            name,
            version: 1,
            about: None,
            payload,
            reply,
        }
    }
}

/// Implements the types of constants. These types differ only in their type parameters.
macro_rules! constants {
    ($(
        $(#[$doc:meta])*
        $type:ident<$payload:ident $(, $reply:ident)?>, $messages:literal;
    )*) => {$(
        $(#[$doc])*
        pub struct $type<$payload $(, $reply)?> {
            fields: ConstantFields,
            types: PhantomData<fn() -> ($payload, $($reply)?)>,
        }

        impl<$payload $(, $reply)?> $type<$payload $(, $reply)?> {
            #[doc = concat!("Names the ", $messages, " whose payload is of this type.")]
            ///
            /// An invalid name is reported when the constant is used: a router panics, and a call
            /// fails.
            pub const fn new(name: &'static str) -> Self {
                Self {
                    fields: ConstantFields::new(
                        name,
                        TypeFields::of::<$payload>(),
                        constants!(@reply $($reply)?),
                    ),
                    types: PhantomData,
                }
            }

            /// Adds a text for people. A router's [description](crate::Router::describe) shows the
            /// text.
            #[must_use]
            pub const fn about(mut self, text: &'static str) -> Self {
                self.fields.about = Some(text);
                self
            }

            /// Sets the version of the payload. 1 unless set. Raise the version if you change the
            /// payload in a way that old workers cannot read. Senders write the version into a
            /// [header](super::VERSION), and workers check it. See the [module](super#versions).
            ///
            /// # Panics
            /// When the version is zero.
            #[must_use]
            pub const fn version(mut self, version: u32) -> Self {
                assert!(version > 0, "the first version is 1");
                self.fields.version = version;
                self
            }

            /// Adds the JSON Schemas of the types to a router's
            /// [description](crate::Router::describe).
            #[cfg(feature = "schema")]
            #[must_use]
            pub const fn with_schema(mut self) -> Self
            where
                $payload: PayloadSchema,
                $($reply: PayloadSchema,)?
            {
                self.fields.payload = TypeFields::with_schema::<$payload>();
                $(self.fields.reply = Some(TypeFields::with_schema::<$reply>());)?
                self
            }

            /// Returns the name, without the prefixes of routers and clients.
            pub const fn name(&self) -> &'static str {
                self.fields.name
            }

            pub(super) const fn fields(&self) -> &ConstantFields {
                &self.fields
            }
        }

        impl<$payload $(, $reply)?> Clone for $type<$payload $(, $reply)?> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<$payload $(, $reply)?> Copy for $type<$payload $(, $reply)?> {}

        impl<$payload $(, $reply)?> fmt::Debug for $type<$payload $(, $reply)?> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut shown = f.debug_struct(stringify!($type));
                shown.field("name", &self.fields.name);
                shown.field("payload", &(self.fields.payload.name)());
                $(shown.field("reply", &type_name::<$reply>());)?
                shown.finish_non_exhaustive()
            }
        }
    )*};
    (@reply) => { None };
    (@reply $reply:ident) => { Some(TypeFields::of::<$reply>()) };
}

constants! {
    /// The name of tasks and the type of their payload. See the [module](super).
    Task<T>, "tasks";

    /// The name of events and the type of their payload. See the [module](super).
    Event<T>, "events";

    /// The name of requests, the type of their payload, and the type of their replies. See the
    /// [module](super).
    Rpc<Q, R>, "requests";
}
