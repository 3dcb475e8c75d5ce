//! The payloads that an extractor can take.

use bytes::Bytes;

use crate::{message::Message, payload::Json};

/// An extractor for the payload type `P` of a [contract constant](crate::contract), such as a
/// `Task<P>`. A router requires this trait only if a constant names the route.
///
/// Implement the trait for a payload extractor of your own:
///
/// ```
/// use campanile::{FromMessage, Json, Message, Rejection, Router, contract::Task, extract::Carries};
///
/// struct Checked<T>(T);
///
/// impl<S: Sync> FromMessage<S> for Checked<u64> {
///     type Rejection = Rejection;
///
///     async fn from_message(message: Message, state: &S) -> Result<Self, Rejection> {
///         let Json(number) = Json::<u64>::from_message(message, state).await?;
///         match number {
///             0 => Err(Rejection::permanent("zero is not allowed")),
///             number => Ok(Checked(number)),
///         }
///     }
/// }
///
/// impl<T> Carries<T> for Checked<T> {}
///
/// const ADD: Task<u64> = Task::new("add");
/// let app: Router = Router::new().task(ADD, async |Checked(n): Checked<u64>| println!("{n}"));
/// ```
#[diagnostic::on_unimplemented(
    message = "the handler takes `{Self}`, and the payload of this name is `{P}`",
    label = "this handler does not take the payload of its name",
    note = "the payload of a constant of `T` is taken as `Json<T>`, or unread as `Bytes`, `Vec<u8>` or `Message`",
    note = "for an extractor of your own, implement `Carries<{P}>`"
)]
pub trait Carries<P> {}

impl<P> Carries<P> for Json<P> {}
impl<P> Carries<P> for Bytes {}
impl<P> Carries<P> for Vec<u8> {}
impl<P> Carries<P> for Message {}
impl<P, T: Carries<P>> Carries<P> for Option<T> {}
impl<P, T: Carries<P>, E> Carries<P> for Result<T, E> {}
