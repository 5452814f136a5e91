//! A real browser without a window, driven by the WebDriver protocol (W3C) through chromedriver.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::api::Api;
use crate::process::Process;
use crate::wait::{eventually, until};
use crate::{env, ports};

/// The member under which the protocol names an element (WebDriver, 12.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The tabulator and enter keys, as the protocol writes them (WebDriver, 17.4.2).
pub const TAB: &str = "\u{e004}";
/// See [`TAB`].
pub const ENTER: &str = "\u{e007}";

/// A browser with one page open. Dropped, it is closed.
pub struct Browser {
    api: Api,
    session: String,
    driver: Process,
}

impl Browser {
    /// Starts a browser and opens `url` in it.
    ///
    /// # Panics
    /// When chromedriver or Chromium can't be started.
    pub fn open(url: &str) -> Browser {
        let port = ports::free_port();
        let home = (
            "HOME".to_string(),
            std::env::var("HOME").unwrap_or_default(),
        );
        let driver = Process::start(
            "chromedriver",
            Path::new("chromedriver"),
            &[&format!("--port={port}")],
            &[home],
        );
        let api = Api::new(port);
        until("chromedriver to answer", || {
            assert!(
                driver.ended().is_none(),
                "chromedriver ended: {}",
                driver.tail()
            );
            api.call("GET", "/status", &[], None).is_ok()
        });
        let mut browser = Browser {
            api,
            session: String::new(),
            driver,
        };
        let answer = browser.command("POST", "/session", &capabilities());
        browser.session = format!(
            "/session/{}",
            answer["sessionId"].as_str().expect("a session")
        );
        browser.command("POST", "/url", &json!({ "url": url }));
        browser
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.attempt(method, path, body)
            .unwrap_or_else(|why| panic!("{method} {path}: {why}"))
    }

    /// A command that may fail for the page's sake: an element that is not there yet, or is just being moved.
    fn attempt(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let path = format!("{}{path}", self.session);
        let answer = match method {
            "GET" => self.api.get(&path),
            _ => self.api.json(method, &path, &[], body),
        };
        if answer.status == 200 {
            Ok(answer.json["value"].clone())
        } else {
            Err(answer.text)
        }
    }

    /// A command of Chromium's own protocol.
    fn command_of_chromium(&self, name: &str, params: Value) {
        self.command(
            "POST",
            "/goog/cdp/execute",
            &json!({ "cmd": name, "params": params }),
        );
    }

    /// What the body of a function returns that runs in the page.
    ///
    /// # Panics
    /// When it throws.
    pub fn run(&self, body: &str) -> Value {
        self.command(
            "POST",
            "/execute/sync",
            &json!({ "script": body, "args": [] }),
        )
    }

    /// The text that is seen of the elements that `css` selects.
    pub fn texts(&self, css: &str) -> Vec<String> {
        let texts = self.run(&format!(
            "return [...document.querySelectorAll({css:?})].map(one => one.innerText)"
        ));
        texts
            .as_array()
            .expect("a list")
            .iter()
            .map(|text| text.as_str().unwrap_or_default().to_string())
            .collect()
    }

    /// Waits until one of the elements shows `text`.
    ///
    /// # Panics
    /// When none does in time.
    pub fn wait_for(&self, css: &str, text: &str) {
        until(
            &format!("{text:?} in {css}, where there is {:?}", self.texts(css)),
            || self.texts(css).iter().any(|seen| seen.contains(text)),
        );
    }

    /// Clicks on an element with the mouse, as soon as that is possible.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn click(&self, css: &str) {
        eventually(&format!("{css} to be clicked"), || {
            let element = self.find(css).ok()?;
            self.attempt("POST", &format!("/element/{element}/click"), &json!({}))
                .ok()
        });
    }

    /// Replaces what stands in a field.
    ///
    /// # Panics
    /// When there is no such field.
    pub fn fill(&self, css: &str, text: &str) {
        let element = self.find(css).unwrap_or_else(|why| panic!("{css}: {why}"));
        self.command("POST", &format!("/element/{element}/clear"), &json!({}));
        self.command(
            "POST",
            &format!("/element/{element}/value"),
            &json!({ "text": text }),
        );
    }

    /// Presses keys, wherever the focus is.
    ///
    /// # Panics
    /// When nothing has the focus.
    pub fn press(&self, keys: &str) {
        let active = self.command("GET", "/element/active", &Value::Null);
        let element = active[ELEMENT].as_str().expect("an element");
        self.command(
            "POST",
            &format!("/element/{element}/value"),
            &json!({ "text": keys }),
        );
    }

    /// What assistive technology calls each of the elements that `css` selects, with its HTML.
    ///
    /// # Panics
    /// When an element goes away meanwhile.
    pub fn names(&self, css: &str) -> Vec<(String, String)> {
        let found = self.command(
            "POST",
            "/elements",
            &json!({ "using": "css selector", "value": css }),
        );
        let ids = found
            .as_array()
            .expect("a list")
            .iter()
            .map(|element| element[ELEMENT].as_str().expect("an element"));
        ids.map(|id| {
            let text =
                |what: &str| self.command("GET", &format!("/element/{id}/{what}"), &Value::Null);
            let (name, html) = (text("computedlabel"), text("property/outerHTML"));
            (
                name.as_str().unwrap_or_default().to_string(),
                html.as_str().unwrap_or_default().to_string(),
            )
        })
        .collect()
    }

    fn find(&self, css: &str) -> Result<String, String> {
        let found = self.attempt(
            "POST",
            "/element",
            &json!({ "using": "css selector", "value": css }),
        )?;
        Ok(found[ELEMENT].as_str().expect("an element").to_string())
    }

    /// Gives the page a screen of this size.
    pub fn resize(&self, width: u32, height: u32) {
        let screen =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.command_of_chromium("Emulation.setDeviceMetricsOverride", screen);
    }

    /// Has the system prefer `scheme`, `light` or `dark`, and no motion.
    pub fn prefer(&self, scheme: &str) {
        let (colours, motion) = ("prefers-color-scheme", "prefers-reduced-motion");
        let features =
            json!([{ "name": colours, "value": scheme }, { "name": motion, "value": "reduce" }]);
        self.command_of_chromium(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        );
    }

    /// Saves a picture of the whole page at this width.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn save_picture(&self, width: u32, file: &Path) {
        self.resize(width, 900);
        let height = self
            .run("return document.documentElement.scrollHeight")
            .as_u64()
            .expect("a height");
        self.resize(width, height as u32);
        let picture = self.command("GET", "/screenshot", &Value::Null);
        let bytes = BASE64_STANDARD
            .decode(picture.as_str().expect("base64"))
            .expect("base64");
        std::fs::write(file, bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// What the page and the browser have written to the console since the last call.
    pub fn console(&self) -> Vec<String> {
        let lines = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        lines
            .as_array()
            .expect("a list")
            .iter()
            .map(|line| format!("{} {}", line["level"], line["message"]))
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // the driver ends the browser; should that fail, the browser ends with its pipe to the driver
        let _ = self.api.call("DELETE", &self.session, &[], None);
        self.driver.kill();
    }
}

fn capabilities() -> Value {
    // the pipe: a browser whose driver is gone ends too; shared memory is small in containers
    let mut args = vec![
        "--headless=new",
        "--remote-debugging-pipe",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ];
    if rustix::process::geteuid().is_root() {
        args.push("--no-sandbox"); // Chromium refuses to run as root with it
    }
    let (options, log) = (json!({ "args": args }), json!({ "browser": "ALL" }));
    json!({ "capabilities": { "alwaysMatch": {
        "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": log,
    } } })
}

/// The folder `page` beside the built binaries, for pictures.
///
/// # Panics
/// When it can't be made.
pub fn pictures() -> std::path::PathBuf {
    let folder = Path::new(&env::setting("TEST_BIN_DIR")).with_file_name("page");
    std::fs::create_dir_all(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}
