//! Makes `MATRIX.md` of what the tests with foreign peers found, or checks that it says the same.

use anypath_interop_tests::peers::matrix;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Where the tests left their results, instead of `matrix` in the target directory.
    results: Option<PathBuf>,
    /// Writes MATRIX.md; without, it is compared.
    #[arg(long)]
    write: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("interop-matrix: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let results = arguments.results.clone().unwrap_or_else(matrix::results);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("MATRIX.md");
    let found = matrix::render(&matrix::read(&results)?);
    if arguments.write {
        std::fs::write(file, found)?;
        return Ok(true);
    }
    let written = std::fs::read_to_string(file)?;
    if written == found {
        return Ok(true);
    }
    eprintln!("MATRIX.md does not say what the tests found (--write writes it):");
    for line in written
        .lines()
        .filter(|line| !found.lines().any(|other| other == *line))
    {
        eprintln!("- {line}");
    }
    for line in found
        .lines()
        .filter(|line| !written.lines().any(|other| other == *line))
    {
        eprintln!("+ {line}");
    }
    Ok(false)
}
