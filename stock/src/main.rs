//! The stock service's process.

fn main() -> std::process::ExitCode {
    let service = shared::event::Service::Stock;
    shared::service::main(
        service,
        env!("CARGO_PKG_DESCRIPTION"),
        stock::migrations,
        stock::run,
    )
}
