//! Checks of the content type and the content encoding of a request's body.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ORIGIN},
};

/// The content types that a browser sends to another site without a preflight request, even with
/// the user's cookies ([fetch](https://fetch.spec.whatwg.org/#cors-safelisted-request-header)).
const FORM_TYPES: [&str; 3] = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
];

/// The reason why a gateway refuses the body of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MediaFault {
    pub(super) text: String,
    /// The header of the response that lists the accepted types or encodings.
    pub(super) accepted: Option<(HeaderName, HeaderValue)>,
}

/// Checks by the headers of a request whether the gateway accepts the body. `types` are the types
/// that the route accepts. Without `types`, one of the [`FORM_TYPES`] is accepted only if it is in
/// `accepted_forms`. In this case any other type is accepted.
pub(super) fn check(
    method: &Method,
    headers: &HeaderMap,
    is_empty: bool,
    accepted_forms: &[String],
    types: Option<&[String]>,
) -> Result<(), MediaFault> {
    let fault = |text: &str, accepted| {
        let text = text.to_owned();
        Err(MediaFault { text, accepted })
    };
    // Only a body without compression is accepted.
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    if !codings.all(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"identity")) {
        let identity = (ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        return fault("the body is compressed; send it as it is", Some(identity));
    }
    let sent_types = || {
        headers.get_all(CONTENT_TYPE).iter().map(|value| {
            let media_type = value.as_bytes().split(|&byte| byte == b';').next();
            media_type.unwrap_or_default().trim_ascii()
        })
    };
    let has_effect = !matches!(*method, Method::GET | Method::HEAD);
    if let Some(types) = types {
        let is_accepted = |media_type| types.iter().any(|range| matches(range, media_type));
        if !sent_types().all(is_accepted)
            || (has_effect && !is_empty && sent_types().next().is_none())
        {
            let types = types.join(", ");
            let accept = HeaderValue::from_str(&types).expect("types are visible ASCII");
            let text = format!("send a body of one of these types: {types}");
            return fault(&text, Some((ACCEPT, accept)));
        }
    } else {
        let refused = sent_types().find_map(|media_type| {
            let is = |name: &&str| media_type.eq_ignore_ascii_case(name.as_bytes());
            let name = FORM_TYPES.iter().copied().find(is)?;
            (!accepted_forms.iter().any(|other| is(&other.as_str()))).then_some(name)
        });
        if let Some(name) = refused {
            let text = format!(
                "bodies of the type `{name}` are not taken, since forms of other sites can send them"
            );
            return fault(&text, None);
        }
    }
    // A request with an `Origin` comes from a browser. It must have a content type, unless its
    // method is `GET` or `HEAD`.
    let is_of_a_browser = headers.contains_key(ORIGIN);
    match has_effect && is_of_a_browser && !headers.contains_key(CONTENT_TYPE) {
        true => fault("the request has no content type", None),
        false => Ok(()),
    }
}

/// Returns `true` if `media_type` is in `range`. A range is a type, such as `image/png`, or all
/// types with the same start, such as `image/*`.
fn matches(range: &str, media_type: &[u8]) -> bool {
    match range.strip_suffix('*') {
        None => range.as_bytes().eq_ignore_ascii_case(media_type),
        Some(start) => media_type
            .get(..start.len())
            .is_some_and(|sent| sent.eq_ignore_ascii_case(start.as_bytes())),
    }
}

/// Returns the mistake in a range of types, or `None` if the range is valid.
pub(super) fn mistake(range: &str) -> Option<String> {
    let is_token = |part: &str| {
        let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte);
        !part.is_empty() && part.bytes().all(is_token_byte)
    };
    let parts = range.split_once('/');
    match parts.is_some_and(|(main, sub)| is_token(main) && (sub == "*" || is_token(sub))) {
        true => None,
        false => Some(format!(
            "`{range}` is no type of bodies: write `application/json`, or `image/*` for all images"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn is_taken(method: Method, pairs: &[(&'static str, &'static str)]) -> bool {
        let forms = ["text/plain".to_owned()];
        check(&method, &headers(pairs), false, &forms, None).is_ok()
    }

    #[test]
    fn a_route_takes_bodies_of_its_types_only_and_says_which() {
        let types = ["application/json".to_owned(), "image/*".to_owned()];
        let check = |method, is_empty, pairs: &[_]| {
            check(&method, &headers(pairs), is_empty, &[], Some(&types))
        };
        let of = |name| ("content-type", name);
        for taken in ["application/json; charset=utf-8", "Image/PNG"] {
            assert_eq!(check(Method::POST, false, &[of(taken)]), Ok(()));
        }
        for refused in ["application/json5", "text/plain", "image", "", "imagepng"] {
            let fault = check(Method::POST, false, &[of(refused)]).unwrap_err();
            let accept = HeaderValue::from_static("application/json, image/*");
            assert_eq!(fault.accepted, Some((ACCEPT, accept)), "{refused}");
        }
        assert!(check(Method::POST, false, &[]).is_err(), "no type");
        assert_eq!(check(Method::POST, true, &[]), Ok(()), "no body");
        assert_eq!(check(Method::GET, false, &[]), Ok(()));
        let browser = [("origin", "https://elsewhere.example")];
        assert!(check(Method::POST, true, &browser).is_err());
    }

    #[test]
    fn a_range_of_types_has_two_parts() {
        for range in ["application/json", "image/*", "application/vnd.a+json"] {
            assert_eq!(mistake(range), None);
        }
        for range in ["", "json", "*/*", "a/", "/b", "a/b; q=1", "a b/c", "a/b\n"] {
            assert!(mistake(range).is_some(), "{range}");
        }
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
    fn a_post_from_a_browser_must_have_a_content_type() {
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
