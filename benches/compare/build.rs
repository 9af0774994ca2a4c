//! Compiles the C++ half of the adaptor for Boost.Interprocess.

fn main() {
    println!("cargo:rerun-if-changed=src/peers/boost.cpp");
    #[cfg(feature = "boost")]
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .file("src/peers/boost.cpp")
        .compile("boost_queue");
    #[cfg(feature = "boost")]
    println!("cargo:rustc-link-lib=rt");
}
