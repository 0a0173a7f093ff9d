//! The migrations are embedded at compile time; a new one must cause a rebuild.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
