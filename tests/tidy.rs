//! Rules of the source tree that the compiler does not check: which module may use which crate,
//! what the pure core must not touch, and a few house rules. A rule that is not checked is not one.

use std::fs;
use std::path::{Path, PathBuf};

/// What a part of the tree may use besides `std`, and which other parts.
struct Layer {
    paths: &'static [&'static str],
    crates: &'static [&'static str],
    modules: &'static [&'static str],
    /// Words that may not occur: clocks, randomness, threads, files, sockets.
    banned: &'static [&'static str],
}

const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::thread",
    "std::net::Tcp",
    "std::net::Udp",
    "std::env",
    "tokio",
    "getrandom",
];

const LAYERS: &[Layer] = &[
    Layer {
        paths: &["wire"],
        crates: &["bytes", "thiserror"],
        modules: &["wire"],
        banned: IMPURE,
    },
    Layer {
        paths: &["machine", "watch"],
        crates: &["bytes", "prost", "foldhash", "hashbrown", "thiserror"],
        modules: &["wire", "proto", "machine", "watch"],
        banned: IMPURE,
    },
    Layer {
        paths: &["engine"],
        crates: &[
            "bytes",
            "prost",
            "raft",
            "slog",
            "parking_lot",
            "tracing",
            "base64",
            "sha1",
            "foldhash",
            "thiserror",
        ],
        modules: &["wire", "proto", "machine", "watch", "metrics", "engine"],
        banned: IMPURE,
    },
    Layer {
        paths: &["storage"],
        crates: &[
            "bytes",
            "prost",
            "parking_lot",
            "tracing",
            "sled",
            "zstd",
            "crc32c",
            "thiserror",
            "serde",
            "serde_json",
            "getrandom",
            "libc",
        ],
        modules: &["wire", "proto", "machine", "metrics", "engine", "storage"],
        banned: &["tokio"],
    },
];

const HOUSE_BANNED: &[&str] = &[
    "todo!(",
    "unimplemented!(",
    "dbg!(",
    "allow(dead_code)",
    "#[ignore",
    "FIXME",
];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The part before the unit tests, which may use more and may have a file of their own.
    fn program(&self) -> &str {
        if self.path.ends_with("tests.rs") {
            return "";
        }
        self.text.split("#[cfg(test)]").next().unwrap_or_default()
    }

    /// Numbered lines of the program without their comments.
    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self.program().lines().enumerate();
        numbered.map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
    }
}

#[expect(
    clippy::unwrap_used,
    reason = "a tree that cannot be read fails the test"
)]
fn sources(dir: &str) -> Vec<Source> {
    fn walk(dir: &Path, found: &mut Vec<Source>) {
        let mut entries: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path, text });
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut found);
    assert!(!found.is_empty(), "no sources in {dir}");
    found
}

#[expect(clippy::unwrap_used, reason = "sources are below src")]
fn in_layer(source: &Source, layer: &Layer) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let relative = source.path.strip_prefix(&root).unwrap();
    let first = relative
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    // Files of unit tests may use what tests use.
    layer.paths.contains(&first.trim_end_matches(".rs")) && !source.path.ends_with("tests.rs")
}

#[test]
fn modules_use_only_what_their_layer_may() {
    let mut broken = Vec::new();
    for source in sources("src") {
        for layer in LAYERS.iter().filter(|layer| in_layer(&source, layer)) {
            for (number, line) in source.code_lines() {
                let place = || format!("{}:{number}: {}", source.path.display(), line.trim());
                let trimmed = line.trim().trim_start_matches("pub ");
                if let Some(used) = trimmed.strip_prefix("use ") {
                    let root = used.split([':', ';', ' ']).next().unwrap_or_default();
                    let known = ["std", "super", "self", "crate"].contains(&root)
                        || layer.crates.contains(&root)
                        || root.chars().next().is_some_and(char::is_uppercase)
                        // `use code::…` of a module's own child.
                        || source.text.contains(&format!("mod {root};"));
                    if !known {
                        broken.push(place());
                    }
                }
                for module in line.split("crate::").skip(1) {
                    let module = module
                        .split(|c: char| !c.is_alphanumeric() && c != '_')
                        .next();
                    if module.is_some_and(|m| !m.is_empty() && !layer.modules.contains(&m)) {
                        broken.push(place());
                    }
                }
                if layer.banned.iter().any(|banned| line.contains(banned)) {
                    broken.push(place());
                }
            }
        }
    }
    assert!(
        broken.is_empty(),
        "the layers of the source tree:\n{}",
        broken.join("\n")
    );
}

#[test]
fn sources_follow_the_house_rules() {
    let mut broken = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        if source.path.ends_with("tests/tidy.rs") {
            continue;
        }
        let path = source.path.display();
        if !source.text.starts_with("//!") {
            broken.push(format!("{path}: does not start by saying what it is"));
        }
        for (index, line) in source.text.lines().enumerate() {
            if line.chars().count() > 100 {
                broken.push(format!("{path}:{}: longer than 100 columns", index + 1));
            }
            if let Some(word) = HOUSE_BANNED.iter().find(|word| line.contains(**word)) {
                broken.push(format!("{path}:{}: {word}", index + 1));
            }
        }
    }
    assert!(broken.is_empty(), "house rules:\n{}", broken.join("\n"));
}

#[test]
fn nothing_stands_at_the_top_that_does_not_belong_there() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "proto",
        "tests",
        "deploy",
        "README.md",
    ];
    // What the build and a server started here leave behind.
    let ignored = ["target", "zkraft-data"];
    for entry in fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let known = allowed.contains(&name.as_str()) || ignored.contains(&name.as_str());
        assert!(known || name.starts_with('.'), "{name} at the top level");
    }
}
