//! Access to the inner services of this crate's services.

/// Implements `get_ref`, `get_mut` and `into_inner` for a service with a field `inner`.
// A build without layers does not use this macro.
#[allow(unused_macros)]
macro_rules! inner_accessors {
    ($service:ident<S $(, $param:ident)*>) => {
        impl<S $(, $param)*> $service<S $(, $param)*> {
            /// Returns a reference to the inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// Returns a mutable reference to the inner service.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Returns the inner service. Releases the reservation of this service, if it has one.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }
    };
}
