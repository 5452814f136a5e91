//! The payment service's process.

fn main() -> std::process::ExitCode {
    let service = shared::event::Service::Payment;
    shared::service::main(
        service,
        env!("CARGO_PKG_DESCRIPTION"),
        payment::migrations,
        payment::run,
    )
}
