//! The style sheet and the script of the pages.

use http::{HeaderValue, Response, header::CONTENT_TYPE};

use super::body::DashboardBody;

const STYLE: &str = include_str!("assets/style.css");
const SCRIPT: &str = include_str!("assets/script.js");

/// Returns the file at a path.
pub(super) fn get(path: &str) -> Option<Response<DashboardBody>> {
    let (content_type, text) = match path {
        "/style.css" => ("text/css; charset=utf-8", STYLE),
        "/script.js" => ("text/javascript; charset=utf-8", SCRIPT),
        _ => return None,
    };
    let mut response = Response::new(DashboardBody::from(text));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Some(response)
}
