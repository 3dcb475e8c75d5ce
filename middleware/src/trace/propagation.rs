//! Reads and writes trace contexts in headers.

use campanile::{Kind, Message, message::ByKind};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context as OtelContext, global,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The settings of context propagation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Propagation {
    /// `true` to use the application's global propagator instead of the W3C headers.
    global: bool,
    /// `true` for the kinds whose handling starts a new trace.
    own_trace: ByKind<bool>,
}

impl Propagation {
    pub(super) fn start_own_trace_for(&mut self, kind: Kind) {
        self.own_trace[kind] = true;
    }

    pub(super) fn use_global_propagator(&mut self) {
        self.global = true;
    }

    /// Links the span of a delivery to the span that sent the message. The sending span also
    /// becomes the parent, unless another span surrounds the call or messages of this kind start a
    /// new trace.
    pub(super) fn extract(&self, message: &Message, span: &Span) {
        let Some(sender_context) = self.context_in(message.headers()) else {
            return;
        };
        let link = sender_context.span().span_context().clone();
        if !self.own_trace[message.kind()] && !has_surrounding_span() {
            // This fails if the subscriber has no OpenTelemetry layer, or filters the span out.
            let _ = span.set_parent(sender_context);
        }
        span.add_link(link);
    }

    /// Writes the span's context into the message.
    pub(super) fn inject(&self, message: &mut Message, span: &Span) {
        // A transport refuses an event with headers.
        if message.kind() == Kind::Event {
            return;
        }
        let context = context_of(span);
        let current = context.span().span_context().clone();
        if !current.is_valid() {
            return;
        }
        if let Some(in_headers) = self.context_in(message.headers()) {
            let in_headers = in_headers.span().span_context().clone();
            // A context of the same trace belongs to an ancestor of the span, and is replaced. A
            // context of another trace was set by the application, and is kept.
            if in_headers.trace_id() != current.trace_id() {
                span.add_link(in_headers);
                return;
            }
        }
        self.with_propagator(|propagator| {
            propagator.inject_context(&context, &mut HeaderInjector(message.headers_mut()));
        });
    }

    /// Links a span to the spans that sent these messages.
    pub(super) fn link<'a>(&self, messages: impl Iterator<Item = &'a Message>, span: &Span) {
        for message in messages {
            if let Some(sender_context) = self.context_in(message.headers()) {
                span.add_link(sender_context.span().span_context().clone());
            }
        }
    }

    /// Returns the context in the headers, if there is one.
    fn context_in(&self, headers: &HeaderMap) -> Option<OtelContext> {
        if headers.is_empty() {
            return None;
        }
        let no_context = OtelContext::new();
        let context = self.with_propagator(|propagator| {
            propagator.extract_with_context(&no_context, &HeaderExtractor(headers))
        });
        let found = context.span().span_context().is_valid();
        // A global propagator may ignore a well-formed `traceparent`, so nothing is logged for it.
        if !found && !self.global && headers.contains_key("traceparent") {
            tracing::debug!("a malformed `traceparent` is ignored");
        }
        found.then_some(context)
    }

    fn with_propagator<T>(&self, mut f: impl FnMut(&dyn TextMapPropagator) -> T) -> T {
        match self.global {
            true => global::get_text_map_propagator(f),
            false => f(&TraceContextPropagator::new()),
        }
    }
}

/// Returns the context of a span, or the surrounding context if the span is filtered out.
fn context_of(span: &Span) -> OtelContext {
    [span, &Span::current()]
        .into_iter()
        .map(OpenTelemetrySpanExt::context)
        .find(TraceContextExt::has_active_span)
        .unwrap_or_else(OtelContext::current)
}

/// Returns `true` if another span surrounds the call.
fn has_surrounding_span() -> bool {
    context_of(&Span::none()).has_active_span()
}

struct HeaderExtractor<'a>(&'a HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeaderInjector<'a>(&'a mut HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else {
            return;
        };
        match HeaderValue::try_from(value) {
            Ok(value) if !value.is_empty() => {
                // This fails if the map is full.
                let _ = self.0.try_insert(name, value);
            }
            // An empty or invalid value is not sent. The header is removed, because it may have the
            // value of an earlier context.
            Ok(_) | Err(_) => {
                self.0.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// The log lines of a test.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_context_that_this_layer_reads_itself_is_called_malformed() {
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for (global, value, malformed) in [
            (false, GOOD, false),
            (false, "nonsense", true),
            // No global propagator is set, so no context is found.
            (true, GOOD, false),
        ] {
            let lines = Lines::default();
            let writer = lines.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_writer(move || writer.clone())
                .finish();
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_static(value));
            let propagation = Propagation {
                global,
                ..Propagation::default()
            };
            tracing::subscriber::with_default(subscriber, || {
                assert_eq!(
                    propagation.context_in(&headers).is_some(),
                    !global && !malformed
                );
            });
            let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert_eq!(lines.contains("malformed"), malformed, "{global} {value}");
        }
    }

    #[test]
    fn a_value_that_no_header_can_have_leaves_no_earlier_one_in_place() {
        for value in ["", "a\nb", "\u{7f}"] {
            let mut headers = HeaderMap::new();
            headers.insert("baggage", HeaderValue::from_static("earlier"));
            HeaderInjector(&mut headers).set("baggage", value.to_owned());
            assert!(headers.is_empty(), "{value:?}");
        }
        let mut headers = HeaderMap::new();
        HeaderInjector(&mut headers).set("baggage", "a=b".to_owned());
        assert_eq!(headers["baggage"], "a=b");
    }
}
