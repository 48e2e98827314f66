//! Gives the shared library the name under which programs look for the CUDA driver.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // A loader asked for "libcuda.so" takes a library already loaded under that SONAME.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
        // Programs load the driver, look whether it is there, and unload it again; the device's state must outlive that.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
