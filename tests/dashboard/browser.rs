//! Chromium, driven over WebDriver.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::Stdio,
    time::{Duration, Instant},
};

use fantoccini::{
    Client, ClientBuilder, Locator,
    elements::Element,
    error::CmdError,
    wd::{Capabilities, WebDriverCompatibleCommand},
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use url::{ParseError, Url};

use crate::support::raw::eventually;

const INSTALL: &str = "install it with `apt-get install chromium chromium-driver`";
const SOON: Duration = Duration::from_secs(20);

/// A browser without a window. It is killed when it is dropped, and so is its driver.
pub(crate) struct Browser {
    pub(crate) client: Client,
    /// The process of the browser, which outlives a driver that is killed.
    process: Option<u32>,
    _driver: Child,
    _profile: TempDir,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|it| it.local_addr());
        let port = port.expect("a free port").port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let driver = driver.unwrap_or_else(|error| panic!("chromedriver: {error}; {INSTALL}"));
        let profile = tempfile::tempdir().expect("a directory");
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({ "goog:chromeOptions": { "args": args } });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("it is an object")
        };
        let address = format!("http://127.0.0.1:{port}");
        let client = eventually(
            || async {
                ClientBuilder::new(HttpConnector::new())
                    .capabilities(Capabilities::from(capabilities.clone()))
                    .connect(&address)
                    .await
                    .ok()
            },
            SOON,
        );
        let client = client.await;
        let process = client
            .capabilities()
            .and_then(|it| it.get("goog:processID"));
        let process = process.and_then(Value::as_u64);
        Self {
            process: process.and_then(|id| id.try_into().ok()),
            client,
            _driver: driver,
            _profile: profile,
        }
    }

    /// Opens a page, and checks that it is there.
    pub(crate) async fn open(&self, url: &str) {
        self.client.goto(url).await.expect("the page opens");
        self.text("h1").await;
    }

    pub(crate) async fn find(&self, css: &str) -> Element {
        self.located(Locator::Css(css)).await
    }

    pub(crate) async fn text(&self, css: &str) -> String {
        let text = |element: Element| async move { element.text().await };
        self.with(Locator::Css(css), text).await
    }

    pub(crate) async fn click(&self, css: &str) {
        self.click_on(Locator::Css(css)).await;
    }

    /// Clicks the link or the button with this text.
    pub(crate) async fn press(&self, text: &str) {
        let path = format!(
            "//*[(self::a or self::button or self::summary) and contains(normalize-space(.), \"{text}\")]"
        );
        self.click_on(Locator::XPath(&path)).await;
    }

    async fn click_on(&self, locator: Locator<'_>) {
        let click = |element: Element| async move { element.click().await };
        self.with(locator, click).await;
    }

    async fn located(&self, locator: Locator<'_>) -> Element {
        let found = self.client.wait().at_most(SOON).for_element(locator).await;
        found.unwrap_or_else(|error| panic!("{locator:?}: {error}"))
    }

    /// Does this with an element. A driver finds an element and uses it in two commands; a live page
    /// may replace the element in between, and then the one in its place is used. (A person who
    /// presses a button gives it the focus, which keeps it on the page.)
    async fn with<T, F>(&self, locator: Locator<'_>, mut action: impl FnMut(Element) -> F) -> T
    where
        F: Future<Output = Result<T, CmdError>>,
    {
        let end = Instant::now() + SOON;
        loop {
            match action(self.located(locator).await).await {
                Ok(done) => return done,
                Err(error) if error.is_stale_element_reference() && Instant::now() < end => {}
                Err(error) => panic!("{locator:?}: {error}"),
            }
        }
    }

    /// Waits until the page has this text.
    pub(crate) async fn sees(&self, text: &str) {
        let seen = eventually(
            || async {
                let body = self.client.find(Locator::Css("body")).await.ok()?;
                body.text().await.ok()?.contains(text).then_some(())
            },
            SOON,
        );
        seen.await;
    }

    pub(crate) async fn run(&self, script: &str) -> Value {
        let value = self.client.execute(script, Vec::new()).await;
        value.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Sends a command of the DevTools protocol.
    pub(crate) async fn devtools(&self, command: &'static str, params: Value) {
        let command = DevTools { command, params };
        self.client
            .issue_cmd(command)
            .await
            .expect("the command succeeds");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(process) = self.process {
            // It may have ended already. As in `Signal`, the `kill` of the shell.
            let kill = format!("kill -s KILL {process}");
            let _ = std::process::Command::new("sh")
                .args(["-c", &kill])
                .status();
        }
    }
}

/// <https://chromedevtools.github.io/devtools-protocol/>
#[derive(Debug)]
struct DevTools {
    command: &'static str,
    params: Value,
}

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        let session = session.unwrap_or_default();
        base.join(&format!("session/{session}/goog/cdp/execute"))
    }

    fn method_and_body(&self, _: &Url) -> (http::Method, Option<String>) {
        let body = json!({ "cmd": self.command, "params": self.params });
        (http::Method::POST, Some(body.to_string()))
    }
}
