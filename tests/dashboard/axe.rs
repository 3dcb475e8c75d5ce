//! Checks of accessibility by axe-core, which npm installs into `target/`.

use std::{fs, path::PathBuf};

use serde_json::Value;
use tokio::{process::Command, sync::OnceCell};

use crate::browser::Browser;

static AXE: OnceCell<String> = OnceCell::const_new();

/// Returns the source of axe-core, and installs it if necessary.
async fn source() -> &'static str {
    let source = AXE.get_or_init(async || {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("axe");
        let file = target.join("node_modules/axe-core/axe.min.js");
        let lock = fs::read(here.join("package-lock.json")).expect("the lock file is there");
        let is_installed = fs::read(target.join("package-lock.json")).is_ok_and(|it| it == lock);
        if !(is_installed && file.exists()) {
            fs::create_dir_all(&target).expect("the directory can be made");
            for name in ["package.json", "package-lock.json"] {
                fs::copy(here.join(name), target.join(name)).expect("the file can be copied");
            }
            let npm = Command::new("npm")
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                .current_dir(&target)
                .output();
            let npm = npm
                .await
                .expect("npm; install it with `apt-get install npm`");
            let text = String::from_utf8_lossy(&npm.stderr);
            assert!(npm.status.success(), "{text}");
        }
        fs::read_to_string(file).expect("axe-core is installed")
    });
    source.await
}

/// Checks the current page against WCAG 2.2 at level AA. Returns what is wrong.
pub(crate) async fn check(browser: &Browser, page: &str) -> Vec<String> {
    let loading = browser.client.execute(source().await, Vec::new()).await;
    loading.expect("axe-core loads");
    let script = "
        const done = arguments[arguments.length - 1];
        const tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
        axe.run({ runOnly: tags }).then(
            (found) => done(found.violations.map((it) => [it.id, it.help, it.nodes.map((n) => n.html).slice(0, 3)])),
            (error) => done([String(error)]));";
    let found = browser.client.execute_async(script, Vec::new()).await;
    match found.expect("axe-core runs") {
        Value::Array(found) => found.iter().map(|it| format!("{page}: {it}")).collect(),
        other => vec![format!("{page}: {other}")],
    }
}
