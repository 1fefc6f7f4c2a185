//! Generates the Rust types of the formats that are ours, without `protoc`.

fn main() {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "proto/log.proto",
        "proto/peer.proto",
        "proto/snapshot.proto",
    ];
    let descriptors = protox::compile(files, ["proto"]).expect("proto files compile");
    prost_build::Config::new()
        .bytes(["."]) // Bytes, not Vec<u8>: decoding borrows from the frame.
        .compile_fds(descriptors)
        .expect("code is generated");
}
