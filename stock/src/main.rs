//! The stock service's process.

fn main() -> std::process::ExitCode {
    shared::service::main(shared::event::Service::Stock, stock::run)
}
