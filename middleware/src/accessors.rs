//! Access to the inner services of this crate's services.

/// Implements `get_ref`, `get_mut` and `into_inner` for a service with a field `inner`.
// A build without layers does not use this macro.
#[allow(unused_macros)]
macro_rules! inner_accessors {
    ($service:ident<S $(, $param:ident)*>) => {
        impl<S $(, $param)*> $service<S $(, $param)*> {
            /// The inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// The inner service, mutably.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Returns the inner service. A reservation of this service is released.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }
    };
}
