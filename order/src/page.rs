//! `GET /`: the page that shows the three services and eight topics at work, and lets one break things. It is served as
//! one answer without an outside address; whatever it runs bears a nonce that is new in each answer.

use std::sync::LazyLock;

use shared::config::Config;
use shared::http::{Method, Response, Routes};
use uuid::Uuid;

static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page/index.html")
        .replace("{{style}}", include_str!("page/style.css"))
        .replace("{{script}}", include_str!("page/script.js"))
});

/// Adds `GET /`: 200, the page, which calls this service, and payment and stock at the addresses in `config`.
pub fn routes(routes: Routes, config: &Config) -> Routes {
    let (payment, stock) = (config.payment_url.clone(), config.stock_url.clone());
    routes.route(Method::Get, "/", move |_| {
        Ok(page(&payment, &stock, &Uuid::new_v4().simple().to_string()))
    })
}

fn page(payment: &str, stock: &str, nonce: &str) -> Response {
    let services =
        data_block(&serde_json::json!({ "order": "", "payment": payment, "stock": stock }));
    let html = PAGE
        .replace("{{nonce}}", nonce)
        .replace("{{services}}", &services);
    Response::new(200, "text/html; charset=utf-8", html.into_bytes())
        .with_header("Content-Security-Policy", policy(payment, stock, nonce))
        .with_header("Referrer-Policy", "no-referrer")
}

/// Nothing but the page's own script and style; nothing reached but the three services. The last part has the browser
/// refuse text that a script would insert as HTML.
fn policy(payment: &str, stock: &str, nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self' {payment} {stock}; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
}

/// JSON as it may stand in a `<script>`: nothing in it can end the element.
fn data_block(value: &serde_json::Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_a_nonce_that_header_and_page_agree_on() {
        let answer = page(
            "http://127.0.0.1:8082",
            "https://stock.example.org",
            "n0nce",
        );
        let html = String::from_utf8(answer.body).unwrap();
        assert!(!html.contains("{{"), "something was not filled in");
        assert_eq!(
            html.matches("nonce=\"n0nce\"").count(),
            2,
            "one script, one style"
        );
        let policy = "default-src 'none'; script-src 'nonce-n0nce'; style-src 'nonce-n0nce'; connect-src 'self' \
                      http://127.0.0.1:8082 https://stock.example.org; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";
        assert_eq!(
            answer.headers[0],
            ("Content-Security-Policy", policy.to_string())
        );
    }

    #[test]
    fn the_page_has_no_outside_address_no_inline_style_and_no_inline_handler() {
        let tags = PAGE
            .split('<')
            .map(|tag| tag.split('>').next().unwrap_or_default());
        for tag in tags.filter(|tag| tag.starts_with(|c: char| c.is_ascii_alphabetic())) {
            assert!(!tag.contains(" style=") && !tag.contains(" on"), "<{tag}>");
        }
        let links =
            PAGE.matches("://").count() - PAGE.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(links, 0, "the page names an outside address");
    }

    #[test]
    fn what_the_page_is_given_can_not_end_its_block() {
        let block = data_block(&serde_json::json!({ "stock": "</script><script>" }));
        assert_eq!(block, r#"{"stock":"\u003c/script>\u003cscript>"}"#);
    }

    /// The two colours, light and dark, that the page's style gives this name.
    fn colours(name: &str) -> [u32; 2] {
        let (_, rest) = PAGE.split_once(&format!("--{name}: light-dark(#")).unwrap();
        let (light, dark) = rest.split_once(')').unwrap().0.split_once(", #").unwrap();
        [light, dark].map(|hex| u32::from_str_radix(hex, 16).unwrap())
    }

    /// WCAG 2.2, "relative luminance".
    fn luminance(colour: u32) -> f64 {
        let part = |shift: u32| f64::from((colour >> shift) & 0xff) / 255.0;
        let linear = |part: f64| {
            if part <= 0.04045 {
                part / 12.92
            } else {
                ((part + 0.055) / 1.055).powf(2.4)
            }
        };
        0.2126 * linear(part(16)) + 0.7152 * linear(part(8)) + 0.0722 * linear(part(0))
    }

    fn contrast(one: u32, other: u32) -> f64 {
        let (one, other) = (luminance(one) + 0.05, luminance(other) + 0.05);
        one.max(other) / one.min(other)
    }

    #[test]
    fn every_text_has_a_contrast_of_4_5_on_every_ground_and_every_border_of_a_control_3() {
        let on_grounds = |name: &'static str, wanted: f64| {
            ["surface", "sunken", "ground"].map(|ground| (name, ground, wanted))
        };
        let texts = ["text", "muted", "accent", "ok", "bad", "warn"]
            .into_iter()
            .flat_map(|name| on_grounds(name, 4.5));
        let others = on_grounds("edge", 3.0)
            .into_iter()
            .chain([("on-accent", "accent", 4.5)]);
        for (name, ground, wanted) in texts.chain(others) {
            for (colour, ground_colour) in colours(name).into_iter().zip(colours(ground)) {
                let found = contrast(colour, ground_colour);
                assert!(found >= wanted, "{name} on {ground}: {found:.2}");
            }
        }
    }
}
