//! The order service's process.

fn main() -> std::process::ExitCode {
    let service = shared::event::Service::Order;
    shared::service::main(
        service,
        env!("CARGO_PKG_DESCRIPTION"),
        order::migrations,
        order::run,
    )
}
