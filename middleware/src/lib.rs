//! Layers over campanile's message services.
