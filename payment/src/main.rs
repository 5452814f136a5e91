//! The payment service's process.

fn main() -> std::process::ExitCode {
    shared::service::main(shared::event::Service::Payment, payment::run)
}
