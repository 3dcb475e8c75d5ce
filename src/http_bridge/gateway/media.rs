//! The bodies that a gateway takes, by their types and encodings.

use http::{
    HeaderMap, Method,
    header::{CONTENT_ENCODING, CONTENT_TYPE, ORIGIN},
};

/// The types of bodies that a browser sends to another site without asking that site first, also
/// with the user's cookies ([fetch](https://fetch.spec.whatwg.org/#cors-safelisted-request-header)).
const TYPES_OF_FORMS: [&str; 3] = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
];

/// Returns the reason why the gateway does not take the body of a request. `accepted` are the types
/// that it takes although forms of other sites can send them.
pub(super) fn fault(method: &Method, headers: &HeaderMap, accepted: &[String]) -> Option<String> {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    if !codings.all(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"identity")) {
        return Some("the body is compressed; send it as it is".to_owned());
    }
    let mut types = headers.get_all(CONTENT_TYPE).iter().map(|value| {
        let media_type = value.as_bytes().split(|&byte| byte == b';').next();
        media_type.unwrap_or_default().trim_ascii()
    });
    let refused = types.find_map(|media_type| {
        let is = |name: &&str| media_type.eq_ignore_ascii_case(name.as_bytes());
        let name = TYPES_OF_FORMS.iter().copied().find(is)?;
        (!accepted.iter().any(|other| is(&other.as_str()))).then_some(name)
    });
    if let Some(name) = refused {
        return Some(format!(
            "bodies of the type `{name}` are not taken, since forms of other sites can send them"
        ));
    }
    let has_effect = !matches!(*method, Method::GET | Method::HEAD);
    let is_of_a_browser = headers.contains_key(ORIGIN);
    (has_effect && is_of_a_browser && !headers.contains_key(CONTENT_TYPE))
        .then(|| "the request has no content type".to_owned())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn is_taken(method: Method, pairs: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        fault(&method, &headers, &["text/plain".to_owned()]).is_none()
    }

    #[test]
    fn types_of_forms_are_refused_unless_they_are_accepted() {
        assert!(is_taken(
            Method::POST,
            &[("content-type", "Text/Plain; charset=utf-8")]
        ));
        assert!(is_taken(Method::POST, &[("content-type", "image/png")]));
        let form = ("content-type", "Multipart/Form-Data;boundary=x");
        assert!(!is_taken(Method::POST, &[form]));
        assert!(!is_taken(
            Method::POST,
            &[("content-type", "application/json"), form]
        ));
    }

    #[test]
    fn a_browser_names_the_type_of_what_has_an_effect() {
        let origin = ("origin", "https://elsewhere.example");
        assert!(!is_taken(Method::POST, &[origin]));
        assert!(is_taken(Method::POST, &[]));
        assert!(is_taken(Method::GET, &[origin]));
        assert!(is_taken(
            Method::POST,
            &[origin, ("content-type", "application/json")]
        ));
    }

    #[test]
    fn an_encoding_other_than_identity_is_refused() {
        assert!(is_taken(
            Method::POST,
            &[("content-encoding", " Identity ")]
        ));
        let twice = [
            ("content-encoding", "identity"),
            ("content-encoding", "zstd"),
        ];
        assert!(!is_taken(Method::POST, &twice));
        assert!(!is_taken(Method::POST, &[("content-encoding", "")]));
    }
}
