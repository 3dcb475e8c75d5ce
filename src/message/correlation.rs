//! The id that matches a reply to its request.

use std::fmt;

use smol_str::SmolStr;
use uuid::Uuid;

/// The id that a sender gives to a request. The reply has the same id. Cheap to clone.
///
/// This crate's clients use UUIDs. Other clients may use any text of up to
/// [`CorrelationId::MAX_LEN`] bytes. A request whose id is longer or not UTF-8 is still answered,
/// but layers and handlers do not see the id.
///
/// ```
/// use campanile::{Message, Router};
///
/// async fn get(request: Message) -> String {
///     match &request.parts().correlation_id {
///         Some(id) => format!("the reply to {id}"),
///         None => "the reply".into(),
///     }
/// }
///
/// let app: Router = Router::new().rpc("users.get", get);
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CorrelationId(Repr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    // Stored without an allocation. The text of a UUID would need an allocation for each request.
    Uuid(Uuid),
    Text(SmolStr),
}

impl CorrelationId {
    /// The maximum length of an id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Decodes an id from another process. `None` if it is too long or not UTF-8.
    pub(crate) fn from_utf8(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > Self::MAX_LEN {
            return None;
        }
        let mut buffer = Uuid::encode_buffer();
        match Uuid::try_parse_ascii(bytes) {
            // A UUID has several spellings. Only the spelling in lower case with hyphens is stored
            // as a UUID. Any other spelling is stored as text, unchanged.
            Ok(id) if id.hyphenated().encode_lower(&mut buffer).as_bytes() == bytes => {
                Some(Self(Repr::Uuid(id)))
            }
            _ => {
                let text = std::str::from_utf8(bytes).ok()?;
                Some(Self(Repr::Text(text.into())))
            }
        }
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Uuid(id) => id.fmt(f),
            Repr::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Uuid(id) => fmt::Display::fmt(id, f),
            Repr::Text(text) => fmt::Debug::fmt(text, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(bytes: &[u8]) -> Option<String> {
        CorrelationId::from_utf8(bytes).map(|id| id.to_string())
    }

    #[test]
    fn an_id_is_displayed_as_it_was_sent() {
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        for id in ["vm-1", uuid, &uuid.to_uppercase(), &uuid.replace('-', "")] {
            assert_eq!(shown(id.as_bytes()).as_deref(), Some(id));
        }
    }

    proptest! {
        #[test]
        fn any_id_is_displayed_as_it_was_sent_or_refused(bytes: Vec<u8>) {
            match std::str::from_utf8(&bytes) {
                Ok(text) if text.len() <= CorrelationId::MAX_LEN => {
                    prop_assert_eq!(shown(&bytes), Some(text.to_owned()));
                }
                _ => prop_assert_eq!(shown(&bytes), None),
            }
        }
    }
}
