//! The part of `protoc` that `prost-build` asks for.
//!
//! Reads `-I DIR`, `-o FILE` and the names of `.proto` files; writes a descriptor set with
//! all imports, as `protoc --include_imports --include_source_info -o FILE` does.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut includes, mut files, mut out) = (Vec::new(), Vec::new(), None);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--version" => {
                println!("libprotoc 31.0 (protox)");
                return Ok(());
            }
            "-I" => includes.push(PathBuf::from(args.next().ok_or("-I needs a directory")?)),
            "-o" => out = Some(PathBuf::from(args.next().ok_or("-o needs a file")?)),
            flag if flag.starts_with("-I") => includes.push(PathBuf::from(&flag[2..])),
            flag if flag.starts_with("--") => {} // --include_imports and its kin are the default here
            file => files.push(PathBuf::from(file)),
        }
    }
    let out = out.ok_or("-o FILE is missing")?;
    let set = protox::compile(files, includes)?;
    fs::write(out, set.encode_to_vec())?;
    Ok(())
}
