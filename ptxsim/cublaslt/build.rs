//! Gives the shared library the name under which programs look for cuBLASLt.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // A loader asked for "libcublasLt.so" takes a library already loaded under that SONAME.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcublasLt.so");
        // Programs load the library to see whether it is there, and unload it again; handles must outlive that.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
