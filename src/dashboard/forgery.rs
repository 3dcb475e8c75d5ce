//! Protects changes against cross-site request forgery.
//!
//! A page sets a random cookie with `SameSite=Strict`, and each form repeats the cookie's value in
//! the field `token`. Another site can neither read the cookie nor send it. A site on the same
//! domain may be able to set the cookie, so a browser must also say that the request comes from the
//! same origin. The server keeps no tokens, so any process that serves the dashboard accepts
//! the forms that another process has rendered.

use http::{
    HeaderMap, HeaderValue,
    header::{COOKIE, HOST, ORIGIN},
};
use uuid::Uuid;

use super::fault::Fault;

const COOKIE_NAME: &str = "campanile-dashboard";
/// The field of a form that repeats the cookie.
pub(super) const TOKEN_FIELD: &str = "token";

/// The token of a browser.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) text: String,
    is_new: bool,
}

impl Token {
    /// Returns the token of the request's cookie, or a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        match from_cookie(headers) {
            Some(text) => Self {
                text: text.to_owned(),
                is_new: false,
            },
            None => Self {
                text: Uuid::new_v4().simple().to_string(),
                is_new: true,
            },
        }
    }

    /// Returns the header that sets the cookie. `None` if the browser has the cookie already.
    pub(super) fn set_cookie(&self, prefix: &str) -> Option<HeaderValue> {
        let path = if prefix.is_empty() { "/" } else { prefix };
        let text = &self.text;
        let cookie = format!("{COOKIE_NAME}={text}; Path={path}; HttpOnly; SameSite=Strict");
        self.is_new
            .then(|| HeaderValue::try_from(cookie).ok())
            .flatten()
    }
}

fn from_cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).into_iter();
    let mut cookies = cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'));
    let token = cookies.find_map(|cookie| {
        let (name, value) = cookie.trim().split_once('=')?;
        (name == COOKIE_NAME).then_some(value)
    })?;
    let is_valid = token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_valid.then_some(token)
}

/// Checks that a request from a browser comes from a page of the same origin. A request without the
/// checked headers is accepted, because clients other than browsers do not send them.
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), Fault> {
    let refused = || Err(Fault::forbidden("the request comes from another site"));
    if let Some(site) = headers.get("sec-fetch-site")
        && site != "same-origin"
        && site != "none"
    {
        return refused();
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return Ok(());
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok();
    let origin_host = origin.and_then(|origin| Some(origin.split_once("://")?.1));
    // A proxy may have changed the host, so a host that differs from the origin is accepted if the
    // request has passed the check of `sec-fetch-site` above.
    match host.is_some() && host == origin_host || headers.contains_key("sec-fetch-site") {
        true => Ok(()),
        false => refused(),
    }
}

/// Checks that a form has the token of the cookie, and comes from a page of the same origin.
pub(super) fn check_form(headers: &HeaderMap, token: Option<&str>) -> Result<(), Fault> {
    check_origin(headers)?;
    match from_cookie(headers) {
        Some(cookie) if Some(cookie) == token => Ok(()),
        _ => Err(Fault::forbidden(
            "the form is too old, or your browser sends no cookies: go back, reload the page, and try \
             again",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        });
        pairs.collect()
    }

    #[test]
    fn a_form_needs_the_token_of_the_cookie() {
        let token = Token::of(&HeaderMap::new()).text;
        let cookie = format!("a=b; {COOKIE_NAME}={token}");
        let with_cookie = headers(&[("cookie", &cookie)]);
        assert!(check_form(&with_cookie, Some(&token)).is_ok());
        assert!(check_form(&with_cookie, Some("")).is_err());
        assert!(check_form(&with_cookie, None).is_err());
        assert!(check_form(&HeaderMap::new(), Some(&token)).is_err());
        let empty = headers(&[("cookie", "campanile-dashboard=")]);
        assert!(check_form(&empty, Some("")).is_err());
    }

    #[test]
    fn a_request_of_another_site_is_refused() {
        let is_accepted = |pairs: &[(&'static str, &str)]| check_origin(&headers(pairs)).is_ok();
        assert!(is_accepted(&[]));
        assert!(is_accepted(&[("sec-fetch-site", "same-origin")]));
        assert!(!is_accepted(&[("sec-fetch-site", "cross-site")]));
        assert!(!is_accepted(&[("sec-fetch-site", "same-site")]));
        assert!(is_accepted(&[("origin", "http://a:1"), ("host", "a:1")]));
        assert!(!is_accepted(&[("origin", "http://b"), ("host", "a")]));
        assert!(!is_accepted(&[("origin", "null"), ("host", "a")]));
    }
}
