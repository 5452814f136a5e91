//! The page of the order service, in a real browser where what is seen or done matters: `./run.sh proof`, or
//! `cargo test -p saga-tests --test saga page:: -- --include-ignored` with Chromium and chromedriver.

use harness::browser::{Browser, ENTER, TAB, pictures};
use harness::{Instance, Service, World, free_port, until};
use postgres::Client;
use uuid::Uuid;

struct Stage {
    world: World,
    order: Instance,
    payment: Instance,
    stock: Instance,
}

impl Stage {
    /// The three services, which know where the others and the page are, with a rich ann and many lamps.
    fn start(name: &str) -> Stage {
        let [order, payment, stock] = [free_port(), free_port(), free_port()];
        let [page, payment_url, stock_url] =
            [order, payment, stock].map(|port| format!("http://127.0.0.1:{port}"));
        let settings = [
            ("PAYMENT_URL", &*payment_url),
            ("STOCK_URL", &stock_url),
            ("CORS_ORIGINS", &page),
        ];
        let world = World::with(name, &settings);
        let start =
            |service, name, port: u16| world.start_with(service, &[(name, &port.to_string())]);
        let order = start(Service::Order, "ORDER_PORT", order);
        let payment = start(Service::Payment, "PAYMENT_PORT", payment);
        let stock = start(Service::Stock, "STOCK_PORT", stock);
        payment.api().put_balance("ann", 100_000);
        stock.api().put_quantity("lamp", 1_000);
        Stage {
            world,
            order,
            payment,
            stock,
        }
    }

    /// The page, once it shows that it reaches all three services.
    fn open(&self) -> Browser {
        let browser = Browser::open(&format!("http://127.0.0.1:{}/", self.order.port()));
        for service in Service::ALL {
            browser.wait_for(&format!("#service-{} .state", service.name()), "ready");
        }
        browser
    }
}

fn fill_order(browser: &Browser, price: &str) {
    browser.fill("#place-userName", "ann");
    browser.fill("#place-itemName", "lamp");
    browser.fill("#place-price", price);
}

/// Places an order by clicks and waits for its end in the words of the page.
fn place(browser: &Browser, price: &str, end: &str) {
    fill_order(browser, price);
    browser.click("#place button");
    browser.wait_for("#place-said", end);
    browser.wait_for(
        "#orders [aria-expanded=true] .status",
        end.split(", ").next().unwrap(),
    );
}

#[test]
fn the_page_may_run_nothing_but_its_own_script_and_reach_nothing_but_the_services() {
    let world = World::with("page_policy", &[("STOCK_URL", "https://stock.example.org")]);
    let order = world.start(Service::Order);
    let (first, second) = (order.api().get("/"), order.api().get("/"));
    assert_eq!(
        (first.status, first.header("content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    assert_eq!(first.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(first.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(first.header("cache-control"), Some("no-store"));
    let policy = first.header("content-security-policy").unwrap();
    let nonce = policy
        .split_once("script-src 'nonce-")
        .unwrap()
        .1
        .split_once('\'')
        .unwrap()
        .0;
    assert_eq!(
        policy,
        format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self' \
             http://127.0.0.1:8082 https://stock.example.org; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'; require-trusted-types-for 'script'"
        )
    );
    assert_eq!(
        first.text.matches(&format!("nonce=\"{nonce}\"")).count(),
        2,
        "one script, one style"
    );
    assert!(!second.text.contains(nonce), "a nonce is used once");
}

#[test]
#[ignore = "needs a browser: ./run.sh proof"]
fn one_sees_orders_settle_breaks_things_and_mends_them() {
    let stage = Stage::start("page_tour");
    let browser = stage.open();

    browser.wait_for("#admission", "New orders are accepted");
    browser.wait_for("#service-order .facts", "admission\nopen");
    place(&browser, "300", "completed");
    browser.wait_for("#orders .steps", "stored");
    browser.wait_for("#orders .steps", "payment.success-");
    browser.wait_for("#orders .steps", "stock.success-");
    until("counts at all four edges", || {
        let ends = browser.texts("#topics tr");
        ends.iter()
            .filter(|row| !row.contains("dlt") && !row.contains("compensation"))
            .all(|row| !row.contains("\t0\t"))
    });

    browser.fill("#account-userName", "ann");
    browser.click("#account [data-do=empty]");
    browser.wait_for("#account-said", "ann: balance is now 0");
    place(&browser, "300", "failed, insufficient balance");
    assert_eq!(stage.payment.api().found("/accounts/ann")["balance"], 0);
    browser.wait_for("#orders [aria-expanded=true] .sides", "stock compensated");
    assert_eq!(stage.stock.api().found("/items/lamp")["quantity"], 999);

    browser.fill("#account-balance", "5000");
    browser.click("#account button:not([type])");
    browser.wait_for("#account-said", "ann: balance is now 5,000");
    assert_eq!(browser.console(), Vec::<String>::new());
}

#[test]
#[ignore = "needs a browser: ./run.sh proof"]
fn a_dead_letter_is_replayed_by_a_click_and_another_discarded_with_a_reason() {
    let stage = Stage::start("page_letters");
    let browser = stage.open();
    let mut db = stage.world.db(Service::Order);

    let mended = park_an_answer(&stage, &mut db);
    browser.wait_for("#service-order .facts", "dead letters\n1");
    browser.fill("#actor", "Zoë");
    browser.click("#letters li [aria-label^=Replay]");
    browser.wait_for("#letters-said", "applied");
    browser.wait_for("#no-letters", "There are none.");
    assert_eq!(
        stage.order.api().settled(mended)["orderStatus"],
        "COMPLETED"
    );

    park_an_answer(&stage, &mut db);
    browser.click("#letters li [aria-label^=Discard]");
    browser.click("#letters li form button");
    browser.wait_for("#letters li .wrong", "must have 1 to 500 characters");
    browser.fill("#letters li form input", "<b>it was a test</b>");
    browser.press(ENTER);
    browser.wait_for("#letters-said", "discarded");
    browser.wait_for("#no-letters", "There are none.");
    browser.run(
        "document.querySelector('#letters-state').value = 'DISCARDED'; \
                 document.querySelector('#letters-state').dispatchEvent(new Event('change'))",
    );
    browser.wait_for("#letters li", "<b>it was a test</b>");
    let actions = "select actor from dead_letter_action order by at";
    let actors: Vec<String> = db
        .query(actions, &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(actors, ["Zoë", "Zoë"]);
    // the refused reason, and nothing else
    let console = browser.console();
    assert!(
        console
            .iter()
            .all(|line| line.contains("/discard") && line.contains("422")),
        "{console:#?}"
    );
}

/// An order whose payment's answer could not be handled and is parked at order; it can be handled since.
fn park_an_answer(stage: &Stage, db: &mut Client) -> Uuid {
    db.batch_execute(
        "create function fail() returns trigger language plpgsql as
         $$ begin raise exception 'made to fail' using errcode = '23514'; end $$;
         create trigger fail before update on orders for each row
         when (new.payment_status = 'COMPLETED') execute function fail()",
    )
    .unwrap();
    let order_id = stage.order.api().place("ann", "lamp", 1, 1);
    let parked = "select count(*) from dead_letter where convert_from(record_key, 'UTF8') = $1";
    until("a parked record", || {
        db.query_one(parked, &[&order_id.to_string()])
            .unwrap()
            .get::<_, i64>(0)
            == 1
    });
    db.batch_execute("drop trigger fail on orders; drop function fail")
        .unwrap();
    order_id
}

#[test]
#[ignore = "needs a browser: ./run.sh proof"]
fn the_keyboard_alone_places_an_order_and_opens_its_timeline() {
    let stage = Stage::start("page_keys");
    let browser = stage.open();
    browser.press(TAB);
    assert_eq!(
        browser.run("return document.activeElement.innerText"),
        "Skip to the content"
    );
    browser.press(ENTER);
    assert_eq!(browser.run("return document.activeElement.id"), "main");
    tab_to(&browser, "place-userName");
    for text in ["ann", "lamp", "300", "2", "1"] {
        // what a field holds is selected when one comes to it by keyboard
        browser.press(text);
        browser.press(TAB);
    }
    assert_eq!(
        browser.run("return document.activeElement.innerText"),
        "Place order"
    );
    browser.press(ENTER);
    browser.wait_for("#place-said", "completed");
    assert_eq!(
        browser.run("return document.activeElement.innerText"),
        "Place order",
        "the focus stays"
    );

    tab_to(&browser, "find-id");
    browser.press(TAB);
    browser.press(TAB);
    assert_eq!(
        browser.run("return document.activeElement.getAttribute('aria-expanded')"),
        "true"
    );
    browser.press(ENTER);
    assert_eq!(
        browser.run("return document.activeElement.getAttribute('aria-expanded')"),
        "false"
    );
    browser.press(ENTER);
    browser.wait_for("#orders .steps", "payment.success-");
    assert_eq!(stage.stock.api().found("/items/lamp")["quantity"], 998);
    assert_eq!(browser.console(), Vec::<String>::new());
}

fn tab_to(browser: &Browser, id: &str) {
    // far more than there are controls
    let found = (0..50).any(|_| {
        browser.press(TAB);
        browser.run("return document.activeElement.id") == id
    });
    assert!(found, "the tabulator never comes to {id}");
}

#[test]
#[ignore = "needs a browser: ./run.sh proof"]
fn every_control_has_a_name_and_the_page_fits_every_screen() {
    let stage = Stage::start("page_looks");
    let mut db = stage.world.db(Service::Order);
    let browser = stage.open();
    park_an_answer(&stage, &mut db);
    browser.fill("#place-count", "40");
    fill_order(&browser, "10");
    browser.click("#place button");
    browser.wait_for("#place-said", "40 completed");
    browser.fill("#place-count", "1");
    place(&browser, "900000", "failed, insufficient balance");
    browser.wait_for("#orders .steps", "payment.dlt-");
    browser.wait_for("#letters li", "payment.success-");

    browser.click("details summary");
    browser.click("#letters li [aria-label^=Discard]");
    browser.click("#letters li [aria-label^=Show]");
    browser.wait_for("#letters li pre", "payment.completed");
    let controls = browser
        .names(":is(input, select, button, summary, section, article, main, svg, [role=region]):not([hidden] *)");
    assert!(controls.len() > 45, "{controls:#?}");
    for (name, html) in controls {
        assert!(
            !name.trim().is_empty() || html.starts_with("<main"),
            "without a name: {html}"
        );
    }
    browser.prefer("light");
    for width in [360, 768, 1100, 1440, 2200] {
        browser.resize(width, 900);
        let wide = browser
            .run("return document.documentElement.scrollWidth")
            .as_u64()
            .unwrap();
        assert!(
            wide <= u64::from(width),
            "{wide} pixels wide on a screen of {width}"
        );
    }
    for (name, scheme, width) in [
        ("light", "light", 1440),
        ("dark", "dark", 1440),
        ("narrow", "light", 360),
    ] {
        browser.prefer(scheme);
        browser.save_picture(width, &pictures().join(format!("{name}.png")));
    }
    assert_eq!(browser.console(), Vec::<String>::new());
}

#[test]
#[ignore = "needs a browser: ./run.sh proof"]
fn a_service_that_is_away_is_shown_so_and_comes_back_by_itself() {
    let stage = Stage::start("page_away");
    let browser = stage.open();
    stage.payment.kill();
    browser.wait_for("#service-payment .state", "away");
    browser.wait_for("#service-stock .state", "ready");
    until("its topics to be shown as not known", || {
        browser.run("return document.querySelectorAll('.edge[data-stale=true]').length") == 2
    });
    let port = stage.payment.port().to_string();
    let back = stage
        .world
        .start_with(Service::Payment, &[("PAYMENT_PORT", &port)]);
    browser.wait_for("#service-payment .state", "ready");
    place(&browser, "300", "completed");
    assert_eq!(back.api().found("/accounts/ann")["balance"], 99_700);
}
