//! The program `holdfast`, built where the end-to-end tests find it.

fn main() -> std::process::ExitCode {
    holdfast::cli::main()
}
