//! Errors of any type.

/// A boxed error of any type. It is the error of this crate's services.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error that converts into a [`BoxError`]. Bounds use this trait instead of `Into<BoxError>`,
/// so that the compiler's message explains which errors convert.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that handlers and services may fail with",
    label = "this error does not turn into a `BoxError`",
    note = "implement `std::error::Error` for it, `Send + Sync + 'static`; or return an `RpcError`, a `Failure` or a `BoxError`",
    note = "for the error of a layer: tower's `.map_err(..)` above the layer makes another error of it"
)]
pub trait IntoBoxError: Into<BoxError> {}

#[diagnostic::do_not_recommend]
impl<E: Into<BoxError>> IntoBoxError for E {}
