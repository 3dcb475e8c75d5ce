//! The HTTP service. It responds with a page, a file, a JSON document or an error.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY,
        RETRY_AFTER, SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
    },
    request::Parts,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower::Service;

use super::{
    Dashboard, DashboardBody, api, assets,
    context::Context,
    fault::Fault,
    forgery::{self, Token},
    form::FormFields,
    layout, live, pages, sampler,
};
use crate::error::BoxError;

/// The maximum time to respond to a request.
pub(super) const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of the body of a request, in bytes.
const MAX_BODY: usize = 4 << 20;

/// The `content-security-policy` of all responses.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
     img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The future of a [`Dashboard`].
pub struct DashboardFuture(
    Pin<Box<dyn Future<Output = Result<Response<DashboardBody>, Infallible>> + Send>>,
);

impl Future for DashboardFuture {
    type Output = Result<Response<DashboardBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for DashboardFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DashboardFuture").finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for Dashboard
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<DashboardBody>;
    type Error = Infallible;
    type Future = DashboardFuture;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> DashboardFuture {
        let dashboard = self.clone();
        DashboardFuture(Box::pin(
            async move { Ok(dashboard.respond(request).await) },
        ))
    }
}

impl Dashboard {
    async fn respond<B>(self, request: Request<B>) -> Response<DashboardBody>
    where
        B: http_body::Body + Send,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let path = match parts.uri.path() {
            "" => "/",
            path => path,
        };
        let is_api = path.starts_with("/api/");
        let user = self
            .config
            .user_of
            .as_ref()
            .and_then(|user_of| user_of(&parts));
        let mut cx = Context {
            path: path.to_owned(),
            config: Arc::clone(&self.config),
            state: Arc::clone(&self.state),
            form: FormFields::default(),
            token: Token::of(&parts.headers),
            user: user.unwrap_or_else(|| "unknown".into()),
        };
        sampler::keep_sampling(&self.config, &self.state);
        let responding = dispatch(&mut cx, &parts, body);
        let result = match tokio::time::timeout(PAGE_TIMEOUT, responding).await {
            Ok(result) => result,
            Err(_) => Err(Fault::timeout(PAGE_TIMEOUT)),
        };
        let mut response = match result {
            Ok(response) => response,
            Err(fault) if is_api => api::problem(&fault),
            Err(fault) => layout::fault_response(&cx, &fault),
        };
        if parts.method == Method::HEAD {
            *response.body_mut() = DashboardBody::from("");
        }
        let is_page = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|content_type| content_type == PAGE_CONTENT_TYPE);
        // The forms of a page repeat the token of its cookie.
        if is_page && let Some(cookie) = cx.token.set_cookie(&cx.config.prefix) {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        add_headers(response)
    }
}

/// Calls the part of the dashboard that is responsible for the path and the method.
async fn dispatch<B>(
    cx: &mut Context,
    parts: &Parts,
    body: B,
) -> Result<Response<DashboardBody>, Fault>
where
    B: http_body::Body + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let path = cx.path.clone();
    let query = FormFields::parse(parts.uri.query().unwrap_or_default());
    match parts.method {
        Method::GET | Method::HEAD => {
            cx.form = query?;
            if let Some(file) = assets::get(&path) {
                return Ok(file);
            }
            if let Some(document) = path.strip_prefix("/api/") {
                return api::get(cx, document).await;
            }
            if path == "/live" {
                return live::open(cx);
            }
            let page = pages::get(cx).await?;
            Ok(layout::page_response(cx, page))
        }
        Method::POST => {
            let content_type = parts.headers.get(CONTENT_TYPE);
            let content_type = content_type
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            let media_type = content_type
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned();
            if let Some(command) = path.strip_prefix("/api/") {
                forgery::check_origin(&parts.headers)?;
                // A form on another site cannot be sent with this content type.
                if !media_type.eq_ignore_ascii_case("application/json") {
                    return Err(Fault::wrong_body_type());
                }
                let body = read_body(body).await?;
                return api::post(cx, command, &body).await;
            }
            // The form of a page. Its token shows that the page is of this dashboard.
            let body = read_body(body).await?;
            let text = std::str::from_utf8(&body)
                .map_err(|_| Fault::bad_request("the form is no text"))?;
            cx.form = FormFields::parse(text)?;
            forgery::check_form(&parts.headers, cx.form.get(forgery::TOKEN_FIELD))?;
            match &*path {
                "/confirm" => Ok(layout::page_response(cx, pages::get(cx).await?)),
                "/act" => {
                    let action = pages::act(cx).await?;
                    Ok(redirect(&cx.link("/actions", [("id", action.as_str())])))
                }
                "/stop" => {
                    let id = pages::stop(cx)?;
                    Ok(redirect(&cx.link("/actions", [("id", id.as_str())])))
                }
                _ => Err(Fault::wrong_method()),
            }
        }
        _ => Err(Fault::wrong_method()),
    }
}

async fn read_body<B>(body: B) -> Result<Bytes, Fault>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::body_too_long(MAX_BODY)),
        Err(_) => Err(Fault::bad_request("the body broke off")),
    }
}

/// Redirects the browser to another page, so that a reload does not send the form again.
fn redirect(link: &str) -> Response<DashboardBody> {
    let mut response = Response::new(DashboardBody::from(""));
    *response.status_mut() = StatusCode::SEE_OTHER;
    if let Ok(link) = HeaderValue::try_from(link) {
        response.headers_mut().insert(LOCATION, link);
    }
    response
}

/// The content type of a page.
const PAGE_CONTENT_TYPE: &str = "text/html; charset=utf-8";

/// Makes the response of a page.
pub(super) fn html_response(status: StatusCode, page: String) -> Response<DashboardBody> {
    let mut response = Response::new(DashboardBody::from(page));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PAGE_CONTENT_TYPE));
    response
}

/// Adds the security headers that all responses have, and those that a status requires.
fn add_headers(mut response: Response<DashboardBody>) -> Response<DashboardBody> {
    let status = response.status();
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    set(CONTENT_SECURITY_POLICY, POLICY);
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(REFERRER_POLICY, "no-referrer");
    set(CACHE_CONTROL, "no-store");
    if status == StatusCode::METHOD_NOT_ALLOWED {
        set(ALLOW, "GET, HEAD, POST");
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        set(RETRY_AFTER, "5");
    }
    response
}
