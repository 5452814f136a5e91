//! The order service's process.

fn main() -> std::process::ExitCode {
    shared::service::main(shared::event::Service::Order, order::run)
}
