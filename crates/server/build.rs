//! Makes Rust of the `.proto` files, and a table of all services and methods that they name.

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

use prost_types::FileDescriptorSet;

const DIR: &str = "proto";

/// The files that define services. What they import comes along.
const FILES: [&str; 8] = [
    "kv.proto",
    "watch.proto",
    "lease.proto",
    "cluster.proto",
    "maintenance.proto",
    "auth.proto",
    "lock.proto",
    "election.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={DIR}");
    let descriptors = protox::compile(FILES, [DIR])?;

    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("services.rs"), services(&descriptors)?)?;

    // Keys and values as `Bytes`: they are slices of what the socket delivered.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}

/// A Rust array of `(service, [method, …])`, sorted by name.
fn services(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut table = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            let mut methods: Vec<&str> = service.method.iter().map(|m| m.name()).collect();
            methods.sort_unstable();
            table.push((name, methods));
        }
    }
    table.sort();

    let mut rust = String::from("&[\n");
    for (service, methods) in table {
        writeln!(rust, "    ({service:?}, &{methods:?}),")?;
    }
    rust.push(']');
    Ok(rust)
}
